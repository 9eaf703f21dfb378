// Small kernels, one for each thing that the emulation must compute as a GPU does. They are
// ordinary CUDA. The expected values are in tests/test_cuda_emulation.py.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstring>

#include "cuda/blas.h"
#include "cuda/gpu.cuh"
#include "cuda/team/ptx.cuh"
#include "launch.cuh"

namespace cg = cooperative_groups;
namespace ptx = fusedrnn::cuda::ptx;

namespace {

// ---- Threads and parameters -----------------------------------------------------------------

struct Scale {
  double factor;
  int offset;
};

// A struct by value, arguments that convert, three dimensions of each kind.
__global__ void coordinates(Scale scale, double more, float* out, int64_t n) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int rank = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int64_t i = int64_t(block) * blockDim.x * blockDim.y * blockDim.z + rank;
  if (i < n) out[i] = float(scale.factor * double(i) + scale.offset + more);
}

__global__ void half_types(const float* a, float* out) {  // through bf16 and through fp16
  const float x = a[threadIdx.x];
  out[threadIdx.x] = __bfloat162float(__float2bfloat16_rn(x));
  out[blockDim.x + threadIdx.x] = float(__half(x) + __half(x));
}

// ---- Blocks and warps -----------------------------------------------------------------------

__global__ void block_sums(const float* a, float* out, int n) {  // rows of n
  FUSEDRNN_SHARED(float, partial, [32]);
  FUSEDRNN_SHARED(int, rows_seen, );
  float v = int(threadIdx.x) < n ? a[blockIdx.x * n + threadIdx.x] : 0.0f;
  for (int d = 16; d > 0; d /= 2) v += __shfl_down_sync(~0u, v, d);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  if (threadIdx.x == 0) rows_seen = 1;
  __syncthreads();
  if (threadIdx.x < 32) {
    const auto tile = cg::tiled_partition<32>(cg::this_thread_block());
    v = threadIdx.x < (blockDim.x + 31) / 32 ? partial[threadIdx.x] : 0.0f;
    for (int d = 16; d > 0; d /= 2) v += tile.shfl_xor(v, d);
    if (threadIdx.x == 0) out[blockIdx.x] = v * float(rows_seen);
  }
}

template <int rows>
__global__ void reversed(const float* a, float* out, int n) {  // dynamic shared memory, two arrays
  FUSEDRNN_DYNAMIC_SHARED(float, all);
  FUSEDRNN_SHARED(float, last, [rows]);
  for (int i = threadIdx.x; i < n; i += blockDim.x) all[i] = a[i];
  cg::this_thread_block().sync();
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = all[n - 1 - i];
  if (threadIdx.x < rows) last[threadIdx.x] = all[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) out[n] = last[rows - 1];
}

__global__ void collectives(const int* a, int* out) {  // out [18][32]
  const int lane = int(threadIdx.x), v = a[lane];
  int row = 0;
  const auto put = [&](int value) { out[row++ * 32 + lane] = value; };
  put(__shfl_sync(~0u, v, 5));
  put(__shfl_sync(~0u, v, lane + 3, 8));
  put(__shfl_up_sync(~0u, v, 2));
  put(__shfl_up_sync(~0u, v, 2, 8));
  put(__shfl_down_sync(~0u, v, 2));
  put(__shfl_down_sync(~0u, v, 2, 8));
  put(__shfl_xor_sync(~0u, v, 9));
  put(int(__ballot_sync(~0u, v % 2)));
  put(__any_sync(~0u, v > 100));
  put(__all_sync(~0u, v < 100));
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  put(__reduce_add_sync(~0u, v));
  put(__reduce_min_sync(~0u, v));
  put(int(__reduce_max_sync(~0u, unsigned(v))));
#endif
  put(int(__match_any_sync(~0u, v & 3)));
  put(__syncthreads_count(v % 2));
  put(__syncthreads_or(v == 1000) * 2 + __syncthreads_and(v < 1000));
  // Two halves of a warp on different ways, each a group of its own.
  const unsigned mask = lane < 16 ? 0xffffu : 0xffff0000u;
  if (lane < 16) {
    put(__shfl_xor_sync(mask, v, 1));
  } else {
    put(__shfl_xor_sync(mask, v, 3));
  }
  const auto tile = cg::tiled_partition<4>(cg::this_thread_block());
  put(tile.shfl(v, 1) * 10 + int(tile.any(v == 7)));
}

