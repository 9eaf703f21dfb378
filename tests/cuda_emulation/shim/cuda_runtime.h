// Found in place of the CUDA toolkit's file of this name: the emulated device.
#pragma once

#include "../intrinsics.h"
#include "../ptx.h"
