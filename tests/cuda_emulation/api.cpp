// The CUDA runtime's host functions, as far as launchers use them, and the emulation's own.
//
// Device pointers are host pointers, streams are ignored: everything happens at once, in order. A
// function that is missing here is an error when the library is linked.
//
// While a graph is captured (the option `capturing`), what CUDA forbids then fails and ruins the
// capture: to wait for the work in any mode, to load a kernel unless the thread's mode is relaxed.
// A kernel is loaded when it is first asked about or launched.
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <set>
#include <sstream>

#include "runtime.h"

#define EMULATION_EXPORT extern "C" __attribute__((visibility("default")))

namespace emulation {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_report;   // of the latest launch
thread_local std::string last_failure;  // of the latest call that failed with a report
thread_local cudaError_t failed_with = cudaSuccess;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
std::atomic<bool> is_ruined{false};  // the capture
std::atomic<uint64_t> launches{0};

constexpr size_t kSharedWithoutAsking = 48 * 1024;
constexpr unsigned kThreadsOfMultiprocessor = 2048, kBlocksOfMultiprocessor = 32;
constexpr unsigned kPortableCluster = 8, kLargestCluster = 16;
constexpr unsigned kRegisters = 65536;  // of a multiprocessor; a warp takes them by 256

struct KernelAttributes {  // set by cudaFuncSetAttribute
  size_t dynamic_shared_bytes = kSharedWithoutAsking;
  bool large_clusters = false;
};
std::mutex kernels_mutex;
std::map<const void*, KernelAttributes> kernels;
std::map<const void*, unsigned> registers;  // of a thread, by kernel, where they are known
std::set<const void*> loaded;

KernelAttributes attributes_of(const void* kernel) {
  std::lock_guard<std::mutex> lock(kernels_mutex);
  return kernels[kernel];
}

cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}
cudaError_t failed(cudaError_t error, const std::string& report) {
  last_failure = report;
  return answer(failed_with = error);
}

// Fails if there is a capture, and it does not allow this.
cudaError_t in_capture(const char* what, bool is_allowed_if_relaxed) {
  if (!options().capturing) return cudaSuccess;
  if (is_allowed_if_relaxed && capture_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  is_ruined = true;
  return failed(cudaErrorStreamCaptureUnsupported,
                std::string(what) + " while a graph is captured");
}

cudaError_t load(const void* kernel) {
  std::lock_guard<std::mutex> lock(kernels_mutex);
  if (loaded.count(kernel)) return cudaSuccess;
  const cudaError_t error = in_capture("loading a kernel", true);
  if (error == cudaSuccess) loaded.insert(kernel);
  return error;
}

unsigned resident_blocks(unsigned threads, size_t dynamic_bytes) {
  const size_t shared = options().shared_bytes + 1024;  // each block costs 1 KiB more
  return std::min({kThreadsOfMultiprocessor / std::max(32u, (threads + 31) / 32 * 32),
                   unsigned(shared / (dynamic_bytes + 1024)), kBlocksOfMultiprocessor});
}

unsigned warps_of(unsigned threads) { return (threads + 31) / 32; }

// Registers that the threads of a block take; 0 if nobody knows.
unsigned registers_of(const void* kernel, unsigned threads) {
  std::lock_guard<std::mutex> lock(kernels_mutex);
  const auto found = registers.find(kernel);
  return found == registers.end() ? 0
                                  : warps_of(threads) * ((found->second * 32 + 255) / 256 * 256);
}

// Clusters that are resident together.
unsigned resident_clusters(unsigned size, unsigned threads, size_t dynamic_bytes) {
  const Options& o = options();
  if (size == 0 || (size < 32 && o.unlisted >> size & 1)) return 0;
  const unsigned blocks = resident_blocks(threads, dynamic_bytes);
  const unsigned gpc = o.gpc ? o.gpc : o.multiprocessors;
  return o.multiprocessors / gpc * (gpc * blocks / size) + o.multiprocessors % gpc * blocks / size;
}

unsigned* option(const std::string& name) {
  Options& o = options();
  const std::map<std::string, unsigned*> all = {
      {"preempt", &o.preempt},
      {"resident", &o.resident},
      {"late_copies", &o.late_copies},
      {"truncated_mma", &o.truncated_mma},
      {"capturing", &o.capturing},
      {"multiprocessors", &o.multiprocessors},
      {"gpc", &o.gpc},
      {"unlisted", &o.unlisted},
      {"refused", &o.refused},
      {"refusal", &o.refusal},
      {"capability", &o.capability},
      {"compiled", &o.compiled},
      {"block_threads", &o.block_threads},
      {"shared_bytes", &o.shared_bytes},
  };
  const auto found = all.find(name);
  return found == all.end() ? nullptr : found->second;
}

}  // namespace

