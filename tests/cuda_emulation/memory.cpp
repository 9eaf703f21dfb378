// Shared memory, and the copies into it that complete later.
//
//   |red zone| bytes, all ones until written: a NaN in every float type |red zone|
//
// Each array of shared memory is an allocation of its own. A write into a red zone is reported when
// the block ends; AddressSanitizer, in its build, has red zones itself.
//
// A bulk copy or st.async leaves ones in its destination until it lands. By default that is when it
// is waited for; with a seed some land as soon as they are started.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kRedZone = 0;
void forbid(char* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
void allow(char* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
constexpr size_t kRedZone = 1024;
void forbid(char*, size_t) {}
void allow(char*, size_t) {}
#endif
constexpr unsigned char kRed = 0xd7, kPoison = 0xff;
constexpr size_t kStaticLimit = 48 * 1024;

SharedArray& add_array(Block& block, const void* key, const char* name, size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 1024, bytes + 2 * kRedZone)) fail({}, "the host has no memory left");
  char* array = static_cast<char*>(memory) + kRedZone;
  memset(memory, kRed, bytes + 2 * kRedZone);
  memset(array, kPoison, bytes);
  race::new_shared(array, bytes, kRedZone, block.number);
  block.shared.push_back({key, name, array, bytes});
  return block.shared.back();
}

SharedArray& array_of(Block& block, const void* key, const char* name, size_t bytes) {
  for (SharedArray& array : block.shared) {
    if (array.key == key) return array;
  }
  if (key) {
    block.static_bytes += bytes;
    if (block.static_bytes > kStaticLimit) fail({}, "more than 48 KiB of static shared memory");
    if (block.static_bytes + running->dynamic_bytes > options().shared_bytes) {
      fail({}, "%zu bytes of static and %zu of dynamic shared memory", block.static_bytes,
           running->dynamic_bytes);
    }
  }
  return add_array(block, key, name, bytes);
}

bool is_intact(const SharedArray& array) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(array.memory);
  const auto red = [](unsigned char byte) { return byte == kRed; };
  return std::all_of(bytes - kRedZone, bytes, red) &&
         std::all_of(bytes + array.bytes, bytes + array.bytes + kRedZone, red);
}

}  // namespace

void* dynamic_shared() {
  Block& block = *self().block;
  return array_of(block, nullptr, "(dynamic)", running->dynamic_bytes).memory;
}

void* static_shared(const void* key, const char* name, size_t bytes) {
  return array_of(*self().block, key, name, bytes).memory;
}

void* at_rank(const void* own, unsigned rank, Where where) {
  Block& block = *self().block;
  auto& blocks = block.cluster->blocks;
  if (rank >= blocks.size()) {
    fail(where, "rank %u of a cluster of %zu blocks", rank, blocks.size());
  }
  if (blocks[rank].exited == blocks[rank].threads.size()) {
    fail(where, "shared memory of block %u of the cluster, which has exited,", rank);
  }
  const char* address = static_cast<const char*>(own);
  for (const SharedArray& array : block.shared) {
    if (address < array.memory || address >= array.memory + array.bytes) continue;
    const ptrdiff_t offset = address - array.memory;
    const SharedArray like = array;  // `block` may be blocks[rank], whose vector may grow
    return array_of(blocks[rank], like.key, like.name, like.bytes).memory + offset;
  }
  fail(where, "an address that is not in this block's shared memory");
}

void end_of_block(Block& block) {
  auto owns = [&](const Transfer& t) { return t.target == &block || t.source == &block; };
  for (const auto& [barrier, transfers] : running->transfers) {
    if (!std::any_of(transfers.begin(), transfers.end(), owns)) continue;
    running->failure = "a block has exited while a bulk copy or st.async of its is under way";
  }
  for (SharedArray& array : block.shared) {
    if (!is_intact(array)) {
      running->failure = std::string("a write outside the shared memory of `") + array.name + "`";
    }
    race::shared_is_dead(array.memory, array.bytes, block.number);
    memset(array.memory, kPoison, array.bytes);  // a peer that still uses it is wrong
    forbid(array.memory, array.bytes);
  }
}

void free_shared(Block& block) {
  for (SharedArray& array : block.shared) {
    race::drop_shared(array.memory, array.bytes, kRedZone);
    allow(array.memory, array.bytes);
    free(array.memory - kRedZone);
  }
  block.shared.clear();
}

// ---- mbarriers ------------------------------------------------------------------------------

namespace {

struct Mbarrier {  // in the eight bytes of shared memory that a kernel gives it
  uint16_t pending, arrivals;
  int32_t tx_and_phase;  // 2 * bytes to come + parity of the phase

