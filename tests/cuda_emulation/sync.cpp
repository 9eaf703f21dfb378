// Barriers, fences, atomics and warp collectives: where threads meet, and what the race check
// learns from it. Shuffles, votes and mma do not order memory, as in CUDA.
#include <algorithm>
#include <cstring>

#include "runtime.h"

#define DIVERGED "%s, which is .aligned, in a diverged warp: another lane is at %s:%d,"

namespace emulation {
namespace {

uint64_t arrive(Barrier& barrier) {
  progress();
  const uint64_t phase = barrier.phase;
  race::release(barrier.meeting);
  if (++barrier.arrived == barrier.needed) {
    barrier.arrived = 0;
    ++barrier.phase;
    barrier.last_count = barrier.counted;
    barrier.counted = 0;
    race::complete(barrier.meeting);
    wake(barrier.waiting, false);
  }
  return phase;
}

bool is_same(Where a, Where b) {
  return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

// A lane comes to an instruction that is .aligned: all lanes of its warp have to execute that one.
// A warp whose lanes are at different places has diverged. (Lanes that come one after the other
// through the same place may have diverged as well; only the compiler could tell.)
void come_as_warp(std::vector<Lanes>& warps, uint64_t phase, const char* op, Where where) {
  const Thread& t = self();
  const unsigned warp = t.block->rank * unsigned(t.block->warps.size()) + t.rank / 32;
  if (warps.size() <= warp) warps.resize(warp + 1);
  Lanes& lanes = warps[warp];
  if (lanes.count == 0 || lanes.phase != phase) lanes = {phase, 0, where};
  if (!is_same(lanes.where, where)) {
    fail(where, DIVERGED, op, file_name(lanes.where), lanes.where.line);
  }
  ++lanes.count;
}

// The last thread comes to a barrier: no warp may have sent only some of its lanes.
void check_whole_warps(const std::vector<Lanes>& warps, const Barrier& barrier, const char* op) {
  const Block& block = *self().block;
  for (unsigned i = 0; i < warps.size(); ++i) {
    const Lanes& lanes = warps[i];
    if (lanes.count == 0 || lanes.phase != barrier.phase) continue;
    const unsigned first = i % unsigned(block.warps.size()) * 32;
    const unsigned all = std::min(32u, unsigned(block.threads.size()) - first);
    if (lanes.count < all) {
      fail(lanes.where, "%s, which is .aligned, in a diverged warp: %u of its %u lanes have come,",
           op, lanes.count, all);
    }
  }
}

void arrive_as_warp(Barrier& barrier, const char* op, Where where) {
  come_as_warp(barrier.arriving, barrier.phase, op, where);
  if (barrier.arrived + 1 == barrier.needed) check_whole_warps(barrier.arriving, barrier, op);
}

void wait(Barrier& barrier, uint64_t phase, const char* op, Where where) {
  while (barrier.phase == phase) {
    barrier.waiting.push_back(&self());
    wait_in(op, where);
  }
  race::acquire(barrier.meeting);
}

}  // namespace

// ---- Barriers -------------------------------------------------------------------------------

void block_barrier(Where where, unsigned id, unsigned threads) {
  Block& block = *self().block;
  Barrier& barrier = block.barriers[id];
  const unsigned needed = threads ? threads : unsigned(block.threads.size());
  if (barrier.arrived == 0) barrier.needed = needed;
  if (barrier.needed != needed) {
    fail(where, "barrier %u with two counts of threads", id);
  }
  const char* const op = id ? "a named barrier" : "__syncthreads";
  arrive_as_warp(barrier, op, where);
  const uint64_t phase = arrive(barrier);
  wait(barrier, phase, op, where);
  preempt();
}

int block_barrier_count(bool predicate, Where where) {
  Barrier& barrier = self().block->barriers[0];
  barrier.counted += predicate;
  block_barrier(where);
  return int(barrier.last_count);
}

void grid_barrier(Where where) {
  if (!running->cooperative) {
    fail(where, "grid.sync() without a cooperative launch");
  }
  const uint64_t phase = arrive(running->barrier);
  wait(running->barrier, phase, "grid.sync", where);
}

void cluster_arrive(Where where) {
  Thread& t = self();
  if (t.arrived_at_cluster) {
    fail(where, "cluster barrier: a second arrive without a wait");
  }
  Barrier& barrier = t.block->cluster->barrier;
  arrive_as_warp(barrier, "the cluster barrier", where);
  t.mbarriers.clear();  // a fence comes too late for them now
  t.cluster_phase = arrive(barrier);
  t.arrived_at_cluster = true;
}

void cluster_wait(Where where) {
  Thread& t = self();
  if (!t.arrived_at_cluster) {
    fail(where, "cluster barrier: a wait without an arrive");
  }
  Barrier& barrier = t.block->cluster->barrier;
  come_as_warp(barrier.leaving, t.cluster_phase, "the cluster barrier", where);
  wait(barrier, t.cluster_phase, "the cluster barrier", where);
  t.arrived_at_cluster = false;
}

// ---- Fences and atomics ---------------------------------------------------------------------

void fence(bool device_scope) {
  race::fence(device_scope);
  preempt();
}

void proxy_fence() { race::proxy_fence(); }

void before_atomic(const void* p, unsigned bytes, bool writes, int order, Where where) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) {
    fail(where, "misaligned atomic access");
  }
  if (writes) {
    preempt();
    progress();
  } else {
    yield(where);  // a load is how a thread waits for another
  }
  race::atomic(p, bytes, writes, true, order, race::site(where));
}

