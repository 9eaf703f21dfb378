// How one call of a layer is shared among threads. The plan is a pure function of the sizes and the
// thread count, so that it can be printed, tested and overridden. The thresholds and their reasons
// are in plan.cpp.
#pragma once

#include "layer/problem.h"

namespace fusedrnn::cpu {

enum class Split : int {
  none,   // one thread per direction
  batch,  // each thread walks its own rows with all units: no barrier
  units,  // each thread keeps its own units and walks all rows: a barrier at each step
};

struct Plan {
  int threads = 1;
  int direction_teams = 1;  // 2: both directions walk at the same time
  Split split = Split::none;
  bool in_place = false;       // weights are read where they are: too few rows for panels
  bool fuse_input = false;     // input projection inside the walk, tile by tile
  int64_t forward_steps = 1;   // steps whose input projection is computed at once
  int64_t backward_steps = 1;  // steps whose weight gradients are computed at once
};

Plan plan_layer(const Shape& shape, int threads);

// About how many nanoseconds one thread takes for a pass. It assumes 20 multiply-adds per
// nanosecond, a third of what was measured on Zen 5; only the order of magnitude counts.
inline double time_alone(const Shape& s) {
  constexpr double kPerNanosecond = 20;
  const double weights = static_cast<double>(s.input_rows() * s.I + s.hidden_rows() * s.R());
  return weights * static_cast<double>(s.rows * s.directions) / kPerNanosecond;
}

// Applies the override in force (plan_override.h) to a plan, as far as possible.
void override_plan(const Shape& shape, int threads, Plan& plan);

}  // namespace fusedrnn::cpu
