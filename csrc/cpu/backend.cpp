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

template <class P>
Kernel<P> by_dtype(Dtype dtype, Kernel<P> f64, Kernel<P> f32, Kernel<P> half) {
  return dtype == Dtype::f64 ? f64 : dtype == Dtype::f32 ? f32 : half;
}

#define FUSEDRNN_KERNEL(isa, half_isa, pass, P) \
  by_dtype<P>(dtype, isa::pass##_double, isa::pass##_single, half_isa::pass##_half)

Kernel<Problem> forward_kernel(Dtype dtype) {
  switch (cpu_capability()) {
#if defined(FUSEDRNN_X86)
    case Capability::avx512_bf16: return FUSEDRNN_KERNEL(avx512, avx512_bf16, forward, Problem);
    case Capability::avx512_vnni:
    case Capability::avx512: return FUSEDRNN_KERNEL(avx512, avx512, forward, Problem);
    case Capability::avx2_vnni:
    case Capability::avx2: return FUSEDRNN_KERNEL(avx2, avx2, forward, Problem);
#endif
    default: return FUSEDRNN_KERNEL(portable, portable, forward, Problem);
  }
}

Kernel<BackwardProblem> backward_kernel(Dtype dtype) {
  switch (cpu_capability()) {
#if defined(FUSEDRNN_X86)
    case Capability::avx512_bf16:
      return FUSEDRNN_KERNEL(avx512, avx512_bf16, backward, BackwardProblem);
    case Capability::avx512_vnni:
    case Capability::avx512: return FUSEDRNN_KERNEL(avx512, avx512, backward, BackwardProblem);
    case Capability::avx2_vnni:
    case Capability::avx2: return FUSEDRNN_KERNEL(avx2, avx2, backward, BackwardProblem);
#endif
    default: return FUSEDRNN_KERNEL(portable, portable, backward, BackwardProblem);
  }
}

using Pack = int64_t (*)(const Problem&, void* panels);

Pack pack_kernel(Dtype dtype) {
#define FUSEDRNN_PACK(isa, half_isa)        \
  (dtype == Dtype::f64   ? isa::pack_double \
   : dtype == Dtype::f32 ? isa::pack_single \
                         : half_isa::pack_half)
  switch (cpu_capability()) {
#if defined(FUSEDRNN_X86)
    case Capability::avx512_bf16: return FUSEDRNN_PACK(avx512, avx512_bf16);
    case Capability::avx512_vnni:
    case Capability::avx512: return FUSEDRNN_PACK(avx512, avx512);
    case Capability::avx2_vnni:
    case Capability::avx2: return FUSEDRNN_PACK(avx2, avx2);
#endif
    default: return FUSEDRNN_PACK(portable, portable);
  }
#undef FUSEDRNN_PACK
}

template <class P>
const char* run(Kernel<P> (*kernel_of)(Dtype), const P& problem, const Context& context) {
  const Plan plan = plan_layer(problem, context.threads);
  const Kernel<P> kernel = kernel_of(problem.dtype);
  const int64_t bytes = kernel(problem, plan, context.parallel_for, nullptr);
  const Scratch scratch(static_cast<std::size_t>(bytes));
  if (!scratch.data())
    return "out of memory: scratch of a layer could not be allocated; use a smaller batch or fewer "
           "steps";
  kernel(problem, plan, context.parallel_for, scratch.data());
  return nullptr;
}

const char* forward(const Problem& problem, const Context& context) {
  return run(forward_kernel, problem, context);
}

const char* backward(const BackwardProblem& problem, const Context& context) {
  return run(backward_kernel, problem, context);
}

int64_t pack(const Problem& problem, void* panels) {
  return pack_kernel(problem.dtype)(problem, panels);
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
