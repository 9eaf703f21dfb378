// Rows of sequences of unequal lengths (fusedrnn/_engine/sequences.py), on the CPU: where they go
// when they are packed, and moving them by all threads. torch's indexing takes longer for both than
// a layer of a small network.
//
// Part of the op layer, like layer_ops.cpp.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <tuple>
#include <vector>

#include "cpu/fork.h"
#include "environment.h"
#include "tensors.h"
#include "threads.h"

namespace fusedrnn {
namespace {

// The int64 values of a vector on the CPU.
const int64_t* numbers_of(const char* name, const Tensor& t) {
  FUSEDRNN_CHECK(
      t.is_cpu() && t.scalar_type() == ScalarType::Long && t.dim() == 1 && t.is_contiguous(), name,
      ": expected contiguous int64 of one dimension on the CPU, got ", dtype_name(t), " of shape ",
      to_string(sizes_of(t)), " on ", device_of(t));
  return static_cast<const int64_t*>(data_of(name, t));
}

int64_t* new_numbers(int64_t n, const Tensor& like, Tensor& to) {
  to = new_tensor({n}, like);
  return static_cast<int64_t*>(to.data_ptr());
}

// Packs sequences, longest first, step by step: sequence b has the rows `first[b] + t * stride` of
// `count`. Returns how many there are at each step, the order of those that have a step, the row
// that each packed one is, and the place that each row gets, which is one past the last if none.
std::tuple<Tensor, Tensor, Tensor, Tensor> pack_rows(const Tensor& lengths, const Tensor& first,
                                                     int64_t stride, int64_t count) {
  check_environment();
  const int64_t* const length = numbers_of("lengths", lengths);
  const int64_t* const row = numbers_of("first", first);
  const int64_t batch = lengths.numel();
  FUSEDRNN_CHECK(first.numel() == batch, "first: expected one row for each of ", batch,
                 " sequences, got ", first.numel());
  FUSEDRNN_CHECK(stride > 0 && count >= 0, "stride, count: expected positive ones, got ", stride,
                 ", ", count);
  int64_t total = 0, steps = 0;
  for (int64_t b = 0; b < batch; ++b) {
    int64_t last = 0;
    FUSEDRNN_CHECK(
        length[b] >= 0 && (length[b] == 0 ||
                           (row[b] >= 0 && !__builtin_mul_overflow(length[b] - 1, stride, &last) &&
                            !__builtin_add_overflow(last, row[b], &last) && last < count)),
        "lengths: expected rows within ", count, ", got ", length[b], " steps from row ", row[b]);
    total += length[b];
    steps = std::max(steps, length[b]);
  }
  FUSEDRNN_CHECK(total <= count, "lengths: expected ", count, " rows at most, got ", total);

  std::vector<int64_t> sorted(static_cast<std::size_t>(batch));
  std::iota(sorted.begin(), sorted.end(), 0);
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](int64_t a, int64_t b) { return length[a] > length[b]; });
  int64_t alive = batch;
  while (alive > 0 && length[sorted[static_cast<std::size_t>(alive - 1)]] == 0) --alive;

  Tensor sizes, order, rows, places;
  int64_t* const size = new_numbers(steps, lengths, sizes);
  std::copy_n(sorted.begin(), alive, new_numbers(alive, lengths, order));
  int64_t* const from = new_numbers(total, lengths, rows);
  int64_t* const place = new_numbers(count, lengths, places);
  std::fill_n(place, count, total);
  for (int64_t t = 0, at = 0; t < steps; ++t) {
    while (length[sorted[static_cast<std::size_t>(alive - 1)]] <= t) --alive;
    size[t] = alive;
    for (int64_t i = 0; i < alive; ++i, ++at) {
      from[at] = row[sorted[static_cast<std::size_t>(i)]] + t * stride;
      FUSEDRNN_CHECK(place[from[at]] == total,
                     "first: expected rows of one sequence each, got row ", from[at], " in two");
      place[from[at]] = at;
    }
  }
  return {std::move(sizes), std::move(order), std::move(rows), std::move(places)};
}

struct Moving {
  static constexpr int64_t kBlock = 64;  // rows that a thread moves at once

  const char* from;
  char* to;
  const int64_t* sources;
  int64_t n, count;  // rows of the result, and given
  int64_t outer, inner,
      width;  // bytes between the rows (i, j) and (i + 1, j), (i, j + 1); of a row
  int64_t inner_count;

  static void run(int64_t first_block, int64_t end_block, void* moving) {
    const Moving m = *static_cast<const Moving*>(moving);
    const int64_t end = std::min(end_block * kBlock, m.n);
    const std::size_t width = static_cast<std::size_t>(m.width);
    for (int64_t i = first_block * kBlock; i < end; ++i) {
      const int64_t source = m.sources[i];
      char* const to = m.to + i * m.width;
      if (source == m.count)
        std::memset(to, 0, width);
      else
        std::memcpy(to,
                    m.from + source / m.inner_count * m.outer + source % m.inner_count * m.inner,
                    width);
    }
  }
};

// Row i of the result is row `sources[i]`, or zeros if that is one past the last. The rows are
// [M, F], or [T, B, F] with any strides but the last.
Tensor move_rows(const Tensor& given, const Tensor& sources) {
  check_environment();
  FUSEDRNN_CHECK(given.is_cpu() && (given.dim() == 2 || given.dim() == 3),
                 "rows: expected 2 or 3 dimensions on the CPU, got shape ",
                 to_string(sizes_of(given)), " on ", device_of(given));
  const bool has_rows = given.numel() == 0 || given.size(-1) == 1 || given.stride(-1) == 1;
  const Tensor rows = has_rows ? given : dense("rows", given);
  const bool nested = rows.dim() == 3;
  const int64_t inner_count = rows.size(nested ? 1 : 0);
  const int64_t element = static_cast<int64_t>(rows.element_size());
  Moving m{static_cast<const char*>(data_of("rows", rows)),
           nullptr,
           numbers_of("sources", sources),
           sources.numel(),
           nested ? rows.size(0) * inner_count : inner_count,
           nested ? rows.stride(0) * element : 0,
           rows.stride(nested ? 1 : 0) * element,
           rows.size(-1) * element,
           std::max<int64_t>(inner_count, 1)};
  for (int64_t i = 0; i < m.n; ++i)
    FUSEDRNN_CHECK(m.sources[i] >= 0 && m.sources[i] <= m.count, "sources: expected 0 to ", m.count,
                   ", got ", m.sources[i], " at ", i);
  Tensor moved = new_pooled("rows", {m.n, rows.size(-1)}, rows);
  m.to = static_cast<char*>(moved.data_ptr());
  const int64_t blocks = m.width ? div_up(m.n, Moving::kBlock) : 0;
  if (blocks <= 1 || cpu::is_forked())
    Moving::run(0, blocks, &m);
  else
    parallel_for(blocks, Moving::run, &m);
  return moved;
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_FRAGMENT(fusedrnn, m) {
  m.def(
      "pack_rows(Tensor lengths, Tensor first, int stride, int count) -> "
      "(Tensor batch_sizes, Tensor order, Tensor rows, Tensor places)");
  m.def("move_rows(Tensor rows, Tensor sources) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("pack_rows", TORCH_BOX(&fusedrnn::pack_rows));
  m.impl("move_rows", TORCH_BOX(&fusedrnn::move_rows));
}
