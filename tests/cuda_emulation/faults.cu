// Kernels that plant a fault, each a common mistake, and the same kernels corrected. What the
// emulation must say of each is in tests/test_cuda_emulation.py.
//
// All take the same buffer of n floats (flags are its last elements, which start as zeros).
#include <cooperative_groups.h>
#include <cstring>

#include "cuda/gpu.cuh"
#include "cuda/team/ptx.cuh"
#include "launch.cuh"

namespace cg = cooperative_groups;
namespace ptx = fusedrnn::cuda::ptx;

namespace {

// ---- Blocks and warps -----------------------------------------------------------------------

template <bool planted>
__global__ void missing_barrier(float* data, int) {
  FUSEDRNN_SHARED(float, s, [64]);
  s[threadIdx.x] = float(threadIdx.x);
  if (!planted) __syncthreads();
  data[threadIdx.x] = s[63 - threadIdx.x];
}

template <bool planted>
__global__ void missing_second_barrier(float* data, int) {  // before the array is used again
  FUSEDRNN_SHARED(float, s, [64]);
  for (int step = 0; step < 3; ++step) {
    s[threadIdx.x] = float(step);
    __syncthreads();
    data[threadIdx.x] += s[63 - threadIdx.x];
    if (!planted) __syncthreads();
  }
}

template <bool planted>
__global__ void missing_syncwarp(float* data, int) {
  data[threadIdx.x] = 1;
  if (!planted) __syncwarp();
  data[64 + threadIdx.x] = data[threadIdx.x ^ 1];
}

template <bool planted>
__global__ void unreached_barrier(float* data, int) {
  if (!planted || threadIdx.x < blockDim.x / 2) __syncthreads();
  data[threadIdx.x] = 0;
}

template <bool planted>
__global__ void diverged_collective(float* data, int) {
  float v = float(threadIdx.x);
  if (planted && threadIdx.x % 2) {
    v = float(__ballot_sync(~0u, v > 3));
  } else {
    v = __shfl_xor_sync(~0u, v, 1);
  }
  data[threadIdx.x] = v;
}

template <bool planted>
__global__ void lane_outside_mask(float* data, int) {
  const unsigned mask = 0xffff;
  if (planted || threadIdx.x < 16) data[threadIdx.x] = __shfl_sync(mask, 1.0f, 0);
}

template <bool planted>  // 40 threads: lane 7 of the second warp is its last
__global__ void lane_past_the_end(float* data, int) {
  const unsigned by = planted || threadIdx.x < 32 ? 1 : 0;
  data[threadIdx.x] = __shfl_down_sync(~0u, 1.0f, by);
}

template <bool planted>
__global__ void diverged_barrier(float* data, int) {
  if (planted && threadIdx.x % 2) {
    data[threadIdx.x] = 1;
    __syncthreads();
  } else {
    __syncthreads();
  }
}

template <bool planted>
__global__ void half_a_warp_at_a_barrier(float* data, int) {  // two halves are not one warp
  if (!planted) {
    ptx::barrier(1, 64);
  } else if (threadIdx.x % 32 < 16) {
    ptx::barrier(1, 32);
  }
  data[threadIdx.x] = 1;
}

template <bool planted>
__global__ void diverged_matrix_load(float* data, int) {
  FUSEDRNN_SHARED(float4, s, [8]);
  if (threadIdx.x < 8) s[threadIdx.x] = {1, 1, 1, 1};
  __syncthreads();
  uint32_t r[2];
  if (planted && threadIdx.x % 2) {
    ptx::ldmatrix(r, &s[threadIdx.x % 8]);
  } else {
    ptx::ldmatrix(r, &s[threadIdx.x % 8]);
  }
  data[threadIdx.x] = __uint_as_float(r[0]);
}

template <bool planted>
__global__ void diverged_product(float* data, int) {
  const uint32_t a[4] = {}, b[2] = {};
  const float c[4] = {};
  float d[4];
  if (planted && threadIdx.x % 2) {
    ptx::mma_m16n8k16_f16(d, a, b, c);
  } else {
    ptx::mma_m16n8k16_f16(d, a, b, c);
  }
  data[threadIdx.x] = d[0];
}

template <bool planted>
__global__ void racing_blocks(float* data, int) {  // two blocks write one element
  data[planted ? threadIdx.x : blockIdx.x * blockDim.x + threadIdx.x] = float(blockIdx.x);
}

// ---- Addresses ------------------------------------------------------------------------------

template <bool planted>
__global__ void write_outside_shared(float* data, int) {
  FUSEDRNN_SHARED(float, s, [32]);
  s[threadIdx.x + (planted ? 1 : 0)] = 1;
  __syncthreads();
  if (threadIdx.x > 0) data[threadIdx.x] = s[threadIdx.x];
}

template <bool planted>
__global__ void read_outside_shared(float* data, int) {
  FUSEDRNN_SHARED(float, s, [32]);
  s[threadIdx.x] = 1;
  __syncthreads();
  data[threadIdx.x] = s[planted ? threadIdx.x + 4 : threadIdx.x];
}

template <bool planted>
__global__ void write_outside_dynamic_shared(float* data, int) {  // of 32 floats
  FUSEDRNN_DYNAMIC_SHARED(float, s);
  s[threadIdx.x + (planted ? 1 : 0)] = 1;
  __syncthreads();
  if (threadIdx.x > 0) data[threadIdx.x] = s[threadIdx.x];
}

template <bool planted>
__global__ void unwritten_shared(float* data, int) {
  FUSEDRNN_SHARED(float, s, [32]);
  if (!planted || threadIdx.x < 31) s[threadIdx.x] = 1;
  __syncthreads();
  data[threadIdx.x] = s[31 - threadIdx.x];
}

template <bool planted>
__global__ void write_outside_global(float* data, int n) {
  for (int i = threadIdx.x; planted ? i <= n : i < n; i += blockDim.x) data[i] = 1;
}

template <bool planted>
__global__ void read_outside_global(float* data, int n) {
  if (threadIdx.x == 0) data[0] = data[planted ? n + 2 : n - 1];
}

template <bool planted>
__global__ void misaligned_vector(float* data, int) {
  const float4 v = *reinterpret_cast<const float4*>(data + (planted ? 1 : 4));
  data[64 + threadIdx.x] = v.x + v.w;
}

template <bool planted>
__global__ void signed_overflow(float* data, int n) {
  int v = 0x7fffff00 + n % 2;
  if (planted) v += 256 * int(blockDim.x);
  data[threadIdx.x] = float(v);
}

// ---- The grid -------------------------------------------------------------------------------

template <bool>  // the launch is the fault: not cooperative
__global__ void grid_barrier(float* data, int) {
  if (threadIdx.x == 0) data[blockIdx.x] = 1;
  cg::this_grid().sync();
  if (threadIdx.x == 0) data[blockIdx.x + 2] = data[1 - blockIdx.x];
}

template <bool>  // the launch is the fault: the first blocks wait for one that does not run
__global__ void waiting_blocks(float* data, int n) {
  auto* counter = reinterpret_cast<unsigned*>(data + n - 1);
  if (threadIdx.x > 0) return;
  atomicAdd(counter, 1u);
  wait_at_least(counter, gridDim.x);
}

template <bool planted>
__global__ void lost_arrival(float* data, int n) {  // a grid barrier by a counter
  auto* counter = reinterpret_cast<unsigned*>(data + n - 1);
  if (threadIdx.x == 0) {
    if (!planted || blockIdx.x > 0) atomicAdd(counter, 1u);
    wait_at_least(counter, gridDim.x);
  }
}

template <bool planted>
__global__ void missing_release(float* data, int n) {
  auto* flag = reinterpret_cast<unsigned*>(data + n - 1);
  if (threadIdx.x > 0) return;
  if (blockIdx.x == 0) {
    data[0] = 5;
    if (!planted) __threadfence();
    atomicAdd(flag, 1u);
  } else {
    wait_at_least(flag, 1);
    data[1] = data[0];
  }
}

template <bool planted>
__global__ void missing_acquire(float* data, int n) {
  auto* flag = reinterpret_cast<volatile unsigned*>(data + n - 1);
  if (threadIdx.x > 0) return;
  if (blockIdx.x == 0) {
    data[0] = 5;
    __threadfence();
    *flag = 1;
  } else {
    while (*flag == 0) __nanosleep(20);
    if (!planted) __threadfence();
    data[1] = data[0];
  }
}

template <bool planted>
__global__ void fence_of_a_block(float* data, int n) {  // too small a scope for another block
  auto* flag = reinterpret_cast<unsigned*>(data + n - 1);
  if (threadIdx.x > 0) return;
  if (blockIdx.x == 0) {
    data[0] = 5;
    planted ? __threadfence_block() : __threadfence();
    atomicExch(flag, 1u);
  } else {
    wait_at_least(flag, 1);
    data[1] = data[0];
  }
}

template <bool planted>
__global__ void stale_load(float* data, int) {  // the read-only path does not see others' writes
  if (blockIdx.x == 0 && threadIdx.x == 0) data[0] = 1;
  cg::this_grid().sync();
  if (threadIdx.x == 0) data[2 + blockIdx.x] = planted ? __ldg(data) : __ldcg(data);
}

// ---- Clusters -------------------------------------------------------------------------------

template <bool planted>
__global__ void missing_cluster_barrier(float* data, int) {  // the peer may not have started
#if HAS_CLUSTERS
  const cg::cluster_group cluster = cg::this_cluster();
  FUSEDRNN_SHARED(float, s, [32]);
  if (!planted) cluster.sync();
  cluster.map_shared_rank(s, cluster.block_rank() ^ 1)[threadIdx.x] = 1;
  cluster.sync();
  data[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];
#endif
}

template <bool planted>
__global__ void early_exit(float* data, int) {  // a peer still reads
#if HAS_CLUSTERS
  const cg::cluster_group cluster = cg::this_cluster();
  FUSEDRNN_SHARED(float, s, [32]);
  s[threadIdx.x] = 1;
  cluster.sync();
  data[blockIdx.x * 32 + threadIdx.x] =
      cluster.map_shared_rank(s, cluster.block_rank() ^ 1)[threadIdx.x];
  if (!planted) cluster.sync();
#endif
}

template <bool planted>
__global__ void diverged_cluster_barrier(float* data, int) {
#if HAS_CLUSTERS
  if (planted && threadIdx.x % 2) {
    ptx::cluster_arrive();
  } else {
    ptx::cluster_arrive();
  }
  ptx::cluster_wait();
  data[blockIdx.x * 32 + threadIdx.x] = 1;
#endif
}

template <bool planted>
__global__ void diverged_cluster_wait(float* data, int) {
#if HAS_CLUSTERS
  ptx::cluster_arrive();
  if (planted && threadIdx.x % 2) {
    ptx::cluster_wait();
  } else {
    ptx::cluster_wait();
  }
  data[blockIdx.x * 32 + threadIdx.x] = 1;
#endif
}

// ---- Proxies and mbarriers ------------------------------------------------------------------

// Blocks of a cluster send each other what all threads have stored, over what all have stored. The
// fences are for what is sent, for what is overwritten, and for the mbarriers: in time, after the
// cluster's barrier, or missing.
enum class Fence { in_time, late, missing };

template <Fence source, Fence target, Fence init>
__device__ void exchange(float* data) {
#if HAS_CLUSTERS
  const cg::cluster_group cluster = cg::this_cluster();
  FUSEDRNN_SHARED(float4, sent, [32]);
  FUSEDRNN_SHARED(float4, received, [32]);
  FUSEDRNN_SHARED(uint64_t, arrived, );
  const float own = float(blockIdx.x);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&arrived, 1);
    if (init == Fence::in_time) ptx::mbarrier_init_fence();
  }
  if (target == Fence::in_time) received[threadIdx.x] = {0, 0, 0, 0};
  if (target == Fence::in_time) ptx::fence_before_bulk_copy();
  sent[threadIdx.x] = {own, own, own, own};
  if (source == Fence::in_time) ptx::fence_before_bulk_copy();
  if (target != Fence::in_time) received[threadIdx.x] = {0, 0, 0, 0};
  cluster.sync();
  if (init == Fence::late) ptx::mbarrier_init_fence();
  if (source == Fence::late || target == Fence::late) ptx::fence_before_bulk_copy();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(&arrived, sizeof received);
    ptx::bulk_copy_to_rank(received, sent, sizeof received, &arrived, cluster.block_rank() ^ 1);
  }
  ptx::mbarrier_wait(&arrived, 0);
  data[blockIdx.x * 32 + threadIdx.x] = received[threadIdx.x].w;
  cluster.sync();
