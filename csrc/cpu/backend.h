// The CPU backend as the op layer sees it: one layer call, forward or backward.
#pragma once

#include "../problem.h"
#include "plan.h"
#include "team.h"

namespace fusedrnn {

// Both return false when scratch memory could not be had; nothing has been written then.
bool cpu_forward(const Problem& problem, const Plan& plan, ParallelFor parallel_for);
bool cpu_backward(const BackwardProblem& problem, const Plan& plan, ParallelFor parallel_for);

}  // namespace fusedrnn
