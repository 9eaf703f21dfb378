// Chooses the kernels for this processor and the problem's type, gets their scratch, runs them.
#include "backend.h"

#include "capability.h"
#include "kernels.h"
#include "memory.h"
#include "plan.h"

#if defined(FUSEDRNN_X86)
FUSEDRNN_DECLARE_KERNELS(avx512_bf16)  // half precision alone; the rest is avx512's
FUSEDRNN_DECLARE_KERNELS(avx512)
FUSEDRNN_DECLARE_KERNELS(avx2)
#endif
FUSEDRNN_DECLARE_KERNELS(portable)

namespace fusedrnn {
namespace {

template <class P>
using Kernel = int64_t (*)(const P&, const Plan&, ParallelFor, void* scratch);

using Pack = int64_t (*)(const Problem&, void* panels);

// The entry points of one processor, by dtype: double, single, half.
struct Kernels {
  Kernel<Problem> forward[3];
  Kernel<BackwardProblem> backward[3];
  Pack pack[3];
};

#define FUSEDRNN_BY_DTYPE(pass, isa, half_isa) \
  {isa::pass##_double, isa::pass##_single, half_isa::pass##_half}
#define FUSEDRNN_KERNELS(isa, half_isa)                                                   \
  {FUSEDRNN_BY_DTYPE(forward, isa, half_isa), FUSEDRNN_BY_DTYPE(backward, isa, half_isa), \
   FUSEDRNN_BY_DTYPE(pack, isa, half_isa)}

const Kernels& kernels() {
#if defined(FUSEDRNN_X86)
  static constexpr Kernels bf16 = FUSEDRNN_KERNELS(avx512, avx512_bf16);
  static constexpr Kernels wide = FUSEDRNN_KERNELS(avx512, avx512);
  static constexpr Kernels narrow = FUSEDRNN_KERNELS(avx2, avx2);
  if (cpu_capability() >= Capability::avx512_bf16) return bf16;
  if (cpu_capability() >= Capability::avx512) return wide;
  if (cpu_capability() >= Capability::avx2) return narrow;
#endif
  static constexpr Kernels any = FUSEDRNN_KERNELS(portable, portable);
  return any;
}

template <class K>
K of_dtype(const K (&by_dtype)[3], Dtype dtype) {
  return by_dtype[dtype == Dtype::f64 ? 0 : dtype == Dtype::f32 ? 1 : 2];
}

template <class P>
const char* run(const Kernel<P> (&by_dtype)[3], const P& problem, const Context& context) {
  const Plan plan = plan_layer(problem, context.threads);
  const Kernel<P> kernel = of_dtype(by_dtype, problem.dtype);
  const int64_t bytes = kernel(problem, plan, context.parallel_for, nullptr);
  const Scratch scratch(static_cast<std::size_t>(bytes));
  if (!scratch.data())
    return "out of memory: scratch of a layer could not be allocated; use a smaller batch or fewer "
           "steps";
  kernel(problem, plan, context.parallel_for, scratch.data());
  return nullptr;
}

const char* forward(const Problem& problem, const Context& context) {
  return run(kernels().forward, problem, context);
}

const char* backward(const BackwardProblem& problem, const Context& context) {
  return run(kernels().backward, problem, context);
}

int64_t pack(const Problem& problem, void* panels) {
  return of_dtype(kernels().pack, problem.dtype)(problem, panels);
}

// Portable vectors differ between kinds of processors.
int packed_layout() {
#if defined(FUSEDRNN_X86)
  return static_cast<int>(cpu_capability());
#else
  return 64 + static_cast<int>(cpu_capability());
#endif
}

}  // namespace

const Backend& cpu_backend() {
  static constexpr Backend backend = {forward, backward, false, pack, packed_layout};
  return backend;
}

}  // namespace fusedrnn
