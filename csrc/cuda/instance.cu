// The kernels of one cell in one arithmetic. Compiled for each of them, with
//
//   -DFUSEDRNN_CELL_AT=2            the cell's place in cells/list.h
//   -DFUSEDRNN_ARITHMETIC=Bf16      one of kernels.h
//
// `cuda_instances` of setup.py is the list.
#include <utility>

#include "kernels.h"
#include "stepwise/stage.cuh"
#include "team/walk_backward.cuh"
#include "team/walk_forward.cuh"

namespace fusedrnn::cuda {

struct F64 {
  using E = double;
};

namespace {

static_assert(FUSEDRNN_CELL_AT < kCells, "setup.py counts more cells than there are");

template <class E, class S>
constexpr StageKernels<E> of_stage() {
  static_assert(S::first_gate + S::products <= S::Whole::inputs, "a product is a gate's");
  constexpr int kUnits = 16 / static_cast<int>(sizeof(E));
  return {S::first_gate,
          S::products,
          {forward_cell<S, E, 1>, forward_cell<S, E, kUnits>},
          {backward_cell<S, E, 1>, backward_cell<S, E, kUnits>}};
}
template <class E, class L>
struct Stages;
template <class E, class... S>
struct Stages<E, List<S...>> {
  static constexpr StageKernels<E> all[] = {of_stage<E, S>()...};
};

template <class C, class A, int i>
constexpr FixedWalk<typename A::E> fixed_walk() {
  constexpr FixedTeam team = kFixedTeams[i];
  if constexpr (team.serves(A::arithmetic)) {
    using Kind = std::conditional_t<team.blocks == 1, BlockTeam, ClusterTeam>;
    using Sizes = Fixed<team.blocks, team.units, team.rows>;
    return {walk_forward<C, A, Kind, Sizes>, walk_backward<C, A, Kind, Sizes>};
  } else {
    return {};
  }
}
template <class C, class A, class I>
struct FixedWalks;
template <class C, class A, int... i>
struct FixedWalks<C, A, std::integer_sequence<int, i...>> {
  static constexpr FixedWalk<typename A::E> all[] = {fixed_walk<C, A, i>()...};
};

template <class C, class A, class E = typename A::E>
constexpr Kernels<E> of_cell() {
  Kernels<E> table;
  if constexpr (std::is_same_v<A, typename OwnArithmetic<E>::type>) {
    table.stages = Stages<E, typename C::Stages>::all;
    table.handed = handed_of<C>;
  }
  if constexpr (!std::is_same_v<E, double> && stages_of<C> == 1) {
    table.walk_forward[0] = walk_forward<C, A, BlockTeam, Told>;
    table.walk_forward[1] = walk_forward<C, A, ClusterTeam, Told>;
    table.walk_backward[0] = walk_backward<C, A, BlockTeam, Told>;
    table.walk_backward[1] = walk_backward<C, A, ClusterTeam, Told>;
    table.fixed = FixedWalks<C, A, std::make_integer_sequence<int, kFixedTeamCount>>::all;
  }
  return table;
}

}  // namespace

template <class E, class C, class A>
const Kernels<E>* kernels() {
  static constexpr Kernels<E> table = of_cell<C, A>();
  return &table;
}

using A = FUSEDRNN_ARITHMETIC;
using C = Pick<FUSEDRNN_CELL_AT, Cells>::type;
template const Kernels<A::E>* kernels<A::E, C, A>();

}  // namespace fusedrnn::cuda