#endif
}
constexpr Fence in_time = Fence::in_time, late = Fence::late, missing = Fence::missing;

template <bool planted>
__global__ void unfenced_copy(float* data, int) {
  exchange<planted ? missing : in_time, in_time, in_time>(data);
}
template <bool planted>
__global__ void copy_fenced_late(float* data, int) {
  exchange<planted ? late : in_time, in_time, in_time>(data);
}
template <bool planted>
__global__ void unfenced_store_under_a_copy(float* data, int) {
  exchange<in_time, planted ? missing : in_time, in_time>(data);
}
template <bool planted>
__global__ void store_under_a_copy_fenced_late(float* data, int) {
  exchange<in_time, planted ? late : in_time, in_time>(data);
}
template <bool planted>
__global__ void unfenced_mbarrier(float* data, int) {
  exchange<in_time, in_time, planted ? missing : in_time>(data);
}
template <bool planted>
__global__ void mbarrier_fenced_late(float* data, int) {
  exchange<in_time, in_time, planted ? late : in_time>(data);
}

template <bool planted>
__global__ void remote_arrival_unfenced(float* data, int) {
#if HAS_CLUSTERS
  FUSEDRNN_SHARED(uint64_t, arrived, );
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&arrived, 32);
    if (!planted) ptx::mbarrier_init_fence();
  }
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  ptx::mbarrier_arrive_at_rank(&arrived, cluster.block_rank() ^ 1);
  ptx::mbarrier_wait(&arrived, 0);
  data[blockIdx.x * 32 + threadIdx.x] = 1;
  cluster.sync();
