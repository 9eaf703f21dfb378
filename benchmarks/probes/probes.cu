// Microbenchmarks of what a step of a walk is made of, in cycles of a multiprocessor's clock:
//
//   exchange   blocks of a cluster send a message to each other and wait for the others', by
//              st.async or by bulk copies, as ClusterTeam does (csrc/cuda/team/team.cuh)
//   wake       two warps wake each other through mbarriers, of their block or of another one
//   mma        chains of m16n8k16 products, one after another or several at once
//   spin       does nothing for so many cycles: with the host's clock, the clock's rate
//
// Each checks what it moves or computes; an exchange does so in a run before the one that is timed.
// They use the instructions of csrc/cuda/team/ptx.cuh and none of the walks' own code, so that they
// stand while that changes. walk.cu has a walk with clocks.
#include "cuda/gpu.cuh"
#include "cuda/team/ptx.cuh"
#include "probes.cuh"

namespace {

namespace ptx = fusedrnn::cuda::ptx;

constexpr unsigned kLanes = 32, kThreads = 256;
constexpr int kMostBytes = 4096;  // of a message

__device__ __forceinline__ void meet() {
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

// ---- Exchange -------------------------------------------------------------------------------

enum class Way { st_async, bulk };

// What a block sends in a round: 32-bit words that tell round, sender and place.
__device__ __forceinline__ uint32_t word(int round, unsigned rank, int at) {
  return static_cast<uint32_t>(round) << 16 ^ rank << 11 ^ static_cast<uint32_t>(at);
}

// Shared memory, for each of two rounds: [messages to send] [inbox, a message of each block]
//
// A message of round e is written over after the round e + 1 of all blocks has come, who sent it
// after they had had e: all copies of it are over by then, and so are all reads of their inboxes.
template <Way way, bool checked>
__global__ void __launch_bounds__(kThreads, 1)
    exchange(Found* found, int bytes, int rounds, unsigned blocks) {
  FUSEDRNN_SHARED(uint64_t, barriers, [2]);
  FUSEDRNN_DYNAMIC_SHARED(char, shared);
  const unsigned rank = blockIdx.x % blocks, warp = threadIdx.x / kLanes;
  const unsigned lane = threadIdx.x % kLanes;
  const int words = bytes / 4;
  char* const inboxes = shared + 2 * bytes;
  const auto inbox = [&](int round, unsigned from) {
    return inboxes + ((round & 1) * static_cast<int>(blocks) + static_cast<int>(from)) * bytes;
  };
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&barriers[0], 1);
    ptx::mbarrier_init(&barriers[1], 1);
    ptx::mbarrier_init_fence();
  }
  for (int at = static_cast<int>(threadIdx.x); at < 2 * words; at += kThreads)
    reinterpret_cast<uint32_t*>(shared)[at] = 0;
  __syncthreads();
  meet();
  int64_t wrong = 0;
  const int64_t begin = now();
  for (int round = 0; round < rounds; ++round) {
    uint64_t* const barrier = &barriers[round & 1];
    char* const message = shared + (round & 1) * bytes;
    if (checked)
      for (int at = static_cast<int>(threadIdx.x); at < words; at += kThreads)
        reinterpret_cast<uint32_t*>(message)[at] = word(round, rank, at);
    if (way == Way::bulk) ptx::fence_before_bulk_copy();
    __syncthreads();
    if (threadIdx.x == 0)
      ptx::mbarrier_arrive_expect_tx(barrier, (blocks - 1) * static_cast<unsigned>(bytes));
    for (unsigned i = warp; i + 1 < blocks; i += kThreads / kLanes) {
      const unsigned to = (rank + 1 + i) % blocks;
      char* const place = inbox(round, rank);
      if (way == Way::bulk) {
        if (lane == 0)
          ptx::bulk_copy_to_rank(place, message, static_cast<unsigned>(bytes), barrier, to);
      } else {
        for (int at = static_cast<int>(lane) * 16; at < bytes; at += kLanes * 16)
          ptx::st_async(reinterpret_cast<float4*>(place + at),
                        *reinterpret_cast<const float4*>(message + at), barrier, to);
      }
    }
    ptx::mbarrier_wait(barrier, static_cast<unsigned>(round >> 1 & 1));
    if (checked)
      for (unsigned from = 0; from < blocks; ++from)
        for (int at = static_cast<int>(threadIdx.x); at < words && from != rank; at += kThreads)
          wrong += reinterpret_cast<uint32_t*>(inbox(round, from))[at] != word(round, from, at);
  }
  const int64_t cycles = now() - begin;
  if (checked && wrong) atomicAdd(reinterpret_cast<unsigned*>(&found->wrong), 1u);
  if (!checked && blockIdx.x == 0 && threadIdx.x == 0) found->cycles = cycles;
  meet();  // nobody leaves while others write to them
}

// ---- Waking ---------------------------------------------------------------------------------

enum class Wake {
  local,
  remote,
  stored
};  // an arrival here, at another block, a word stored there

