// The entry points that each storage type compiles (stepwise_*.cu), for backend.cpp to choose from.
// They throw std::runtime_error.
#pragma once

#include "../backend.h"

namespace fusedrnn {

template <class E>
void stepwise_forward(const Problem& problem, const Context& context);
template <class E>
void stepwise_backward(const BackwardProblem& problem, const Context& context);

}  // namespace fusedrnn
