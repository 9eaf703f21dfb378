// Fibers: stacks that one OS thread switches between. A CUDA thread takes one when it first runs
// and passes it on when it ends, so that threads which never wait run one after another on one
// stack, like a loop.
#pragma once

#include <cstddef>

namespace emulation {

struct Fiber {
  char* stack = nullptr;  // its lowest address
  void* stack_pointer = nullptr;
  void* asan_state = nullptr;
};

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif

Fiber* take_fiber();         // one that starts, or goes on, in fiber_main
void park_fiber(Fiber*);     // it waits in fiber_main, for take_fiber
void discard_fiber(Fiber*);  // whatever it was doing is forgotten; it starts anew
void switch_fiber(Fiber* from, Fiber* to);
void entered_fiber();  // the first thing that fiber_main does
bool overflowed(const Fiber*);

Fiber* host_fiber();  // the OS thread's own stack, as of enter_host
void enter_host();

// What every fiber runs; never returns. (schedule.cpp)
[[noreturn]] void fiber_main();

}  // namespace emulation