  unsigned parity() const { return unsigned(tx_and_phase & 1); }
  bool is_initialised() const { return arrivals != 0 && arrivals != 0xffff; }
  void update(unsigned arrived, int tx) {
    pending = uint16_t(pending - arrived);
    tx_and_phase += 2 * tx;
    if (pending != 0 || tx_and_phase >> 1 != 0) return;
    tx_and_phase ^= 1;
    pending = arrivals;
  }
};

Mbarrier load(const uint64_t* barrier, Where where) {
  Mbarrier m;
  memcpy(&m, barrier, sizeof m);
  if (!m.is_initialised()) fail(where, "an mbarrier not initialised");
  return m;
}

void land(const Transfer& transfer) {
  memcpy(transfer.to, transfer.from ? transfer.from : reinterpret_cast<const char*>(transfer.value),
         transfer.bytes);
  race::transfer_lands(transfer.departure, transfer.to, transfer.bytes, transfer.barrier);
  Mbarrier m;
  memcpy(&m, transfer.barrier, sizeof m);
  m.update(0, -int(transfer.bytes));
  memcpy(transfer.barrier, &m, sizeof m);
  progress();
}

void start(Transfer transfer, const void* own, uint64_t* own_barrier, unsigned rank,
           unsigned alignment, Where where) {
  transfer.to = static_cast<char*>(at_rank(own, rank, where));
  transfer.barrier = mbarrier_at_rank(own_barrier, rank, where);
  transfer.source = self().block;
  transfer.target = &transfer.source->cluster->blocks[rank];
  const auto bits = reinterpret_cast<uintptr_t>(transfer.to) |
                    reinterpret_cast<uintptr_t>(transfer.from) | transfer.bytes;
  if (bits % alignment) fail(where, "misaligned bulk copy or st.async");
  load(transfer.barrier, where);
  preempt();
  progress();
  transfer.departure = race::transfer_starts(transfer.to, transfer.from, transfer.bytes,
                                             transfer.barrier, race::site(where));
  if (!options().late_copies || chance(2)) return land(transfer);
  memset(transfer.to, kPoison, transfer.bytes);
  running->transfers[transfer.barrier].push_back(transfer);
}

}  // namespace

void mbarrier_init(uint64_t* barrier, unsigned arrivals, Where where) {
  race::access(barrier, sizeof *barrier, true, race::site(where));
  const Mbarrier m{uint16_t(arrivals), uint16_t(arrivals), 0};
  memcpy(barrier, &m, sizeof m);
  self().block->unfenced.insert(barrier);
  self().mbarriers.push_back(barrier);
}

void mbarrier_init_fence() {
  Thread& t = self();
  for (const uint64_t* barrier : t.mbarriers) t.block->unfenced.erase(barrier);
  t.mbarriers.clear();
}

// By PTX's letter ("membar / fence") fence.mbarrier_init is a release at the scope of the cluster
// for nothing but the initialisations of its thread, so that a relaxed arrival may follow, and a
// releasing arrival would do without. CUTLASS's pipelines have the fence before either, and here it
// is asked for in the same way: initialise, fence, the cluster's barrier, then another's use.
uint64_t* mbarrier_at_rank(uint64_t* own, unsigned rank, Where where) {
  auto* const there = static_cast<uint64_t*>(at_rank(own, rank, where));
  const Block& owner = self().block->cluster->blocks[rank];
  if (&owner != self().block && owner.unfenced.count(there)) {
    fail(where,
         "an mbarrier of another block that was not fenced between its initialisation and "
         "the barrier of the cluster");
  }
  return there;
}

void mbarrier_update(uint64_t* barrier, unsigned arrivals, int tx, Where where) {
  before_atomic(barrier, sizeof *barrier, true, release, where);
  Mbarrier m = load(barrier, where);
  if (arrivals > m.pending) {
    fail(where, "mbarrier: more arrivals than it was initialised for");
  }
  m.update(arrivals, tx);
  memcpy(barrier, &m, sizeof m);
}

bool mbarrier_try_wait(uint64_t* barrier, unsigned parity, Where where) {
  const auto found = running->transfers.find(barrier);
  if (found != running->transfers.end()) {
    auto& transfers = found->second;
    auto lands = [&](const Transfer& transfer) {
      if (chance(2)) return false;
      land(transfer);
      return true;
    };
    transfers.erase(std::remove_if(transfers.begin(), transfers.end(), lands), transfers.end());
  }
  before_atomic(barrier, sizeof *barrier, false, acquire, where);
  return load(barrier, where).parity() != parity;
}

void store_at_rank(void* own, const void* value, unsigned bytes, uint64_t* own_barrier,
                   unsigned rank, Where where) {
  if (self().block->cluster->blocks.size() < 2) {
    fail(where, "st.async in a cluster of one block");  // undefined, by PTX
  }
  Transfer transfer{};
  transfer.bytes = bytes;
  memcpy(transfer.value, value, bytes);
  start(std::move(transfer), own, own_barrier, rank, bytes, where);
}

void bulk_copy(void* own, const void* from, unsigned bytes, uint64_t* own_barrier, unsigned rank,
               Where where) {
  Transfer transfer{};
  transfer.bytes = bytes;
  transfer.from = static_cast<const char*>(at_rank(from, builtins.cluster_rank, where));
  start(std::move(transfer), own, own_barrier, rank, 16, where);
}

}  // namespace emulation
