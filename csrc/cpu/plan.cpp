// The CPU plan. `python -m benchmarks.plans` makes the measurements that its numbers come from.
// Nothing that affects rounding depends on the number of threads, so results are the same for any
// thread count. (The steps of a backward chunk do affect rounding: they decide where the sums of
// weight gradients are cut.)
#include "plan.h"

#include <algorithm>

#include "layer/plan_override.h"

namespace fusedrnn::cpu {
namespace {

// Making panels costs two more passes over the weights than reading them in place. With few rows
// the panels are not used often enough to make up for that.
constexpr int64_t kInPlaceRows = 3;

// Below this much work (multiply-adds), waking a second thread costs more than it gains.
constexpr int64_t kSerialWork = 400'000;
constexpr int64_t kSerialWeights = 200'000;  // weights in place: reading them takes the time
// Panels made ahead, few rows: they are read at the speed of the L2 cache while they stay in it.
constexpr int64_t kSerialBytes = 768 * 1024;

// When the batch is split, every thread reads all recurrent weights at each step. That is free
// while they stay in its L2 cache, and hidden by arithmetic when each thread has many rows.
constexpr int64_t kWeightsInCache = 700 * 1024;
constexpr int64_t kRowsPerThread = 4, kRowsHideWeights = 96;
// Another thread has made half of the panels that a thread reads, and these come from the other
// one's cache. That is too slow unless a thread uses each panel for this many rows in a call.
constexpr int64_t kRowsOfCall = 120;

// Projecting the input tile by tile, inside the walk, keeps the gates in L1, but reads W_ih again
// at each step. It pays while the weights stay in cache and there are enough rows to use each
// panel.
constexpr int64_t kFuseRows = 4, kFuseWeights = 8 * 1024 * 1024;

// Chunks. The gates of a forward chunk stay in cache between the large product and the walk, and
// the chunk has enough rows to use each panel many times. So does a backward chunk, whose sums of
// weight gradients are added to those of all chunks before.
constexpr int64_t kForwardBytes = 1024 * 1024, kForwardRows = 192, kMostForwardRows = 768;
constexpr int64_t kBackwardRows = 512;

int64_t forward_rows(const Shape& s) {
  const int64_t row_bytes = s.facts().inputs * s.Hp() * (s.dtype == Dtype::f64 ? 8 : 4);
  return std::clamp(kForwardBytes / row_bytes, kForwardRows, kMostForwardRows);
}

// The plan for these sizes, before any override.
Plan choose(const Shape& s, int threads) {
  Plan plan;
  if (s.rows == 0 || s.B == 0) return plan;
  plan.in_place = s.rows <= kInPlaceRows && !s.P && !s.has_panels;
  const int64_t element = s.dtype == Dtype::f64 ? 8 : 4;
  const int64_t recurrent = s.hidden_rows() * s.R(), all = s.input_rows() * s.I + recurrent;
  // In a single step with panels made ahead, each panel is read only once, fused or not.
  plan.fuse_input = (s.has_panels && s.T == 1) ||
                    (!plan.in_place && s.B >= kFuseRows && all * element <= kFuseWeights);
  plan.forward_steps = std::clamp<int64_t>(forward_rows(s) / s.B, 1, s.T);
  plan.backward_steps = std::clamp<int64_t>(kBackwardRows / s.B, 1, s.T);

  const int64_t weights = all * s.directions;
  const bool serial = plan.in_place                            ? weights < kSerialWeights
                      : s.has_panels && s.rows <= kInPlaceRows ? weights * element < kSerialBytes
                                                               : weights * s.rows < kSerialWork;
  if (serial || threads <= 1) return plan;

  plan.direction_teams = std::min(s.directions, threads);
  const int team = threads / plan.direction_teams;
  const int64_t recurrent_bytes = recurrent * element;
  // Panels made ahead are shared out in groups of vectors of units, as kGateVectors has them: four
  // for a cell of one product, up to two for a cell of several stages, otherwise one.
  const bool single = s.facts().products == 1 && !s.facts().has_late_input;
  const int64_t largest = single ? 4 : s.facts().stages > 1 ? 2 : 1;
  const int64_t group = s.has_panels ? largest : 1;
  const int64_t unit_vectors = div_up(s.Hp() / kHiddenPadding, group);
  if (team > 1) {
    const int64_t rows_each = s.B / team;
    const bool amortised = s.has_panels || rows_each * s.T >= kRowsOfCall;
    const bool batch =
        amortised && (rows_each >= kRowsHideWeights ||
                      (rows_each >= kRowsPerThread && recurrent_bytes <= kWeightsInCache));
    plan.split = batch ? Split::batch : unit_vectors > 1 ? Split::units : Split::none;
    if (plan.split == Split::none && s.B > 1) plan.split = Split::batch;
  }
  const int64_t most = plan.split == Split::batch   ? s.B
                       : plan.split == Split::units ? unit_vectors
                                                    : 1;
  plan.threads = plan.direction_teams * static_cast<int>(std::min<int64_t>(team, most));
  return plan;
}

}  // namespace

void override_plan(const Shape& s, int threads, Plan& plan) {
  const PlanOverride& wanted = plan_override();
  if (!wanted.any() || s.rows == 0) return;
  wanted.limit("forward_steps", plan.forward_steps, s.T);
  wanted.limit("backward_steps", plan.backward_steps, s.T);
  if (!s.P && !s.has_panels) wanted.flag("weights_in_place", plan.in_place);
  wanted.flag("fuse_input", plan.fuse_input);
  if (plan.in_place) plan.fuse_input = false;
  wanted.choose("split", plan.split, {"none", "batch", "units"});
  wanted.limit("direction_teams", plan.direction_teams, std::min(s.directions, threads));
  wanted.limit("threads", plan.threads, threads);
  const int team = plan.split == Split::none ? 1 : plan.threads / plan.direction_teams;
  plan.threads = plan.direction_teams * std::max(team, 1);
}

Plan plan_layer(const Shape& s, int threads) {
  Plan plan = choose(s, threads);
  override_plan(s, threads, plan);
  return plan;
}

}  // namespace fusedrnn::cpu
