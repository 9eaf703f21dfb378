// The runtime's own state: the launch that runs, its clusters, blocks and threads.
//
//   Launch -> clusters alive (a few at a time, unless cooperative) -> blocks -> threads
//   ready: threads that can run, in order; seeds take any of them
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "device.h"
#include "fiber.h"
#include "race.h"

namespace emulation {

struct Options {
  uint64_t seed = 0;           // 0: in thread order, each as far as it gets; else at random
  unsigned preempt = 8;        // with a seed: switch at one in so many atomics and fences
  unsigned resident = 2;       // clusters alive at once in a launch that is not cooperative
  unsigned late_copies = 1;    // transfers land at the wait (with a seed: or before); 0: at once
  unsigned truncated_mma = 0;  // sums as tensor cores make them: cut to 24+2 bits, not rounded
  unsigned capturing = 0;      // 1: every stream is captured, in torch's mode (global)
  unsigned multiprocessors = 132;
  unsigned gpc = 0;       // multiprocessors that one cluster may be spread over; 0: all
  unsigned unlisted = 0;  // bit n: no cluster of n blocks fits, says the occupancy
  unsigned refused = 0;   // bit n: one fits, it says, and its launch is refused with this error
  unsigned refusal = cudaErrorInvalidClusterSize;
  unsigned capability = 90;
  unsigned compiled = 90;          // the capability that the kernels were compiled for
  unsigned block_threads = 1024;   // that a block may have
  unsigned shared_bytes = 232448;  // the same, if its kernel asks
};
Options& options();

class Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t operator()() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

enum class State : uint8_t { ready, spinning, waiting, exited };

struct Block;
struct Thread {
  Block* block = nullptr;
  unsigned rank = 0;       // in the block
  Fiber* fiber = nullptr;  // from when it first runs
  State state = State::ready;
  const char* op = "";  // what it waits in, and where
  Where where{};
  bool arrived_at_cluster = false;
  uint64_t cluster_phase = 0;
  std::vector<const uint64_t*> mbarriers;  // initialised since the latest fence for that
};
extern Thread* current;  // the CUDA thread that runs; null in host code
inline Thread& self() { return *current; }

// The lanes of a warp at an .aligned instruction, in one phase of a barrier.
struct Lanes {
  uint64_t phase = 0;
  unsigned count = 0;
  Where where{};
};
struct Barrier {  // a phase ends when `needed` threads have arrived
  unsigned needed = 0, arrived = 0, counted = 0, last_count = 0;
  uint64_t phase = 0;
  std::vector<Thread*> waiting;
  race::Meeting meeting;
  std::vector<Lanes> arriving, leaving;  // by warp: where it arrives; where it waits, in a cluster
};

struct alignas(16) Slot {
  unsigned char bytes[64];
};
// For the lanes of one mask. Two sets of slots: a fast lane may be a round ahead of a slow one.
struct Collective {
  uint32_t mask = 0, arrived = 0;
  uint64_t round = 0;
  const char* op = "";
  Where where{};
  Slot slots[2][32];
  std::vector<Thread*> waiting;
  race::Meeting meeting;
};
struct Warp {
  std::map<uint32_t, Collective> collectives;  // by mask
  Collective* latest = nullptr;
};

struct SharedArray {
  const void* key;  // null: the dynamic shared memory
  const char* name;
  char* memory;
  size_t bytes;
};

struct Cluster;
struct Block {
  Cluster* cluster = nullptr;
  uint3 index{};
  unsigned rank = 0, number = 0, exited = 0;  // in the cluster, in the grid; threads
  size_t static_bytes = 0;
  std::vector<SharedArray> shared;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::map<unsigned, Barrier> barriers;  // by number; 0 is __syncthreads
  std::set<const uint64_t*> unfenced;    // mbarriers that others must not use
};
struct Cluster {
  std::vector<Block> blocks;
  Barrier barrier;
  unsigned live = 0;  // threads
};

struct Transfer {  // a bulk copy or st.async, under way
  char* to;
  const char* from;  // null: `value`
  unsigned bytes;
  uint64_t* barrier;
  Block *target, *source;
  race::Departure departure;
  unsigned char value[16];
};

struct Launch {
  const void* kernel;
  Body body;
  void* closure;
  dim3 grid, block, cluster{1, 1, 1};
  size_t dynamic_bytes;
  bool cooperative = false;
  bool shuffled;  // there is a seed
  Random random;

  std::vector<unsigned> pending;  // clusters to start, the next one last
  std::vector<std::unique_ptr<Cluster>> alive;
  std::deque<Thread*> ready;
  std::map<const uint64_t*, std::vector<Transfer>> transfers;  // by their mbarrier
  Barrier barrier;                                             // of the grid
  size_t live = 0;                                             // threads
  uint64_t idle_spins = 0;                                     // since something last happened
  std::string failure, details;                                // what ended it early

  unsigned block_threads() const { return block.x * block.y * block.z; }
  size_t blocks() const { return size_t(grid.x) * grid.y * grid.z; }
};
extern Launch* running;  // null in host code

// ---- schedule.cpp
void suspend();  // the thread is in a queue: others run until it is picked
void wait_in(const char* op, Where where);
void wake(std::vector<Thread*>& waiting, bool first);
void preempt(unsigned times_rarer = 1);  // perhaps
inline void progress() { running->idle_spins = 0; }
bool chance(unsigned one_in);  // false without a seed

// ---- sync.cpp
// Every lane of `mask` leaves its value; the last to arrive runs `combine` on the slots; then each
// goes on and may read all slots.
using Combine = void (*)(Slot* slots);
const Slot* meet(uint32_t mask, const char* op, const void* value, size_t bytes, Where where,
                 Combine combine = nullptr, bool orders_memory = false);
// Before an instruction that is .aligned: all lanes of the warp are there, or on their way to it.
void need_converged_warp(const char* op, Where where);

// ---- memory.cpp
void end_of_block(Block&);
void free_shared(Block&);

// ---- api.cpp
// Why a launch cannot be; the error says what its launcher is told, cudaSuccess that it can.
struct Refusal {
  cudaError_t error = cudaSuccess;
  std::string why;
};
Refusal check_launch(const Launch&);
// A report on a launch that is told as an error; without an error all was well.
cudaError_t launch_ended(cudaError_t error, const std::string& report);

// ---- symbols.cpp
std::string kernel_name(const void* kernel);
struct Symbol {
  std::string function, place;
};
std::vector<Symbol> symbols_of(const std::vector<const void*>& addresses);
const char* file_name(Where where);
std::string place(Where where);  // "file.cu:12"

}  // namespace emulation
