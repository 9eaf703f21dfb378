// The register tiles of layers with int8 weights: exact sums of products, which are then scaled
// and, in a step, go straight through the cell.
#pragma once

#include "cells/cell.h"
#include "int8.h"
#include "tile.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// A matrix in the quantized buffer.
struct QuantizedMatrix {
  const int8_t* panels = nullptr;
  const int32_t* starts = nullptr;
  const float* scales = nullptr;
  int64_t slots = 0, quads = 0;

  QuantizedMatrix() = default;
  QuantizedMatrix(const char* buffer, const QuantizedPlace& place)
      : panels(reinterpret_cast<const int8_t*>(buffer + place.panels)),
        starts(reinterpret_cast<const int32_t*>(buffer + place.starts)),
        scales(reinterpret_cast<const float*>(buffer + place.scales)),
        slots(place.slots),
        quads(place.quads) {}

  FUSEDRNN_INLINE const int8_t* panel(int64_t unit) const {
    return panels +
           (unit / kHiddenPadding * quads * slots * kHiddenPadding + unit % kHiddenPadding) * kQuad;
  }
  FUSEDRNN_INLINE int64_t at(int64_t slot, int64_t unit) const {
    return (unit / kHiddenPadding * slots + slot) * kHiddenPadding + unit % kHiddenPadding;
  }
};

// Rows of quantised activations, from a tile's first row on.
struct QuantizedRows {
  const uint8_t* values;
  int64_t stride;
  const float* scales;
};

// out[r][slot * NV + v] = rows[r] . the panels of NV vectors from `unit` on; exact.
template <int R, int S, int NV>
FUSEDRNN_INLINE void multiply_quantized(Sums (&out)[R][S * NV], const QuantizedRows& rows,
                                        const QuantizedMatrix& m, int64_t unit) {
  constexpr int N = S * NV, kQuadBytes = S * kHiddenPadding * kQuad;
  constexpr int64_t L = kLanes<float>;
  // One row's chains of sums are too few to hide the latency of an instruction.
  constexpr int kChains = R == 1 ? (kAccumulators == 24 ? 4 : 2) : 1;
  const int8_t* w[NV];
  Sums chain[kChains][R][N] = {};
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    w[v] = m.panel(unit + v * L);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        chain[0][r][s * NV + v] = load_sums(m.starts + m.at(s, unit + v * L));
  }
  const auto add_quads = [&](int64_t q, int j) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const QuadsOfUnits units(w[n % NV] + q * kQuadBytes + n / NV * kHiddenPadding * kQuad);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        chain[j][r][n] = add_products(chain[j][r][n],
                                      QuadOfRow(rows.values + r * rows.stride + q * kQuad), units);
    }
  };
  int64_t q = 0;
  for (; q + kChains <= m.quads; q += kChains)
#pragma GCC unroll 4
    for (int j = 0; j < kChains; ++j) add_quads(q + j, j);
  for (; q < m.quads; ++q) add_quads(q, 0);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      out[r][n] = chain[0][r][n];
#pragma GCC unroll 4
      for (int j = 1; j < kChains; ++j) out[r][n] += chain[j][r][n];
    }
}

// Scales the sums to the products that they stand for, and adds these to `to`.
FUSEDRNN_INLINE Vec<float> add_scaled(Vec<float> to, Sums sums, float row, const float* units) {
  return Math<float>::multiply_add(__builtin_convertvector(sums, Vec<float>), row * load(units),
                                   to);
}

// out = bias + rows * matrix, for all slots of some vectors of units.
struct QuantizedLinear {
  QuantizedRows rows;
  QuantizedMatrix matrix;
  const float* bias;  // slots bias_slot apart; null: zeros
  float* out;
  int64_t unit, bias_slot, out_row, out_slot;
  int64_t units;  // valid ones in the last vector
};

template <int R, int S, int NV>
__attribute__((noinline)) void quantized_linear(const QuantizedLinear& t) {
  constexpr int64_t L = kLanes<float>;
  Sums sums[R][S * NV];
  multiply_quantized<R, S, NV>(sums, t.rows, t.matrix, t.unit);
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      const int64_t unit = t.unit + v * L;
      const float* const scales = t.matrix.scales + t.matrix.at(s, unit);
      const Vec<float> start = t.bias ? load(t.bias + s * t.bias_slot + unit) : Vec<float>{};
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        store_n(t.out + r * t.out_row + s * t.out_slot + unit,
                add_scaled(start, sums[r][s * NV + v], t.rows.scales[r], scales),
                v == NV - 1 ? t.units : L);
    }
}

// One tile of a step: rows x some vectors of units.
struct QuantizedGates {
  QuantizedRows rows;
  QuantizedMatrix matrix;
  const float* gates;  // the input's projection
  const float* hidden_bias;
  const float* h_prev;
  float* states[kMaxStates];  // those after h, from index 1 on
  float* h;
  int64_t unit, gates_row, gates_slot, h_prev_row, state_row, h_row;
  int64_t units;  // valid ones in the last vector
};

template <class C, int R, int NV>
__attribute__((noinline)) void quantized_gates(const QuantizedGates& t) {
  constexpr int64_t L = kLanes<float>;
  constexpr int S = C::products;
  Sums sums[R][S * NV];
  multiply_quantized<R, S, NV>(sums, t.rows, t.matrix, t.unit);
  using P = Rows<float, R>;
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    const int64_t at = t.unit + v * L, valid = v == NV - 1 ? t.units : L;
    Forward<C, P> unit;
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const float* const scales = t.matrix.scales + t.matrix.at(s, at);
      const int input = C::input_of_product(s);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec<float> start = load(
            input < 0 ? t.hidden_bias + at : t.gates + r * t.gates_row + input * t.gates_slot + at);
        unit.product[s].at[r] = add_scaled(start, sums[r][s * NV + v], t.rows.scales[r], scales);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if constexpr (C::late > 0)
        unit.late[0].at[r] = load(t.gates + r * t.gates_row + (C::inputs - 1) * t.gates_slot + at);
      if constexpr (C::has_carry)
        unit.h_prev.at[r] = load_n(t.h_prev + r * t.h_prev_row + at, valid);
#pragma GCC unroll 8
      for (int i = 1; i < C::states; ++i)
        unit.state[i - 1].at[r] = load_n(t.states[i] + r * t.state_row + at, valid);
    }
    C::template forward<RowsMath<float, R>>(unit);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 1; i < C::states; ++i)
        store_n(t.states[i] + r * t.state_row + at, unit.state[i - 1].at[r], valid);
      store_n(t.h + r * t.h_row + at, unit.result.at[r], valid);
    }
  }
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
