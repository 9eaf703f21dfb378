// The CPU backend: kernels for every cell and type, chosen for this processor at run time.
#pragma once

#include "../backend.h"

namespace fusedrnn {

const Backend& cpu_backend();

}  // namespace fusedrnn
