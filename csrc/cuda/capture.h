// What a first call does beside enqueuing, and why it may be made while a CUDA graph is captured.
//
// A first call asks the device for its clusters, sets attributes of kernels, and loads them: since
// CUDA 12.2 the runtime loads a module when one of its kernels is first asked about or launched.
// None of this is work on a stream. A graph has no trace of it and needs none, since what was
// loaded stays. CUDA's reference of these functions does not mention captures. What it forbids in
// any mode is to wait for captured work, to ask whether it is done, and to use the legacy stream,
// and they do none of that.
//
// But a module takes memory on the device, and cudaMalloc is the reference's own example of a
// "potentially unsafe" call. Such calls fail and ruin the capture in the modes global (torch's
// default, which concerns all threads of the process) and thread-local. A thread whose own mode is
// relaxed may make them: that is how torch's allocator gets memory in a capture, too.
#pragma once

#include <cuda_runtime_api.h>

namespace fusedrnn::cuda {

// While it lives, the calling thread may load and allocate, whatever any thread captures.
class RelaxedCapture {
 public:
  RelaxedCapture() { exchange(); }
  ~RelaxedCapture() { exchange(); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  void exchange() {  // if there is no driver, the call that needs one says so
    if (cudaThreadExchangeStreamCaptureMode(&mode_) != cudaSuccess) cudaGetLastError();
  }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace fusedrnn::cuda
