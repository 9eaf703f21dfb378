#include "cuda/team/walk_launch.cuh"

namespace fusedrnn::cuda {

template void launch_forward<RnnCell<true>, F16>(const WalkPlan&, const ForwardWalk<__half>&, int,
                                                 cudaStream_t);
template void launch_backward<RnnCell<true>, F16>(const WalkPlan&, const BackwardWalk<__half>&, int,
                                                  cudaStream_t);
template void launch_forward<RnnCell<false>, F16>(const WalkPlan&, const ForwardWalk<__half>&, int,
                                                  cudaStream_t);
template void launch_backward<RnnCell<false>, F16>(const WalkPlan&, const BackwardWalk<__half>&,
                                                   int, cudaStream_t);

}  // namespace fusedrnn::cuda
