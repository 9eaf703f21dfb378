// The PTX instructions that kernels use, one function each; CUDA C++ has no other name for them.
//
// Every function exists on every architecture, so that one source compiles for all. Where the
// instruction does not exist (the comment above a group says since when it does), calling the
// function stops the kernel: a plan must not choose such a kernel there.
//
// Addresses of shared memory are given as ordinary pointers. "At rank" means: at the same place in
// the shared memory of that block of the cluster. "tx" is an mbarrier's count of bytes to come.
//
// Whatever stands in for the CUDA runtime may bring these functions itself (FUSEDRNN_PTX).
#pragma once

#include <cuda_runtime.h>
#include <cstdint>

#ifndef FUSEDRNN_PTX
#define FUSEDRNN_PTX

#if defined(__CUDA_ARCH__)
#define FUSEDRNN_SINCE(architecture)              \
  if constexpr (__CUDA_ARCH__ < (architecture)) { \
    __trap();                                     \
  } else
#else
#define FUSEDRNN_SINCE(architecture)
#endif

namespace fusedrnn::cuda::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- Tensor cores (sm_80): D = A B + C ------------------------------------------------------
//
// A [16][k] by rows, B [k][8] by columns, C and D [16][8], sums in fp32. With group = lane / 4 and
// t = lane % 4 a lane holds, two 16-bit values to a register, the lower index in the lower half:
//   k = 16:  a[0..3] = A[group + 0,8,0,8][2t + 0,0,8,8 and the next]   b[i] = B[2t + 8i, ..][group]
//   k = 8:   a[0..3] = A[group + 0,8,0,8][t + 0,0,4,4] (fp32 bits)     b[i] = B[t + 4i][group]
//   c, d:    c[0..3] = C[group + 0,0,8,8][2t + 0,1,0,1]

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2], const float (&c)[4]) {
  FUSEDRNN_SINCE(800)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
        "f"(c[2]), "f"(c[3]));
}

// From sm_75 on: there, as two products of half the depth.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2], const float (&c)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  float half[4];
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
      : "=f"(half[0]), "=f"(half[1]), "=f"(half[2]), "=f"(half[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[2]), "r"(a[3]), "r"(b[1]), "f"(half[0]), "f"(half[1]), "f"(half[2]), "f"(half[3]));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
        "f"(c[2]), "f"(c[3]));
#endif
}

// The lower 13 bits of each fp32 operand are not read: round to tf32 first.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2], const float (&c)[4]) {
  FUSEDRNN_SINCE(800)
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
        "f"(c[2]), "f"(c[3]));
}

// fp32 to tf32, to the nearest and halves away from zero.
__device__ __forceinline__ uint32_t round_to_tf32(float x) {
  uint32_t rounded = 0;
  FUSEDRNN_SINCE(800)
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}

// ---- Functions of one instruction ------------------------------------------------------------
//
// Good to 2 ulp and 1 ulp; results that are not normal numbers are 0.

__device__ __forceinline__ float exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// ---- Registers ------------------------------------------------------------------------------

