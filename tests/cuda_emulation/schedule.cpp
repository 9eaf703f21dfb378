// The scheduler: which thread runs next, what happens when a launch begins, ends or cannot go on.
#include <cstdarg>
#include <mutex>
#include <numeric>
#include <sstream>

#include "runtime.h"

namespace emulation {

Builtins builtins;
Thread* current = nullptr;
Launch* running = nullptr;

Options& options() {
  static Options all;
  return all;
}

namespace {

std::string headline(const std::string& what) {
  const Launch& l = *running;
  std::ostringstream out;
  auto size = [&](const dim3& d) { out << d.x << "x" << d.y << "x" << d.z; };
  out << what << " in " << kernel_name(l.kernel) << " (grid ";
  size(l.grid);
  out << ", block ";
  size(l.block);
  out << ", cluster ";
  size(l.cluster);
  out << ")";
  return out.str();
}

// Who waits where, block by block.
std::string who_waits() {
  std::ostringstream out;
  for (const auto& cluster : running->alive) {
    for (const Block& block : cluster->blocks) {
      std::map<std::string, std::vector<unsigned>> threads;
      for (unsigned i = 0; i < block.threads.size(); ++i) {
        const Thread& t = block.threads[i];
        threads[t.state == State::exited     ? "have exited"
                : t.state == State::spinning ? "spin at " + place(t.where)
                : t.state == State::ready
                    ? "could run"
                    : std::string("wait in ") + t.op + " at " + place(t.where)]
            .push_back(i);
      }
      out << "\n  block " << block.index.x << "," << block.index.y << "," << block.index.z << ":";
      for (const auto& [state, who] : threads) {
        out << "\n    " << who.size() << " of " << block.threads.size() << " threads " << state
            << " (first: " << who[0] << ")";
      }
    }
  }
  if (!running->pending.empty()) {
    out << "\n  clusters not yet started: " << running->pending.size();
  }
  return out.str();
}

void start_cluster(unsigned number) {
  const Launch& l = *running;
  const dim3 c = l.cluster, clusters(l.grid.x / c.x, l.grid.y / c.y, l.grid.z / c.z);
  const unsigned x = number % clusters.x, y = number / clusters.x % clusters.y;
  const unsigned z = number / clusters.x / clusters.y;
  const unsigned threads = l.block_threads(), size = c.x * c.y * c.z;
  auto cluster = std::make_unique<Cluster>();
  cluster->live = cluster->barrier.needed = size * threads;
  cluster->blocks.resize(size);
  for (unsigned rank = 0; rank < size; ++rank) {
    Block& block = cluster->blocks[rank];
    block.cluster = cluster.get();
    block.rank = rank;
    block.index = {x * c.x + rank % c.x, y * c.y + rank / c.x % c.y, z * c.z + rank / c.x / c.y};
    block.number = (block.index.z * l.grid.y + block.index.y) * l.grid.x + block.index.x;
    block.warps.resize((threads + 31) / 32);
    block.threads.resize(threads);
    for (unsigned i = 0; i < threads; ++i) {
      Thread& t = block.threads[i];
      t.block = &block;
      t.rank = i;
      running->ready.push_back(&t);
    }
  }
  running->live += cluster->live;
  running->alive.push_back(std::move(cluster));
}

void end_cluster(Cluster* cluster) {
  for (Block& block : cluster->blocks) {
    free_shared(block);
    race::block_ended(block.number);
    for (Thread& t : block.threads) {
      if (t.fiber) discard_fiber(t.fiber);
    }
  }
  auto& alive = running->alive;
  for (auto& one : alive) {
    if (one.get() != cluster) continue;
    std::swap(one, alive.back());
    alive.pop_back();
    return;
  }
}

// The thread's body has returned; `t` may be gone after this.
void end_thread(Thread& t) {
  Block& block = *t.block;
  if (overflowed(t.fiber)) fail({}, "a thread's stack overflowed");
  t.fiber = nullptr;
  t.state = State::exited;
  progress();
  --running->live;
  if (++block.exited == block.threads.size()) end_of_block(block);
  if (--block.cluster->live == 0) end_cluster(block.cluster);
}

// The next thread to run; null if the launch is over, well or not.
Thread* pick() {
  Launch& l = *running;
  const size_t resident = l.cooperative ? ~size_t(0) : options().resident;
  if (!l.failure.empty()) return nullptr;
  while (!l.pending.empty() && l.alive.size() < resident) {
    start_cluster(l.pending.back());
    l.pending.pop_back();
  }
  if (l.live == 0) return nullptr;
  if (l.ready.empty()) {
    l.failure = "deadlock";
    l.details = who_waits();
    return nullptr;
  }
  if (l.idle_spins > 64 * l.live + 1000) {
    l.failure = "livelock: every thread that can run spins,";
    l.details = who_waits();
    return nullptr;
  }
  if (l.shuffled) std::swap(l.ready.front(), l.ready[l.random() % l.ready.size()]);
  Thread* next = l.ready.front();
  l.ready.pop_front();
  next->state = State::ready;
  return next;
}

uint3 index_of(const Thread& t) {
  const dim3& b = running->block;
  return {t.rank % b.x, t.rank / b.x % b.y, t.rank / b.x / b.y};
}

void become(Thread* thread) {
  current = thread;
  if (!thread) return;
  builtins.thread_index = index_of(*thread);
  builtins.block_index = thread->block->index;
  builtins.rank = thread->rank;
  builtins.lane = thread->rank % 32;
  builtins.cluster_rank = thread->block->rank;
  builtins.cluster_size = unsigned(thread->block->cluster->blocks.size());
}

void switch_to(Fiber* from, Thread* next) {
  if (next && !next->fiber) next->fiber = take_fiber();
  become(next);
  switch_fiber(from, next ? next->fiber : host_fiber());
}

void run_to_the_end() {
  Launch& l = *running;
  builtins.block_size = l.block;
  builtins.grid_size = l.grid;
  race::begin(unsigned(l.blocks()), l.block_threads());
  l.barrier.needed = unsigned(l.blocks()) * l.block_threads();
  l.pending.resize(l.blocks() / (l.cluster.x * l.cluster.y * l.cluster.z));
  std::iota(l.pending.rbegin(), l.pending.rend(), 0u);
  if (l.shuffled) {
    for (size_t i = l.pending.size(); i > 1; --i) {
      std::swap(l.pending[i - 1], l.pending[l.random() % i]);
    }
  }
  if (Thread* first = pick()) switch_to(host_fiber(), first);
  while (!l.alive.empty()) end_cluster(l.alive.back().get());
}

void read_attributes(Launch& l, const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttributeValue& value = config.attrs[i].val;
    switch (config.attrs[i].id) {
      case cudaLaunchAttributeCooperative: l.cooperative = value.cooperative != 0; break;
      case cudaLaunchAttributeClusterDimension:
        l.cluster = dim3(value.clusterDim.x, value.clusterDim.y, value.clusterDim.z);
        break;
      default: break;  // hints
    }
  }
}

}  // namespace

