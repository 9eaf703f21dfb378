// Devices and plans are remembered: to make a plan takes tens of microseconds.
#include "device.h"

#include <mutex>
#include <utility>
#include <vector>

#include "layer/plan_override.h"

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
           shape.H == o.shape.H && shape.P == o.shape.P && shape.rows == o.shape.rows &&
           shape.directions == o.shape.directions && pass == o.pass &&
           shape.modified == o.shape.modified && allow_tf32 == o.allow_tf32 && device == o.device;
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
  const bool keeps = !plan_override().any();  // who overrides plans may do so again
  if (keeps)
    for (const Planned& planned : remembered)
      if (planned.is_of(asked)) return planned.plan;
  asked.plan = plan_cuda(shape, asked.device, pass, allow_tf32);
  if (!keeps) return asked.plan;
  if (remembered.size() == kRemembered) remembered.erase(remembered.begin());
  remembered.push_back(asked);
  return asked.plan;
}

}  // namespace fusedrnn::cuda
