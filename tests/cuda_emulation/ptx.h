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
  emulation::ldmatrix(matrices, false, r, row, where);
}
template <unsigned matrices>
void ldmatrix_transposed(uint32_t (&r)[matrices], const void* row, EMULATION_HERE) {
  emulation::ldmatrix(matrices, true, r, row, where);
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

// ---- Copies that a thread starts and later waits for ----------------------------------------

inline void cp_async_16(void* shared, const void* global, bool valid = true, EMULATION_HERE) {
  emulation::copy_async(shared, global, 16, valid, where);
}
inline void cp_async_commit() { emulation::copy_commit(); }
template <int groups>
void cp_async_wait(EMULATION_HERE) {
  emulation::copy_wait(groups, where);
}

// ---- Flags in global memory -----------------------------------------------------------------

inline unsigned load_relaxed(const unsigned* p, EMULATION_HERE) {
  return emulation::load_flag(p, emulation::relaxed, where);
}
inline unsigned load_acquire(const unsigned* p, EMULATION_HERE) {
  return emulation::load_flag(p, emulation::acquire, where);
}
inline void store_release(unsigned* p, unsigned value, EMULATION_HERE) {
  emulation::store_flag(p, value, emulation::release, where);
}
inline void add_release(unsigned* p, unsigned value, EMULATION_HERE) {
  emulation::add_to_flag(p, value, emulation::release, where);
}
inline unsigned fetch_add_acq_rel(unsigned* p, unsigned value, EMULATION_HERE) {
  return emulation::add_to_flag(p, value, emulation::acquire | emulation::release, where);
}
inline void wait_at_least(const unsigned* flag, unsigned value, EMULATION_HERE) {
  while (int(load_relaxed(flag, where) - value) < 0) {
  }
  emulation::fence(true);
}

// ---- Clusters and mbarriers -----------------------------------------------------------------

inline void cluster_arrive(EMULATION_HERE) { emulation::cluster_arrive(true, where); }
inline void cluster_arrive_relaxed(EMULATION_HERE) { emulation::cluster_arrive(false, where); }
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
inline void mbarrier_expect_tx(uint64_t* barrier, unsigned bytes, EMULATION_HERE) {
  emulation::mbarrier_update(barrier, 0, int(bytes), where);
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

template <class T>  // uint32_t, float or float4
void st_async(T* place, T value, uint64_t* barrier, unsigned rank, EMULATION_HERE) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 16);
  emulation::store_at_rank(place, &value, sizeof(T), barrier, rank, where);
}
inline void bulk_copy_to_shared(void* shared, const void* global, unsigned bytes, uint64_t* barrier,
                                EMULATION_HERE) {
  emulation::bulk_copy(shared, global, bytes, barrier, emulation::builtins.cluster_rank, where);
}
inline void bulk_copy_to_rank(void* place, const void* from, unsigned bytes, uint64_t* barrier,
                              unsigned rank, EMULATION_HERE) {
  emulation::bulk_copy(place, from, bytes, barrier, rank, where);
}
inline void fence_before_bulk_copy() { emulation::proxy_fence(); }

}  // namespace fusedrnn::cuda::ptx