Refusal check_launch(const Launch& l) {
  if (const cudaError_t error = load(l.kernel)) return {error, last_failure};
  if (is_ruined) return {cudaErrorStreamCaptureInvalidated, "a launch in a ruined capture"};
  std::ostringstream why;
  const KernelAttributes kernel = attributes_of(l.kernel);
  const size_t threads = size_t(l.block.x) * l.block.y * l.block.z;
  const size_t cluster = size_t(l.cluster.x) * l.cluster.y * l.cluster.z;
  const size_t together =
      size_t(resident_blocks(unsigned(threads), l.dynamic_bytes)) * options().multiprocessors;
  const unsigned taken = registers_of(l.kernel, unsigned(threads));
  if (threads == 0 || threads > options().block_threads || l.block.z > 64) {
    why << threads << " threads in a block";
  } else if (taken > kRegisters) {
    why << threads << " threads take " << taken << " registers";
  } else if (l.blocks() == 0 || l.grid.x > 0x7fffffff || l.grid.y > 65535 || l.grid.z > 65535) {
    why << "a grid of " << l.grid.x << "x" << l.grid.y << "x" << l.grid.z << " blocks";
  } else if (l.dynamic_bytes > options().shared_bytes) {
    why << l.dynamic_bytes << " bytes of dynamic shared memory, more than the device has";
  } else if (l.dynamic_bytes > kernel.dynamic_shared_bytes) {
    why << l.dynamic_bytes << " bytes of dynamic shared memory, "
        << "cudaFuncAttributeMaxDynamicSharedMemorySize allows " << kernel.dynamic_shared_bytes;
  } else if (cluster == 0 || l.grid.x % l.cluster.x || l.grid.y % l.cluster.y ||
             l.grid.z % l.cluster.z) {
    why << "a cluster of " << cluster << " blocks does not divide the grid";
  } else if (cluster > (kernel.large_clusters ? kLargestCluster : kPortableCluster)) {
    why << "a cluster of " << cluster << " blocks is too large";
  } else if (cluster > 1 && options().capability < 90) {
    why << "clusters need compute capability 9.0";
  } else if (l.cooperative && l.blocks() > together) {
    why << l.blocks() << " blocks in a cooperative launch, " << together << " fit at once";
  } else if (cluster > 1 &&
             !resident_clusters(unsigned(cluster), unsigned(threads), l.dynamic_bytes)) {
    why << "no cluster of " << cluster << " blocks fits the device";
  } else if (cluster > 1 && options().refused >> cluster & 1) {
    return {cudaError_t(options().refusal),
            "the device refuses a cluster of " + std::to_string(cluster) + " blocks"};
  } else {
    return {};
  }
  // A GPU has an error for each of these. Here they get one that no launcher expects: whoever asks
  // for what a device never promised is at fault, and shall not get by with another plan.
  return {cudaErrorLaunchFailure, "bad launch: " + why.str() + ","};
}

cudaError_t launch_ended(cudaError_t error, const std::string& report) {
  ++launches;
  last_report = report;
  return error == cudaSuccess ? error : failed(error, report);
}

}  // namespace emulation

using namespace emulation;

// ---- The emulation's own functions ----------------------------------------------------------

// Sets all options: the seed, and those named in `text`, "preempt=4 resident=8"; the others get
// their defaults (Options in runtime.h). No kernel is loaded, then, and no capture ruined. Returns
// 1, and changes nothing, if an option is not known.
EMULATION_EXPORT int fusedrnn_emulation_configure(uint64_t seed, const char* text) {
  const Options before = options();
  options() = Options();
  options().seed = seed;
  std::istringstream words(text ? text : "");
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    unsigned* value = option(word.substr(0, equals));
    if (!value || equals == std::string::npos) {
      options() = before;
      return 1;
    }
    *value = unsigned(std::stoul("0" + word.substr(equals + 1)));
  }
  std::lock_guard<std::mutex> lock(kernels_mutex);
  loaded.clear();
  is_ruined = false;
  return 0;
}

