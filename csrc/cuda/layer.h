// The entry points of each storage type (layer.cu), for backend.cpp to choose from. They throw
// std::runtime_error.
#pragma once

#include "layer/backend.h"

namespace fusedrnn::cuda {

template <class E>
void layer_forward(const Problem& problem, const Context& context);
template <class E>
void layer_backward(const BackwardProblem& problem, const Context& context);

}  // namespace fusedrnn::cuda
