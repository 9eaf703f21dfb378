// Registers a handler that runs in every child.
#include "fork.h"

#include <pthread.h>

#include <atomic>

namespace fusedrnn::cpu {
namespace {

std::atomic<bool> forked{false};
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

}  // namespace

bool is_forked() { return fork_handler != 0 || forked.load(std::memory_order_relaxed); }

}  // namespace fusedrnn::cpu
