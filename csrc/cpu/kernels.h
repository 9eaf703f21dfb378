// The entry points that each instruction set compiles (isa/*.cpp) and backend.cpp chooses from.
// With scratch (panels) null they do nothing but return the bytes that the call will need there.
#pragma once

#include "../problem.h"
#include "plan.h"
#include "team.h"

#define FUSEDRNN_DECLARE_KERNELS(isa)                                                       \
  namespace fusedrnn {                                                                      \
  namespace isa {                                                                           \
  int64_t forward_single(const Problem&, const Plan&, ParallelFor, void* scratch);          \
  int64_t forward_double(const Problem&, const Plan&, ParallelFor, void* scratch);          \
  int64_t forward_half(const Problem&, const Plan&, ParallelFor, void* scratch);            \
  int64_t pack_single(const Problem&, void* panels);                                        \
  int64_t pack_double(const Problem&, void* panels);                                        \
  int64_t pack_half(const Problem&, void* panels);                                          \
  int64_t backward_single(const BackwardProblem&, const Plan&, ParallelFor, void* scratch); \
  int64_t backward_double(const BackwardProblem&, const Plan&, ParallelFor, void* scratch); \
  int64_t backward_half(const BackwardProblem&, const Plan&, ParallelFor, void* scratch);   \
  }                                                                                         \
  }

namespace fusedrnn {
struct QuantizedProblem;
}

#define FUSEDRNN_DECLARE_QUANTIZED_KERNELS(isa)                                                \
  namespace fusedrnn {                                                                         \
  namespace isa {                                                                              \
  int64_t forward_quantized(const QuantizedProblem&, const Plan&, ParallelFor, void* scratch); \
  void quantize_weights(const Shape&, const Weights&, char* packed);                           \
  }                                                                                            \
  }
