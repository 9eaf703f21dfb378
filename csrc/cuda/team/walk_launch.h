// The entry points that each cell and arithmetic compiles (instances/walk_*.cu), for the driver of
// a layer to call. They throw std::runtime_error.
#pragma once

#include "walk_backward.cuh"
#include "walk_forward.cuh"

namespace fusedrnn::cuda {

template <class C, class A>
void launch_forward(const WalkPlan& plan, const ForwardWalk<typename A::E>& walk, int directions,
                    cudaStream_t stream);
template <class C, class A>
void launch_backward(const WalkPlan& plan, const BackwardWalk<typename A::E>& walk, int directions,
                     cudaStream_t stream);

}  // namespace fusedrnn::cuda
