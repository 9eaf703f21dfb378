// How one layer call runs on a CUDA device. A pure function of the sizes and of what the device is,
// so that it can be printed and tested anywhere; no CUDA in here.
#pragma once

#include "cuda/team/walk.h"
#include "layer/problem.h"

namespace fusedrnn::cuda {

// What a plan asks of a device. The defaults are an H200's.
struct CudaDevice {
  int index = 0;        // among those of this machine
  int capability = 90;  // compute capability, times ten, that kernels are compiled for at most
  int multiprocessors = 132;
  int shared_bytes = 232448;  // that a block may ask for
  // Clusters of n blocks that are resident together where each block takes a whole multiprocessor;
  // 0: no such cluster can be launched.
  int clusters[kMostBlocks + 1] = {};

  // For a device that cannot be asked.
  void guess_clusters();
  bool operator==(const CudaDevice& other) const;
};

enum class Pass : int { forward, backward };

// Some of the three teams; at first all.
class TeamSet {
 public:
  constexpr TeamSet() = default;
  static constexpr TeamSet only(CudaTeam team) { return TeamSet(bit(team)); }
  constexpr TeamSet without(CudaTeam team) const { return TeamSet(bits_ & ~bit(team)); }
  constexpr bool has(CudaTeam team) const { return bits_ & bit(team); }

 private:
  static constexpr unsigned bit(CudaTeam team) { return 1u << static_cast<unsigned>(team); }
  explicit constexpr TeamSet(unsigned bits) : bits_(bits) {}

  unsigned bits_ = ~0u;
};

// How the steps of one pass are walked.
struct WalkPlan {
  CudaTeam team = CudaTeam::stepwise;
  Arithmetic arithmetic = Arithmetic::f32;
  Team size;                               // of a team, if there is one
  int warps = 0;                           // of a block
  int shared_bytes = 0, shared_limit = 0;  // of a block; what the device gives at most
  int64_t teams = 0;                       // of all directions
  int64_t at_once = 0;                     // of them, resident together
  double step_ns = 0;  // predicted, of all teams: the longest of them, times the waves
};

constexpr WalkedCell walked_cell(const Facts& facts) {
  return {facts.inputs, facts.products, facts.stage[0].late, facts.saved,
          facts.grads,  facts.states,   facts.unit_weights};
}
// Whether teams walk a cell. In a cell of several stages, what a stage leaves would have to travel
// within the step; what has more of everything than these has more than fits the registers.
constexpr int kMostWalkedProducts = 8;
constexpr bool is_walked(const Facts& facts) {
  const WalkedCell cell = walked_cell(facts);
  return facts.stages == 1 && facts.step_inputs == 0 && cell.products <= kMostWalkedProducts &&
         others_forward(cell, 4) <= kOtherRegisters && others_backward(cell, 4) <= kOtherRegisters;
}

struct CudaPlan {
  int units_per_thread = 1;   // of the stepwise kernels; more than one: 16-byte accesses
  int64_t forward_steps = 1;  // steps whose input projection is computed at once
  WalkPlan walk;
};

// How a dtype's recurrent product is made on tensor cores or without; false: not by a team.
bool arithmetic_of(Dtype dtype, const CudaDevice& device, bool allow_tf32, Arithmetic& found);

// `teams` are those that may be taken. Stepwise is taken, too, where none of them fits the device.
CudaPlan plan_cuda(const Shape& shape, const CudaDevice& device, Pass pass, bool allow_tf32,
                   TeamSet teams = {});

}  // namespace fusedrnn::cuda
