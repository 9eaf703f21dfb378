// A layer's weights as the ops are given them: w_ih, w_hh, the biases if there are some, w_hr if
// the layer is projected, for one direction after the other. Part of the op layer, like
// layer_ops.cpp.
#pragma once

#include <vector>

#include "tensors.h"

namespace fusedrnn {

// What messages call the i-th weight.
inline const char* weight_name(std::size_t i, std::size_t per_direction, bool has_biases) {
  static constexpr const char* kNames[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
  i %= per_direction;
  return i < (has_biases ? 4 : 2) ? kNames[i] : "w_hr";
}

// Checks that they are as many and as large as cell, I and directions ask for; sets H and P.
inline void check_weights(const std::vector<Tensor>& weights, bool has_biases, Shape& s) {
  const int64_t plain = has_biases ? 4 : 2;
  const int64_t per_direction = static_cast<int64_t>(weights.size()) / s.directions;
  const bool projected = per_direction == plain + 1;
  FUSEDRNN_CHECK(static_cast<int64_t>(weights.size()) == s.directions * (plain + projected),
                 "weights: expected ", plain,
                 " tensors per direction (and one more if projected), got ", weights.size(),
                 " in all");
  FUSEDRNN_CHECK(!projected || s.cell == Cell::lstm, "weights: only an LSTM can be projected");
  const Tensor &w_ih = weights[0], &w_hh = weights[1];
  const int64_t gates = gates_of(s.cell);
  FUSEDRNN_CHECK(w_ih.dim() == 2 && w_ih.size(0) > 0 && w_ih.size(0) % gates == 0,
                 "w_ih: expected shape [", gates, " * hidden_size, ", s.I, "], got ",
                 to_string(sizes_of(w_ih)));
  FUSEDRNN_CHECK(w_hh.dim() == 2, "w_hh: expected two dimensions, got shape ",
                 to_string(sizes_of(w_hh)));
  s.H = w_ih.size(0) / gates;
  s.P = projected ? w_hh.size(1) : 0;
  FUSEDRNN_CHECK(!projected || s.P > 0, "w_hr: expected at least one projected value");
  for (int d = 0; d < s.directions; ++d) {
    const Tensor* const w = &weights[static_cast<std::size_t>(d * per_direction)];
    check_sizes("w_ih", w[0], {gates * s.H, s.I});
    check_sizes("w_hh", w[1], {gates * s.H, s.R()});
    if (has_biases) {
      check_sizes("b_ih", w[2], {gates * s.H});
      check_sizes("b_hh", w[3], {gates * s.H});
    }
    if (projected) check_sizes("w_hr", w[per_direction - 1], {s.P, s.H});
  }
}

// Where those of a direction are, which check_weights has passed and `dense` made contiguous.
inline Weights weights_at(const std::vector<Tensor>& weights, bool has_biases, const Shape& s,
                          int direction) {
  const std::size_t per_direction = weights.size() / static_cast<std::size_t>(s.directions);
  const std::size_t first = static_cast<std::size_t>(direction) * per_direction;
  const auto at = [&](std::size_t i) {
    return data_of(weight_name(i, per_direction, has_biases), weights[first + i]);
  };
  Weights found;
  found.w_ih = at(0), found.w_hh = at(1);
  if (has_biases) found.b_ih = at(2), found.b_hh = at(3);
  if (s.P) found.w_hr = at(per_direction - 1);
  return found;
}

}  // namespace fusedrnn
