// The CPU plan. The measurements behind each number: `python -m benchmarks.plans`. Nothing that
// decides a rounding depends on the number of threads (the steps of a chunk decide where sums of
// weight gradients are cut): results are the same for any thread count.
#include "plan.h"

#include <algorithm>

#include "layer/plan_override.h"

namespace fusedrnn::cpu {
namespace {

// A packed panel costs two passes over the weights more than reading them where they are; with few
// rows there is no reuse to pay for it.
constexpr int64_t kInPlaceRows = 3;

// Under this much work (multiply-adds) waking a second thread costs more than it brings.
constexpr int64_t kSerialWork = 400'000;
constexpr int64_t kSerialWeights = 200'000;  // in place: bound by reading them
// Packed ahead, few rows: read at the speed of the L2 cache as long as they stay in it.
constexpr int64_t kSerialBytes = 768 * 1024;

// Splitting the batch, every thread reads all recurrent weights each step. That is free while they
// stay in its L2 cache, and hidden behind arithmetic when each thread has many rows.
constexpr int64_t kWeightsInCache = 700 * 1024;
constexpr int64_t kRowsPerThread = 4, kRowsHideWeights = 96;
// Half of the panels it reads another thread has packed, and they come from that one's cache: too
// slow unless each is used for this many rows of a thread in a call.
constexpr int64_t kRowsOfCall = 120;

// Projecting the input tile by tile, inside the walk, keeps the gates in L1, but reads W_ih again
// at each step: right while the weights stay in cache and there are rows enough to use each panel.
constexpr int64_t kFuseRows = 4, kFuseWeights = 8 * 1024 * 1024;

// Chunks: the gates of a forward chunk stay in cache between the large product and the walk, and
// there are enough rows in it to use each weight panel many times; as in backward, where the sums
// of a chunk's weight gradients are added to those of all chunks before.
constexpr int64_t kForwardBytes = 1024 * 1024, kForwardRows = 192, kMostForwardRows = 768;
constexpr int64_t kBackwardRows = 512;

int64_t forward_rows(const Shape& s) {
  const int64_t row_bytes = gates_of(s.cell) * s.Hp() * (s.dtype == Dtype::f64 ? 8 : 4);
  return std::clamp(kForwardBytes / row_bytes, kForwardRows, kMostForwardRows);
}

// The plan that the sizes ask for.
Plan choose(const Shape& s, int threads) {
  Plan plan;
  if (s.rows == 0 || s.B == 0) return plan;
  plan.in_place = s.rows <= kInPlaceRows && !s.P && !s.prepacked;
  const int64_t element = s.dtype == Dtype::f64 ? 8 : 4;
  const int64_t gates = gates_of(s.cell) * s.H;
  // In one step with packed weights each panel is read once in any order.
  plan.fuse_input = (s.prepacked && s.T == 1) || (!plan.in_place && s.B >= kFuseRows &&
                                                  gates * (s.I + s.R()) * element <= kFuseWeights);
  plan.forward_steps = std::clamp<int64_t>(forward_rows(s) / s.B, 1, s.T);
  plan.backward_steps = std::clamp<int64_t>(kBackwardRows / s.B, 1, s.T);

  const int64_t weights = gates * (s.I + s.R()) * s.directions;
  const bool serial = plan.in_place                           ? weights < kSerialWeights
                      : s.prepacked && s.rows <= kInPlaceRows ? weights * element < kSerialBytes
                                                              : weights * s.rows < kSerialWork;
  if (serial || threads <= 1) return plan;

  plan.direction_teams = std::min(s.directions, threads);
  const int team = threads / plan.direction_teams;
  const int64_t recurrent_bytes = gates * s.R() * element;
  // Units packed ahead whose product is of one gate are dealt out in groups of vectors: an RNN's
  // of four, those of the candidate whose reset gate comes before of two.
  const int64_t largest = s.cell < Cell::lstm ? 4 : is_divided(s.cell) ? 2 : 1;
  const int64_t group = s.prepacked ? largest : 1;
  const int64_t unit_vectors = div_up(s.Hp() / kHiddenPadding, group);
  if (team > 1) {
    const int64_t rows_each = s.B / team;
    const bool amortised = s.prepacked || rows_each * s.T >= kRowsOfCall;
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
  if (!s.P && !s.prepacked) wanted.flag("weights_in_place", plan.in_place);
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