__global__ void atomics(const int* a, int* out, float* sums, int n) {  // out [0..7] of a histogram
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  atomicAdd(&out[a[i] & 7], 1);
  atomicMin(&out[8], a[i]);
  atomicMax(&out[9], a[i]);
  atomicAdd(&sums[0], 0.5f);
  int seen = 0, before;  // a lock-free maximum
  do {
    before = seen;
    seen = atomicCAS(&out[10], before, max(before, a[i]));
  } while (seen != before);
}

// ---- The grid -------------------------------------------------------------------------------

__global__ void grid_sums(float* out) {  // each block reads what the others wrote
  const cg::grid_group grid = cg::this_grid();
  if (threadIdx.x == 0) out[blockIdx.x] = float(blockIdx.x + 1);
  grid.sync();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += out[i];
    out[gridDim.x + blockIdx.x] = sum;
  }
}

// A pipeline over blocks by flags: block b adds one to what block b - 1 made. Then each adds one in
// its turn; the last to come does something for all; all wait for a count.
__global__ void flags(float* out, unsigned* flag, int n) {
  const unsigned b = blockIdx.x, last = gridDim.x - 1;
  if (threadIdx.x > 0) return;
  volatile unsigned* const done = flag;
  if (b > 0) wait_at_least(done + b - 1, 1);
  out[b] = b > 0 ? out[b - 1] + 1 : 1;
  __threadfence();
  done[b] = 1;
  for (int round = 0; round < n; ++round) {
    const unsigned turn = unsigned(round) * gridDim.x + b;
    wait_at_least(flag + 64, turn);
    out[gridDim.x] += 1;
    __threadfence();
    atomicExch(flag + 64, turn + 1);
    if (b == last) atomicAdd(flag + 65, 1u);
  }
  if (atomicAdd(flag + 66, 1u) == last) {
    __threadfence();
    out[gridDim.x + 1] = out[last];
  }
  wait_at_least(flag + 65, unsigned(n));
  out[gridDim.x + 2 + b] = out[gridDim.x];
}

// ---- Tensor cores ---------------------------------------------------------------------------

template <class T>  // D[16][8] = A[16][16] B[16][8] + 1; in shared memory A by rows, B by columns
__global__ void product(const T* a, const T* b, float* out) {
  FUSEDRNN_SHARED(T, as, [16][24]);
  FUSEDRNN_SHARED(T, bs, [8][24]);
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 256; i += 32) as[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) bs[i % 8][i / 8] = b[i];
  __syncwarp();
  uint32_t ra[4], rb[2];
  float c[4] = {1, 1, 1, 1};
  ptx::ldmatrix(ra, &as[lane % 16][lane / 16 * 8]);
  ptx::ldmatrix(rb, &bs[lane % 8][lane / 8 % 2 * 8]);
  if constexpr (sizeof(T) == 2 && std::is_same<T, __half>::value) {
    ptx::mma_m16n8k16_f16(c, ra, rb, c);
  } else {
    ptx::mma_m16n8k16_bf16(c, ra, rb, c);
  }
  for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = c[i];
}

