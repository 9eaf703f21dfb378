#include "nvrtc.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "cuda/blas.h"

namespace fusedrnn::cuda {
namespace {

constexpr const char* kVariable = "FUSEDRNN_NVRTC";  // a path, for who has it in an unusual place
constexpr const char* kNames[] = {"libnvrtc.so.13", "libnvrtc.so.12"};

// The functions used, with NVRTC's C signatures (results as int, programs as void*).
struct Nvrtc {
  int (*create)(void** program, const char* source, const char* name, int headers,
                const char* const* texts, const char* const* names);
  int (*destroy)(void** program);
  int (*add_name)(void* program, const char* name);
  int (*compile)(void* program, int count, const char* const* options);
  int (*lowered_name)(void* program, const char* name, const char** symbol);
  int (*log_size)(void* program, size_t* size);
  int (*log)(void* program, char* text);
  int (*cubin_size)(void* program, size_t* size);
  int (*cubin)(void* program, char* image);
  int (*ptx_size)(void* program, size_t* size);
  int (*ptx)(void* program, char* image);
  int (*count_architectures)(int* count);
  int (*architectures)(int* numbers);
  int (*version)(int* major, int* minor);
  const char* (*error_text)(int result);
};

template <class F>
bool find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

bool find_all(void* library, Nvrtc& nvrtc) {
  return find(library, "nvrtcCreateProgram", nvrtc.create) &&
         find(library, "nvrtcDestroyProgram", nvrtc.destroy) &&
         find(library, "nvrtcAddNameExpression", nvrtc.add_name) &&
         find(library, "nvrtcCompileProgram", nvrtc.compile) &&
         find(library, "nvrtcGetLoweredName", nvrtc.lowered_name) &&
         find(library, "nvrtcGetProgramLogSize", nvrtc.log_size) &&
         find(library, "nvrtcGetProgramLog", nvrtc.log) &&
         find(library, "nvrtcGetCUBINSize", nvrtc.cubin_size) &&
         find(library, "nvrtcGetCUBIN", nvrtc.cubin) &&
         find(library, "nvrtcGetPTXSize", nvrtc.ptx_size) &&
         find(library, "nvrtcGetPTX", nvrtc.ptx) &&
         find(library, "nvrtcGetNumSupportedArchs", nvrtc.count_architectures) &&
         find(library, "nvrtcGetSupportedArchs", nvrtc.architectures) &&
         find(library, "nvrtcVersion", nvrtc.version) &&
         find(library, "nvrtcGetErrorString", nvrtc.error_text);
}

// The folder of torch's cuBLAS, of whose CUDA torch's NVRTC is.
std::string folder_of_cublas() {
  const Cublas* const cublas = find_cublas();
  Dl_info info;
  if (!cublas || !dladdr(reinterpret_cast<void*>(cublas->gemm), &info) || !info.dli_fname)
    return {};
  const std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/') + 1);
}

// What torch has loaded, then what lies beside its cuBLAS (in the same folder, or in that of
// another package), then what the system finds, then the toolkit's.
void* open_library() {
  if (const char* const asked = std::getenv(kVariable)) return dlopen(asked, RTLD_NOW);
  void* library = nullptr;
  const auto open = [&](const std::string& folder, int mode = 0) {
    for (const char* name : kNames)
      if (!library) library = dlopen((folder + name).c_str(), RTLD_NOW | mode);
  };
  open("", RTLD_NOLOAD);
  const std::string beside = folder_of_cublas();
  if (!beside.empty()) open(beside), open(beside + "../../cuda_nvrtc/lib/");
  open("");
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"})
    if (const char* const toolkit = std::getenv(variable)) open(std::string(toolkit) + "/lib64/");
  open("/usr/local/cuda/lib64/");
  return library;
}

bool load(Nvrtc& nvrtc) {
  void* const library = open_library();
  return library && find_all(library, nvrtc);
}

const Nvrtc* find_nvrtc() {
  static Nvrtc nvrtc;
  static const bool loaded = load(nvrtc);
  return loaded ? &nvrtc : nullptr;
}

// A program of NVRTC, which goes with it.
class Compilation {
 public:
  Compilation(const Nvrtc& nvrtc, const std::string& source) : nvrtc_(nvrtc) {
    const EmbeddedHeaders headers = embedded_headers();
    std::vector<const char*> texts, names;
    for (int i = 0; i < headers.count; ++i)
      texts.push_back(headers.begin[i].text), names.push_back(headers.begin[i].name);
    check(nvrtc_.create(&program_, source.c_str(), "cell.cu", headers.count, texts.data(),
                        names.data()),
          "nvrtcCreateProgram");
  }
  ~Compilation() { nvrtc_.destroy(&program_); }
  Compilation(const Compilation&) = delete;
  Compilation& operator=(const Compilation&) = delete;

