// How a tile runs a pass of a program (cells/program.h): where it has what the program reads and
// writes, and the memory that it lends.
//
// A space is the operands of one kind. Operand i of row r and vector v of units is at
//
//   base + i * slot + r * row + v * lanes
//
// where the strides stay the same for a whole walk, and the base is another for each tile. So each
// walk binds the operations to its strides, once; and a tile only says where the spaces begin.
#pragma once

#include "compiled.h"
#include "walk.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

constexpr int kTileRows = 8;  // the most that a tile has

struct BoundPlace {
  int64_t offset = 0;
  int32_t row = 0;
  Space space{};
};

struct BoundOp {
  OpCode code;
  BoundPlace to, a, b, c;
};

// A pass with its operations bound or, where it was compiled, the strides.
template <class F>
struct BoundPass {
  CompiledPass<F> compiled = nullptr;
  Strides strides[kSpaces];
  BoundOp* ops = nullptr;
  int64_t count = 0;
  const F* numbers = nullptr;
};

// The memory that a walk's tiles need: slots of kTileRows rows of some vectors each, for each
// thread.
template <class F>
class ProgramMemory {
 public:
  ProgramMemory() = default;
  ProgramMemory(const Program& program, int64_t vectors, int threads, Arena& arena)
      : row_(vectors * kLanes<F>) {
    for (int i = 0; i < program.facts.stages; ++i) {
      const StageFacts& facts = program.facts.stage[i];
      const StageProgram& stage = program.stage[i];
      sums_ = most(sums_, facts.products + facts.late);
      for (const Pass& pass : stage.passes) temporaries_ = most(temporaries_, pass.temporaries);
    }
    saved_ = program.facts.saved, gradients_ = program.facts.grads;
    memory_ = arena.take<F>(size() * threads);
  }

  Strides strides() const { return {kTileRows * row_, row_}; }
  // Where a thread has its slots, by what they are for.
  F* sums(int thread) const { return at(thread, 0); }
  F* temporaries(int thread) const { return at(thread, sums_); }
  F* saved(int thread) const { return at(thread, sums_ + temporaries_); }
  F* gradients(int thread) const { return at(thread, sums_ + temporaries_ + saved_); }
  F* row_of(int thread, int i) const {
    return at(thread, sums_ + temporaries_ + saved_ + gradients_ + i);
  }
  static constexpr int kRows = 3;  // for single rows of slots

 private:
  int64_t size() const {
    return (sums_ + temporaries_ + saved_ + gradients_ + kRows) * strides().slot;
  }
  F* at(int thread, int slot) const { return memory_ + thread * size() + slot * strides().slot; }

  int64_t row_ = 0;
  int sums_ = 0, temporaries_ = 0, saved_ = 0, gradients_ = 0;
  F* memory_ = nullptr;
};

// The memory of a thread's tiles, and where their spaces begin.
template <class F>
struct ProgramScratch {
  F* base[kSpaces] = {};
  F *sums = nullptr, *unsaved = nullptr, *gradients = nullptr;
  F *result = nullptr, *h = nullptr, *kept = nullptr;
  int64_t slot = 0, row = 0;

  ProgramScratch() = default;
  ProgramScratch(const ProgramMemory<F>& memory, int thread)
      : sums(memory.sums(thread)),
        unsaved(memory.saved(thread)),
        gradients(memory.gradients(thread)),
        result(memory.row_of(thread, 0)),
        h(memory.row_of(thread, 1)),
        kept(memory.row_of(thread, 2)),
        slot(memory.strides().slot),
        row(memory.strides().row) {
    (*this)[Space::temporary] = memory.temporaries(thread);
    (*this)[Space::result] = result, (*this)[Space::h] = h;
    (*this)[Space::gradient] = gradients;
  }
  F*& operator[](Space space) { return base[static_cast<int>(space)]; }
  // Where a program finds its constants, which it only reads.
  void number(const BoundPass<F>& pass) { (*this)[Space::number] = const_cast<F*>(pass.numbers); }
};

template <class F>
class BoundSpaces {
 public:
  explicit BoundSpaces(const ProgramMemory<F>& memory) {
    for (Strides& strides : of_) strides = memory.strides();
    (*this)[Space::number] = {kNumberBytes / static_cast<int64_t>(sizeof(F)), 0};
  }
  Strides& operator[](Space space) { return of_[static_cast<int>(space)]; }

  BoundPass<F> bind(const Pass& pass, BoundOp* ops, CompiledPass<F> compiled) const {
    BoundPass<F> bound_pass;
    bound_pass.compiled = compiled;
    for (int i = 0; i < kSpaces; ++i) bound_pass.strides[i] = of_[i];
    if (compiled) return bound_pass;
    const auto bound = [&](Place place) {
      const Strides& s = of_[static_cast<int>(place.space)];
      return BoundPlace{place.index * s.slot, static_cast<int32_t>(s.row), place.space};
    };
    bound_pass.ops = ops;
    for (const Op& op : pass.ops)
      ops[bound_pass.count++] = {op.code, bound(op.to), bound(op.a), bound(op.b), bound(op.c)};
    if constexpr (sizeof(F) == 4)
      bound_pass.numbers = pass.numbers32.data();
    else
      bound_pass.numbers = pass.numbers64.data();
    return bound_pass;
  }

 private:
  Strides of_[kSpaces];
};

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
