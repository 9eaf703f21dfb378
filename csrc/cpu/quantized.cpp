// Quantises weights; plans a call with them, chooses its kernel, gets its scratch, runs it.
#include "../quantized.h"

#include <algorithm>
#include <cmath>

#include "../cell.h"
#include "capability.h"
#include "kernels.h"
#include "memory.h"
#include "plan.h"

#if defined(FUSEDRNN_X86)
FUSEDRNN_DECLARE_QUANTIZED_KERNELS(avx512_vnni)
FUSEDRNN_DECLARE_QUANTIZED_KERNELS(avx512)
FUSEDRNN_DECLARE_QUANTIZED_KERNELS(avx2_vnni)
FUSEDRNN_DECLARE_QUANTIZED_KERNELS(avx2)
#endif
FUSEDRNN_DECLARE_QUANTIZED_KERNELS(portable)

namespace fusedrnn {
namespace {

// A matrix of `units` rows for each slot, K columns; `gate_of(slot)` is torch's gate.
template <class GateOf>
void quantize_matrix(const float* W, int64_t units, int64_t K, GateOf gate_of,
                     const QuantizedPlace& place, char* packed) {
  int8_t* const panels = reinterpret_cast<int8_t*>(packed + place.panels);
  int32_t* const starts = reinterpret_cast<int32_t*>(packed + place.starts);
  float* const scales = reinterpret_cast<float*>(packed + place.scales);
  const int64_t block_bytes = place.quads * place.slots * kHiddenPadding * kQuad;
  for (int64_t unit = 0; unit < place.blocks * kHiddenPadding; ++unit)
    for (int64_t slot = 0; slot < place.slots; ++slot) {
      const int64_t block = unit / kHiddenPadding, lane = unit % kHiddenPadding;
      const int64_t at = (block * place.slots + slot) * kHiddenPadding + lane;
      int8_t* const to = panels + block * block_bytes + (slot * kHiddenPadding + lane) * kQuad;
      const float* const row = unit < units ? W + (gate_of(slot) * units + unit) * K : nullptr;
      float largest = 0x1p-100f;
      for (int64_t k = 0; row && k < K; ++k) largest = std::max(largest, std::fabs(row[k]));
      const float inverse = 127 / largest;
      int32_t sum = 0;
      for (int64_t k = 0; k < place.quads * kQuad; ++k) {
        const bool valid = row && k < K;
        const int8_t q = valid ? static_cast<int8_t>(std::lrint(row[k] * inverse)) : int8_t{0};
        to[k / kQuad * place.slots * kHiddenPadding * kQuad + k % kQuad] = q;
        sum += q;
      }
      starts[at] = -128 * sum;
      scales[at] = row ? largest / 127 : 0;
    }
}

using Kernel = int64_t (*)(const QuantizedProblem&, const Plan&, ParallelFor, void* scratch);

Kernel kernel() {
  switch (cpu_capability()) {
#if defined(FUSEDRNN_X86)
    case Capability::avx512_bf16:
    case Capability::avx512_vnni: return avx512_vnni::forward_quantized;
    case Capability::avx512: return avx512::forward_quantized;
    case Capability::avx2_vnni: return avx2_vnni::forward_quantized;
    case Capability::avx2: return avx2::forward_quantized;
#endif
    default: return portable::forward_quantized;
  }
}

// Under this much work (multiply-adds) a second thread costs more than it brings. A batch is split
// while each thread's second cache level holds the weights, or each has rows enough to hide their
// reading. A chunk's gates stay in that cache, and there are enough of them to use a panel often.
constexpr int64_t kSerialWork = 1'000'000, kWeightsInCache = 700 * 1024;
constexpr int64_t kRowsPerThread = 4, kRowsHideWeights = 48;
constexpr int64_t kChunkBytes = 256 * 1024, kChunkRows = 64, kMostChunkRows = 768;

Plan plan_quantized(const Shape& s, int threads) {
  Plan plan;
  const int64_t gates = gates_of(s.cell) * s.Hp();
  const int64_t rows =
      std::clamp(kChunkBytes / (gates * int64_t{sizeof(float)}), kChunkRows, kMostChunkRows);
  const int64_t chunks = div_up(s.T, std::max<int64_t>(rows / s.B, 1));
  plan.forward_steps = div_up(s.T, chunks);  // as even as can be
  const int64_t weights = gates_of(s.cell) * s.H * (s.I + s.R()) + s.H * s.P;
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

}  // namespace

void write_quantized(const Shape& shape, const Weights& weights, char* packed) {
  const QuantizedLayout places(shape);
  const auto of = [](const void* w) { return static_cast<const float*>(w); };
  const auto same = [](int64_t slot) { return slot; };
  const auto of_product = [&](int64_t slot) -> int64_t {
    return shape.cell == Cell::gru ? GruCell::gate_of_product(static_cast<int>(slot)) : slot;
  };
  quantize_matrix(of(weights.w_ih), shape.H, shape.I, same, places.w_ih, packed);
  quantize_matrix(of(weights.w_hh), shape.H, shape.R(), of_product, places.w_hh, packed);
  if (shape.P) quantize_matrix(of(weights.w_hr), shape.P, shape.H, same, places.w_hr, packed);

  const int64_t gates = gates_of(shape.cell), Hp = shape.Hp();
  float* const bias = reinterpret_cast<float*>(packed + places.bias);
  float* const hidden_bias = reinterpret_cast<float*>(packed + places.hidden_bias);
  std::fill(bias, bias + gates * Hp, 0.0f);
  std::fill(hidden_bias, hidden_bias + Hp, 0.0f);
  if (!weights.b_ih) return;
  for (int64_t g = 0; g < gates; ++g) {
    const bool apart = shape.cell == Cell::gru && g == gates - 1;
    for (int64_t u = 0; u < shape.H; ++u) {
      const float b_ih = of(weights.b_ih)[g * shape.H + u],
                  b_hh = of(weights.b_hh)[g * shape.H + u];
      bias[g * Hp + u] = apart ? b_ih : b_ih + b_hh;
      if (apart) hidden_bias[u] = b_hh;
    }
  }
}

const char* forward_quantized(const QuantizedProblem& problem, const Context& context) {
  Plan plan = plan_quantized(problem, context.threads);
  override_plan(problem, context.threads, plan);
  const int64_t bytes = kernel()(problem, plan, context.parallel_for, nullptr);
  const Scratch scratch(static_cast<std::size_t>(bytes));
  if (!scratch.data())
    return "out of memory: scratch of a layer could not be allocated; use a smaller batch";
  kernel()(problem, plan, context.parallel_for, scratch.data());
  return nullptr;
}

}  // namespace fusedrnn
