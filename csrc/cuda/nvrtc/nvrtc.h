// NVRTC, NVIDIA's compiler of CUDA C++ at run time: what torch brings, found as cuBLAS is, without
// its header and without a link to it.
#pragma once

#include <string>
#include <vector>

namespace fusedrnn::cuda {

// Machine code for a compute capability (times ten), or PTX for the driver to compile where NVRTC
// does not know the device yet.
struct Compiled {
  std::string image;
  std::vector<std::string> symbols;  // of the kernels, in the order of their names
  std::string log;
};

// Compiles a source whose kernels have these names in C++. It may include what embedded_headers
// has. Throws std::runtime_error, which says what is missing, or the first lines of NVRTC's log.
Compiled compile_cuda(const std::string& source, const std::vector<std::string>& names,
                      int capability, const std::vector<std::string>& more_options = {});

// Names all that what it makes depends on, beside its source and names: NVRTC's version, the
// capability, and the headers' text.
std::string nvrtc_and_headers(int capability);

// Why there is no NVRTC, and what to do about it; empty if there is one.
std::string why_no_nvrtc();

// The headers that the library carries in itself: those of csrc/ by their paths, and those of
// nvrtc/include by their names. setup.py writes their text down when it builds.
struct EmbeddedHeader {
  const char *name, *text;
};
struct EmbeddedHeaders {
  const EmbeddedHeader* begin;
  int count;
};
EmbeddedHeaders embedded_headers();

}  // namespace fusedrnn::cuda
