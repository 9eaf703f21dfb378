// A cell that is known at run time: one that a user wrote in Python. Python traces its function,
// differentiates it and writes it down as a text (fusedrnn/cells/program.py), which is what the
// ops are given. Here the text becomes facts, as a compiled cell has them, and for each stage the
// operations of its two passes:
//
//   cell 1 mgu                    stage                   forward              backward
//   gates f n                     apart n                 t0 = sigmoid p1      t0 = mul dr save1
//   states h                      joint f                 ...                  ...
//   unit_weights                  late n                  r = fma t0 h t1      carry = ...
//   ...                           saved n' f n            save0 = copy p0      g2 = ...
//
// An operation reads and writes operands. An operand is a place in a space, and a tile says for
// each space where its places are. So nothing is copied to where a program would want it.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "list.h"

namespace fusedrnn {

// What a program reads and writes; the name of each in the text comes first.
enum class Space : uint8_t {
  product,        // p     forward: the sums of the stage's products
  late,           // x     forward: its late inputs
  h,              // h     h before the step or, in backward, what `needs` says
  state,          // s     forward: the states after h, from s1 on. Backward: ds, their gradients
  handed,         // k     from the first stage to the second. Backward: dk, the other way
  weight,         // w     unit weights
  step_input,     // e     what is given for each step beside the input
  saved,          // save  from forward to backward
  result,         // r     the stage's result; in backward restored
  gradient,       // g     backward: the slots of the cell's gradients
  of_result,      // dr    backward
  carry,          // carry backward
  of_step_input,  // de    backward: the gradients of the step inputs
  number,         // #     constants
  temporary,      // t
};
constexpr int kSpaces = 15;

enum class OpCode : uint8_t {
  copy,
  neg,
  reciprocal,
  sqrt,
  abs,
  sign,
  relu,
  sigmoid,
  tanh,
  exp,
  expm1,
  log,
  log1p,
  softplus,
  erf,
  sin,
  cos,
  add,
  sub,
  mul,
  div,
  maximum,
  minimum,
  gt,
  ge,
  eq,
  ne,
  fma,
  fms,
  fnma,
  where
};  // program.cpp has their names in this order

struct Operation {
  const char* name;
  int operands;
};
const Operation& operation_of(OpCode code);

struct Place {
  Space space;
  uint8_t index;
};

struct Op {
  OpCode code;
  Place to, a, b, c;  // those that it has no use for are the same as a
};

// What one stage does in one direction.
struct Pass {
  std::vector<Op> ops;
  int temporaries = 0;
  std::vector<double> numbers;
  // The numbers, each as often as the vectors of a tile have lanes.
  std::vector<float> numbers32;
  std::vector<double> numbers64;
  uint64_t gradients = 0;       // a bit for each slot that is written
  uint32_t of_step_inputs = 0;  // likewise
};
// Whether some operation of the pass reads from a space.
bool reads(const Pass& pass, Space space);

constexpr int kMostTemporaries = 64, kMostSaved = 24, kMostHanded = 8, kMostStepInputs = 4;
constexpr int64_t kNumberBytes = 256;  // of a number, in numbers32 or numbers64

// Forward without the operations that only fill saved slots, and with them; backward without those
// that only restore the result, and with them.
enum class PassKind : int { forward, forward_saving, backward, backward_restoring };
constexpr int kPassKinds = 4;

struct StageProgram {
  Pass passes[kPassKinds];
  int handed_back = 0;

  Pass& pass(PassKind kind) { return passes[static_cast<int>(kind)]; }
  const Pass& pass(PassKind kind) const { return passes[static_cast<int>(kind)]; }
};

struct Program {
  std::string text;
  Facts facts;
  StageProgram stage[kMaxStages];
  // What the CPU's backend has compiled of it (cpu/compiled.h), for double and for float; or null.
  mutable std::atomic<const void*> compiled[2] = {};

  // Reads a text. Throws std::invalid_argument, which says what is wrong, if it is no program or
  // one that reads what is not there.
  static std::unique_ptr<const Program> parse(const std::string& text);

 private:
  friend class ProgramReader;
  std::deque<std::string> names_;  // that the facts point to
};

}  // namespace fusedrnn
