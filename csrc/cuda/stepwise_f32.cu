#include "stepwise.cuh"

namespace fusedrnn {

template void stepwise_forward<float>(const Problem&, const Context&);
template void stepwise_backward<float>(const BackwardProblem&, const Context&);

}  // namespace fusedrnn
