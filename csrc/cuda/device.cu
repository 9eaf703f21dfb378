// Asking the CUDA runtime what the current device is.
#include "device.h"

#include "gpu.cuh"
#include "launch.cuh"

namespace fusedrnn::cuda {
namespace {

// Takes as much of a multiprocessor as any walk: if its cluster can be launched, a walk's can.
__global__ void __launch_bounds__(kMostWarps* kLanes, 1) gauge(char* out) {
  FUSEDRNN_DYNAMIC_SHARED(char, shared);
  if (out) out[threadIdx.x] = shared[threadIdx.x];
}

int clusters_of(int blocks, int shared_bytes) {
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kMostWarps * kLanes);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.attrs = &cluster, config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, gauge, &config) == cudaSuccess) return clusters;
  cudaGetLastError();  // such a cluster cannot be
  return 0;
}

}  // namespace

CudaDevice ask_device() {
  int index = 0;
  check(cudaGetDevice(&index), "asking for the current device");
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, index), "asking what the device is");
    return value;
  };
  CudaDevice device;
  device.index = index;
  device.capability =
      10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
  device.multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  device.shared_bytes = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return device;
}

void ask_further(CudaDevice& device) {
  // A build for older devices only is compiled anew by the driver, from PTX that has no more.
  cudaFuncAttributes compiled;
  check(cudaFuncGetAttributes(&compiled, gauge), "asking what was compiled");
  device.capability = least(device.capability, compiled.ptxVersion);
  if (device.capability < 90) return;
  check(
      cudaFuncSetAttribute(gauge, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes),
      "asking the device for shared memory");
  check(cudaFuncSetAttribute(gauge, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "asking the device for large clusters");
  for (int n = 2; n <= kMostBlocks; ++n) device.clusters[n] = clusters_of(n, device.shared_bytes);
}

}  // namespace fusedrnn::cuda
