// A cell's kernels as the drivers know them: a table of functions for each cell and arithmetic,
// which one compilation of instance.cu defines. So the drivers are compiled once for each storage
// type, whatever cells there are. A cell that was not compiled is missing when the library is
// linked.
#pragma once

#include <vector>

#include "layer/problem.h"
#include "plan.h"
#include "stepwise/order.h"
#include "stepwise/steps.cuh"
#include "team/fixed.h"
#include "team/walk_problem.h"

namespace fusedrnn::cuda {

// A stage of a step: which rows of W_hh it multiplies (in the order of stepwise/order.h), and its
// two kernels. Each is there for one unit per thread and for 16 bytes of them.
template <class E>
struct StageKernels {
  int first_gate, products;
  void (*forward[2])(ForwardSteps<E>);
  void (*backward[2])(BackwardSteps<E>);
};

// The walks that are compiled for one team.
template <class E>
struct FixedWalk {
  void (*forward)(ForwardWalk<E>) = nullptr;
  void (*backward)(BackwardWalk<E>) = nullptr;
};

template <class E>
struct Kernels {
  // Stepwise; a storage type's tables in other arithmetics have none.
  const StageKernels<E>* stages = nullptr;
  int handed = 0, handed_back = 0;  // values per unit that stages hand on, and gradients
  // For teams of one block and for clusters; null if no team walks the cell.
  void (*walk_forward[2])(ForwardWalk<E>) = {};
  void (*walk_backward[2])(BackwardWalk<E>) = {};
  const FixedWalk<E>* fixed = nullptr;  // as kFixedTeams; those that are not compiled are null
};

// The table of a cell that is a program, of kernels that were made at run time: those of its steps,
// or one walk.
template <class E>
class ProgramTable {
 public:
  ProgramTable() = default;
  ProgramTable(const Program& program, const GateOrder& order) {
    const Facts& facts = program.facts;
    for (int i = 0; i < facts.stages; ++i)
      stages_[i].first_gate = order.first_product[i], stages_[i].products = facts.stage[i].products;
    table_.handed = facts.stage[0].gives;
    table_.handed_back = program.stage[facts.stages - 1].handed_back;
  }
  // In the order of program_source.h.
  void set_steps(const std::vector<const void*>& kernels) {
    auto next = kernels.begin();
    for (StageKernels<E>* stage = stages_; next != kernels.end(); ++stage) {
      for (auto& kernel : stage->forward) set(kernel, *next++);
      for (auto& kernel : stage->backward) set(kernel, *next++);
    }
  }
  void set_walk(Pass pass, CudaTeam team, const void* kernel) {
    const int of_team = team == CudaTeam::cluster ? 1 : 0;
    if (pass == Pass::forward)
      set(table_.walk_forward[of_team], kernel);
    else
      set(table_.walk_backward[of_team], kernel);
  }
  Kernels<E> table() const {
    Kernels<E> table = table_;
    table.stages = stages_;
    return table;
  }

 private:
  // The runtime takes a handle wherever it takes the address of a kernel.
  template <class Kernel>
  static void set(Kernel*& kernel, const void* handle) {
    kernel = reinterpret_cast<Kernel*>(const_cast<void*>(handle));
  }

  StageKernels<E> stages_[kMaxStages] = {};
  Kernels<E> table_;
};

// The arithmetics that are compiled (team/arithmetic.cuh; no team walks in fp64).
struct F64;
struct F32;
struct Tf32;
struct Bf16;
struct F16;

// The table of cell C in arithmetic A, whose storage type is E.
template <class E, class C, class A>
const Kernels<E>* kernels();

// A storage type's own arithmetic, in which products are as exact as it is.
template <class E>
struct OwnArithmetic;
template <>
struct OwnArithmetic<double> {
  using type = F64;
};
template <>
struct OwnArithmetic<float> {
  using type = F32;
};
template <>
struct OwnArithmetic<__nv_bfloat16> {
  using type = Bf16;
};
template <>
struct OwnArithmetic<__half> {
  using type = F16;
};

template <class E, class A = typename OwnArithmetic<E>::type>
const Kernels<E>& kernels_of(Cell cell) {
  return *with_cell(cell, [](auto c) { return kernels<E, decltype(c), A>(); });
}
template <class E>
const Kernels<E>& kernels_of(Cell cell, Arithmetic arithmetic) {
  if constexpr (std::is_same_v<E, float>)
    if (arithmetic == Arithmetic::tf32) return kernels_of<float, Tf32>(cell);
  return kernels_of<E>(cell);
}

}  // namespace fusedrnn::cuda
