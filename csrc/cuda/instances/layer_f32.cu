#include "../layer_backward.cuh"
#include "../layer_forward.cuh"

namespace fusedrnn {

template void layer_forward<float>(const Problem&, const Context&);
template void layer_backward<float>(const BackwardProblem&, const Context&);

}  // namespace fusedrnn
