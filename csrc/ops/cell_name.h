// How an op takes a `str cell`. torch's own conversion to std::string (torch 2.10 to 2.13 at least)
// makes a string with `new` and returns a copy of it: each call would leak its cell's text. Part of
// the op layer, like layer_ops.cpp.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>

namespace fusedrnn {

struct CellName {
  std::string text;
};

}  // namespace fusedrnn

HIDDEN_NAMESPACE_BEGIN(torch, stable, detail)

template <>
struct ToImpl<fusedrnn::CellName> {
  static fusedrnn::CellName call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = torch::stable::detail::to<StringHandle>(value);
    std::size_t length = 0;
    const char* text = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &text));
    fusedrnn::CellName name{std::string(text, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return name;
  }
};

HIDDEN_NAMESPACE_END(torch, stable, detail)
