// How the teams of a walk are launched.
#pragma once

#include "cuda/device.h"
#include "cuda/launch.cuh"
#include "cuda/plan.h"
#include "walk_problem.h"

namespace fusedrnn::cuda {

// Whether a device refuses a launch by its sizes. Occupancy may have promised that a cluster fits,
// and hardly anybody else launches clusters of 10 or 15 blocks.
inline bool is_refusal(cudaError_t error) {
  return error == cudaErrorInvalidClusterSize || error == cudaErrorInvalidConfiguration ||
         error == cudaErrorLaunchOutOfResources;
}

// Launches the teams of all directions, the blocks of one next to each other: its cluster. Throws
// RefusedCluster.
template <class Walk>
void launch_teams(const char* what, void (*kernel)(Walk), const Walk& walk, const WalkPlan& plan,
                  int directions, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(walk.sizes.blocks);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {blocks, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks * static_cast<unsigned>(walk.tiles * directions));
  config.blockDim = dim3(static_cast<unsigned>(walk.sizes.warps * kLanes));
  config.dynamicSmemBytes = static_cast<size_t>(walk.sizes.bytes);
  config.stream = stream;
  if (plan.team == CudaTeam::cluster) config.attrs = &cluster, config.numAttrs = 1;
  // The function has it, not the launch: it is the same for all, whoever else launches it now.
  check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_limit),
      what);
  if (blocks > kPortableBlocks)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), what);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, walk);
  if (plan.team == CudaTeam::cluster && is_refusal(error)) {
    cudaGetLastError();  // not left for whoever asks next
    throw RefusedCluster(told(error, what), walk.sizes.blocks);
  }
  check(error, what);
}

}  // namespace fusedrnn::cuda
