// The CUDA plan. No number depends on it: a chunk is rows of one product, none of whose sums it
// cuts. The thresholds are reasoned, not measured on a GPU yet.
#include "plan.h"

#include <algorithm>

#include "../plan_override.h"

namespace fusedrnn {
namespace {

// The gates of a chunk are written by one large product and read by the steps that follow: from the
// L2 cache (tens of megabytes on what is sold now) if they fit it, but rows enough for the product
// to fill the chip come first.
constexpr int64_t kChunkBytes = 32 * 1024 * 1024, kLeastRows = 4096;

// With fewer units than this in a step, one unit per thread gives the most threads, and latency is
// all there is to win; above it, bandwidth is, and 16-byte accesses reach it with fewer threads.
constexpr int64_t kWideUnits = 64 * 1024;

}  // namespace

CudaPlan plan_cuda(const Shape& s) {
  CudaPlan plan;
  if (s.rows == 0 || s.B == 0) return plan;
  const int64_t row_bytes = s.directions * gates_of(s.cell) * s.H * (s.dtype == Dtype::f64 ? 8 : 4);
  const int64_t rows = std::max(kChunkBytes / row_bytes, kLeastRows);
  plan.forward_steps = std::clamp<int64_t>(rows / s.B, 1, s.T);
  const int wide = static_cast<int>(16 / size_of(s.dtype));
  if (s.H % wide == 0 && s.directions * s.B * s.H >= kWideUnits) plan.units_per_thread = wide;

  const PlanOverride& wanted = plan_override();
  if (!wanted.any()) return plan;
  wanted.choose("team", plan.team, {"stepwise"});
  wanted.limit("forward_steps", plan.forward_steps, s.T);
  int64_t units = plan.units_per_thread;
  wanted.limit("units_per_thread", units, wide);
  plan.units_per_thread = units == wide && s.H % wide == 0 ? wide : 1;
  return plan;
}

}  // namespace fusedrnn
