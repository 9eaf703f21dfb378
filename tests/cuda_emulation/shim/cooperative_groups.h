// Found in place of the CUDA toolkit's file of this name: the groups that kernels here use.
#pragma once

#include "../intrinsics.h"

namespace cooperative_groups {

struct thread_block {
  void sync(EMULATION_HERE) const { emulation::block_barrier(where); }
  unsigned thread_rank() const { return emulation::builtins.rank; }
  unsigned num_threads() const { return blockDim.x * blockDim.y * blockDim.z; }
  unsigned size() const { return num_threads(); }
  dim3 group_index() const { return blockIdx; }
  dim3 thread_index() const { return threadIdx; }
};
inline thread_block this_thread_block() { return {}; }

struct grid_group {
  void sync(EMULATION_HERE) const { emulation::grid_barrier(where); }
  bool is_valid() const { return true; }
  unsigned long long num_blocks() const { return 1ull * gridDim.x * gridDim.y * gridDim.z; }
  unsigned long long block_rank() const {
    return (1ull * blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  }
  unsigned long long thread_rank() const {
    return block_rank() * this_thread_block().num_threads() + emulation::builtins.rank;
  }
  unsigned long long num_threads() const {
    return num_blocks() * this_thread_block().num_threads();
  }
};
inline grid_group this_grid() { return {}; }

struct cluster_group {
  struct arrival_token {};
  void sync(EMULATION_HERE) const {
    emulation::cluster_arrive(where);
    emulation::cluster_wait(where);
  }
  arrival_token barrier_arrive(EMULATION_HERE) const {
    emulation::cluster_arrive(where);
    return {};
  }
  void barrier_wait(EMULATION_HERE) const { emulation::cluster_wait(where); }
  void barrier_wait(arrival_token&&, EMULATION_HERE) const { emulation::cluster_wait(where); }
  unsigned block_rank() const { return emulation::builtins.cluster_rank; }
  unsigned num_blocks() const { return emulation::builtins.cluster_size; }
  template <class T>
  T* map_shared_rank(T* own, int rank, EMULATION_HERE) const {
    return static_cast<T*>(emulation::at_rank(own, unsigned(rank), where));
  }
};
inline cluster_group this_cluster() { return {}; }

template <unsigned lanes>
struct thread_block_tile {
  static_assert(lanes <= 32 && (lanes & (lanes - 1)) == 0);
  unsigned mask() const {
    return (lanes == 32 ? ~0u : (1u << lanes % 32) - 1)
           << (emulation::builtins.lane & ~(lanes - 1));
  }
  unsigned thread_rank() const { return emulation::builtins.lane & (lanes - 1); }
  unsigned meta_group_rank() const { return emulation::builtins.rank / lanes; }
  static constexpr unsigned size() { return lanes; }
  static constexpr unsigned num_threads() { return lanes; }

  void sync(EMULATION_HERE) const { __syncwarp(mask(), where); }
  int any(int predicate, EMULATION_HERE) const { return __any_sync(mask(), predicate, where); }
  int all(int predicate, EMULATION_HERE) const { return __all_sync(mask(), predicate, where); }
  template <class T>
  T shfl(T value, int source, EMULATION_HERE) const {
    return __shfl_sync(mask(), value, source, lanes, where);
  }
  template <class T>
  T shfl_down(T value, unsigned by, EMULATION_HERE) const {
    return __shfl_down_sync(mask(), value, by, lanes, where);
  }
  template <class T>
  T shfl_up(T value, unsigned by, EMULATION_HERE) const {
    return __shfl_up_sync(mask(), value, by, lanes, where);
  }
  template <class T>
  T shfl_xor(T value, int with, EMULATION_HERE) const {
    return __shfl_xor_sync(mask(), value, with, lanes, where);
  }
};
template <unsigned lanes>
thread_block_tile<lanes> tiled_partition(const thread_block&) {
  return {};
}

}  // namespace cooperative_groups