#endif
}

template <bool>  // the launch is the fault: a cluster of one block
__global__ void st_async_alone(float* data, int) {
#if HAS_CLUSTERS
  FUSEDRNN_SHARED(float4, received, [32]);
  FUSEDRNN_SHARED(uint64_t, arrived, );
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&arrived, 1);
    ptx::mbarrier_arrive_expect_tx(&arrived, sizeof received);
  }
  __syncthreads();
  const unsigned own = cg::this_cluster().block_rank();
  ptx::st_async(&received[threadIdx.x], float4{1, 2, 3, 4}, &arrived, own);
  ptx::mbarrier_wait(&arrived, 0);
  data[blockIdx.x * 32 + threadIdx.x] = received[threadIdx.x].w;
#endif
}

// A block's first thread copies 64 bytes within shared memory and reads them.
enum class Mistake { none, early_read, wrong_count, global_source };

template <Mistake mistake>
__device__ void copy_and_read(float* data) {
#if HAS_CLUSTERS
  FUSEDRNN_SHARED(float4, sent, [4]);
  FUSEDRNN_SHARED(float4, received, [4]);
  FUSEDRNN_SHARED(uint64_t, arrived, );
  if (threadIdx.x > 0) return;
  for (float4& value : sent) value = {1, 2, 3, 4};
  ptx::fence_before_bulk_copy();
  const void* from = sent;
  if (mistake == Mistake::global_source) from = data;
  ptx::mbarrier_init(&arrived, 1);
  ptx::mbarrier_arrive_expect_tx(&arrived, mistake == Mistake::wrong_count ? 80 : 64);
  ptx::bulk_copy_to_rank(received, from, 64, &arrived, cg::this_cluster().block_rank());
  if (mistake != Mistake::early_read) ptx::mbarrier_wait(&arrived, 0);
  data[0] = received[1].x;
  if (mistake == Mistake::early_read) ptx::mbarrier_wait(&arrived, 0);
#endif
}

