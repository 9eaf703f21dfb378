// Plans a call with int8 weights, takes scratch memory for its kernel and runs it.
#include "layer/quantized.h"

#include <algorithm>

#include "kernels.h"
#include "memory.h"
#include "plan.h"
#include "processors.h"

namespace fusedrnn::cpu {
namespace {

// Below this much work (multiply-adds), a second thread costs more than it gains. The batch is
// split while the weights fit each thread's L2 cache, or each thread has enough rows to hide
// reading them. The gates of a chunk stay in that cache, and the chunk has enough rows to use each
// panel often.
constexpr int64_t kSerialWork = 1'000'000, kWeightsInCache = 700 * 1024;
constexpr int64_t kRowsPerThread = 4, kRowsHideWeights = 48;
constexpr int64_t kChunkBytes = 256 * 1024, kChunkRows = 64, kMostChunkRows = 768;

Plan choose(const Shape& s, int threads) {
  Plan plan;
  const int64_t gates = s.facts().inputs * s.Hp();
  const int64_t rows =
      std::clamp(kChunkBytes / (gates * int64_t{sizeof(float)}), kChunkRows, kMostChunkRows);
  const int64_t chunks = div_up(s.T, std::max<int64_t>(rows / s.B, 1));
  plan.forward_steps = div_up(s.T, chunks);  // as even as possible
  const int64_t weights = s.facts().inputs * s.H * (s.I + s.R()) + s.H * s.P;
  if (threads <= 1 || weights * s.rows < kSerialWork) return plan;
  const int64_t rows_each = s.B / threads, blocks = s.Hp() / kHiddenPadding;
  const bool batch =
      rows_each >= kRowsHideWeights || (rows_each >= kRowsPerThread && weights <= kWeightsInCache);
  plan.split = batch || (blocks == 1 && s.B > 1) ? Split::batch
               : blocks > 1                      ? Split::units
                                                 : Split::none;
  const int64_t most = plan.split == Split::batch ? s.B : plan.split == Split::units ? blocks : 1;
  plan.threads = static_cast<int>(std::min<int64_t>(threads, most));
  return plan;
}

Plan plan_quantized(const Shape& s, int threads) {
  Plan plan = choose(s, threads);
  override_plan(s, threads, plan);
  return plan;
}

}  // namespace

void write_quantized(const Shape& shape, const Weights& weights, char* buffer) {
  kernels().quantize_weights(shape, weights, buffer);
}

const char* forward_quantized(const QuantizedProblem& problem, const Context& context) {
  const Plan plan = plan_for_processors(
      context.threads, [&](int threads) { return plan_quantized(problem, threads); });
  const int64_t bytes = kernels().forward_quantized(problem, plan, context.parallel_for, nullptr);
  const Scratch scratch(static_cast<std::size_t>(bytes));
  if (!scratch.data())
    return "out of memory: scratch of a layer could not be allocated; use a smaller batch";
  kernels().forward_quantized(problem, plan, context.parallel_for, scratch.data());
  return nullptr;
}

}  // namespace fusedrnn::cpu