__global__ void product_tf32(const float* a, const float* b, float* out) {  // A[16][8] B[8][8]
  const int lane = int(threadIdx.x), group = lane / 4, t = lane % 4;
  uint32_t ra[4], rb[2];
  float c[4] = {0, 0, 0, 0};
  for (int i = 0; i < 4; ++i) {
    ra[i] = __float_as_uint(a[(group + i % 2 * 8) * 8 + t + i / 2 * 4]);
    if (i < 2) rb[i] = __float_as_uint(b[(t + i * 4) * 8 + group]);
  }
  ptx::mma_m16n8k8_tf32(c, ra, rb, c);
  for (int i = 0; i < 4; ++i) out[(group + i / 2 * 8) * 8 + t * 2 + i % 2] = c[i];
}

__global__ void matrix_loads(const uint16_t* a, uint32_t* out) {  // a: four [8][8]; out [7][32]
  FUSEDRNN_SHARED(uint16_t, s, [32][8]);
  const int lane = int(threadIdx.x);
  for (int i = 0; i < 8; ++i) s[lane][i] = a[lane * 8 + i];
  __syncwarp();
  uint32_t two[2], four[4];
  ptx::ldmatrix(two, s[lane % 16]);
  ptx::ldmatrix(four, s[lane]);
  for (int i = 0; i < 2; ++i) out[i * 32 + lane] = two[i];
  for (int i = 0; i < 4; ++i) out[(2 + i) * 32 + lane] = four[i];
  out[6 * 32 + lane] = ptx::transpose(four[3]);
}

// ---- Asynchronous copies --------------------------------------------------------------------

// Every block of a cluster sends a piece of `a` to all, itself included.
__global__ void gathered(const float* a, float* out, int n) {  // n floats a block, n <= 256
#if HAS_CLUSTERS
  const cg::cluster_group cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank(), blocks = cluster.num_blocks(),
                 bytes = 4 * unsigned(n);
  FUSEDRNN_SHARED(float4, piece, [64]);
  FUSEDRNN_SHARED(float4, all, [4][64]);
  FUSEDRNN_SHARED(uint64_t, arrived, );
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
    reinterpret_cast<float*>(piece)[i] = a[blockIdx.x * n + i];
  }
  ptx::fence_before_bulk_copy();
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&arrived, 1);
    ptx::mbarrier_init_fence();
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(&arrived, blocks * bytes);
    for (unsigned r = 0; r < blocks; ++r) {
      ptx::bulk_copy_to_rank(all[rank], piece, bytes, &arrived, r);
    }
  }
  ptx::mbarrier_wait(&arrived, 0);
  for (int i = int(threadIdx.x); i < int(blocks) * n; i += int(blockDim.x)) {
    out[blockIdx.x * blocks * n + i] = reinterpret_cast<const float*>(all[i / n])[i % n];
  }
  ptx::cluster_arrive();  // no block exits while its piece is still being sent
  ptx::cluster_wait();
#endif
}

// A value travels round a cluster by st.async, each hop counted by an mbarrier of the receiver,
// and each receipt acknowledged by an arrival at the sender's.
__global__ void ring(float* out, int laps) {
#if HAS_CLUSTERS
  FUSEDRNN_SHARED(float4, box, );
  FUSEDRNN_SHARED(uint64_t, full, );
  FUSEDRNN_SHARED(uint64_t, taken, );
  const cg::cluster_group cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank(), blocks = cluster.num_blocks();
  const unsigned next = (rank + 1) % blocks, previous = (rank + blocks - 1) % blocks;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&full, 1);
    ptx::mbarrier_init(&taken, 1);
    ptx::mbarrier_init_fence();
    ptx::mbarrier_arrive_expect_tx(&full, 16);
  }
  cluster.sync();
  float v = float(rank);
  for (int lap = 0; lap < laps; ++lap) {
    if (threadIdx.x == 0) {
      if (lap > 0) ptx::mbarrier_wait(&taken, (lap - 1) % 2);
      ptx::st_async(&box, float4{v, 0, 0, 1}, &full, next);
    }
    ptx::mbarrier_wait(&full, lap % 2);
    v = box.x + box.w;
    __syncthreads();
    if (threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect_tx(&full, 16);
      ptx::mbarrier_arrive_at_rank(&taken, previous);
    }
  }
  if (threadIdx.x == 0) out[blockIdx.x] = v;
  cluster.sync();
