// Kernels over plain arrays: conversion between storage and sums, states before steps, and sums
// over rows.
#pragma once

#include "cells/list.h"
#include "gpu.cuh"
#include "launch.cuh"
#include "modifiers.cuh"

namespace fusedrnn::cuda {

template <class To, class From>
__global__ void __launch_bounds__(kBlockThreads)
    convert_all(const From* from, To* to, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) narrow(widen(from[i]), to[i]);
}

template <class To, class From>
void convert(const From* from, To* to, int64_t count, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>((count + kBlockThreads - 1) / kBlockThreads);
  launch("conversion", convert_all<To, From>, dim3(blocks), dim3(kBlockThreads), stream, from, to,
         count);
}

// What W_hh multiplied at each step in the order of the output's rows, for its gradient: the output
// of the step before, hx or reset states, times their factor. The grid is steps, directions, and
// sequences, of which a block has some.
template <class E>
struct StatesBefore {
  int T = 0, B = 0, H = 0, y_row = 0;
  const int64_t* offsets = nullptr;  // [T + 1], packed only
  struct Direction {
    const E* y = nullptr;   // rows of y_row
    const E* hx = nullptr;  // [B][H] or null: zeros
    E* to = nullptr;        // [rows][H]
    DirectionModifiers<E> modifiers;
  } direction[kMaxDirections];
};

template <class E>
__global__ void __launch_bounds__(kBlockThreads)
    store_before(const __grid_constant__ StatesBefore<E> a) {
  const auto row_of = [&](int t) { return a.offsets ? a.offsets[t] : int64_t{t} * a.B; };
  const int t = static_cast<int>(blockIdx.x), before = blockIdx.y == 0 ? t - 1 : t + 1;
  const bool has_before = before >= 0 && before < a.T;
  const int64_t row = row_of(t), alive = row_of(t + 1) - row;
  const int64_t from = has_before ? row_of(before) : 0;
  const int64_t continued = has_before ? row_of(before + 1) - from : 0;
  const auto& d = a.direction[blockIdx.y];
  const auto& m = d.modifiers;
  const int after = blockIdx.y == 0 ? t : t + 1;  // a boundary, if there is one
  const int64_t going_on = m.reset && after < a.T ? row_of(after + 1) - row_of(after) : 0;
#pragma unroll 1
  for (int64_t b = blockIdx.z; b < alive; b += gridDim.z) {
    const E* from_row = b < continued ? d.y + (from + b) * a.y_row
                        : d.hx        ? d.hx + b * a.H
                                      : nullptr;
    if (b < going_on && *m.reset.at(after, b))
      from_row = m.reset_states[0] ? m.reset_states[0].at(after, b) : nullptr;
    const E* const factor = m.recurrent_factor ? m.recurrent_factor.at(t, b) : nullptr;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < a.H; i += static_cast<int>(blockDim.x)) {
      E h;
      narrow(0, h);
      if (from_row) h = from_row[i];
      if (factor) narrow(widen(h) * widen(factor[i]), h);
      d.to[(row + b) * a.H + i] = h;
    }
  }
}

// Sums over rows in two launches, in an order that depends only on the sizes. A block has 32
// columns and one slice of the rows, of which each of its 8 warps adds every eighth; the second
// launch adds the slices.
//
//   matrix [rows][columns] -> partial [slices][columns] -> sums
constexpr int kSumColumns = 32, kSumWarps = 8;
constexpr int64_t kMostSlices = 64, kSliceRows = 128;

constexpr int64_t slices_of(int64_t rows) {
  const int64_t slices = div_up(rows, kSliceRows);
  return slices < kMostSlices ? slices : kMostSlices;
}

template <class E>
__global__ void __launch_bounds__(kSumColumns* kSumWarps)
    sum_slices(const E* matrix, int64_t rows, int64_t columns, Sum<E>* partial) {
  FUSEDRNN_SHARED(Sum<E>, sums, [kSumWarps][kSumColumns]);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + threadIdx.x;
  Sum<E> sum = 0;
  if (column < columns)
    for (int64_t row = static_cast<int64_t>(blockIdx.y) * kSumWarps + threadIdx.y; row < rows;
         row += static_cast<int64_t>(gridDim.y) * kSumWarps)
      sum += widen(matrix[row * columns + column]);
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  sum = sums[0][threadIdx.x];
#pragma unroll
  for (int warp = 1; warp < kSumWarps; ++warp) sum += sums[warp][threadIdx.x];
  partial[blockIdx.y * columns + column] = sum;
}

// Gradients of biases and unit weights from the sums. A gradient has H columns; stepwise/order.h
// has their order.
template <class E>
struct RowSums {
  const Sum<E>* partial = nullptr;  // [slices][columns]
  int64_t slices = 0, columns = 0, H = 0;
  int products = 0, first_unit = 0;              // gradients: those of products come first
  signed char gate_of_product[kMostGates] = {};  // of b_hh
  signed char input_of[kMostGrads] = {};         // 1 + the gate of b_ih, or 0
  E* b_ih = nullptr;                             // [G*H] or null
  E* b_hh = nullptr;
  E* w_unit = nullptr;  // [unit weights][H] or null
};

template <class E>
__global__ void __launch_bounds__(kBlockThreads) store_sums(const __grid_constant__ RowSums<E> a) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= a.columns) return;
  Sum<E> sum = 0;
  for (int64_t slice = 0; slice < a.slices; ++slice) sum += a.partial[slice * a.columns + column];
  const int gradient = static_cast<int>(column / a.H);
  const int64_t unit = column - gradient * a.H;
  if (gradient >= a.first_unit) {
    if (a.w_unit) narrow(sum, a.w_unit[(gradient - a.first_unit) * a.H + unit]);
    return;
  }
  if (a.b_hh && gradient < a.products)
    narrow(sum, a.b_hh[a.gate_of_product[gradient] * a.H + unit]);
  const int input = a.input_of[gradient];
  if (a.b_ih && input) narrow(sum, a.b_ih[(input - 1) * a.H + unit]);
}

}  // namespace fusedrnn::cuda
