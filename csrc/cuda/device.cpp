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

}  // namespace

CudaDevice current_device() {
  const CudaDevice device = ask_device();
  static std::mutex mutex;
  static std::vector<std::pair<CudaDevice, CudaDevice>> known;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [asked, answer] : known)
    if (asked == device) return answer;
  CudaDevice answer = device;
  ask_further(answer);
  known.emplace_back(device, answer);
  return answer;
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
