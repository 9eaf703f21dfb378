#include "../layer_backward.cuh"
#include "../layer_forward.cuh"

namespace fusedrnn {

template void layer_forward<__nv_bfloat16>(const Problem&, const Context&);
template void layer_backward<__nv_bfloat16>(const BackwardProblem&, const Context&);

}  // namespace fusedrnn
