// A bounded pool of large buffers. Freshly mapped memory costs a page fault per page at each call,
// a third of the time of a training step; buffers taken from here are warm from the call before.
//
// Thread-safe. A buffer is returned once, at any time and from any thread: when its owner dies (a
// kept graph, a late deleter, a graph that never ran backward). The pool keeps no list of the
// buffers in use.
#pragma once

#include <cstddef>
#include <string>

namespace fusedrnn::cpu {

enum class Use {
  tensor,   // kept for an unknown time: an idle buffer must fit well
  scratch,  // given back within the call: one large buffer serves all smaller requests
};

void* pool_take(std::size_t bytes, Use use);  // 64-byte aligned; null if out of memory
void pool_give(void* buffer);                 // null is allowed
std::size_t pool_bound_bytes();               // the most that it keeps idle
std::size_t pool_held_bytes();                // what is idle in the pool now
void pool_trim();                             // frees what is idle
const std::string& pool_error();              // why FUSEDRNN_POOL_MB can't be used; else empty

// The scratch memory of one call.
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
