// Which ways of walking the steps may be used on a device, and which of them were found fastest.
//
// A way is a team for a cell, in an arithmetic, forward or backward. On each kind of GPU it has to
// agree with the reference before it is used, and the ways that agree are timed on real calls.
// Python does both and keeps a record of them (fusedrnn/_engine/ways.py and tuning.py). Here is
// what it found, for plans to ask, and the question that it answers: a plan for a cell that was not
// checked on the device yet waits until Python has checked it.
//
// Nothing is asked where no one is there to answer, as in a program without Python.
#pragma once

#include <cstdint>

#include "plan.h"

namespace fusedrnn::cuda {

// Arithmetics of ways: those of teams, and float64, in which only stepwise computes.
constexpr int kFloat64 = 1 + static_cast<int>(Arithmetic::f16);

// Checks all ways of a written cell, whose program `cell` is, or those of all compiled cells if it
// is empty, and tells the functions below what it found. Null, or why a call has to fail: a text
// that stays until the calling thread's next call.
using CheckWays = const char* (*)(int device, const char* cell);

// A layer's shape, or all that have about its size, and the team that was chosen for it.
struct TeamChoice {
  const char* cell;       // its name, or the text of its program
  int64_t T, B, I, H, P;  // T, B and I may be any of their class
  int32_t device, dtype, pass, directions;
  int32_t allow_tf32, training, modified;
  int32_t ragged;  // sequences are not all T steps long
  int32_t team;    // negative: none, the plan's own is taken
};

struct Fitness {
  TeamSet fit;    // that were not struck off
  TeamSet taken;  // of them: the one that was chosen, or all
};

// Asks first, if the cell was not checked on the device yet. Throws std::runtime_error.
Fitness fitness_of(const Shape& shape, const CudaDevice& device, Pass pass, bool allow_tf32);

// A number that is another one whenever some answer may be.
uint64_t ways_generation();

// The cell of a shape as ways know it, and the arithmetic.
const char* name_of_cell(const Shape& shape);
int arithmetic_of_way(const Shape& shape, const CudaDevice& device, bool allow_tf32);

}  // namespace fusedrnn::cuda
