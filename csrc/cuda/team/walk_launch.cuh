// What walk_launch.h declares.
#pragma once

#include "walk_launch.h"

namespace fusedrnn::cuda {

template <class C, class A>
void launch_forward(const WalkPlan& plan, const ForwardWalk<typename A::E>& walk, int directions,
                    cudaStream_t stream) {
  if (plan.team == CudaTeam::block)
    launch_teams<BlockTeam>("the forward walk", walk_forward<C, A, BlockTeam>, walk, plan,
                            directions, stream);
  else
    launch_teams<ClusterTeam>("the forward walk", walk_forward<C, A, ClusterTeam>, walk, plan,
                              directions, stream);
}

template <class C, class A>
void launch_backward(const WalkPlan& plan, const BackwardWalk<typename A::E>& walk, int directions,
                     cudaStream_t stream) {
  if (plan.team == CudaTeam::block)
    launch_teams<BlockTeam>("the backward walk", walk_backward<C, A, BlockTeam>, walk, plan,
                            directions, stream);
  else
    launch_teams<ClusterTeam>("the backward walk", walk_backward<C, A, ClusterTeam>, walk, plan,
                              directions, stream);
}

}  // namespace fusedrnn::cuda
