// CUDA C++ of a cell that is a program: its stages as structs such as cells/ has them, and which
// instances of the stepwise kernels they need. A compiler at run time makes kernels of it.
#pragma once

#include <string>
#include <vector>

#include "cells/program.h"
#include "layer/sizes.h"

namespace fusedrnn::cuda {

struct KernelSource {
  std::string text;
  // The kernels' names in C++: for each stage forward with one unit per thread, forward with 16
  // bytes of them, and backward likewise.
  std::vector<std::string> names;
};
constexpr int kKernelsOfStage = 4;

KernelSource kernel_source(const Program& program, Dtype dtype);

}  // namespace fusedrnn::cuda
