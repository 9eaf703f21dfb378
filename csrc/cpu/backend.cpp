// Plans a call, takes scratch memory for its kernel and runs it.
#include "backend.h"

#include "capability.h"
#include "kernels.h"
#include "memory.h"
#include "plan.h"
#include "processors.h"

namespace fusedrnn::cpu {
namespace {

// A kernel that needs scratch memory; called without, it only returns how many bytes that is.
template <class P>
using Kernel = int64_t (*)(const P&, const Plan&, ParallelFor, void* scratch);

template <class P>
const char* run(const Kernel<P> (&by_dtype)[kDtypes], const P& problem, const Context& context) {
  const Plan plan = plan_for_processors(context.threads,
                                        [&](int threads) { return plan_layer(problem, threads); });
  const Kernel<P> kernel = by_dtype[static_cast<int>(problem.dtype)];
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

int64_t make_panels(const Problem& problem, void* panels) {
  return kernels().make_panels[static_cast<int>(problem.dtype)](problem, panels);
}

// Portable vectors differ between kinds of processors.
int panels_layout() {
#if defined(FUSEDRNN_X86)
  return static_cast<int>(cpu_capability());
#else
  return 64 + static_cast<int>(cpu_capability());
#endif
}

}  // namespace

const Backend& backend() {
  static constexpr Backend backend = {forward, backward, false, make_panels, panels_layout};
  return backend;
}

}  // namespace fusedrnn::cpu