// Tells how many registers kernels of the library at an address take for each thread: for each a
// line with its offset in the library and the number. Launches with more threads than that leaves
// room for are refused.
EMULATION_EXPORT int fusedrnn_emulation_registers(const char* text) {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&fusedrnn_emulation_registers), &info)) return 1;
  std::lock_guard<std::mutex> lock(kernels_mutex);
  registers.clear();
  std::istringstream lines(text);
  size_t offset = 0;
  unsigned count = 0;
  while (lines >> offset >> count) registers[static_cast<char*>(info.dli_fbase) + offset] = count;
  return 0;
}

// What the latest launch by this OS thread reported; empty if all was well.
EMULATION_EXPORT const char* fusedrnn_emulation_report() { return last_report.c_str(); }

// Launches so far in this process, of all threads.
EMULATION_EXPORT uint64_t fusedrnn_emulation_launches() { return launches; }

// ---- The CUDA runtime -----------------------------------------------------------------------

extern "C" {

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
    case cudaErrorInvalidClusterSize: return "cudaErrorInvalidClusterSize";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    default: return "an error that the emulation does not name";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  return error != cudaSuccess && error == failed_with ? last_failure.c_str()
                                                      : cudaGetErrorName(error);
}

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  return answer(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = !options().capturing ? cudaStreamCaptureStatusNone
            : is_ruined          ? cudaStreamCaptureStatusInvalidated
                                 : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return in_capture("waiting", false); }
cudaError_t cudaDeviceSynchronize() { return in_capture("waiting", false); }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  if (bytes) memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t) {
  if (width > to_pitch || width > from_pitch) return answer(cudaErrorInvalidValue);
  for (size_t row = 0; row < height && width; ++row) {
    memmove(static_cast<char*>(to) + row * to_pitch,
            static_cast<const char*>(from) + row * from_pitch, width);
  }
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  if (bytes) memset(p, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset2DAsync(void* p, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t) {
  if (width > pitch) return answer(cudaErrorInvalidValue);
  for (size_t row = 0; row < height && width; ++row) {
    memset(static_cast<char*>(p) + row * pitch, value, width);
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return answer(cudaErrorInvalidDevice);
  const Options& o = options();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = int(o.multiprocessors); break;
    case cudaDevAttrComputeCapabilityMajor: *value = int(o.capability / 10); break;
    case cudaDevAttrComputeCapabilityMinor: *value = int(o.capability % 10); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(o.shared_bytes); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = int(o.shared_bytes + 1024); break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = int(kSharedWithoutAsking); break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1024; break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    case cudaDevAttrClusterLaunch: *value = o.capability >= 90; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = int(kThreadsOfMultiprocessor); break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = int(kBlocksOfMultiprocessor); break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
    case cudaDevAttrMaxGridDimX: *value = 0x7fffffff; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
    default: return answer(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (const cudaError_t error = load(kernel)) return error;
  std::lock_guard<std::mutex> lock(kernels_mutex);
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
      if (value < 0 || unsigned(value) > options().shared_bytes) {
        return answer(cudaErrorInvalidValue);
      }
      kernels[kernel].dynamic_shared_bytes = size_t(value);
      break;
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      kernels[kernel].large_clusters = value != 0;
      break;
    default: break;  // hints
  }
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  if (const cudaError_t error = load(kernel)) return error;
  *attributes = {};
  attributes->ptxVersion = attributes->binaryVersion = int(options().compiled);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                          int threads,
                                                          size_t dynamic_shared_bytes) {
  if (const cudaError_t error = load(kernel)) return error;
  if (threads < 1) return answer(cudaErrorInvalidValue);
  *blocks = threads > 1024 ? 0 : int(resident_blocks(unsigned(threads), dynamic_shared_bytes));
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel,
                                           const cudaLaunchConfig_t* config) {
  if (const cudaError_t error = load(kernel)) return error;
  unsigned size = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id != cudaLaunchAttributeClusterDimension) continue;
    const auto& dimension = config->attrs[i].val.clusterDim;
    size = dimension.x * dimension.y * dimension.z;
  }
  const unsigned threads = config->blockDim.x * config->blockDim.y * config->blockDim.z;
  const KernelAttributes allowed = attributes_of(kernel);
  if (size > (allowed.large_clusters ? kLargestCluster : kPortableCluster)) {
    return answer(cudaErrorInvalidClusterSize);
  }
  if (config->dynamicSmemBytes > allowed.dynamic_shared_bytes) return answer(cudaErrorInvalidValue);
  *clusters = int(resident_clusters(size, threads, config->dynamicSmemBytes));
  return cudaSuccess;
}

}  // extern "C"
