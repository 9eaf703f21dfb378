#include "../layer_backward.cuh"
#include "../layer_forward.cuh"

namespace fusedrnn {

template void layer_forward<double>(const Problem&, const Context&);
template void layer_backward<double>(const BackwardProblem&, const Context&);

}  // namespace fusedrnn
