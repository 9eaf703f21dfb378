// What the current CUDA device is, and plans for it.
#pragma once

#include <stdexcept>
#include <string>

#include "plan.h"

namespace fusedrnn::cuda {

CudaDevice current_device();

// A launch whose clusters the device refused, though it lists their size: nothing of it ran.
struct RefusedCluster : std::runtime_error {
  RefusedCluster(const std::string& what, int blocks) : std::runtime_error(what), blocks(blocks) {}
  int blocks;  // of a cluster
};
// Strikes clusters of a size from the current device's list, for the rest of the process.
void strike_off(int blocks);

// Makes a call, and makes it again, with a plan of its own each time, where the device refuses the
// clusters that it was planned with. What was enqueued by then is done again, on other scratch, and
// overwritten: forward writes its results before it reads them, and backward, which adds to some,
// has enqueued nothing before its only walk that a result depends on.
template <class F>
void until_launched(const F& call) {
  while (true) {
    try {
      return call();
    } catch (const RefusedCluster& refused) {
      strike_off(refused.blocks);
    }
  }
}

// Its parts: what takes no time to ask, and the rest.
CudaDevice ask_device();
void ask_further(CudaDevice& device);

// The plan on the current device; those made last are remembered, since a plan weighs hundreds of
// teams.
CudaPlan plan_here(const Shape& shape, Pass pass, bool allow_tf32);

}  // namespace fusedrnn::cuda
