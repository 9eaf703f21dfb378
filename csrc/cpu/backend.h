// The CPU backend: kernels for every cell and type, chosen for this processor at run time.
#pragma once

#include "layer/backend.h"
#include "layer/quantized.h"

namespace fusedrnn::cpu {

const Backend& backend();

// Layers with int8 weights (layer/quantized.h):

// Writes the quantized buffer except for its header. The weights are finite float32; biases may be
// null.
void write_quantized(const Shape& shape, const Weights& weights, char* buffer);

// Returns null, or what went wrong, as a Backend's functions do.
const char* forward_quantized(const QuantizedProblem& problem, const Context& context);

}  // namespace fusedrnn::cpu
