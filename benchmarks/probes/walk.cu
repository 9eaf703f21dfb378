// A walk with clocks: an LSTM in bf16, walked by a team (csrc/cuda/team) that reads the clock in
// its exchanges. Thread 0 of each block marks, in each step, when
//
//   asked    it begins to wait for what the others send
//   came     it has all of it; the product, its parts and the cells follow
//   first    it sends its first word
//   sent     it has sent the last one; the step's stores and loads follow
//
// Apart from the marks, some 20 instructions a step, the kernels are the library's.
#include "cells/lstm.h"
#include "cuda/team/walk_backward.cuh"
#include "cuda/team/walk_forward.cuh"
#include "probes.cuh"

namespace {

using namespace fusedrnn::cuda;
using E = Bf16::E;

enum Mark { asked, came, first, sent, kMarks };

__device__ int64_t* clocks;  // [block][step][Mark]
__device__ int clocked_steps;

__global__ void point_clocks(int64_t* to, int steps) { clocks = to, clocked_steps = steps; }

// Sets `time` to when `value` is ready, if this is the first word of an exchange. The clock is read
// only if the value is not a certain NaN: the comparison keeps the compiler from reading it before
// the value has been computed.
__device__ __forceinline__ void note_first(int64_t& time, int exchange, int seen, uint32_t value) {
#ifdef __CUDACC__
  asm volatile(
      "{ .reg .pred p;\n"
      "setp.ne.u32 p, %1, 0x7fc17fc1;\n"
      "setp.ne.and.s32 p, %2, %3, p;\n"
      "@p mov.u64 %0, %%clock64; }"
      : "+l"(time)
      : "r"(value), "r"(exchange), "r"(seen));
#else
  if (exchange != seen && value != 0x7fc17fc1) time = now();
#endif
}

class ClockedTeam : public ClusterTeam {
 public:
  __device__ __forceinline__ ClockedTeam(uint64_t* barriers, unsigned size)
      : ClusterTeam(barriers, size),
        clocks_(threadIdx.x ? nullptr : clocks + int64_t(blockIdx.x) * clocked_steps * kMarks) {}

  __device__ __forceinline__ void wait_for_published(int exchange) const { wait(exchange); }
  __device__ __forceinline__ void wait_for_sent(int exchange) const { wait(exchange); }
  __device__ __forceinline__ void expect(int exchange, int bytes) const {
    ClusterTeam::expect(exchange, bytes);
    const int64_t time = now();
    note(exchange, first, first_), note(exchange, sent, time);
  }
  template <class T>
  __device__ __forceinline__ void send(int exchange, T* place, T value, unsigned to) const {
    note_first(first_, exchange, seen_, word(value));
    seen_ = exchange;
    ClusterTeam::send(exchange, place, value, to);
  }

 private:
  __device__ __forceinline__ static uint32_t word(uint32_t value) { return value; }
  __device__ __forceinline__ static uint32_t word(float4 value) { return __float_as_uint(value.x); }
  __device__ __forceinline__ void wait(int exchange) const {
    const int64_t time = now();
    ClusterTeam::wait_for_sent(exchange);
    const int64_t then = now();
    note(exchange + 1, asked, time), note(exchange + 1, came, then);
  }
  __device__ __forceinline__ void note(int step, Mark mark, int64_t time) const {
    if (clocks_) clocks_[step * kMarks + mark] = time;
  }

  int64_t* const clocks_;
  mutable int64_t first_ = 0;
  mutable int seen_ = -1;
};

struct Arrays {
  const float* gates;  // [T][rows][4][H], what the input says
  const E* w_hh;       // [4][H][H]
  E* y;                // [T][rows][H]
  E* save;             // [T][rows][saved][H]
  E *h, *c;            // [rows][H], the last ones
  const E* grad_y;     // [T][rows][H]
  E* grads;            // [T][rows][4][H]
};

template <class Walk>
void describe(Walk& walk, const Team& team, int steps, const Arrays& arrays) {
  walk.T = steps, walk.H = walk.Hp = walk.y_row = team.blocks * team.units;
  walk.B = team.rows, walk.tiles = 1;
  auto& only = walk.direction[0];
  only.w_hh = arrays.w_hh, only.y = arrays.y, only.save = arrays.save;
}

template <int kBlocks, int kUnits, int kRows>
cudaError_t run(bool backward, int steps, const Arrays& arrays, cudaStream_t stream) {
  using Sizes = Fixed<kBlocks, kUnits, kRows>;
  using C = fusedrnn::LstmCell;
  const auto start = [&](auto kernel, const auto& walk) {
    return launch(kernel, kBlocks, kBlocks, static_cast<unsigned>(walk.sizes.warps * kLanes),
                  static_cast<size_t>(walk.sizes.bytes), stream, walk);
  };
  if (backward) {
    BackwardWalk<E> walk;
    describe(walk, Sizes::team, steps, arrays);
    walk.sizes = backward_sizes(walked<C>, Bf16::arithmetic, Sizes::team);
    walk.direction[0].grad_y = arrays.grad_y, walk.direction[0].grads = arrays.grads;
    return start(walk_backward<C, Bf16, ClockedTeam, Sizes>, walk);
  }
  ForwardWalk<E> walk;
  describe(walk, Sizes::team, steps, arrays);
  walk.sizes = forward_sizes(walked<C>, Bf16::arithmetic, Sizes::team);
  auto& only = walk.direction[0];
  only.end = steps, only.gates = arrays.gates;
  only.h_out = arrays.h, only.state[0].out = arrays.c;
  return start(walk_forward<C, Bf16, ClockedTeam, Sizes>, walk);
}

}  // namespace

// Enqueues a walk of one team. `marks` [blocks][steps][4] is zero where a step has no such mark.
PROBE probe_walk(void* marks, int backward, int blocks, int units, int rows, int steps,
                 const Arrays* arrays, void* stream) {
  const auto is = [&](int b, int u, int r) { return blocks == b && units == u && rows == r; };
  const auto to = static_cast<cudaStream_t>(stream);
  const cudaError_t error =
      launch(point_clocks, 1, 1, 1, 0, to, static_cast<int64_t*>(marks), steps);
  if (error != cudaSuccess) return error;
  if (is(4, 16, 8)) return run<4, 16, 8>(backward, steps, *arrays, to);
#ifdef __CUDACC__  // one team is enough for the emulation
  if (is(16, 32, 8)) return run<16, 32, 8>(backward, steps, *arrays, to);
  if (is(16, 48, 8)) return run<16, 48, 8>(backward, steps, *arrays, to);
#endif
  return cudaErrorInvalidValue;
}
