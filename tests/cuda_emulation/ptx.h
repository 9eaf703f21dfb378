// The functions of csrc/cuda/team/ptx.cuh on the host: same names, same layouts of lanes.
#pragma once

#include "intrinsics.h"

#define FUSEDRNN_PTX

namespace fusedrnn::cuda::ptx {

// ---- Tensor cores ---------------------------------------------------------------------------

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              const float (&c)[4], EMULATION_HERE) {
  emulation::mma(emulation::Operand::bf16, d, a, b, c, where);
}
inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             const float (&c)[4], EMULATION_HERE) {
  emulation::mma(emulation::Operand::f16, d, a, b, c, where);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             const float (&c)[4], EMULATION_HERE) {
  emulation::mma(emulation::Operand::tf32, d, a, b, c, where);
}
template <unsigned matrices>
void ldmatrix(uint32_t (&r)[matrices], const void* row, EMULATION_HERE) {
  emulation::ldmatrix(matrices, r, row, where);
}

inline uint32_t round_to_tf32(float x) { return emulation::round_to_tf32(x); }
inline uint32_t transpose(uint32_t pair, EMULATION_HERE) {
  return emulation::transpose(pair, where);
}

inline float exp2(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1 / x; }

template <class T>
T computed_here(T x) {
  return x;
}

// ---- Barriers of some warps of a block ------------------------------------------------------

inline void barrier(unsigned id, unsigned threads, EMULATION_HERE) {
  emulation::block_barrier(where, id, threads);
}

// ---- Clusters and mbarriers -----------------------------------------------------------------

inline void cluster_arrive(EMULATION_HERE) { emulation::cluster_arrive(where); }
inline void cluster_wait(EMULATION_HERE) { emulation::cluster_wait(where); }

inline void mbarrier_init(uint64_t* barrier, unsigned arrivals, EMULATION_HERE) {
  emulation::mbarrier_init(barrier, arrivals, where);
}
inline void mbarrier_init_fence() { emulation::mbarrier_init_fence(); }
inline void mbarrier_arrive(uint64_t* barrier, EMULATION_HERE) {
  emulation::mbarrier_update(barrier, 1, 0, where);
}
inline void mbarrier_arrive_at_rank(uint64_t* barrier, unsigned rank, EMULATION_HERE) {
  emulation::mbarrier_update(emulation::mbarrier_at_rank(barrier, rank, where), 1, 0, where);
}
inline void mbarrier_arrive_expect_tx(uint64_t* barrier, unsigned bytes, EMULATION_HERE) {
  emulation::mbarrier_update(barrier, 1, int(bytes), where);
}
inline bool mbarrier_try_wait(uint64_t* barrier, unsigned parity, EMULATION_HERE) {
  return emulation::mbarrier_try_wait(barrier, parity, where);
}
inline void mbarrier_wait(uint64_t* barrier, unsigned parity, EMULATION_HERE) {
  while (!emulation::mbarrier_try_wait(barrier, parity, where)) {
  }
}

template <class T>  // uint32_t or float4
void st_async(T* place, T value, uint64_t* barrier, unsigned rank, EMULATION_HERE) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 16);
  emulation::store_at_rank(place, &value, sizeof(T), barrier, rank, where);
}
inline void bulk_copy_to_rank(void* place, const void* from, unsigned bytes, uint64_t* barrier,
                              unsigned rank, EMULATION_HERE) {
  emulation::bulk_copy(place, from, bytes, barrier, rank, where);
}
inline void fence_before_bulk_copy() { emulation::proxy_fence(); }

}  // namespace fusedrnn::cuda::ptx