void before_read_only_load(const void* p, unsigned bytes, Where where) {
  race::read_only(p, bytes, race::site(where));
}

// ---- Warp collectives -----------------------------------------------------------------------

const Slot* meet(uint32_t mask, const char* op, const void* value, size_t bytes, Where where,
                 Combine combine, bool orders_memory) {
  Thread& t = self();
  Block& block = *t.block;
  const unsigned in_warp = std::min(32u, unsigned(block.threads.size()) - t.rank / 32 * 32);
  if (in_warp < 32) mask &= (1u << in_warp) - 1;  // a full mask in a partial last warp is legal
  if (!(mask >> t.rank % 32 & 1)) {
    fail(where, "%s: the calling lane is not in its mask", op);
  }
  Warp& warp = block.warps[t.rank / 32];
  if (!warp.latest || warp.latest->mask != mask) {
    warp.latest = &warp.collectives[mask];
    warp.latest->mask = mask;
  }
  Collective& c = *warp.latest;
  if (c.arrived == 0) {
    c.op = op;
    c.where = where;
  } else if (strcmp(c.op, op) != 0) {
    fail(where, "lanes of one warp meet in different collectives: %s at %s:%d, %s", c.op,
         file_name(c.where), c.where.line, op);
  }
  progress();
  const uint64_t round = c.round;
  Slot* slots = c.slots[round & 1];
  if (bytes) memcpy(slots[t.rank % 32].bytes, value, bytes);
  if (orders_memory) race::release(c.meeting);
  c.arrived |= 1u << t.rank % 32;
  if (c.arrived == mask) {
    if (combine) combine(slots);
    c.arrived = 0;
    ++c.round;
    if (orders_memory) race::complete(c.meeting);
    wake(c.waiting, true);  // a warp goes on while its data are in the cache
  } else {
    while (c.round == round) {
      c.waiting.push_back(&t);
      wait_in(op, where);
    }
  }
  if (orders_memory) race::acquire(c.meeting);
  return slots;
}

void need_converged_warp(const char* op, Where where) {
  const Thread& t = self();
  if ((t.rank / 32 + 1) * 32 > t.block->threads.size()) {
    fail(where, "%s in a warp of fewer than 32 threads", op);
  }
  const auto& collectives = t.block->warps[t.rank / 32].collectives;
  const auto found = collectives.find(~0u);
  if (found == collectives.end() || found->second.arrived == 0) return;
  if (!is_same(found->second.where, where) && strcmp(found->second.op, op) == 0) {
    fail(where, DIVERGED, op, file_name(found->second.where), found->second.where.line);
  }
}

void warp_barrier(uint32_t mask, Where where) {
  meet(mask, "__syncwarp", nullptr, 0, where, nullptr, true);
}

void shuffle(uint32_t mask, const char* op, void* value, size_t bytes, unsigned source,
             Where where) {
  if (bytes > sizeof(Slot)) fail(where, "%s of %zu bytes", op, bytes);
  const Slot* slots = meet(mask, op, value, bytes, where);
  if (!(mask >> source & 1)) {
    fail(where, "%s reads lane %u, which is not in its mask,", op, source);
  }
  if (self().rank / 32 * 32 + source >= self().block->threads.size()) {
    fail(where, "%s reads lane %u, which does not exist,", op, source);
  }
  memcpy(value, slots[source].bytes, bytes);
}

uint32_t vote(uint32_t mask, const char* op, bool predicate, Where where) {
  const Thread& t = self();
  const Slot* slots = meet(mask, op, &predicate, sizeof predicate, where);
  uint32_t result = 0;
  for (unsigned i = 0; i < 32 && t.rank / 32 * 32 + i < t.block->threads.size(); ++i) {
    if (mask >> i & 1) result |= uint32_t(slots[i].bytes[0] != 0) << i;
  }
  return result;
}

uint32_t match(uint32_t mask, uint64_t value, Where where) {
  const Thread& t = self();
  const Slot* slots = meet(mask, "__match_any_sync", &value, sizeof value, where);
  uint32_t result = 0;
  for (unsigned i = 0; i < 32 && t.rank / 32 * 32 + i < t.block->threads.size(); ++i) {
    const bool same = memcmp(slots[i].bytes, &value, sizeof value) == 0;
    if ((mask >> i & 1) && same) result |= 1u << i;
  }
  return result;
}

uint32_t reduce(uint32_t mask, Reduction how, uint32_t value, bool is_signed, Where where) {
  const Thread& t = self();
  const Slot* slots = meet(mask, "__reduce_sync", &value, sizeof value, where);
  const uint32_t flip = is_signed ? 0x80000000u : 0;  // orders signed values as unsigned ones
  bool first = true;
  uint32_t result = 0;
  for (unsigned i = 0; i < 32 && t.rank / 32 * 32 + i < t.block->threads.size(); ++i) {
    if (!(mask >> i & 1)) continue;
    uint32_t v;
    memcpy(&v, slots[i].bytes, sizeof v);
    switch (first ? Reduction::bit_or : how) {
      case Reduction::add: result += v; break;
      case Reduction::min: result = std::min(result ^ flip, v ^ flip) ^ flip; break;
      case Reduction::max: result = std::max(result ^ flip, v ^ flip) ^ flip; break;
      case Reduction::bit_and: result &= v; break;
      case Reduction::bit_or: result |= v; break;
      case Reduction::bit_xor: result ^= v; break;
    }
    first = false;
  }
  return result;
}

}  // namespace emulation
