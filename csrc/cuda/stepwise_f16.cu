#include "stepwise.cuh"

namespace fusedrnn {

template void stepwise_forward<__half>(const Problem&, const Context&);
template void stepwise_backward<__half>(const BackwardProblem&, const Context&);

}  // namespace fusedrnn
