// Layers on each other in one call over a chunk of steps, one op for a whole network: what
// panels_forward and quantized_forward share. Their weights are one tensor of bytes, the layers'
// buffers one after the other.
//
// Part of the op layer, like layer_ops.cpp.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "states.h"
#include "tensors.h"

namespace fusedrnn {

// Weights made ready ahead, as an op was given them: checked to be bytes that kernels can read.
struct ReadyBytes {
  const char* data = nullptr;
  int64_t size = 0;
};

inline ReadyBytes ready_bytes(const char* name, const Tensor& ready, const Tensor& input) {
  const bool on_cpu = ready.is_cpu() && input.is_cpu();
  const bool bytes =
      ready.scalar_type() == ScalarType::Byte && ready.dim() == 1 && ready.is_contiguous();
  const void* const data = on_cpu && bytes ? data_of(name, ready) : nullptr;
  FUSEDRNN_CHECK(
      on_cpu && bytes && reinterpret_cast<std::uintptr_t>(data) % 64 == 0, name,
      ": expected contiguous, 64-byte aligned uint8 of shape [bytes] on the CPU, and input "
      "there, got ",
      dtype_name(ready), " of shape ", to_string(sizes_of(ready)), " on ", device_of(ready),
      " and input on ", device_of(input));
  return {static_cast<const char*>(data), ready.numel()};
}

// One layer's part of a call; rows are dense except in the first layer's input.
struct StackedLayer {
  Shape shape;
  int64_t index = 0;
  int64_t at = 0;  // where in the weights it begins
  const void* input = nullptr;
  int64_t input_step = 0, input_row = 0;
  void* output = nullptr;
  void* states[kMaxStates] = {};  // before the call, to become those after it
};

// input is [T, B, I], or [B, I] or [I] for one step; hx has [layers, B, R] or, of the states after
// h, [layers, B, H]. `name` is what messages call the weights.
//
// read(at, shape): sets cell, I, H and P of the layer that begins at `at`, or throws; returns its
// bytes. Everything is read and checked before anything is computed: a call that is refused leaves
// the states as they were. run(layer) computes one layer.
template <class Read, class Run>
Tensor forward_stack(const Tensor& input, const char* name, const ReadyBytes& ready,
                     const std::vector<Tensor>& hx, Read read, Run run) {
  const int64_t dims = input.dim();
  FUSEDRNN_CHECK(dims >= 1 && dims <= 3, "input: expected 1 to 3 dimensions, got ", dims);
  StackedLayer layer;
  Shape& s = layer.shape;
  s.dtype = dtype_of("input", input);
  s.T = dims == 3 ? input.size(0) : 1;
  s.B = dims == 1 ? 1 : input.size(dims - 2);
  FUSEDRNN_CHECK(s.T > 0, "input: expected at least one step, got shape ",
                 to_string(sizes_of(input)));

  int64_t layers = 0, width = input.size(dims - 1), hidden = 0;
  const Facts* cell = nullptr;
  for (int64_t at = 0; at < ready.size || layers == 0; ++layers) {
    const int64_t bytes = read(at, s);
    FUSEDRNN_CHECK(layers || s.I == width, "input: expected ", s.I, " features, got shape ",
                   to_string(sizes_of(input)));
    FUSEDRNN_CHECK(
        s.I == width && (!layers || (s.R() == width && s.H == hidden && &s.facts() == cell)), name,
        ": expected layers that fit each other, got an input of ", s.I,
        " features on an output of ", width);
    width = s.R(), hidden = s.H, cell = &s.facts();
    at += bytes;
  }
  const int states = cell->states;
  check_states("hx", hx, *cell);
  char* first[kMaxStates] = {};
  for (int i = 0; i < states; ++i) {
    const Tensor& state = hx[static_cast<std::size_t>(i)];
    check_like(kHx[i], state, input);
    check_sizes(kHx[i], state, {layers, s.B, s.width(i)});
    FUSEDRNN_CHECK(state.is_contiguous(), kHx[i], ": expected contiguous memory");
    first[i] = static_cast<char*>(data_of(kHx[i], state));
  }
  // Scratch is a few dozen values for each row and unit at most.
  const int64_t most = std::numeric_limits<int64_t>::max() / 4096 / (s.I + hidden + width);
  FUSEDRNN_CHECK(s.B <= most / s.T, "input: too large, got shape ", to_string(sizes_of(input)));
  s.rows = s.T * s.B;

  const bool in_place = input.size(dims - 1) == 1 || input.stride(dims - 1) == 1;
  const Tensor x = in_place ? input : dense("input", input);
  layer.input = data_of("input", x);
  layer.input_row = dims == 1 ? 0 : x.stride(dims - 2);
  layer.input_step = dims == 3 ? x.stride(0) : 0;

  Sizes sizes = sizes_of(input);
  sizes.back() = width;
  Tensor output = new_pooled("output", sizes, input);
  if (s.rows == 0) return output;
  const int64_t element = size_of(s.dtype), bytes = s.rows * width * element;
  const cpu::Scratch between(static_cast<std::size_t>(layers > 1 ? 2 * bytes : 0));
  FUSEDRNN_CHECK(layers == 1 || between.data(), "out of memory: outputs between layers");
  for (int64_t l = 0; l < layers; ++l) {
    const int64_t size = read(layer.at, s);
    layer.output = l + 1 == layers ? output.mutable_data_ptr()
                                   : static_cast<char*>(between.data()) + l % 2 * bytes;
    layer.index = l;
    for (int i = 0; i < states; ++i) layer.states[i] = first[i] + l * s.B * s.width(i) * element;
    run(layer);
    layer.input = layer.output, layer.input_row = width, layer.input_step = s.B * width;
    layer.at += size;
  }
  return output;
}

}  // namespace fusedrnn