#endif
}

// Distributed shared memory, the cluster's barrier in two halves.
__global__ void cluster_sums(const float* a, float* out) {
#if HAS_CLUSTERS
  const cg::cluster_group cluster = cg::this_cluster();
  FUSEDRNN_SHARED(float, own, [64]);
  own[threadIdx.x] = a[blockIdx.x * blockDim.x + threadIdx.x];
  auto token = cluster.barrier_arrive();
  float sum = 0;
  cluster.barrier_wait(std::move(token));
  for (unsigned r = 0; r < cluster.num_blocks(); ++r) {
    sum += cluster.map_shared_rank(own, r)[threadIdx.x];
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  cluster.sync();
#endif
}

template <class T>
const T* of(const void* p) {
  return static_cast<const T*>(p);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int fusedrnn_selftest(const char* name,
                                                                        const void* a,
                                                                        const void* b, void* out,
                                                                        int n) {
  const auto is = [&](const char* one) { return strcmp(name, one) == 0; };
  const auto fa = of<float>(a);
  auto* fo = static_cast<float*>(out);
  auto* io = static_cast<int*>(out);
  auto* uo = static_cast<unsigned*>(out);
  if (is("coordinates")) {
    const Shape shape{dim3(3, 2, 2), dim3(5, 3, 2)};
    return launch(shape, coordinates, Scale{0.5, 3}, 1, fo, n);
  }
  if (is("half_types")) return launch({1, dim3(unsigned(n))}, half_types, fa, fo);
  if (is("block_sums")) return launch({3, dim3(unsigned(n + 31) / 32 * 32)}, block_sums, fa, fo, n);
  if (is("reversed")) {
    const size_t bytes = sizeof(float) * size_t(n);
    const cudaError_t error =
        cudaFuncSetAttribute(reversed<7>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
    if (error != cudaSuccess) return error;
    return launch({1, 64, 1, false, bytes}, reversed<7>, fa, fo, n);
  }
  if (is("collectives")) return launch({1, 32}, collectives, of<int>(a), io);
  if (is("atomics")) return launch({5, 64}, atomics, of<int>(a), io, fo + 16, n);
  if (is("grid_sums")) return launch({unsigned(n), 64, 1, true}, grid_sums, fo);
  if (is("flags")) return launch({4, 32, 1, true}, flags, fo, uo + 64, n);
  if (is("product_f16")) return launch({}, product<__half>, of<__half>(a), of<__half>(b), fo);
  if (is("product_bf16")) {
    return launch({}, product<__nv_bfloat16>, of<__nv_bfloat16>(a), of<__nv_bfloat16>(b), fo);
  }
  if (is("product_tf32")) return launch({}, product_tf32, fa, of<float>(b), fo);
  if (is("matrix_loads")) return launch({}, matrix_loads, of<uint16_t>(a), uo);
  if (is("gathered")) return launch({8, 64, 4}, gathered, fa, fo, n);
  if (is("ring")) return launch({8, 64, 4}, ring, fo, n);
  if (is("cluster_sums")) return launch({8, 64, 2}, cluster_sums, fa, fo);
  return cudaErrorInvalidValue;
}

extern "C" __attribute__((visibility("default"))) int fusedrnn_gemm(
    int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a, int type_a, int lda,
    long long stride_a, const void* b, int type_b, int ldb, long long stride_b, const void* beta,
    void* c, int type_c, int ldc, long long stride_c, int batch, int compute) {
  return fusedrnn::cuda::find_cublas()->gemm_strided_batched(
      nullptr, op_a, op_b, m, n, k, alpha, a, type_a, lda, stride_a, b, type_b, ldb, stride_b, beta,
      c, type_c, ldc, stride_c, batch, compute, -1);
}
