// Devices and plans are remembered: to make a plan takes tens of microseconds.
#include "device.h"

#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "layer/plan_override.h"
#include "ways.h"

namespace fusedrnn::cuda {
namespace {

struct Planned {
  Shape shape;
  CudaDevice device;
  Pass pass;
  bool allow_tf32;
  CudaPlan plan;

  bool is_of(const Planned& o) const {
    return shape.cell == o.shape.cell && shape.program == o.shape.program &&
           shape.dtype == o.shape.dtype && shape.T == o.shape.T && shape.B == o.shape.B &&
           shape.I == o.shape.I && shape.H == o.shape.H && shape.P == o.shape.P &&
           shape.rows == o.shape.rows && shape.directions == o.shape.directions && pass == o.pass &&
           shape.training == o.shape.training && shape.modified == o.shape.modified &&
           allow_tf32 == o.allow_tf32 && device == o.device;
  }
};

// The devices of this process, and what they said when they were asked further.
struct Known {
  std::mutex mutex;
  std::vector<std::pair<CudaDevice, CudaDevice>> devices;

  // The answer of a device that was asked; only with the mutex.
  CudaDevice* answer_of(const CudaDevice& device) {
    for (auto& [asked, answer] : devices)
      if (asked == device) return &answer;
    return nullptr;
  }
};
Known& known() {
  static Known all;
  return all;
}

// The plan of a call whose ways were checked, and measured if the call's shape was.
CudaPlan plan_of(const Planned& asked) {
  const auto& [shape, device, pass, allow_tf32, none] = asked;
  const Fitness teams = fitness_of(shape, device, pass, allow_tf32);
  const CudaPlan plan = plan_cuda(shape, device, pass, allow_tf32, teams.taken);
  if (plan.walk.team == CudaTeam::stepwise && !teams.fit.has(CudaTeam::stepwise))
    throw std::runtime_error(
        std::string("CUDA: stepwise kernels of ") + shape.facts().names.cell +
        (pass == Pass::forward ? ", forward" : ", backward") +
        ", did not agree with the reference when they were checked on this GPU, and no team of "
        "blocks that did can take their place in this call; `fusedrnn verify` says what was found "
        "and how to report it");
  return plan;
}

}  // namespace

CudaDevice current_device() {
  const CudaDevice device = ask_device();
  const std::lock_guard<std::mutex> lock(known().mutex);
  if (const CudaDevice* const answer = known().answer_of(device)) return *answer;
  CudaDevice answer = device;
  ask_further(answer);
  known().devices.emplace_back(device, answer);
  return answer;
}

// Plans are remembered with the device that they were made for, its list of clusters included: the
// ones that take such a cluster are not found again.
void strike_off(int blocks) {
  const CudaDevice device = ask_device();
  const std::lock_guard<std::mutex> lock(known().mutex);
  if (CudaDevice* const answer = known().answer_of(device)) answer->clusters[blocks] = 0;
}

CudaPlan plan_here(const Shape& shape, Pass pass, bool allow_tf32) {
  Planned asked = {shape, current_device(), pass, allow_tf32, {}};
  constexpr size_t kRemembered = 16;  // layers of a network, both passes
  thread_local std::vector<Planned> remembered;
  thread_local uint64_t remembered_at = 0;
  if (plan_override().any())  // by who measures, perhaps to override the next call's otherwise
    return plan_cuda(shape, asked.device, pass, allow_tf32);
  const uint64_t now = ways_generation();
  if (std::exchange(remembered_at, now) != now) remembered.clear();
  for (const Planned& planned : remembered)
    if (planned.is_of(asked)) return planned.plan;
  asked.plan = plan_of(asked);
  if (remembered.size() == kRemembered) remembered.erase(remembered.begin());
  remembered.push_back(asked);
  return asked.plan;
}

}  // namespace fusedrnn::cuda
