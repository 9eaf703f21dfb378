// CUDA C++ of a cell that is a program: its stages as structs such as cells/ has them, and which
// instances of the stepwise kernels or of the walks they need. A compiler at run time makes kernels
// of it.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "cells/program.h"
#include "cuda/plan.h"

namespace fusedrnn::cuda {

struct KernelSource {
  std::string text;
  std::vector<std::string> names;  // of the kernels in C++
};

// The stepwise kernels: for each stage forward with one unit per thread, forward with 16 bytes of
// them, and backward likewise.
KernelSource kernel_source(const Program& program, Dtype dtype);

// One walk, for teams of one kind. A call needs one for each pass, and each takes seconds to
// compile.
struct WalkKernel {
  Pass pass;
  Arithmetic arithmetic;
  CudaTeam team;

  bool operator<(const WalkKernel& o) const {
    return std::tie(pass, arithmetic, team) < std::tie(o.pass, o.arithmetic, o.team);
  }
};
KernelSource walk_source(const Program& program, const WalkKernel& walk);

}  // namespace fusedrnn::cuda
