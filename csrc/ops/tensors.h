// Tensors as the op layer handles them, through torch's stable ABI: what an op checks of an
// argument and how it makes a result.
//
// Part of the op layer, like layer_ops.cpp.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "cpu/fork.h"
#include "cpu/memory.h"
#include "layer/problem.h"
#include "refuse.h"

// Since torch 2.11: a tensor over memory of ours with a deleter of ours. Weak, so that the library
// loads in 2.10 too, where the reserve is an ordinary tensor.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* ret, int32_t layout,
    const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
    void (*deleter)(void* data, void* ctx), void* deleter_ctx);

namespace fusedrnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

template <class Numbers>
inline std::string to_string(const Numbers& numbers) {
  std::string text;
  for (const int64_t n : numbers) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return "[" + text + "]";
}

inline Sizes sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

template <class Expected = std::initializer_list<int64_t>>
inline void check_sizes(const char* name, const Tensor& t, const Expected& expected) {
  const auto sizes = t.sizes();
  FUSEDRNN_CHECK(std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()), name,
                 ": expected shape ", to_string(expected), ", got ", to_string(sizes_of(t)));
}

// How far from the beginning of its storage a tensor's values reach, in bytes; the largest number
// if no storage reaches that far.
inline int64_t reach_of(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t reach = t.storage_offset(), step = 0;
  bool fits = reach >= 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return 0;
    fits = fits && strides[i] >= 0 && !__builtin_mul_overflow(sizes[i] - 1, strides[i], &step) &&
           !__builtin_add_overflow(reach, step, &reach);
  }
  const int64_t element = static_cast<int64_t>(t.element_size());
  fits = fits && !__builtin_add_overflow(reach, 1, &reach) &&
         !__builtin_mul_overflow(reach, element, &reach);
  return fits ? reach : std::numeric_limits<int64_t>::max();
}

// Where an argument's values are. All pointers to arguments come from here, since a storage may
// have been freed or cut short under its tensors (`untyped_storage().resize_`, as offloading does),
// which keep their sizes.
inline void* data_of(const char* name, const Tensor& t) {
  int64_t there = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &there));
  FUSEDRNN_CHECK(reach_of(t) <= there, name, ": expected a storage that holds all of a tensor of ",
                 "shape ", to_string(sizes_of(t)), ", got one of ", there,
                 " bytes, which was freed or made smaller");
  return t.data_ptr();
}

inline void* data_of(const char* name, const std::optional<Tensor>& t) {
  return t ? data_of(name, *t) : nullptr;
}

inline std::string device_of(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  return (t.is_cuda() ? "cuda:" : "another device, index ") + std::to_string(t.get_device_index());
}

// As Python calls it, without "torch.".
inline std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::ComplexHalf: return "complex32";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return toString(type);
  }
}

inline std::string dtype_name(const Tensor& t) { return dtype_name(t.scalar_type()); }

inline void check_like(const char* name, const Tensor& t, const Tensor& input) {
  const bool together =
      input.is_cpu() ? t.is_cpu() : t.is_cuda() && t.get_device_index() == input.get_device_index();
  FUSEDRNN_CHECK(together, name, ": expected a tensor on input's device, ", device_of(input),
                 ", got one on ", device_of(t));
  FUSEDRNN_CHECK(t.scalar_type() == input.scalar_type(), name, ": expected input's dtype ",
                 dtype_name(input), ", got ", dtype_name(t));
}

inline Dtype dtype_of(const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return Dtype::f64;
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: refuse(name, ": expected float64, float32, bfloat16 or float16, got ", dtype_name(t));
  }
}

// What a new tensor takes over from an existing one.
struct Options {
  int32_t dtype = 0, device_type = 0, device_index = 0;
  explicit Options(const Tensor& like) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  }
};

inline Sizes contiguous_strides(const Sizes& sizes) {
  Sizes strides(sizes.size(), 1);
  for (std::size_t i = sizes.size(); i > 1; --i)
    strides[i - 2] = strides[i - 1] * (sizes[i - 1] ? sizes[i - 1] : 1);
  return strides;
}

// Past the dispatcher: a small layer's call takes not much longer than a few trips through it.
inline Tensor new_tensor(const Sizes& sizes, const Options& options) {
  const Sizes strides = contiguous_strides(sizes);
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               options.dtype, options.device_type, options.device_index, &handle);
  FUSEDRNN_CHECK(error == AOTI_TORCH_SUCCESS, "out of memory: a tensor of shape ", to_string(sizes),
                 " could not be allocated; use a smaller batch or fewer steps");
  return Tensor(handle);
}
inline Tensor new_tensor(const Sizes& sizes, const Tensor& like) {
  return new_tensor(sizes, Options(like));
}

