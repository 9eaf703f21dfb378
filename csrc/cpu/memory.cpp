// Idle buffers are kept in a list, oldest first. A request takes the smallest one that is large
// enough and not too large: for a tensor at most a third larger, for scratch at most four times as
// large. If none is large enough for scratch, the largest idle buffer is freed, unless it is less
// than a quarter of the request: a forward's scratch then does not lie idle beside its backward's.
// When buffers given back exceed the bound, the oldest are freed.
#include "memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include <pthread.h>
#include <sys/mman.h>

namespace fusedrnn::cpu {
namespace {

constexpr std::size_t kHeader = 64;  // holds the size; keeps the alignment
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kMaxBuffers = 64;
constexpr std::size_t kDefaultBound = std::size_t{512} << 20;

struct Pool {
  std::mutex mutex;
  std::vector<void*> idle;  // oldest first
  std::size_t held = 0;
  std::size_t bound = kDefaultBound;
  std::string error;  // of FUSEDRNN_POOL_MB

  Pool() {
    idle.reserve(kMaxBuffers + 1);
    const char* const given = std::getenv("FUSEDRNN_POOL_MB");
    const std::string text = given ? given : "";
    if (text.empty()) return;
    constexpr std::size_t kDigits = 9;  // a petabyte
    if (text.size() <= kDigits && text.find_first_not_of("0123456789") == std::string::npos)
      bound = static_cast<std::size_t>(std::strtoull(given, nullptr, 10)) << 20;
    else
      error = "FUSEDRNN_POOL_MB: expected a whole number of MiB, got \"" + text + "\"";
  }
};

// Never destroyed: tensors may outlive the end of main. A fork waits until the lock is free.
// Otherwise the child could find it held by a thread that the child does not have.
Pool& pool() {
  static Pool* const instance = [] {
    Pool* const p = new Pool;
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); },
                   [] { pool().mutex.unlock(); });
    return p;
  }();
  return *instance;
}

std::size_t& capacity(void* block) { return *static_cast<std::size_t*>(block); }

}  // namespace

void* pool_take(std::size_t bytes, Use use) {
  if (bytes > SIZE_MAX - 2 * kHugePage) return nullptr;
  const std::size_t wanted = (bytes + 4095) / 4096 * 4096;
  Pool& p = pool();
  {
    std::lock_guard<std::mutex> lock(p.mutex);
    std::size_t best = p.idle.size();
    for (std::size_t i = 0; i < p.idle.size(); ++i) {
      const std::size_t size = capacity(p.idle[i]);
      if (size >= wanted && (use == Use::scratch ? size / 4 : size - size / 4) <= wanted &&
          (best == p.idle.size() || size <= capacity(p.idle[best])))
        best = i;
    }
    if (best < p.idle.size()) {
      void* const block = p.idle[best];
      p.idle.erase(p.idle.begin() + static_cast<std::ptrdiff_t>(best));
      p.held -= capacity(block);
      return static_cast<char*>(block) + kHeader;
    }
    if (use == Use::scratch && !p.idle.empty()) {
      const auto largest = std::max_element(
          p.idle.begin(), p.idle.end(), [](void* a, void* b) { return capacity(a) < capacity(b); });
      if (capacity(*largest) < wanted && capacity(*largest) >= wanted / 4) {
        p.held -= capacity(*largest);
        std::free(*largest);
        p.idle.erase(largest);
      }
    }
  }
  void* block = nullptr;
  const std::size_t total = wanted + kHeader;
  const bool large = total >= 2 * kHugePage;
  if (posix_memalign(&block, large ? kHugePage : 64, total) != 0) {
    pool_trim();
    if (posix_memalign(&block, 64, total) != 0) return nullptr;
  }
  if (large) madvise(block, total, MADV_HUGEPAGE);
  capacity(block) = wanted;
  return static_cast<char*>(block) + kHeader;
}

void pool_give(void* buffer) {
  if (!buffer) return;
  void* const block = static_cast<char*>(buffer) - kHeader;
  Pool& p = pool();
  if (capacity(block) > p.bound) return std::free(block);  // it would push out all the others
  std::lock_guard<std::mutex> lock(p.mutex);
  p.idle.push_back(block);
  p.held += capacity(block);
  while (!p.idle.empty() && (p.held > p.bound || p.idle.size() > kMaxBuffers)) {
    void* const oldest = p.idle.front();
    p.idle.erase(p.idle.begin());
    p.held -= capacity(oldest);
    std::free(oldest);
  }
}

const std::string& pool_error() { return pool().error; }

std::size_t pool_bound_bytes() { return pool().bound; }

std::size_t pool_held_bytes() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  return p.held;
}

void pool_trim() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  for (void* block : p.idle) std::free(block);
  p.idle.clear();
  p.held = 0;
}

}  // namespace fusedrnn::cpu

// For fusedrnn/memory_pool.py.
#define FUSEDRNN_EXPORT extern "C" __attribute__((visibility("default")))
FUSEDRNN_EXPORT std::size_t fusedrnn_pool_bound_bytes() {
  return fusedrnn::cpu::pool_bound_bytes();
}
FUSEDRNN_EXPORT std::size_t fusedrnn_pool_held_bytes() { return fusedrnn::cpu::pool_held_bytes(); }
FUSEDRNN_EXPORT void fusedrnn_pool_trim() { fusedrnn::cpu::pool_trim(); }
FUSEDRNN_EXPORT const char* fusedrnn_pool_error() { return fusedrnn::cpu::pool_error().c_str(); }
