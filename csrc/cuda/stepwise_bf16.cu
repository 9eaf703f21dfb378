#include "stepwise.cuh"

namespace fusedrnn {

template void stepwise_forward<__nv_bfloat16>(const Problem&, const Context&);
template void stepwise_backward<__nv_bfloat16>(const BackwardProblem&, const Context&);

}  // namespace fusedrnn