template <bool planted>
__global__ void early_bulk_read(float* data, int) {
  copy_and_read<planted ? Mistake::early_read : Mistake::none>(data);
}
template <bool planted>
__global__ void wrong_byte_count(float* data, int) {
  copy_and_read<planted ? Mistake::wrong_count : Mistake::none>(data);
}
template <bool planted>
__global__ void bulk_copy_of_global_memory(float* data, int) {
  copy_and_read<planted ? Mistake::global_source : Mistake::none>(data);
}

template <bool planted>
__global__ void uninitialised_mbarrier(float* data, int) {
#if HAS_CLUSTERS
  FUSEDRNN_SHARED(uint64_t, arrived, );
  if (!planted && threadIdx.x == 0) ptx::mbarrier_init(&arrived, 32);
  __syncthreads();
  ptx::mbarrier_arrive(&arrived);
  ptx::mbarrier_wait(&arrived, 0);
  data[threadIdx.x] = 1;
#endif
}

struct Fault {
  const char* name;
  Shape shape;
  void (*planted)(float*, int);
  void (*corrected)(float*, int);
};
#define FAULT(name, ...) {#name, Shape{__VA_ARGS__}, name<true>, name<false>}
const Fault faults[] = {
    FAULT(missing_barrier, 1, 64),
    FAULT(missing_second_barrier, 1, 64),
    FAULT(missing_syncwarp, 1, 32),
    FAULT(unreached_barrier, 1, 64),
    FAULT(diverged_collective, 1, 32),
    FAULT(lane_outside_mask, 1, 32),
    FAULT(lane_past_the_end, 1, 40),
    FAULT(diverged_barrier, 1, 64),
    FAULT(half_a_warp_at_a_barrier, 1, 64),
    FAULT(diverged_matrix_load, 1, 32),
    FAULT(diverged_product, 1, 32),
    FAULT(racing_blocks, 2, 32),
    FAULT(write_outside_shared, 1, 32),
    FAULT(read_outside_shared, 1, 32),
    FAULT(write_outside_dynamic_shared, 1, 32, 1, false, 128),
    FAULT(unwritten_shared, 1, 32),
    FAULT(write_outside_global, 1, 32),
    FAULT(read_outside_global, 1, 32),
    FAULT(misaligned_vector, 1, 32),
    FAULT(signed_overflow, 1, 32),
    FAULT(grid_barrier, 2, 32, 1, true),
    FAULT(waiting_blocks, 3, 32, 1, true),
    FAULT(lost_arrival, 3, 32, 1, true),
    FAULT(missing_release, 2, 32, 1, true),
    FAULT(missing_acquire, 2, 32, 1, true),
    FAULT(fence_of_a_block, 2, 32, 1, true),
    FAULT(stale_load, 2, 32, 1, true),
    FAULT(missing_cluster_barrier, 4, 32, 2),
    FAULT(early_exit, 4, 32, 2),
    FAULT(diverged_cluster_barrier, 4, 32, 2),
    FAULT(diverged_cluster_wait, 4, 32, 2),
    FAULT(unfenced_copy, 4, 32, 2),
    FAULT(copy_fenced_late, 4, 32, 2),
    FAULT(unfenced_store_under_a_copy, 4, 32, 2),
    FAULT(store_under_a_copy_fenced_late, 4, 32, 2),
    FAULT(unfenced_mbarrier, 4, 32, 2),
    FAULT(mbarrier_fenced_late, 4, 32, 2),
    FAULT(remote_arrival_unfenced, 4, 32, 2),
    FAULT(st_async_alone, 4, 32, 2),
    FAULT(early_bulk_read, 1, 32),
    FAULT(wrong_byte_count, 1, 32),
    FAULT(bulk_copy_of_global_memory, 1, 32),
    FAULT(uninitialised_mbarrier, 1, 32),
};