// Uninitialised bytes on the same device, 64-byte aligned as all that torch allocates; null without
// memory.
inline AtenTensorHandle try_bytes(int64_t bytes, const Tensor& like) {
  const Options options(like);
  const int64_t stride = 1;
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error =
      aoti_torch_empty_strided(1, &bytes, &stride, aoti_torch_dtype_uint8(), options.device_type,
                               options.device_index, &handle);
  return error == AOTI_TORCH_SUCCESS ? handle : nullptr;
}

inline Tensor new_bytes(int64_t bytes, const Tensor& like) {
  const AtenTensorHandle handle = try_bytes(bytes, like);
  FUSEDRNN_CHECK(handle, "out of memory: ", bytes,
                 " bytes of weights made ready ahead could not be allocated");
  return Tensor(handle);
}

// Copies strided values to dense memory, in this thread; returns the end of what it wrote.
inline char* copy_values(const char* from, char* to, const int64_t* sizes, const int64_t* strides,
                         std::size_t dims, std::size_t element) {
  if (dims == 0) {
    std::memcpy(to, from, element);
    return to + element;
  }
  const int64_t stride = strides[0] * static_cast<int64_t>(element);
  for (int64_t i = 0; i < sizes[0]; ++i)
    to = copy_values(from + i * stride, to, sizes + 1, strides + 1, dims - 1, element);
  return to;
}

// The tensor itself if it is contiguous, else a copy. Ask `data_of` for the pointer, as always.
inline Tensor dense(const char* name, const Tensor& t) {
  if (t.is_contiguous()) return t;
  const void* const from = data_of(name, t);  // copy_ does not look
  Tensor copy = new_tensor(sizes_of(t), t);
  if (!t.is_cpu() || !cpu::is_forked())
    return torch::stable::copy_(copy, t);  // it uses all threads
  copy_values(static_cast<const char*>(from), static_cast<char*>(copy.data_ptr()), t.sizes().data(),
              t.strides().data(), t.sizes().size(), t.element_size());
  return copy;
}

// Where an argument's values are, contiguous: its own, or those of a copy that is added to
// `copies`.
inline void* place(const char* name, const Tensor& t, std::vector<Tensor>& copies) {
  if (t.is_contiguous()) return data_of(name, t);
  copies.push_back(dense(name, t));
  return data_of(name, copies.back());
}

inline Tensor zeros(const Sizes& sizes, const Options& options) {
  Tensor t = new_tensor(sizes, options);
  if (!t.numel()) return t;
  if (!t.is_cpu()) return torch::stable::zero_(t);
  std::memset(t.data_ptr(), 0, static_cast<std::size_t>(t.numel()) * t.element_size());
  return t;
}
inline Tensor zeros(const Sizes& sizes, const Tensor& like) { return zeros(sizes, Options(like)); }

// The large tensors of a call (output, reserve, grad_input). On the CPU memory of the pool that
// returns there when the last owner lets the tensor go; on CUDA torch's allocator is such a pool.
inline Tensor new_pooled(const char* name, const Sizes& sizes, const Tensor& like) {
  constexpr std::size_t kPooledBytes = 64 * 1024;  // below, malloc does not ask the system
  int64_t numel = 1;
  for (const int64_t n : sizes) numel *= n;
  const std::size_t bytes = static_cast<std::size_t>(numel) * like.element_size();
  if (!torch_from_blob || bytes < kPooledBytes || !like.is_cpu()) return new_tensor(sizes, like);
  void* const data = cpu::pool_take(bytes, cpu::Use::tensor);
  FUSEDRNN_CHECK(data, "out of memory: ", name, " of shape ", to_string(sizes),
                 " could not be allocated; use a smaller batch or fewer steps");
  const Options options(like);
  const Sizes strides = contiguous_strides(sizes);
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_from_blob(
      data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, options.dtype,
      options.device_type, options.device_index, &handle, aoti_torch_layout_strided(), nullptr, 0,
      [](void* buffer, void*) { cpu::pool_give(buffer); }, nullptr));
  return Tensor(handle);
}

}  // namespace fusedrnn
