// How an op refuses a call: a RuntimeError in Python, whose text is read by whoever made the call.
// (torch's own macro begins it with a function, a file and a line of ours.) Part of the op layer,
// like layer_ops.cpp.
#pragma once

#include <sstream>
#include <stdexcept>

namespace fusedrnn {

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

}  // namespace fusedrnn

// The parts of the message are only looked at if the condition does not hold.
#define FUSEDRNN_CHECK(condition, ...) \
  if (!(condition)) ::fusedrnn::refuse(__VA_ARGS__)
