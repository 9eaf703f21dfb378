// The entry points that each instruction set compiles (isa/*.cpp), in a namespace of its name, and
// those of the capability at hand. With scratch (panels) null they do nothing but return the bytes
// that the call will need there.
#pragma once

#include "layer/problem.h"
#include "plan.h"
#include "team.h"

namespace fusedrnn {
struct QuantizedProblem;
}  // namespace fusedrnn

namespace fusedrnn::cpu {

constexpr int kDtypes = 4;

struct Kernels {  // by dtype, and those of int8 weights
  int64_t (*forward[kDtypes])(const Problem&, const Plan&, ParallelFor, void* scratch);
  int64_t (*backward[kDtypes])(const BackwardProblem&, const Plan&, ParallelFor, void* scratch);
  int64_t (*pack[kDtypes])(const Problem&, void* panels);
  int64_t (*forward_quantized)(const QuantizedProblem&, const Plan&, ParallelFor, void* scratch);
  void (*quantize_weights)(const Shape&, const Weights&, char* packed);
};

// Those for this processor, see capability.h.
const Kernels& kernels();

}  // namespace fusedrnn::cpu

#define FUSEDRNN_DECLARE_KERNELS(isa)                                                          \
  namespace fusedrnn::cpu {                                                                    \
  namespace isa {                                                                              \
  template <Dtype>                                                                             \
  int64_t forward(const Problem&, const Plan&, ParallelFor, void* scratch);                    \
  template <Dtype>                                                                             \
  int64_t backward(const BackwardProblem&, const Plan&, ParallelFor, void* scratch);           \
  template <Dtype>                                                                             \
  int64_t pack(const Problem&, void* panels);                                                  \
  int64_t forward_quantized(const QuantizedProblem&, const Plan&, ParallelFor, void* scratch); \
  void quantize_weights(const Shape&, const Weights&, char* packed);                           \
  }                                                                                            \
  }

#if defined(FUSEDRNN_ISA)
FUSEDRNN_DECLARE_KERNELS(FUSEDRNN_ISA)
#endif
