// Who walks the steps together, and how they exchange what all need: the same few operations for a
// block and for the blocks of a cluster. Exchanges are counted 0, 1, 2, ...; in each, every block
// gets something from every other.
//
//   forward    wait(e-1)  product, cell            publish(e): own slice of h to all
//              the same                            send(e): own h to all, word by word (Fixed)
//   backward   wait(e-1)  cell, block.sync, send(e): own share of everyone's dh, product by product
//
// Two buffers in turn are enough, and one wait a step: whoever writes exchange e + 2 into my buffer
// has had my exchange e + 1, which I sent after a barrier of my block that follows my last read of
// e.
#pragma once

#include "cuda/gpu.cuh"
#include "ptx.cuh"
#include "walk.h"

namespace fusedrnn::cuda {

// One block: shared memory is its own, so that an exchange is a barrier of the block.
class BlockTeam {
 public:
  static constexpr int kSince = 0;  // compute capability, times ten
  static constexpr CudaTeam kind = CudaTeam::block;

  __device__ __forceinline__ BlockTeam(uint64_t*, unsigned) {}

  __device__ __forceinline__ unsigned rank() const { return 0; }
  __device__ __forceinline__ void begin() const { __syncthreads(); }
  __device__ __forceinline__ void end() const {}

  __device__ __forceinline__ void publish(int, char*, int, int, int) const { __syncthreads(); }

  __device__ __forceinline__ void expect(int, int) const {}
  __device__ __forceinline__ void send(int, float4* place, float4 value, unsigned) const {
    *place = value;
  }
  __device__ __forceinline__ void wait_for_published(int) const {}
  __device__ __forceinline__ void wait_for_sent(int) const { __syncthreads(); }
};

// The blocks of a cluster: what is sent is written into their shared memory and counted there by an
// mbarrier, one for each buffer.
class ClusterTeam {
 public:
  static constexpr int kSince = 90;
  static constexpr CudaTeam kind = CudaTeam::cluster;

  __device__ __forceinline__ ClusterTeam(uint64_t* barriers, unsigned size)
      : barriers_(barriers), size_(size), rank_(blockIdx.x % size) {}

  __device__ __forceinline__ unsigned rank() const { return rank_; }

  // Everyone is there, with all that they wrote before.
  __device__ __forceinline__ void begin() const {
    // Bulk copies of the others will write over the first operand, which this thread wrote to by
    // ordinary stores. They write in another proxy: a barrier alone does not order the two. The
    // first of them comes after a fence in `publish` as it is, but nothing here should rely on
    // that.
    ptx::fence_before_bulk_copy();
    if (threadIdx.x == 0) {
      ptx::mbarrier_init(&barriers_[0], 1);
      ptx::mbarrier_init(&barriers_[1], 1);
      ptx::mbarrier_init_fence();
    }
    meet();
  }
  // Nobody leaves while others still read from or write to them.
  __device__ __forceinline__ void end() const { meet(); }

  // Sends `pieces` pieces of the own slice, `apart` bytes from one to the next, to the same places
  // of all others. The warps' writes to it are over when this has been passed.
  __device__ __forceinline__ void publish(int exchange, char* slice, int bytes, int pieces,
                                          int apart) const {
    const bool bulk = pieces * bytes > kBulkBytes;
    if (bulk) ptx::fence_before_bulk_copy();
    __syncthreads();
    expect(exchange, static_cast<int>(size_ - 1) * pieces * bytes);
    // A warp serves a peer, and every so-manyth after it; the own rank's next is first.
    const int warps = static_cast<int>(blockDim.x) / kLanes;
    for (int i = static_cast<int>(threadIdx.x) / kLanes; i + 1 < static_cast<int>(size_);
         i += warps) {
      const unsigned to = rank_after(i);
      for (int piece = 0; piece < pieces; ++piece) {
        char* const from = slice + piece * apart;
        if (bulk && threadIdx.x % kLanes == 0)
          ptx::bulk_copy_to_rank(from, from, static_cast<unsigned>(bytes), barrier(exchange), to);
        for (int at = static_cast<int>(threadIdx.x) % kLanes * 16; !bulk && at < bytes;
             at += kLanes * 16) {
          float4* const place = reinterpret_cast<float4*>(from + at);
          ptx::st_async(place, *place, barrier(exchange), to);
        }
      }
    }
  }
  __device__ __forceinline__ void wait_for_published(int exchange) const { wait(exchange); }

  // Once in each exchange, before the wait: how many bytes will come.
  __device__ __forceinline__ void expect(int exchange, int bytes) const {
    if (threadIdx.x == 0)
      ptx::mbarrier_arrive_expect_tx(barrier(exchange), static_cast<unsigned>(bytes));
  }
  // Writes to the same place at a rank, which may be the own.
  __device__ __forceinline__ void send(int exchange, float4* place, float4 value,
                                       unsigned to) const {
    ptx::st_async(place, value, barrier(exchange), to);
  }
  __device__ __forceinline__ void send(int exchange, uint32_t* place, uint32_t word,
                                       unsigned to) const {
    ptx::st_async(place, word, barrier(exchange), to);
  }
  __device__ __forceinline__ void wait_for_sent(int exchange) const { wait(exchange); }
  // The ranks of a team of kSize, in an order that makes no two blocks begin with the same one; the
  // own is the last.
  template <int kSize>
  __device__ __forceinline__ unsigned rank_after(int i) const {
    if (kSize & (kSize - 1)) return rank_after(i);
    return rank_ ^ static_cast<unsigned>(kSize - 1 - i);
  }

 private:
  __device__ __forceinline__ uint64_t* barrier(int exchange) const {
    return &barriers_[exchange & 1];
  }
  __device__ __forceinline__ void wait(int exchange) const {
    ptx::mbarrier_wait(barrier(exchange), exchange >> 1 & 1);
  }
  __device__ __forceinline__ void meet() const {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }

  __device__ __forceinline__ unsigned rank_after(int i) const {
    const unsigned to = rank_ + 1 + static_cast<unsigned>(i);
    return to < size_ ? to : to - size_;
  }

  uint64_t* const barriers_;
  const unsigned size_, rank_;
};

}  // namespace fusedrnn::cuda