// Player 0 wakes player 1, who wakes player 0: a round. Players are two warps of a block, or the
// first warps of two blocks. Each waits at a barrier of its own.
template <Wake wake>
__global__ void __launch_bounds__(2 * kLanes, 1) ping_pong(Found* found, int rounds) {
  FUSEDRNN_SHARED(uint64_t, barriers, [2]);
  FUSEDRNN_SHARED(uint32_t, words, [2]);
  constexpr bool local = wake == Wake::local;
  const unsigned player = local ? threadIdx.x / kLanes : blockIdx.x;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&barriers[0], 1);
    ptx::mbarrier_init(&barriers[1], 1);
    ptx::mbarrier_init_fence();
    words[0] = words[1] = 0;
  }
  __syncthreads();
  if (!local) meet();
  if (threadIdx.x % kLanes == 0 && (local || threadIdx.x == 0)) {
    uint64_t *const own = &barriers[player], *const other = &barriers[1 - player];
    const auto call = [&](int round) {
      if (wake == Wake::local) ptx::mbarrier_arrive(other);
      if (wake == Wake::remote) ptx::mbarrier_arrive_at_rank(other, 1 - player);
      if (wake == Wake::stored)
        ptx::st_async(&words[1 - player], static_cast<uint32_t>(round + 1), other, 1 - player);
    };
    int64_t wrong = 0;
    const int64_t begin = now();
    for (int round = 0; round < rounds; ++round) {
      if (wake == Wake::stored) ptx::mbarrier_arrive_expect_tx(own, 4);
      if (player == 0) call(round);
      ptx::mbarrier_wait(own, static_cast<unsigned>(round & 1));
      if (wake == Wake::stored) wrong += words[player] != static_cast<uint32_t>(round + 1);
      if (player == 1) call(round);
    }
    if (player == 0) found->cycles = now() - begin;
    if (wrong) atomicAdd(reinterpret_cast<unsigned*>(&found->wrong), 1u);
  }
  if (!local) meet();
}

// ---- Products -------------------------------------------------------------------------------

// Each warp has `chains` sums, to each of which it adds a product in every round. All operands are
// one, so that a product adds 16 everywhere.
template <int chains>
__global__ void __launch_bounds__(1024, 1) products(Found* found, int rounds) {
  constexpr uint32_t ones = 0x3f803f80;  // two of bf16
  const uint32_t a[4] = {ones, ones, ones, ones}, b[2] = {ones, ones};
  float sums[chains][4] = {};
  __syncthreads();
  const int64_t begin = now();
  for (int round = 0; round < rounds; ++round)
#pragma unroll
    for (int chain = 0; chain < chains; ++chain)
      ptx::mma_m16n8k16_bf16(sums[chain], a, b, sums[chain]);
  __syncthreads();
  const int64_t cycles = now() - begin;
  bool wrong = false;
  for (const auto& sum : sums)
    for (float value : sum) wrong = wrong || value != 16.0f * static_cast<float>(rounds);
  if (wrong) atomicAdd(reinterpret_cast<unsigned*>(&found->wrong), 1u);
  if (threadIdx.x == 0) found->cycles = cycles;
}

__global__ void spin(Found* found, int64_t cycles) {
  const int64_t begin = now();
  while (now() - begin < cycles) {
  }
  found->cycles = now() - begin;
}

}  // namespace

// The digest of the sources that this was compiled from.
extern "C" __attribute__((visibility("default"))) const char* probe_source() {
  return FUSEDRNN_PROBES_SOURCE;
}

// Each enqueues one kernel that fills `found`, which is zero before, and returns CUDA's error code.

PROBE probe_exchange(void* found, int bulk, int checked, int blocks, int bytes, int rounds,
                     void* stream) {
  if (bytes < 16 || bytes > kMostBytes || bytes % 16 || blocks < 2 || blocks > 16)
    return cudaErrorInvalidValue;
  const auto kernel = bulk      ? checked ? exchange<Way::bulk, true> : exchange<Way::bulk, false>
                      : checked ? exchange<Way::st_async, true>
                                : exchange<Way::st_async, false>;
  const unsigned n = static_cast<unsigned>(blocks);
  return launch(kernel, n, n, kThreads, static_cast<size_t>(2 * (blocks + 1) * bytes),
                static_cast<cudaStream_t>(stream), static_cast<Found*>(found), bytes, rounds, n);
}

PROBE probe_wake(void* found, int kind, int rounds, void* stream) {
  if (kind < 0 || kind > 2) return cudaErrorInvalidValue;
  const unsigned blocks = kind ? 2 : 1;
  const auto kernel = kind == 0   ? ping_pong<Wake::local>
                      : kind == 1 ? ping_pong<Wake::remote>
                                  : ping_pong<Wake::stored>;
  return launch(kernel, blocks, blocks, 2 * kLanes, 0, static_cast<cudaStream_t>(stream),
                static_cast<Found*>(found), rounds);
}

PROBE probe_products(void* found, int chains, int warps, int rounds, void* stream) {
  const auto kernel = chains == 1   ? products<1>
                      : chains == 2 ? products<2>
                      : chains == 4 ? products<4>
                                    : products<8>;
  if ((chains != 1 && chains != 2 && chains != 4 && chains != 8) || warps < 1 || warps > 32)
    return cudaErrorInvalidValue;
  return launch(kernel, 1, 1, static_cast<unsigned>(warps) * kLanes, 0,
                static_cast<cudaStream_t>(stream), static_cast<Found*>(found), rounds);
}

PROBE probe_spin(void* found, int64_t cycles, void* stream) {
  return launch(spin, 1, 1, 1, 0, static_cast<cudaStream_t>(stream), static_cast<Found*>(found),
                cycles);
}
