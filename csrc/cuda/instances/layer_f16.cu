#include "../layer_backward.cuh"
#include "../layer_forward.cuh"

namespace fusedrnn {

template void layer_forward<__half>(const Problem&, const Context&);
template void layer_backward<__half>(const BackwardProblem&, const Context&);

}  // namespace fusedrnn