__global__ void nothing(float* data) { data[0] = 1; }

}  // namespace

extern "C" __attribute__((visibility("default"))) int fusedrnn_fault(const char* name, int planted,
                                                                     float* data, int n) {
  for (const Fault& fault : faults) {
    if (strcmp(fault.name, name) != 0) continue;
    Shape shape = fault.shape;
    const bool is_of_the_launch = !strcmp(name, "grid_barrier") || !strcmp(name, "waiting_blocks");
    if (planted && is_of_the_launch) shape.cooperative = false;
    if (planted && !strcmp(name, "st_async_alone")) shape.cluster = 1;
    return launch(shape, planted ? fault.planted : fault.corrected, data, n);
  }
  return cudaErrorInvalidValue;
}

// What a launcher sees of the latest failure; the next call says that there is none.
extern "C" __attribute__((visibility("default"))) const char* fusedrnn_last_error() {
  return cudaGetErrorString(cudaGetLastError());
}

// A launch of these sizes, of a kernel that may ask for `allowed` bytes of dynamic shared memory.
extern "C" __attribute__((visibility("default"))) int fusedrnn_launch(int blocks, int threads,
                                                                      int cluster, int cooperative,
                                                                      int dynamic_bytes,
                                                                      int allowed, float* data) {
  const cudaError_t error =
      cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
  if (error != cudaSuccess) return error;
  const Shape shape{unsigned(blocks), unsigned(threads), unsigned(cluster), cooperative != 0,
                    size_t(dynamic_bytes)};
  return launch(shape, nothing, data);
}

