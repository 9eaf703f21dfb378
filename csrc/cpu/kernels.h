// The entry points that are compiled for each instruction set (isa/*.cpp), as one table of
// functions, and the table for this processor. If `scratch` (or `panels`) is null, a kernel only
// returns how many bytes the call will need there.
#pragma once

#include "layer/problem.h"
#include "plan.h"
#include "team.h"

namespace fusedrnn {
struct QuantizedProblem;
}  // namespace fusedrnn

namespace fusedrnn::cpu {

constexpr int kDtypes = 4;

// By dtype, and those for int8 weights. Null: not compiled for this instruction set.
struct Kernels {
  int64_t (*forward[kDtypes])(const Problem&, const Plan&, ParallelFor, void* scratch);
  int64_t (*backward[kDtypes])(const BackwardProblem&, const Plan&, ParallelFor, void* scratch);
  int64_t (*make_panels[kDtypes])(const Problem&, void* panels);
  int64_t (*forward_quantized)(const QuantizedProblem&, const Plan&, ParallelFor, void* scratch);
  void (*quantize_weights)(const Shape&, const Weights&, char* buffer);
};

// The kernels for this processor, see capability.h.
const Kernels& kernels();

#if defined(FUSEDRNN_ISA)
namespace FUSEDRNN_ISA {

const Kernels& table();  // isa/table.cpp; it holds these:

template <Dtype>
int64_t forward(const Problem&, const Plan&, ParallelFor, void* scratch);
template <Dtype>
int64_t backward(const BackwardProblem&, const Plan&, ParallelFor, void* scratch);
template <Dtype>
int64_t make_panels(const Problem&, void* panels);
int64_t forward_quantized(const QuantizedProblem&, const Plan&, ParallelFor, void* scratch);
void quantize_weights(const Shape&, const Weights&, char* buffer);

}  // namespace FUSEDRNN_ISA
#endif

}  // namespace fusedrnn::cpu
