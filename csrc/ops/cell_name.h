// How an op takes a `str cell`. torch's own conversion to std::string (torch 2.10 to 2.13 at least)
// makes a string with `new` and returns a copy of it: each call would leak its cell's text. This
// reads the text where it is, since a program's is some kilobytes. Part of the op layer, like
// layer_ops.cpp.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <memory>
#include <string_view>
#include <type_traits>

namespace fusedrnn {

class CellName {
 public:
  explicit CellName(StringHandle handle) : handle_(handle) {
    std::size_t length = 0;
    const char* text = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &text));
    text_ = {text, length};
  }

  std::string_view text() const { return text_; }

 private:
  struct Delete {
    void operator()(StringHandle handle) const { torch_delete_string(handle); }
  };
  std::unique_ptr<std::remove_pointer_t<StringHandle>, Delete> handle_;
  std::string_view text_;
};

}  // namespace fusedrnn

HIDDEN_NAMESPACE_BEGIN(torch, stable, detail)

template <>
struct ToImpl<fusedrnn::CellName> {
  static fusedrnn::CellName call(StableIValue value, uint64_t, bool) {
    return fusedrnn::CellName(torch::stable::detail::to<StringHandle>(value));
  }
};

HIDDEN_NAMESPACE_END(torch, stable, detail)
