#include "cuda/team/walk_launch.cuh"

namespace fusedrnn::cuda {

template void launch_forward<GruCell, Tf32>(const WalkPlan&, const ForwardWalk<float>&, int,
                                            cudaStream_t);
template void launch_backward<GruCell, Tf32>(const WalkPlan&, const BackwardWalk<float>&, int,
                                             cudaStream_t);

}  // namespace fusedrnn::cuda
