// The happens-before check of the race build.
//
// Kernels compiled with -fsanitize=thread call __tsan_read4 and the like before every access to
// memory; race.cpp is what they call (libtsan is not linked). Two accesses to the same bytes, one
// of them a write, must be ordered by what CUDA orders by: barriers, __syncwarp, fences with
// atomics or volatile accesses, mbarriers. A missing barrier is reported in whatever order the
// threads happened to run. Also reported are reads of shared memory that nothing has written,
// accesses just outside it, to that of a block that may not have started or may have exited, and to
// the destination of a copy under way.
//
// Bulk copies read and write shared memory in the async proxy, everything else in the generic one:
// ordinary accesses, st.async, and the mbarriers of all of them (PTX ISA, "Async Proxy", and "This
// instruction accesses its mbarrier operand using generic-proxy"). To be ordered after a thread's
// store is then not enough for a copy. The thread also has to have executed fence.proxy.async
// between its store and what the copy's order comes from. What an st.async or a copy has written is
// not looked at: a copy's end is a fence by itself, an st.async would need one.
//
// In the other builds all of this is nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "device.h"

namespace emulation::race {

struct Clock;
using SharedClock = std::shared_ptr<const Clock>;

struct Meeting {  // what the threads that arrive at a barrier know together
  std::shared_ptr<Clock> gathering;
  const Clock* latest = nullptr;  // joined last
  SharedClock completed;
};
using Departure = SharedClock;  // what was known when a copy was started
using Site = uint32_t;          // a place in the source, to be named in a report

#if defined(FUSEDRNN_EMULATION_RACE)

Site site(Where where);
std::string reports();  // of this launch, each on a line of its own; and forgets them

void begin(unsigned blocks, unsigned block_threads);
void new_shared(const void* p, size_t bytes, size_t red_zone, unsigned block);
void shared_is_dead(const void* p, size_t bytes, unsigned block);
void drop_shared(const void* p, size_t bytes, size_t red_zone);
void block_ended(unsigned block);

void release(Meeting&);
void complete(Meeting&);
void acquire(Meeting&);
void fence(bool device_scope);
void proxy_fence();
void atomic(const void* p, size_t bytes, bool writes, bool reads, int order, Site);
void access(const void* p, size_t bytes, bool writes, Site);
void read_only(const void* p, size_t bytes, Site);

Departure transfer_starts(const void* to, const void* from, size_t bytes, const void* barrier,
                          Site);
void transfer_lands(const Departure&, const void* to, size_t bytes, const void* barrier);

#else

inline Site site(Where) { return 0; }
inline std::string reports() { return {}; }
inline void begin(unsigned, unsigned) {}
inline void new_shared(const void*, size_t, size_t, unsigned) {}
inline void shared_is_dead(const void*, size_t, unsigned) {}
inline void drop_shared(const void*, size_t, size_t) {}
inline void block_ended(unsigned) {}
inline void release(Meeting&) {}
inline void complete(Meeting&) {}
inline void acquire(Meeting&) {}
inline void fence(bool) {}
inline void proxy_fence() {}
inline void atomic(const void*, size_t, bool, bool, int, Site) {}
inline void access(const void*, size_t, bool, Site) {}
inline void read_only(const void*, size_t, Site) {}
inline Departure transfer_starts(const void*, const void*, size_t, const void*, Site) { return {}; }
inline void transfer_lands(const Departure&, const void*, size_t, const void*) {}

#endif

}  // namespace emulation::race
