#include "ways.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "size_class.h"

namespace fusedrnn::cuda {
namespace {

using Way = std::tuple<int, std::string, int, Pass>;  // device, cell, arithmetic
using Sized = std::tuple<std::string, int64_t, int64_t, int64_t, int64_t, int64_t, int32_t, int32_t,
                         int32_t, int32_t, int32_t, int32_t, int32_t, int32_t>;

struct Known {
  std::mutex mutex;
  CheckWays check = nullptr;
  std::set<std::pair<int, std::string>> checked;  // by device and what CheckWays is given
  std::map<Way, TeamSet> fit;                     // of a way that is missing: all
  std::map<Sized, CudaTeam> chosen;
};
Known& known() {
  static Known& known = *new Known;  // stays to the end
  return known;
}
std::atomic<uint64_t> g_generation{1};

Sized sized(const TeamChoice& c) {
  return {c.cell,
          class_of_size(c.T),
          class_of_batch(c.B),
          class_of_size(c.I),
          c.H,
          c.P,
          c.device,
          c.dtype,
          c.pass,
          c.directions,
          c.allow_tf32,
          c.training,
          c.modified,
          c.ragged};
}

TeamChoice asked_of(const Shape& s, int device, Pass pass, bool allow_tf32) {
  return {name_of_cell(s),
          s.T,
          s.B,
          s.I,
          s.H,
          s.P,
          device,
          static_cast<int32_t>(s.dtype),
          static_cast<int32_t>(pass),
          s.directions,
          allow_tf32,
          s.training,
          s.modified,
          s.rows != s.T * s.B,
          -1};
}

void ensure_checked(const Shape& shape, int device) {
  const std::string group = shape.program ? shape.program->text : "";
  CheckWays check = nullptr;
  {
    const std::lock_guard<std::mutex> lock(known().mutex);
    if (!known().check || known().checked.count({device, group})) return;
    check = known().check;
  }
  // Without the lock: whoever checks tells what it found.
  if (const char* const error = check(device, group.c_str())) throw std::runtime_error(error);
  const std::lock_guard<std::mutex> lock(known().mutex);
  known().checked.insert({device, group});
}

}  // namespace

const char* name_of_cell(const Shape& shape) {
  return shape.program ? shape.program->text.c_str() : shape.facts().names.cell;
}

int arithmetic_of_way(const Shape& shape, const CudaDevice& device, bool allow_tf32) {
  Arithmetic found{};
  if (shape.dtype == Dtype::f64) return kFloat64;
  arithmetic_of(shape.dtype, device, allow_tf32, found);
  return static_cast<int>(found);
}

Fitness fitness_of(const Shape& shape, const CudaDevice& device, Pass pass, bool allow_tf32) {
  ensure_checked(shape, device.index);
  Fitness fitness;
  const std::lock_guard<std::mutex> lock(known().mutex);
  if (known().fit.empty() && known().chosen.empty()) return fitness;
  const auto fit = known().fit.find(
      {device.index, name_of_cell(shape), arithmetic_of_way(shape, device, allow_tf32), pass});
  if (fit != known().fit.end()) fitness.fit = fitness.taken = fit->second;
  const auto chosen = known().chosen.find(sized(asked_of(shape, device.index, pass, allow_tf32)));
  if (chosen != known().chosen.end() && fitness.fit.has(chosen->second))
    fitness.taken = TeamSet::only(chosen->second);
  return fitness;
}

uint64_t ways_generation() { return g_generation; }

}  // namespace fusedrnn::cuda

#define FUSEDRNN_EXPORT extern "C" __attribute__((visibility("default")))

// Has ways checked by `check`, which may be null, and forgets all that was known.
FUSEDRNN_EXPORT void fusedrnn_cuda_check_ways_by(fusedrnn::cuda::CheckWays check) {
  using namespace fusedrnn::cuda;
  const std::lock_guard<std::mutex> lock(known().mutex);
  known().check = check;
  known().checked.clear(), known().fit.clear(), known().chosen.clear();
  ++g_generation;
}

// No call takes this way from now on.
FUSEDRNN_EXPORT void fusedrnn_cuda_strike_off(int device, const char* cell, int arithmetic,
                                              int pass, int team) {
  using namespace fusedrnn::cuda;
  const std::lock_guard<std::mutex> lock(known().mutex);
  TeamSet& fit = known().fit[{device, cell, arithmetic, static_cast<Pass>(pass)}];
  fit = fit.without(static_cast<CudaTeam>(team));
  ++g_generation;
}

// Calls of this shape take this team, if it was not struck off.
FUSEDRNN_EXPORT void fusedrnn_cuda_choose_team(const fusedrnn::cuda::TeamChoice* choice) {
  using namespace fusedrnn::cuda;
  const std::lock_guard<std::mutex> lock(known().mutex);
  if (choice->team < 0)
    known().chosen.erase(sized(*choice));
  else
    known().chosen[sized(*choice)] = static_cast<CudaTeam>(choice->team);
  ++g_generation;
}
