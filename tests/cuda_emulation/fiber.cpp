// The switch between stacks, by hand for each processor: it saves the registers that a function
// must preserve, and nothing else. AddressSanitizer is told of every switch.
#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" __attribute__((visibility("hidden"))) void emulation_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
.type emulation_switch,@function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch,.-emulation_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
.type emulation_switch,%function
emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulation_switch,.-emulation_switch
)");
#else
#error "the switch between fibers is written for x86-64 and aarch64"
#endif

namespace emulation {
namespace {

constexpr uint64_t kCanary = 0x5aa5c33c5aa5c33c;  // the lowest bytes of a stack
constexpr size_t kStacksAtOnce = 64;  // a mapping for each would reach the system's limit

std::vector<Fiber*> idle;
Fiber host;
#if defined(__SANITIZE_ADDRESS__)
size_t host_bytes = 0;
#endif

void reset(Fiber* fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber->stack, kStackBytes);
#endif
  memcpy(fiber->stack, &kCanary, sizeof kCanary);
  // Tops at the same place of each stack would compete for the same lines of the cache.
  const size_t color = reinterpret_cast<uintptr_t>(fiber->stack) / kStackBytes % 32 * 320;
  void** top = reinterpret_cast<void**>(fiber->stack + kStackBytes - color);
#if defined(__x86_64__)
  *--top = nullptr;  // fiber_main's return address
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
  top -= 20;
  std::fill(top, top + 20, nullptr);
  top[11] = reinterpret_cast<void*>(&fiber_main);  // x30
#endif
  fiber->stack_pointer = top;
  fiber->asan_state = nullptr;
}

void make_fibers() {
  void* memory = mmap(nullptr, kStacksAtOnce * kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    fprintf(stderr, "CUDA emulation: no memory for more stacks\n");
    abort();
  }
  for (size_t i = kStacksAtOnce; i-- > 0;) {
    Fiber* fiber = new Fiber;  // lives as long as the process, as its stack does
    fiber->stack = static_cast<char*>(memory) + i * kStackBytes;
    reset(fiber);
    idle.push_back(fiber);
  }
}

}  // namespace

Fiber* take_fiber() {
  if (idle.empty()) make_fibers();
  Fiber* fiber = idle.back();
  idle.pop_back();
  return fiber;
}

void park_fiber(Fiber* fiber) { idle.push_back(fiber); }

void discard_fiber(Fiber* fiber) {
  reset(fiber);
  idle.push_back(fiber);
}

bool overflowed(const Fiber* fiber) { return memcmp(fiber->stack, &kCanary, sizeof kCanary) != 0; }

Fiber* host_fiber() { return &host; }

void enter_host() {
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  void* stack = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &host_bytes);
  pthread_attr_destroy(&attributes);
  host.stack = static_cast<char*>(stack);
#endif
}

void entered_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void switch_fiber(Fiber* from, Fiber* to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from->asan_state, to->stack,
                                 to == &host ? host_bytes : kStackBytes);
#endif
  emulation_switch(&from->stack_pointer, to->stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from->asan_state, nullptr, nullptr);
#endif
}

}  // namespace emulation
