// What a team's walk is launched with, for a shape: the bytes of its parameters, as an ordinary
// training call fills them (layer_forward.cuh, layer_backward.cuh), with pointers to nothing.
//
//   walk_parameters CELL ARITHMETIC PASS H BLOCKS ROWS STEPS KERNEL
//   walk_parameters lstm bf16 forward 512 16 8 6 planned
//
// prints the cell's place in cells/list.h, the kernel (fixed or told), the block's warps, its bytes
// of shared memory, how many a device has, and the parameters in hexadecimal. KERNEL is told, or
// planned: the one that is compiled for the team if there is one and it fits, as a plan has it.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cells/list.h"
#include "cuda/plan.h"
#include "cuda/team/fixed.h"
#include "cuda/team/walk_problem.h"

namespace fusedrnn::cuda {
namespace {

// Another address at each call, far from all others.
template <class T>
void point(T*& pointer) {
  static uintptr_t next = uintptr_t{1} << 44;
  pointer = reinterpret_cast<T*>(next += uintptr_t{1} << 32);
}

struct Shape {
  int H, rows, steps;
  bool may_be_fixed;
  Team team;
};

void describe(WalkProblem& walk, const Shape& shape) {
  walk.T = shape.steps, walk.H = shape.H, walk.B = shape.rows, walk.y_row = shape.H;
  walk.Hp = static_cast<int>(round_up(shape.H, kHiddenPadding));
  walk.tiles = 1;
}

template <class Walk>
int print(const Walk& walk) {
  std::printf("%d %d %d ", walk.sizes.warps, walk.sizes.bytes, CudaDevice().shared_bytes);
  unsigned char bytes[sizeof(Walk)];
  std::memcpy(bytes, &walk, sizeof(Walk));
  for (const unsigned char byte : bytes) std::printf("%02x", byte);
  std::printf("\n");
  return 0;
}

// The sizes of the kernel that runs; prints which that is.
template <class Sizes>
Sizes chosen(Sizes (*sizes)(const WalkedCell&, Arithmetic, const Team&), const WalkedCell& cell,
             Arithmetic arithmetic, const Shape& shape) {
  Team team = shape.team;
  team.fixed = shape.may_be_fixed && has_fixed_walk(arithmetic, team, shape.H);
  if (sizes(cell, arithmetic, team).bytes > CudaDevice().shared_bytes) team.fixed = false;
  std::printf(team.fixed ? "fixed " : "told ");
  return sizes(cell, arithmetic, team);
}

template <class C, class E>
int print_forward(Arithmetic arithmetic, const Shape& shape) {
  ForwardWalk<E> walk;
  describe(walk, shape);
  walk.sizes = chosen(forward_sizes, walked<C>, arithmetic, shape);
  auto& to = walk.direction[0];
  to.end = shape.steps;
  point(to.gates), point(to.w_hh), point(to.b_ih), point(to.b_hh), point(to.h_out);
  if (C::unit_weights) point(to.w_unit);
  for (int i = 1; i < C::states; ++i) point(to.state[i - 1].out);
  point(to.y);
  if (C::saved) point(to.save);
  return print(walk);
}

template <class C, class E>
int print_backward(Arithmetic arithmetic, const Shape& shape) {
  BackwardWalk<E> walk;
  describe(walk, shape);
  walk.sizes = chosen(backward_sizes, walked<C>, arithmetic, shape);
  auto& to = walk.direction[0];
  point(to.w_hh), point(to.grad_y), point(to.y), point(to.grads);
  if (C::unit_weights) point(to.w_unit);
  if (C::saved) point(to.save);
  return print(walk);
}

template <class C>
int print_pass(bool forward, const std::string& arithmetic, const Shape& shape) {
  const auto with = [&](auto e, Arithmetic a) {
    using E = decltype(e);
    return forward ? print_forward<C, E>(a, shape) : print_backward<C, E>(a, shape);
  };
  if (arithmetic == "bf16") return with(__nv_bfloat16(), Arithmetic::bf16);
  if (arithmetic == "fp16") return with(__half(), Arithmetic::f16);
  if (arithmetic == "tf32") return with(float(), Arithmetic::tf32);
  if (arithmetic == "fp32") return with(float(), Arithmetic::f32);
  return 1;
}

template <int i = 0>
int print_cell(const std::string& name, bool forward, const std::string& arithmetic,
               const Shape& shape) {
  if constexpr (i < kCells) {
    using C = typename Pick<i, Cells>::type;
    if (name != C::names.cell) return print_cell<i + 1>(name, forward, arithmetic, shape);
    if constexpr (C::Stages::count == 1) {
      std::printf("%d ", i);
      return print_pass<C>(forward, arithmetic, shape);
    }
  }
  return 1;
}

}  // namespace
}  // namespace fusedrnn::cuda

int main(int count, char** words) {
  using namespace fusedrnn::cuda;
  if (count != 9) return 2;
  Shape shape = {std::atoi(words[4]),
                 std::atoi(words[6]),
                 std::atoi(words[7]),
                 std::string(words[8]) == "planned",
                 {}};
  shape.team.blocks = std::atoi(words[5]), shape.team.rows = shape.rows;
  shape.team.units = cut(cut(shape.H, shape.team.blocks), kTile) * kTile;
  return print_cell(words[1], std::string(words[3]) == "forward", words[2], shape);
}
