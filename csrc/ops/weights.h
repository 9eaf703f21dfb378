// A layer's weights as the ops are given them, one list:
//
//   for each direction   w_ih  w_hh  | b_ih  b_hh  | w_hr           | w_unit
//                                      if biases     if projected     if the cell has unit weights
//
// `roles_of` is the one place that says so (fusedrnn/cells.py says the same in Python). What a
// weight is follows from its role, never from how many weights there are. Part of the op layer,
// like layer_ops.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensors.h"

namespace fusedrnn {

enum class Role { w_ih, w_hh, b_ih, b_hh, w_hr, w_unit };
constexpr int kRoles = 6;

constexpr const char* name_of(Role role) {
  switch (role) {
    case Role::w_ih: return "w_ih";
    case Role::w_hh: return "w_hh";
    case Role::b_ih: return "b_ih";
    case Role::b_hh: return "b_hh";
    case Role::w_hr: return "w_hr";
    case Role::w_unit: return "w_unit";
  }
  return "";
}

template <class T>
constexpr T*& weight_of(ByRole<T>& weights, Role role) {
  switch (role) {
    case Role::w_ih: return weights.w_ih;
    case Role::w_hh: return weights.w_hh;
    case Role::b_ih: return weights.b_ih;
    case Role::b_hh: return weights.b_hh;
    case Role::w_hr: return weights.w_hr;
    case Role::w_unit: break;
  }
  return weights.w_unit;
}

// The roles of one direction's weights, in their order.
class Roles {
 public:
  void add(Role role) { roles_[count_++] = role; }
  int64_t count() const { return count_; }
  const Role* begin() const { return roles_; }
  const Role* end() const { return roles_ + count_; }

 private:
  Role roles_[kRoles] = {};
  int count_ = 0;
};

inline Roles roles_of(const Facts& facts, bool biases, bool projected) {
  Roles roles;
  roles.add(Role::w_ih), roles.add(Role::w_hh);
  if (biases) roles.add(Role::b_ih), roles.add(Role::b_hh);
  if (projected) roles.add(Role::w_hr);
  if (facts.unit_weights) roles.add(Role::w_unit);
  return roles;
}

inline std::string to_string(const Roles& roles) {
  std::string text;
  for (const Role role : roles) text += (text.empty() ? "" : ", ") + std::string(name_of(role));
  return text;
}

// Calls f(role, i, direction) for each of a layer's weights; i counts all of them.
template <class F>
void for_each_weight(const Roles& roles, int directions, const F& f) {
  std::size_t i = 0;
  for (int d = 0; d < directions; ++d)
    for (const Role role : roles) f(role, i++, d);
}

inline void check_weight_size(Role role, const Tensor& w, const Shape& s) {
  const char* const name = name_of(role);
  switch (role) {
    case Role::w_ih: return check_sizes(name, w, {s.input_rows(), s.I});
    case Role::w_hh: return check_sizes(name, w, {s.hidden_rows(), s.R()});
    case Role::b_ih: return check_sizes(name, w, {s.input_rows()});
    case Role::b_hh: return check_sizes(name, w, {s.hidden_rows()});
    case Role::w_hr: return check_sizes(name, w, {s.P, s.H});
    case Role::w_unit: return check_sizes(name, w, {int64_t{s.facts().unit_weights}, s.H});
  }
}

// Checks that all roles have a weight, of the size that cell, I and directions ask for; sets H
// and P.
inline void check_weights(const std::vector<Tensor>& weights, const Roles& roles, bool projected,
                          Shape& s) {
  const Facts& facts = s.facts();
  FUSEDRNN_CHECK(!projected || facts.projects, "projected: the cell ", facts.names.cell,
                 " cannot be projected");
  FUSEDRNN_CHECK(static_cast<int64_t>(weights.size()) == s.directions * roles.count(),
                 "weights: expected ", roles.count(), " tensors per direction (", to_string(roles),
                 "), got ", weights.size(), " in all");
  const Tensor &w_ih = weights[0], &w_hh = weights[1];
  FUSEDRNN_CHECK(w_ih.dim() == 2 && w_ih.size(0) > 0 && w_ih.size(0) % facts.inputs == 0,
                 "w_ih: expected shape [", facts.inputs, " * hidden_size, ", s.I, "], got ",
                 to_string(sizes_of(w_ih)));
  FUSEDRNN_CHECK(w_hh.dim() == 2, "w_hh: expected two dimensions, got shape ",
                 to_string(sizes_of(w_hh)));
  s.H = w_ih.size(0) / facts.inputs;
  s.P = projected ? w_hh.size(1) : 0;
  FUSEDRNN_CHECK(!projected || s.P > 0, "w_hr: expected at least one projected value");
  for_each_weight(roles, s.directions,
                  [&](Role role, std::size_t i, int) { check_weight_size(role, weights[i], s); });
}

// Where weights are that check_weights has passed.
inline void place_weights(const std::vector<Tensor>& weights, const Roles& roles, int directions,
                          Weights* placed, std::vector<Tensor>& copies) {
  for_each_weight(roles, directions, [&](Role role, std::size_t i, int d) {
    weight_of(placed[d], role) = place(name_of(role), weights[i], copies);
  });
}

}  // namespace fusedrnn
