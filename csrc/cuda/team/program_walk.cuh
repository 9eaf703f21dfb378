// The walks, and what the passes of a program read and write there. A source of a walk that is made
// at run time (stepwise/program_source.h) includes this, and nothing else.
#pragma once

#include "cuda/stepwise/program_stage.cuh"
#include "walk_backward.cuh"
#include "walk_forward.cuh"