// What a host may not do while a graph is captured, or only in a thread whose mode is relaxed.
extern "C" __attribute__((visibility("default"))) int fusedrnn_in_capture(const char* what,
                                                                          int relaxed) {
  cudaStreamCaptureMode mode = relaxed ? cudaStreamCaptureModeRelaxed : cudaStreamCaptureModeGlobal;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaError_t error = cudaErrorInvalidValue;
  int blocks = 0;
  float out = 0;
  cudaFuncAttributes attributes;
  if (!strcmp(what, "asking")) error = cudaFuncGetAttributes(&attributes, nothing);
  if (!strcmp(what, "setting"))
    error = cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 1024);
  if (!strcmp(what, "occupancy"))
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nothing, 32, 0);
  if (!strcmp(what, "launching")) error = launch(Shape{}, nothing, &out);
  if (!strcmp(what, "waiting")) error = cudaStreamSynchronize(nullptr);
  cudaThreadExchangeStreamCaptureMode(&mode);
  return error;
}

// How many clusters fit that take as much of a multiprocessor as there is; negative: an error.
extern "C" __attribute__((visibility("default"))) int fusedrnn_clusters(int blocks,
                                                                        int shared_bytes) {
  cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  cudaFuncSetAttribute(nothing, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.attrs = &cluster, config.numAttrs = 1;
  int clusters = 0;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, nothing, &config);
  return error == cudaSuccess ? clusters : -static_cast<int>(error);
}
