// torch's threads, as the op layer lends them to the CPU backend. Part of it, like layer_ops.cpp.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>

#include "layer/backend.h"

namespace fusedrnn {

inline void parallel_for(int64_t n, void (*body)(int64_t, int64_t, void*), void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, 1, body, context));
}

inline int thread_count() {
  uint32_t threads = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  return static_cast<int>(threads);
}

}  // namespace fusedrnn
