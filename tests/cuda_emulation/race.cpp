// The happens-before check: vector clocks, and a shadow of every byte that kernels touch.
//
// A thread's knowledge is a clock for each thread: "of u I know all until its n-th release". Clocks
// are kept by block, and shared until they change, since threads that met know the same. Block b
// has one clock more than threads: its asynchronous transfers are a thread of their own, so that
// not even the thread that started one may use the bytes before it waited for them.
//
// The shadow keeps, for two bytes each, the last write and two reads since; of several unordered
// readers the first and the latest. Synchronisation is by what ran: an atomic load learns what the
// value's writers released.
#include "race.h"

#include <algorithm>
#include <set>
#include <unordered_map>
#include <vector>

#include "runtime.h"

// The first byte of the library that this is linked into.
extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));

namespace emulation::race {

using Part = std::vector<uint32_t>;  // clocks of one block's threads, then of its transfers
struct Clock {
  std::vector<std::pair<uint32_t, std::shared_ptr<Part>>> parts;  // by block, ascending
};

namespace {

constexpr size_t kGranule = 2, kPage = 4096;
constexpr size_t kMostPages = 16384;  // 64 MiB of kernels' memory; then all is forgotten
constexpr size_t kMostReports = 20;
constexpr uint32_t kNobody = ~0u;
constexpr Site kNowhere = 0, kIsWhere = 1u << 31;  // else an offset in the library

enum class Life : uint8_t { global, unwritten, live, dead, red_zone, in_flight };

struct Epoch {
  uint32_t thread = kNobody;
  uint32_t clock : 29, is_atomic : 1, bytes : 2;
  Site site = kNowhere;
  Epoch() : clock(0), is_atomic(0), bytes(0) {}
  Epoch(uint32_t thread, uint32_t clock, bool is_atomic, Site site)
      : thread(thread), clock(clock & 0x1fffffff), is_atomic(is_atomic), bytes(3), site(site) {}
};
struct Cell {
  Epoch write, reads[2];
  Life life = Life::global;
};
struct Page {
  uint64_t launch = 0;
  Cell cells[kPage / kGranule];
};

struct ThreadClock {
  SharedClock known, known_at_release;    // of others
  SharedClock device_fence, block_fence;  // what the latest of these published
  std::shared_ptr<Clock> seen;            // by relaxed loads; counts after a fence
  std::vector<uint32_t> proxy_fences;     // the clocks that ended with one, ascending
  uint32_t own = 1;
};

struct Report {
  const char* what;
  Site site;
  uint32_t thread;  // kNobody: the block of `other` is meant, not a thread
  const char* relation;
  Epoch other;
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
Page* latest_page = nullptr;
uintptr_t latest_number = 0;
uint64_t launch_number = 0;
uint32_t block_threads = 1, stride = 2;        // a thread's id: block * stride + rank in the block
std::vector<std::vector<ThreadClock>> clocks;  // by block, while it lives, and rank
std::vector<uint32_t> transfer_clocks;         // by block
std::unordered_map<uintptr_t, std::shared_ptr<Clock>> locations;  // what atomics there released
std::vector<Report> found;
std::set<std::pair<Site, Site>> known_reports;
std::vector<Where> wheres;
std::map<std::pair<const char*, int>, Site> where_sites;

uint32_t me() { return current->block->number * stride + current->rank; }
ThreadClock& mine() {
  auto& block = clocks[current->block->number];
  if (block.empty()) block.resize(block_threads);
  return block[current->rank];
}
uint32_t transfers_of(uint32_t block) { return block * stride + block_threads; }

// ---- Clocks ---------------------------------------------------------------------------------

Part& part_to_write(Clock& clock, uint32_t block) {
  auto& parts = clock.parts;
  auto at = std::lower_bound(parts.begin(), parts.end(), block,
                             [](const auto& part, uint32_t b) { return part.first < b; });
  if (at == parts.end() || at->first != block) {
    at = parts.insert(at, {block, std::make_shared<Part>(block_threads + 1)});
  } else if (at->second.use_count() > 1) {
    at->second = std::make_shared<Part>(*at->second);
  }
  return *at->second;
}

uint32_t clock_of(const Clock& clock, uint32_t thread) {
  const auto& parts = clock.parts;
  const uint32_t block = thread / stride;
  auto at = std::lower_bound(parts.begin(), parts.end(), block,
                             [](const auto& part, uint32_t b) { return part.first < b; });
  return at == parts.end() || at->first != block ? 0 : (*at->second)[thread % stride];
}

void join(std::shared_ptr<Clock>& into, const Clock& from) {
  if (!into) into = std::make_shared<Clock>();
  auto& parts = into->parts;
  size_t i = 0;
  for (const auto& part : from.parts) {
    while (i < parts.size() && parts[i].first < part.first) ++i;
    if (i == parts.size() || parts[i].first != part.first) {
      parts.insert(parts.begin() + ptrdiff_t(i), part);
    } else if (parts[i].second != part.second) {
      Part& own = part_to_write(*into, part.first);
      const Part& other = *part.second;
      for (size_t t = 0; t < own.size(); ++t) own[t] = std::max(own[t], other[t]);
    }
  }
}

std::shared_ptr<Clock> copy_of(const SharedClock& clock) {
  return clock ? std::make_shared<Clock>(*clock) : std::make_shared<Clock>();
}

void learn(ThreadClock& t, const Clock& what) {
  auto known = copy_of(t.known);
  join(known, what);
  t.known = known;
}

// All that this thread knows and did; what it does next is not in it.
std::shared_ptr<Clock> publish(ThreadClock& t) {
  auto clock = copy_of(t.known);
  part_to_write(*clock, me() / stride)[me() % stride] = t.own++;
  return clock;
}

bool is_ordered(const Epoch& e) {
  if (e.thread == kNobody || e.thread == me()) return true;
  const SharedClock& known = mine().known;
  return known && clock_of(*known, e.thread) >= e.clock;
}

// Whether a bulk copy that this thread starts may find what a store left, or write over it: the
// store's thread has fenced it, and this thread knows that.
bool is_fenced(const Epoch& store) {
  if (store.thread == kNobody || store.site == kNowhere) return true;
  const uint32_t rank = store.thread % stride;
  const auto& block = clocks[store.thread / stride];
  if (rank == block_threads || block.empty()) return true;  // no store; of a block that is gone
  const auto& fences = block[rank].proxy_fences;
  const auto next = std::lower_bound(fences.begin(), fences.end(), store.clock);
  if (next == fences.end()) return false;
  const SharedClock& known = mine().known;
  return store.thread == me() || (known && clock_of(*known, store.thread) >= *next);
}

// ---- The shadow -----------------------------------------------------------------------------

Cell& cell_at(uintptr_t address) {
  const uintptr_t number = address / kPage;
  if (number != latest_number || !latest_page) {
    auto& page = pages[number];
    if (!page) page = std::make_unique<Page>();
    if (page->launch != launch_number) {
      std::fill(std::begin(page->cells), std::end(page->cells), Cell{});
      page->launch = launch_number;
    }
    latest_page = page.get();
    latest_number = number;
  }
  return latest_page->cells[address % kPage / kGranule];
}

template <class F>
void for_cells(const void* p, size_t bytes, F f) {
  const auto begin = reinterpret_cast<uintptr_t>(p);
  for (uintptr_t a = begin / kGranule * kGranule; a < begin + bytes; a += kGranule) f(cell_at(a));
}

void report(const char* what, Site site, const char* relation = "", const Epoch& other = {},
            uint32_t thread = kNobody) {
  if (found.size() >= kMostReports || !known_reports.insert({site, other.site}).second) return;
  found.push_back({what, site, thread, relation, other});
}

void check_life(const Cell& cell, bool writes, Site site) {
  switch (cell.life) {
    case Life::dead:
      return report("access to the shared memory of an exited block", site, "", {}, me());
    case Life::red_zone:
      return report(writes ? "write outside shared memory" : "read outside shared memory", site, "",
                    {}, me());
    case Life::in_flight:
      return report("access to the bytes of an asynchronous copy not waited for", site, "", {},
                    me());
    case Life::unwritten:
      if (!writes) report("read of unwritten shared memory", site, "", {}, me());
      return;
    case Life::global:
    case Life::live: return;
  }
}

// Checks an access by the running thread and remembers it as `now`.
void touch(uintptr_t address, size_t bytes, bool writes, Epoch now) {
  const uintptr_t end = address + bytes;
  for (uintptr_t a = address / kGranule * kGranule; a < end; a += kGranule) {
    Cell& cell = cell_at(a);
    now.bytes = (a >= address ? 1u : 0u) | (a + 1 < end ? 2u : 0u);
    const auto conflicts = [&](const Epoch& e) {
      return (e.bytes & now.bytes) && !(now.is_atomic && e.is_atomic) && !is_ordered(e);
    };
    if (cell.life != Life::global && cell.life != Life::live) check_life(cell, writes, now.site);
    if (cell.write.site == kNowhere && cell.write.thread != kNobody) {  // the block's start
      if (cell.write.thread / stride != me() / stride && !is_ordered(cell.write)) {
        report("access to the shared memory of a block that may not have started", now.site, "", {},
               me());
      }
    } else if (conflicts(cell.write)) {
      report(writes ? "race: write" : "race: read", now.site, "not ordered after the write",
             cell.write, me());
    }
    if (writes) {
      for (const Epoch& read : cell.reads) {
        if (conflicts(read)) {
          report("race: write", now.site, "not ordered after the read", read, me());
        }
      }
      cell.write = now;
      cell.reads[0] = cell.reads[1] = Epoch();
      if (cell.life == Life::unwritten) cell.life = Life::live;
    } else {
      cell.reads[cell.reads[0].thread != now.thread && !is_ordered(cell.reads[0])] = now;
    }
  }
}

void touch(const void* p, size_t bytes, bool writes, bool is_atomic, Site site) {
  touch(reinterpret_cast<uintptr_t>(p), bytes, writes, Epoch(me(), mine().own, is_atomic, site));
}

// A bulk copy that this thread starts reads or writes shared memory.
void check_fenced(const void* p, size_t bytes, const char* what, Site site) {
  for_cells(p, bytes, [&](const Cell& cell) {
    if (!is_fenced(cell.write)) {
      report(what, site, "without a proxy fence after the store", cell.write, me());
    }
  });
}

void set_life(const void* p, size_t bytes, Life life) {
  for_cells(p, bytes, [&](Cell& cell) {
    cell = Cell();
    cell.life = life;
  });
}

bool is_private(const void* p) {
  const char* stack = self().fiber->stack;
  return (p >= stack && p < stack + kStackBytes) || (p >= &builtins && p < &builtins + 1);
}

}  // namespace

// ---- Reports --------------------------------------------------------------------------------

Site site(Where where) {
  Site& site = where_sites[{where.file, where.line}];
  if (!site) {
    site = kIsWhere | Site(wheres.size());
    wheres.push_back(where);
  }
  return site;
}

std::string reports() {
  std::vector<const void*> addresses;
  for (const Report& r : found) {
    for (Site site : {r.site, r.other.site}) {
      if (!(site & kIsWhere)) addresses.push_back(__ehdr_start + site - 1);
    }
  }
  const std::vector<Symbol> symbols = symbols_of(addresses);
  size_t next = 0;
  auto place_of = [&](Site site) {
    return site & kIsWhere ? place(wheres[site & ~kIsWhere]) : symbols[next++].place;
  };
  auto name_of = [](uint32_t thread) {
    const uint32_t rank = thread % stride;
    return (rank == block_threads ? "an asynchronous copy" : "thread " + std::to_string(rank)) +
           " of block " + std::to_string(thread / stride);
  };
  std::string text;
  for (const Report& r : found) {
    const std::string at = place_of(r.site), other = place_of(r.other.site);
    text += std::string("\n  ") + r.what;
    if (r.thread != kNobody) text += " at " + at + " by " + name_of(r.thread);
    if (r.other.thread != kNobody) {
      text += std::string(", ") + r.relation + " at " + other + " by " + name_of(r.other.thread);
    }
  }
  found.clear();
  known_reports.clear();
  return text;
}

// ---- Launches, blocks and their memory ------------------------------------------------------

void begin(unsigned blocks, unsigned threads_of_block) {
  ++launch_number;
  block_threads = threads_of_block;
  stride = block_threads + 1;
  clocks.clear();
  clocks.resize(blocks);
  transfer_clocks.assign(blocks, 0);
  locations.clear();
  if (pages.size() > kMostPages) pages.clear();
  latest_page = nullptr;
}

void new_shared(const void* p, size_t bytes, size_t red_zone, unsigned block) {
  const char* memory = static_cast<const char*>(p);
  set_life(memory - red_zone, red_zone, Life::red_zone);
  set_life(memory, bytes, Life::unwritten);
  set_life(memory + bytes, red_zone, Life::red_zone);
  const uint32_t first = block * stride;  // thread; the start counts as its write
  for_cells(p, bytes, [&](Cell& cell) { cell.write = Epoch(first, 1, false, kNowhere); });
}

void shared_is_dead(const void* p, size_t bytes, unsigned block) {
  std::shared_ptr<Clock> known;  // to the block's threads together, when all have exited
  const Clock* latest = nullptr;
  for (const ThreadClock& t : clocks[block]) {
    if (t.known && t.known.get() != latest) join(known, *t.known);
    latest = t.known.get();
  }
  auto check = [&](const Epoch& e) {
    if (e.thread == kNobody || e.thread / stride == block) return;
    if (known && clock_of(*known, e.thread) >= e.clock) return;
    report("a block may exit before the access to its shared memory", kNowhere, "made", e);
  };
  for_cells(p, bytes, [&](Cell& cell) {
    check(cell.write);
    for (const Epoch& read : cell.reads) check(read);
  });
  set_life(p, bytes, Life::dead);
}

void drop_shared(const void* p, size_t bytes, size_t red_zone) {
  set_life(static_cast<const char*>(p) - red_zone, bytes + 2 * red_zone, Life::global);
}

void block_ended(unsigned block) { std::vector<ThreadClock>().swap(clocks[block]); }

// ---- What orders ----------------------------------------------------------------------------

void release(Meeting& meeting) {
  ThreadClock& t = mine();
  if (!meeting.gathering) {
    meeting.gathering = copy_of(t.known);
  } else if (t.known && t.known.get() != meeting.latest) {
    join(meeting.gathering, *t.known);
  }
  meeting.latest = t.known.get();
  t.known_at_release = t.known;
  part_to_write(*meeting.gathering, me() / stride)[me() % stride] = t.own++;
}

void complete(Meeting& meeting) {
  meeting.completed = std::move(meeting.gathering);
  meeting.gathering.reset();
  meeting.latest = nullptr;
}

void acquire(Meeting& meeting) {
  if (!meeting.completed) return;
  ThreadClock& t = mine();
  if (t.known == t.known_at_release) {  // what it knew is in there
    t.known = meeting.completed;
  } else {
    learn(t, *meeting.completed);
  }
}

void fence(bool device_scope) {
  ThreadClock& t = mine();
  if (t.seen) {
    learn(t, *t.seen);
    t.seen.reset();
  }
  t.block_fence = publish(t);
  if (device_scope) t.device_fence = t.block_fence;
}

void proxy_fence() {  // what this thread writes from here on has another clock
  ThreadClock& t = mine();
  t.proxy_fences.push_back(t.own++);
}

void atomic(const void* p, size_t bytes, bool writes, bool reads, int order, Site site) {
  ThreadClock& t = mine();
  touch(p, bytes, writes, true, site);
  const bool in_shared = cell_at(reinterpret_cast<uintptr_t>(p)).life != Life::global;
  auto& location = locations[reinterpret_cast<uintptr_t>(p)];
  if (reads && location) {
    if (order & emulation::acquire) {
      learn(t, *location);
    } else {
      join(t.seen, *location);
    }
  }
  if (!writes) return;
  const SharedClock fenced = in_shared ? t.block_fence : t.device_fence;
  const SharedClock released = order & emulation::release ? publish(t) : fenced;
  if (!reads) location.reset();
  if (released) join(location, *released);
}

void access(const void* p, size_t bytes, bool writes, Site site) {
  touch(p, bytes, writes, false, site);
}

void read_only(const void* p, size_t bytes, Site site) {
  for_cells(p, bytes, [&](const Cell& cell) {
    if (cell.write.site != kNowhere) {
      report("__ldg of what this launch writes", site, "the write", cell.write, me());
    }
  });
}

// ---- Copies ---------------------------------------------------------------------------------

Departure transfer_starts(const void* to, const void* from, size_t bytes, const void* barrier,
                          Site site) {
  const uint32_t block = me() / stride;
  const Epoch now(transfers_of(block), ++transfer_clocks[block], false, site);
  touch(barrier, sizeof(uint64_t), true, true, site);
  if (from) {  // a bulk copy; st.async has a value
    check_fenced(from, bytes, "bulk copy: read", site);
    check_fenced(to, bytes, "bulk copy: write", site);
    touch(reinterpret_cast<uintptr_t>(from), bytes, false, now);
  }
  touch(reinterpret_cast<uintptr_t>(to), bytes, true, now);
  for_cells(to, bytes, [](Cell& cell) { cell.life = Life::in_flight; });
  auto known = publish(mine());
  part_to_write(*known, block)[block_threads] = now.clock;
  return known;
}

void transfer_lands(const Departure& departure, const void* to, size_t bytes, const void* barrier) {
  for_cells(to, bytes, [](Cell& cell) { cell.life = Life::live; });
  join(locations[reinterpret_cast<uintptr_t>(barrier)], *departure);
}

}  // namespace emulation::race

// ---- What instrumented kernels call ---------------------------------------------------------

namespace {

using namespace emulation;

race::Site site_of(const void* return_address) {
  return race::Site(static_cast<const char*>(return_address) - __ehdr_start);
}

void plain_access(const void* p, size_t bytes, bool writes, bool aligned, const void* from) {
  if (!current || bytes == 0 || race::is_private(p)) return;
  if (aligned && reinterpret_cast<uintptr_t>(p) % bytes) {
    race::report("misaligned access", site_of(from), "", {}, race::me());
  }
  preempt(8);
  race::touch(p, bytes, writes, false, site_of(from));
}

void volatile_access(const void* p, size_t bytes, bool writes, const void* from) {
  if (!current || race::is_private(p)) return;
  if (writes) {
    preempt();
    progress();
  } else {
    yield({"a volatile load", 0});
  }
  race::atomic(p, bytes, writes, !writes, relaxed, site_of(from));
}

}  // namespace

#define FROM __builtin_return_address(0)
#define EMULATION_ACCESS(n)                                                          \
  void __tsan_read##n(void* p) { plain_access(p, n, false, true, FROM); }            \
  void __tsan_write##n(void* p) { plain_access(p, n, true, true, FROM); }            \
  void __tsan_unaligned_read##n(void* p) { plain_access(p, n, false, false, FROM); } \
  void __tsan_unaligned_write##n(void* p) { plain_access(p, n, true, false, FROM); } \
  void __tsan_volatile_read##n(void* p) { volatile_access(p, n, false, FROM); }      \
  void __tsan_volatile_write##n(void* p) { volatile_access(p, n, true, FROM); }
// Kernels that are compiled at run time call them, too.
#pragma GCC visibility push(default)
extern "C" {
EMULATION_ACCESS(1)
EMULATION_ACCESS(2)
EMULATION_ACCESS(4)
EMULATION_ACCESS(8)
EMULATION_ACCESS(16)
void __tsan_read_range(void* p, size_t n) { plain_access(p, n, false, false, FROM); }
void __tsan_write_range(void* p, size_t n) { plain_access(p, n, true, false, FROM); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
}
#pragma GCC visibility pop