// Hides where x comes from, so that the compiler computes what depends on it here, and not ahead of
// a loop, which would hold the result in registers.
__device__ __forceinline__ int computed_here(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
// For an address in global memory: it stays in its registers, and is not computed anew.
template <class T>
__device__ __forceinline__ T* computed_here(T* x) {
  size_t at = __cvta_generic_to_global(static_cast<const void*>(x));
  asm volatile("" : "+l"(at));
  return static_cast<T*>(__cvta_global_to_generic(at));
}

// ---- Fragments from shared memory (sm_75) ---------------------------------------------------
//
// Loads 2 or 4 matrices [8][8] of 16-bit values; lane 8m + i gives the address of row i of matrix m
// (16-byte aligned). r[m] holds elements 2t, 2t + 1 of row `group`.

__device__ __forceinline__ void ldmatrix(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The transpose of a matrix [8][8] of 16-bit values, held by a warp as above (sm_75).
__device__ __forceinline__ uint32_t transpose(uint32_t pair) {
  uint32_t of_column;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(of_column) : "r"(pair));
  return of_column;
}

// ---- Barriers of some warps of a block ------------------------------------------------------

// `id` 1 to 15; `threads`, a multiple of 32, of the block meet there.
__device__ __forceinline__ void barrier(unsigned id, unsigned threads) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- The barrier of a cluster, in two halves (sm_90) ----------------------------------------

__device__ __forceinline__ void cluster_arrive() {
  FUSEDRNN_SINCE(900)
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  FUSEDRNN_SINCE(900)
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// ---- mbarriers (sm_90) ----------------------------------------------------------------------
//
// A phase ends when all arrivals have come and tx is zero; the next begins at once. A wait for
// parity p returns when a phase of that parity has ended: 0 first, then 1, then 0. What the wait is
// for came into the waiting block's own shared memory, which has no copies that could be old: it
// acquires for the block, as CUTLASS's waits do. For the cluster it would drop all of L1.

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, unsigned arrivals) {
  FUSEDRNN_SINCE(900)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
// After mbarrier_init, before the barrier that tells others of it.
__device__ __forceinline__ void mbarrier_init_fence() {
  FUSEDRNN_SINCE(900)
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  FUSEDRNN_SINCE(900)
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_at_rank(uint64_t* barrier, unsigned rank) {
  FUSEDRNN_SINCE(900)
  asm volatile(
      "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there]; }" ::"r"(
          shared_address(barrier)),
      "r"(rank)
      : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t* barrier, unsigned bytes) {
  FUSEDRNN_SINCE(900)
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ bool mbarrier_try_wait(uint64_t* barrier, unsigned parity) {
  unsigned done = 0;
  FUSEDRNN_SINCE(900)
  asm volatile(
      "{ .reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, unsigned parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// ---- Stores and copies that complete on an mbarrier (sm_90) ---------------------------------

// Each counts its bytes down from the tx of the mbarrier next to the destination.
__device__ __forceinline__ void st_async(uint32_t* place, uint32_t value, uint64_t* barrier,
                                         unsigned rank) {
  FUSEDRNN_SINCE(900)
  asm volatile(
      "{ .reg .b32 to, at; mapa.shared::cluster.u32 to, %0, %3;\n"
      "mapa.shared::cluster.u32 at, %2, %3;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [to], %1, [at]; }" ::"r"(
          shared_address(place)),
      "r"(value), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
}
__device__ __forceinline__ void st_async(float4* place, float4 value, uint64_t* barrier,
                                         unsigned rank) {
  FUSEDRNN_SINCE(900)
  asm volatile(
      "{ .reg .b32 to, at; mapa.shared::cluster.u32 to, %0, %6;\n"
      "mapa.shared::cluster.u32 at, %5, %6;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [to], {%1,%2,%3,%4}, "
      "[at]; }" ::"r"(shared_address(place)),
      "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
// From this block's shared memory; addresses and bytes are multiples of 16.
__device__ __forceinline__ void bulk_copy_to_rank(void* place, const void* from, unsigned bytes,
                                                  uint64_t* barrier, unsigned rank) {
  FUSEDRNN_SINCE(900)
  asm volatile(
      "{ .reg .b32 to, at; mapa.shared::cluster.u32 to, %0, %4;\n"
      "mapa.shared::cluster.u32 at, %3, %4;\n"
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [to], [%1], %2, "
      "[at]; }" ::"r"(shared_address(place)),
      "r"(shared_address(from)), "r"(bytes), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
}
// What this thread wrote to shared memory, for bulk copies that read it or write there later. They
// belong to the async proxy, and all else here to the generic one, st.async and the mbarriers
// included (PTX ISA, "Async Proxy"). In the other direction the end of a copy is a fence by itself.
__device__ __forceinline__ void fence_before_bulk_copy() {
  FUSEDRNN_SINCE(900)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace fusedrnn::cuda::ptx

#undef FUSEDRNN_SINCE
#endif  // FUSEDRNN_PTX
