#include "cuda/team/walk_launch.cuh"

namespace fusedrnn::cuda {

template void launch_forward<RnnCell<true>, Bf16>(const WalkPlan&,
                                                  const ForwardWalk<__nv_bfloat16>&, int,
                                                  cudaStream_t);
template void launch_backward<RnnCell<true>, Bf16>(const WalkPlan&,
                                                   const BackwardWalk<__nv_bfloat16>&, int,
                                                   cudaStream_t);
template void launch_forward<RnnCell<false>, Bf16>(const WalkPlan&,
                                                   const ForwardWalk<__nv_bfloat16>&, int,
                                                   cudaStream_t);
template void launch_backward<RnnCell<false>, Bf16>(const WalkPlan&,
                                                    const BackwardWalk<__nv_bfloat16>&, int,
                                                    cudaStream_t);

}  // namespace fusedrnn::cuda