void fiber_main() {
  entered_fiber();
  Fiber* const mine = self().fiber;
  while (true) {
    running->body(running->closure);
    end_thread(self());
    Thread* next = pick();
    if (next && !next->fiber) {  // goes on here, with no switch
      next->fiber = mine;
      become(next);
      continue;
    }
    park_fiber(mine);
    switch_to(mine, next);
  }
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, Body body, void* closure) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  Launch l{kernel,
           body,
           closure,
           config.gridDim,
           config.blockDim,
           dim3(1, 1, 1),
           config.dynamicSmemBytes,
           false,
           options().seed != 0,
           Random(options().seed),
           {},
           {},
           {},
           {},
           {},
           0,
           0,
           {},
           {}};
  read_attributes(l, config);
  enter_host();
  running = &l;
  const Refusal refusal = check_launch(l);
  l.failure = refusal.why;
  if (refusal.error == cudaSuccess) run_to_the_end();
  std::string report;
  const std::string races = race::reports();
  if (!l.failure.empty()) report = headline(l.failure) + l.details;
  if (!races.empty()) report += (report.empty() ? "" : "\n") + headline("faults") + races;
  running = nullptr;
  if (refusal.error != cudaSuccess) return launch_ended(refusal.error, report);
  return launch_ended(report.empty() ? cudaSuccess : cudaErrorLaunchFailure, report);
}

void fail(Where where, const char* format, ...) {
  const Thread& t = self();
  {  // what is on this stack is never destroyed: nothing may be left
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    char who[160];
    const uint3 i = index_of(t), b = t.block->index;
    snprintf(who, sizeof who, " by thread %u,%u,%u of block %u,%u,%u", i.x, i.y, i.z, b.x, b.y,
             b.z);
    running->failure = text;
    if (where.line) running->failure += " at " + place(where);
    running->details = who;
  }
  current = nullptr;
  switch_fiber(t.fiber, host_fiber());  // for good
  __builtin_unreachable();
}

// ---- Switching ------------------------------------------------------------------------------

bool chance(unsigned one_in) {
  return running->shuffled && one_in && running->random() % one_in == 0;
}

void suspend() {
  Thread& t = self();
  if (overflowed(t.fiber)) fail({}, "a thread's stack overflowed");
  Thread* next = pick();
  if (next != &t) switch_to(t.fiber, next);
}

void wait_in(const char* op, Where where) {
  Thread& t = self();
  t.state = State::waiting;
  t.op = op;
  t.where = where;
  suspend();
}

void wake(std::vector<Thread*>& waiting, bool first) {
  auto& ready = running->ready;
  for (Thread* t : waiting) t->state = State::ready;
  ready.insert(first ? ready.begin() : ready.end(), waiting.begin(), waiting.end());
  waiting.clear();
}

void yield(Where where) {
  Thread& t = self();
  ++running->idle_spins;
  t.state = State::spinning;
  t.where = where;
  running->ready.push_back(&t);
  suspend();
}

void preempt(unsigned times_rarer) {
  if (!chance(options().preempt * times_rarer)) return;
  running->ready.push_back(&self());
  suspend();
}

}  // namespace emulation
