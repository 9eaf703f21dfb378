// The CUDA plan: of all the teams that fit the device, the one whose predicted time is least, and
// no team at all where steps one by one are predicted to be faster. docs/kernels.md derives the
// model. Its constants are of an H100 and H200 at 1.755 GHz: counted in our kernels' machine code
// and, for what that does not say, from public measurements. None has been measured by us on a GPU.
//
// No number depends on the plan but by the order of sums: a chunk is rows of one product, none of
// whose sums it cuts.
#include "plan.h"

#include <algorithm>
#include <cstring>

#include "layer/plan_override.h"
#include "team/fixed.h"

namespace fusedrnn::cuda {
namespace {

// The gates of a chunk are written by one large product and read by the steps that follow. Stepwise
// from the L2 cache (tens of megabytes on what is sold now) if they fit it, but rows enough for the
// product to fill the chip come first. A team loads its weights at each chunk: there, only memory
// is spared.
constexpr int64_t kChunkBytes = 32 * 1024 * 1024, kLeastRows = 4096;
constexpr int64_t kTeamChunkBytes = 512 * 1024 * 1024;

// With fewer units than this in a step, one unit per thread gives the most threads, and latency is
// all there is to win; above it, bandwidth is, and 16-byte accesses reach it with fewer threads.
constexpr int64_t kWideUnits = 64 * 1024;

// Larger layers do not fit 16 blocks; the bound keeps the arithmetic of sizes in an int.
constexpr int64_t kMostHidden = 2048;
constexpr int64_t kMostSteps = int64_t{1} << 30;  // of all sequences
constexpr int kMostRows = 128;

// ---- The model, in cycles of a multiprocessor -----------------------------------------------

constexpr double kNanoseconds = 1 / 1.755;
constexpr double kFragment = 2;         // a fragment times 8 sequences on four tensor cores
constexpr double kFragmentF32 = 20;     // the same by multiply-adds, operands from shared memory
constexpr double kProductLatency = 30;  // of one that waits for the one before
constexpr double kFragmentLoad = 4;     // 512 bytes at 128 a cycle
constexpr double kOperandLoad = 2;      // 256 bytes

// What tools/step_cycles.py counts in the machine code of LSTM walks in bf16, beside the time of
// the fragments: in kernels that are compiled for their team (tests/cuda_cycles.txt), and in those
// that are told its sizes (--told).
struct Pace {
  double product;          // before its first fragment and after its last
  double fragments;        // how many times as long they take as they would without anything else
  double parts;            // sums of parts exchanged and added
  double cell, each_cell;  // of a lane, and each of those that a scheduler computes
  double share;            // adding what a block sent
  double rest;             // loops, addresses, barriers, sending
  double tail;             // from the first byte sent to where a step can begin again
  double load;             // what loads from memory take longer, where nothing travels meanwhile
};
constexpr Pace kForwardFixed = {100, 1, 180, 140, 100, 0, 105, 430, 300};
constexpr Pace kForwardTold = {350, 1, 400, 250, 140, 0, 900, 850, 0};
constexpr Pace kBackwardFixed = {95, 1.45, 0, 150, 75, 6, 200, 430, 300};
constexpr Pace kBackwardTold = {400, 1.2, 0, 300, 230, 15, 950, 180, 0};

// From the last byte sent to who waits for it.
constexpr double kStoreLatency = 400;                   // a remote store, arrival, wait
constexpr double kBulkLatency = 700;                    // fence, start, copy, arrival, wait
constexpr double kExchangeBytes = 13;                   // a cycle, into a block
constexpr double kLoadBytes = 32, kLoadLatency = 8000;  // of weights, once a launch

constexpr double kStepwiseNs = 5000;                            // two launches of a step
constexpr double kProductsPerNs = 2e5, kCacheBytesPerNs = 4e3;  // of a step's product, in half

double in_ns(double cycles) { return cycles * kNanoseconds; }

// Warps beyond a multiple of four leave tensor cores without work.
double uneven(int warps) { return static_cast<double>((warps + 3) / 4 * 4) / warps; }

// Each lane of a warp has two of an item's 8 units by 8 sequences.
double cells_of_scheduler(int items) { return (2 * items + 3) / 4; }

struct Cost {
  double start = 0, step = 0;  // ns
};

// The cycles of a step, from those of its product and sums, and from how long and how much is on
// its way to a block afterwards.
double step_of(const Pace& pace, const WalkSizes& z, double product, int items, double latency,
               double bytes) {
  const double sent = pace.rest + z.columns * (pace.product + product) + pace.cell +
                      pace.each_cell * cells_of_scheduler(items) + pace.share * z.blocks;
  if (z.blocks == 1) return sent + pace.tail + pace.load;
  return std::max(sent + pace.tail,
                  sent + latency + bytes * (z.blocks - 1) / z.blocks / kExchangeBytes);
}

Cost forward_cost(const WalkedCell& cell, Arithmetic arithmetic, const Team& team,
                  const ForwardSizes& z) {
  const Pace& pace = team.fixed ? kForwardFixed : kForwardTold;
  const double fragments = static_cast<double>(z.groups) * cell.tiles() * z.depth;
  const double loaded = static_cast<double>(z.warps) * z.fragments_of_warp;
  const double each = arithmetic == Arithmetic::f32 ? kFragmentF32 : kFragment;
  const double chain = cell.tiles() < 3 ? z.part_depth / 2 : z.part_depth;
  const double memory = loaded * kFragmentLoad + z.leaders * z.turns * z.depth * kOperandLoad;
  const double product = pace.fragments * std::max({fragments * each * uneven(z.warps), memory,
                                                    chain * z.turns * kProductLatency});
  const double parts = z.parts > 1 ? pace.parts : 0;
  const bool bulk = !team.fixed && z.columns * z.slice > kBulkBytes;
  const double step = step_of(pace, z, product + parts, z.units / 8 * z.columns,
                              bulk ? kBulkLatency : kStoreLatency,
                              static_cast<double>(z.columns) * z.slice * z.blocks);
  const double start = kLoadLatency + fragments * kFragmentBytes / kLoadBytes;
  return {in_ns(start), in_ns(step)};
}

Cost backward_cost(Arithmetic arithmetic, const Team& team, const BackwardSizes& z) {
  const Pace& pace = team.fixed ? kBackwardFixed : kBackwardTold;
  const double fragments = static_cast<double>(z.tiles) * z.depth;
  const double loaded = static_cast<double>(z.full_warps) * z.fragments_of_warp +
                        static_cast<double>(z.warps - z.full_warps) * z.fragments_of_other;
  const double each = arithmetic == Arithmetic::f32 ? kFragmentF32 : kFragment;
  const double rounds = cut(z.turns, z.group);
  const double memory =
      loaded * kFragmentLoad + std::min(z.warps, z.tiles) * rounds * z.depth * kOperandLoad;
  const double product =
      pace.fragments * std::max({fragments * each * uneven(std::min(z.warps, z.tiles)), memory,
                                 rounds * z.depth * kProductLatency});
  const double step = step_of(pace, z, product, z.items, kStoreLatency, z.inbox_bytes);
  const double start = kLoadLatency + fragments * kFragmentBytes / kLoadBytes;
  return {in_ns(start), in_ns(step)};
}

double stepwise_step(const Shape& s, Pass pass) {
  const double weights = static_cast<double>(s.directions * s.hidden_rows() * s.R());
  const double wide = s.dtype == Dtype::f64 ? 16 : s.dtype == Dtype::f32 ? 4 : 1;
  const double product = std::max(weights * s.B * wide / kProductsPerNs,
                                  weights * size_of(s.dtype) / kCacheBytesPerNs);
  const bool twice = s.P || s.facts().stages > 1;  // products and kernels
  return kStepwiseNs + product * (pass == Pass::backward ? 1.2 : 1) + (twice ? kStepwiseNs : 0);
}

// ---- The choice -----------------------------------------------------------------------------

int64_t at_once(const CudaDevice& device, int blocks) {
  return blocks == 1 ? device.multiprocessors : device.clusters[blocks];
}

// A team of these sizes, if the device can have it: its steps, and the time of the whole walk.
bool consider(const Shape& s, const CudaDevice& device, Pass pass, const Team& team, WalkPlan& plan,
              double& time) {
  plan.team = team.kind();
  plan.size = team;
  plan.shared_limit = device.shared_bytes;
  plan.teams = s.directions * div_up(s.B, team.rows);
  plan.at_once = at_once(device, team.blocks);
  if (plan.at_once == 0) return false;
  const WalkedCell cell = walked_cell(s.facts());
  Cost cost;
  if (pass == Pass::forward) {
    const ForwardSizes z = forward_sizes(cell, plan.arithmetic, team);
    plan.warps = z.warps, plan.shared_bytes = z.bytes;
    cost = forward_cost(cell, plan.arithmetic, team, z);
  } else {
    const BackwardSizes z = backward_sizes(cell, plan.arithmetic, team);
    plan.warps = z.warps, plan.shared_bytes = z.bytes;
    cost = backward_cost(plan.arithmetic, team, z);
  }
  if (plan.shared_bytes > device.shared_bytes) return false;
  const double waves = static_cast<double>(div_up(plan.teams, plan.at_once));
  plan.step_ns = waves * cost.step;
  time = waves * (cost.start + static_cast<double>(s.T) * cost.step);
  return true;
}

WalkPlan plan_walk(const Shape& s, const CudaDevice& device, Pass pass, bool allow_tf32,
                   TeamSet teams) {
  const PlanOverride& wanted = plan_override();
  WalkPlan best, tried;
  best.step_ns = stepwise_step(s, pass);
  enum class Asked { stepwise, block, cluster, nothing } asked = Asked::nothing;
  int asked_blocks = 0, asked_rows = 0;
  bool fixed = !s.modified && !s.program;
  wanted.choose("team", asked, {"stepwise", "block", "cluster"});
  if (asked != Asked::nothing) teams = TeamSet::only(static_cast<CudaTeam>(asked));
  wanted.limit("blocks", asked_blocks, kMostBlocks);
  wanted.limit("rows", asked_rows, kMostRows);
  if (fixed) wanted.flag("fixed", fixed);
  if ((s.modified && device.capability < kModifiedSince) || s.P || !is_walked(s.facts()) ||
      s.H > kMostHidden || s.rows > kMostSteps || s.T > kMostSteps || s.B > kMostSteps ||
      !arithmetic_of(s.dtype, device, allow_tf32, tried.arithmetic))
    return best;

  double least_time =
      teams.has(CudaTeam::stepwise) ? static_cast<double>(s.T) * best.step_ns : 1e300;
  const int H = static_cast<int>(s.H), B = static_cast<int>(std::min<int64_t>(s.B, kMostRows));
  asked_rows = std::min(cut(asked_rows, kColumns), cut(B, kColumns)) * kColumns;
  for (int n = 1, units_before = 0; n <= kMostBlocks; ++n) {
    Team team;
    team.units = cut(cut(H, n), kTile) * kTile;
    team.blocks = cut(H, team.units);
    if (asked == Asked::cluster && team.blocks == 1) team.blocks = n;  // more than the units need
    if (team.units == units_before && asked == Asked::nothing) continue;
    units_before = team.units;
    if (!teams.has(team.kind())) continue;
    if (asked_blocks && team.blocks != asked_blocks) continue;
    for (team.rows = kColumns; team.rows < B + kColumns; team.rows += kColumns) {
      if (asked_rows && team.rows != asked_rows) continue;
      const bool may_be_fixed = fixed && has_fixed_walk(tried.arithmetic, team, H);
      for (const bool is_fixed : {true, false}) {
        if (is_fixed && !may_be_fixed) continue;
        team.fixed = is_fixed;
        double time = 0;
        if (consider(s, device, pass, team, tried, time) && time < least_time)
          best = tried, least_time = time;
      }
    }
  }
  return best;
}

}  // namespace

// From sm_90 on multiprocessors come in GPCs, of 16 to 18 on an H100 or H200, and a cluster is
// inside one. Eight clusters of 16 would need 16 in each of 8 GPCs: one fewer is guessed.
void CudaDevice::guess_clusters() {
  const int gpcs = capability < 90 ? 0 : multiprocessors / 16;
  for (int n = 2; n <= kMostBlocks; ++n)
    clusters[n] = n > kPortableBlocks ? most(gpcs - 1, 0) : 16 / n * gpcs;
}

bool CudaDevice::operator==(const CudaDevice& other) const {
  return std::memcmp(this, &other, sizeof(CudaDevice)) == 0;
}

// How a dtype's recurrent product is made on tensor cores or without; false: not by a team.
bool arithmetic_of(Dtype dtype, const CudaDevice& device, bool allow_tf32, Arithmetic& found) {
  switch (dtype) {
    case Dtype::f64: return false;
    case Dtype::bf16: found = Arithmetic::bf16; return device.capability >= 80;
    case Dtype::f16: found = Arithmetic::f16; return device.capability >= 75;
    case Dtype::f32: break;
  }
  found = allow_tf32 && device.capability >= 80 ? Arithmetic::tf32 : Arithmetic::f32;
  return true;
}

CudaPlan plan_cuda(const Shape& s, const CudaDevice& device, Pass pass, bool allow_tf32,
                   TeamSet teams) {
  CudaPlan plan;
  if (s.rows == 0 || s.B == 0) return plan;
  plan.walk = plan_walk(s, device, pass, allow_tf32, teams);
  const bool stepwise = plan.walk.team == CudaTeam::stepwise;
  const int64_t row_bytes = s.directions * s.facts().inputs * s.H * (s.dtype == Dtype::f64 ? 8 : 4);
  const int64_t rows = std::max((stepwise ? kChunkBytes : kTeamChunkBytes) / row_bytes, kLeastRows);
  plan.forward_steps = std::clamp<int64_t>(rows / s.B, 1, s.T);
  const int wide = static_cast<int>(16 / size_of(s.dtype));
  if (s.H % wide == 0 && s.directions * s.B * s.H >= kWideUnits) plan.units_per_thread = wide;

  const PlanOverride& wanted = plan_override();
  if (!wanted.any()) return plan;
  wanted.limit("forward_steps", plan.forward_steps, s.T);
  int64_t units = plan.units_per_thread;
  wanted.limit("units_per_thread", units, wide);
  plan.units_per_thread = units == wide && s.H % wide == 0 ? wide : 1;
  return plan;
}

}  // namespace fusedrnn::cuda
