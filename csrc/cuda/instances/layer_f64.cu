#include "cuda/layer_backward.cuh"
#include "cuda/layer_forward.cuh"

namespace fusedrnn::cuda {

template void layer_forward<double>(const Problem&, const Context&);
template void layer_backward<double>(const BackwardProblem&, const Context&);

}  // namespace fusedrnn::cuda
