// What environment variables ask for and cannot have: an error at each call, in words. Part of the
// op layer, like layer_ops.cpp.
#pragma once

#include "cpu/capability.h"
#include "cpu/memory.h"
#include "cpu/processors.h"
#include "layer/plan_override.h"
#include "refuse.h"

namespace fusedrnn {

inline void check_environment() {
  for (const std::string* const error : {&plan_override().error(), &cpu::cpu_capability_error(),
                                         &cpu::pool_error(), &cpu::processors_error()})
    FUSEDRNN_CHECK(error->empty(), *error);
}

}  // namespace fusedrnn
