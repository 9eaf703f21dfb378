// The instruction set that the kernels run with.
#pragma once

#include <string>
#include <vector>

namespace fusedrnn::cpu {

// ..._vnni also multiplies four int8 values at once. avx512_bf16 also multiplies pairs of bf16;
// every processor that does has VNNI, too.
enum class Capability : int { portable, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16 };

// The best that this processor supports and this build has kernels for, or the one of these that
// the environment variable FUSEDRNN_CPU_CAPABILITY names. It is read once. If there is none, no
// kernel may be called: look at `cpu_capability_error` first.
Capability cpu_capability();

// Why there is none: FUSEDRNN_CPU_CAPABILITY asks for one that is not available, or this build was
// made for another processor. Empty if there is one.
const std::string& cpu_capability_error();

// All that could be chosen, best first, whatever the environment says.
std::vector<Capability> cpu_capabilities();

// All that the processor supports, and all that the build has kernels for, best first.
std::vector<Capability> processor_capabilities();
std::vector<Capability> compiled_capabilities();

const char* name_of(Capability capability);

}  // namespace fusedrnn::cpu
