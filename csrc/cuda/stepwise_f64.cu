#include "stepwise.cuh"

namespace fusedrnn {

template void stepwise_forward<double>(const Problem&, const Context&);
template void stepwise_backward<double>(const BackwardProblem&, const Context&);

}  // namespace fusedrnn
