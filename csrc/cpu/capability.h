// The instruction set that the kernels run with.
#pragma once

#include <vector>

namespace fusedrnn {

// ..._vnni: with products of four int8 at once. avx512_bf16: and with products of pairs of bf16,
// which no processor has without the former.
enum class Capability : int { portable, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16 };

// The best that the processor (and its system) supports, or the lower one that the environment
// variable FUSEDRNN_CPU_CAPABILITY names. Read once.
Capability cpu_capability();

// All that the processor supports, the best first, whatever the environment says.
std::vector<Capability> cpu_capabilities();

const char* name_of(Capability capability);

}  // namespace fusedrnn
