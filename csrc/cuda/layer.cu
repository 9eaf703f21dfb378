// The drivers, for each storage type.
#include "cuda/layer_backward.cuh"
#include "cuda/layer_forward.cuh"

namespace fusedrnn::cuda {

template void layer_forward<double>(const Problem&, const Context&);
template void layer_forward<float>(const Problem&, const Context&);
template void layer_forward<__nv_bfloat16>(const Problem&, const Context&);
template void layer_forward<__half>(const Problem&, const Context&);

template void layer_backward<double>(const BackwardProblem&, const Context&);
template void layer_backward<float>(const BackwardProblem&, const Context&);
template void layer_backward<__nv_bfloat16>(const BackwardProblem&, const Context&);
template void layer_backward<__half>(const BackwardProblem&, const Context&);

}  // namespace fusedrnn::cuda