  void add(const std::string& name) {
    check(nvrtc_.add_name(program_, name.c_str()), "nvrtcAddNameExpression");
  }
  void compile(const std::vector<std::string>& options) {
    std::vector<const char*> words;
    for (const std::string& option : options) words.push_back(option.c_str());
    const int result = nvrtc_.compile(program_, static_cast<int>(words.size()), words.data());
    if (result) fail("nvrtcCompileProgram", result, "\n" + first_lines(log()));
  }
  std::string symbol(const std::string& name) const {
    const char* symbol = nullptr;
    check(nvrtc_.lowered_name(program_, name.c_str(), &symbol), "nvrtcGetLoweredName");
    return symbol;
  }
  std::string log() const { return text(nvrtc_.log_size, nvrtc_.log); }
  std::string cubin() const { return text(nvrtc_.cubin_size, nvrtc_.cubin); }
  std::string ptx() const { return text(nvrtc_.ptx_size, nvrtc_.ptx); }

 private:
  [[noreturn]] void fail(const char* what, int result, const std::string& more = {}) const {
    throw std::runtime_error(std::string("NVRTC: ") + what +
                             " failed: " + nvrtc_.error_text(result) + more);
  }
  void check(int result, const char* what) const {
    if (result) fail(what, result);
  }
  std::string text(int (*size)(void*, size_t*), int (*get)(void*, char*)) const {
    size_t bytes = 0;
    check(size(program_, &bytes), "asking for a size");
    std::string found(bytes, '\0');
    if (bytes) check(get(program_, found.data()), "asking for a result");
    return found;
  }
  static std::string first_lines(const std::string& log) {
    std::size_t end = 0;
    for (int lines = 0; lines < 10 && end != std::string::npos; ++lines)
      end = log.find('\n', end ? end + 1 : 0);
    return log.substr(0, end);
  }

  const Nvrtc& nvrtc_;
  void* program_ = nullptr;
};

std::vector<int> architectures_of(const Nvrtc& nvrtc) {
  int count = 0;
  if (nvrtc.count_architectures(&count) || count < 1) return {};
  std::vector<int> numbers(static_cast<std::size_t>(count));
  if (nvrtc.architectures(numbers.data())) return {};
  return numbers;
}

}  // namespace

std::string why_no_nvrtc() {
  if (find_nvrtc()) return {};
  const char* const asked = std::getenv(kVariable);
  return asked ? std::string("no NVRTC could be loaded from ") + kVariable + "=" + asked
               : "no NVRTC was found (libnvrtc.so.13 or .12): install the package "
                 "nvidia-cuda-nvrtc of torch's CUDA version, or set " +
                     std::string(kVariable) + " to the library's path";
}

std::string nvrtc_and_headers(int capability) {
  int major = 0, minor = 0;
  if (const Nvrtc* const nvrtc = find_nvrtc()) nvrtc->version(&major, &minor);
  std::string text = "NVRTC " + std::to_string(major) + "." + std::to_string(minor) + ", " +
                     std::to_string(capability) + "\n";
  const EmbeddedHeaders headers = embedded_headers();
  for (int i = 0; i < headers.count; ++i)
    text.append(headers.begin[i].name).append("\n").append(headers.begin[i].text);
  return text;
}

Compiled compile_cuda(const std::string& source, const std::vector<std::string>& names,
                      int capability, const std::vector<std::string>& more_options) {
  const Nvrtc* const nvrtc = find_nvrtc();
  if (!nvrtc) throw std::runtime_error(why_no_nvrtc());
  const std::vector<int> known = architectures_of(*nvrtc);
  int target = 0;
  for (const int number : known)
    if (number <= capability) target = std::max(target, number);
  if (!target)
    throw std::runtime_error("NVRTC: this one compiles for no device of compute capability " +
                             std::to_string(capability / 10) + "." +
                             std::to_string(capability % 10));
  const bool exact = target == capability;
  // Functions of the headers that have no annotation are those that the host has, too.
  std::vector<std::string> options = {
      "-std=c++17", "-default-device",
      (exact ? "-arch=sm_" : "-arch=compute_") + std::to_string(target)};
  options.insert(options.end(), more_options.begin(), more_options.end());
  Compilation compilation(*nvrtc, source);
  for (const std::string& name : names) compilation.add(name);
  compilation.compile(options);
  Compiled compiled;
  for (const std::string& name : names) compiled.symbols.push_back(compilation.symbol(name));
  compiled.image = exact ? compilation.cubin() : compilation.ptx();
  compiled.log = compilation.log();
  return compiled;
}

}  // namespace fusedrnn::cuda
