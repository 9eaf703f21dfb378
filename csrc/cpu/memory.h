// A bounded pool of large buffers. Freshly mapped memory costs a page fault per page at each call,
// a third of the time of a training step; buffers taken from here are warm from the call before.
//
// Thread-safe. A buffer is returned once, whenever and from whichever thread its owner dies (a kept
// graph, a late deleter, a graph that never ran backward): the pool keeps no list of what is out.
#pragma once

#include <cstddef>
#include <string>

namespace fusedrnn::cpu {

enum class Use {
  tensor,   // kept for who knows how long: an idle buffer must fit well
  scratch,  // given back within the call: one large buffer serves all that is smaller
};

void* pool_take(std::size_t bytes, Use use);  // 64-byte aligned; nullptr when memory is out
void pool_give(void* buffer);                 // null is allowed
std::size_t pool_bound_bytes();               // how much it holds when idle, at most
std::size_t pool_held_bytes();                // idle in the pool now
void pool_trim();                             // frees what is idle
const std::string& pool_error();              // why FUSEDRNN_POOL_MB can't be used; else empty

// Scratch of one call.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) : data_(bytes ? pool_take(bytes, Use::scratch) : nullptr) {}
  ~Scratch() { pool_give(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

}  // namespace fusedrnn::cpu
