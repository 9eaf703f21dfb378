// A backend as the op layer sees it: one layer call, forward or backward, on one kind of device.
// The op layer checks arguments, allocates results, lends what torch has (`Context`), and chooses
// the backend by the device of the input. A backend is a table of functions, so that it can live in
// a library of its own and be installed when that is loaded (`fusedrnn_use_backend`).
#pragma once

#include "problem.h"

namespace fusedrnn {

// Runs body(begin, end, context) over [0, n) in parallel; as torch's parallel_for with grain 1.
using ParallelFor = void (*)(int64_t n, void (*body)(int64_t, int64_t, void*), void* context);

// What the op layer lends for the time of one call. CPU backends use the first two, CUDA backends
// the rest; the current device is the input's.
struct Context {
  int threads = 1;
  ParallelFor parallel_for = nullptr;

  void* stream = nullptr;  // cudaStream_t
  void* blas = nullptr;    // cublasHandle_t, working on that stream
  bool allow_tf32 = false;
  // Memory on the device that lives until the work of this call is done; null if there is none.
  void* (*allocate)(int64_t bytes, void* owner) = nullptr;
  void* owner = nullptr;
};

// The functions return null, or what went wrong and what to do about it: a text that stays until
// the calling thread's next call.
struct Backend {
  const char* (*forward)(const Problem& problem, const Context& context);
  const char* (*backward)(const BackwardProblem& problem, const Context& context);
  // Whether all rows of input have to be at one distance from each other, of at least I.
  bool even_rows;
  // Makes the panels of a layer's weights ahead (panels null: only measures), and returns their
  // bytes, which depend only on the sizes and the dtype; null where none are made ahead.
  int64_t (*make_panels)(const Problem& problem, void* panels) = nullptr;
  // Names the layout that the panels have on this machine.
  int (*panels_layout)() = nullptr;
};

}  // namespace fusedrnn

// Installs the backend for a device type, 0 the CPU's and 1 CUDA's; returns the one before.
extern "C" const fusedrnn::Backend* fusedrnn_use_backend(int device_type,
                                                         const fusedrnn::Backend* backend);
