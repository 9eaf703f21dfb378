// Asks the processor once, lets the environment lower the answer.
#include "capability.h"

#include <cstdlib>
#include <cstring>

namespace fusedrnn {
namespace {

// From the best to the least.
constexpr Capability kAll[] = {Capability::avx512_bf16, Capability::avx512_vnni,
                               Capability::avx512,      Capability::avx2_vnni,
                               Capability::avx2,        Capability::portable};

bool supports(Capability capability) {
#if defined(FUSEDRNN_X86)
  __builtin_cpu_init();
  switch (capability) {
    case Capability::avx512_bf16:
      return supports(Capability::avx512_vnni) && __builtin_cpu_supports("avx512bf16");
    case Capability::avx512_vnni:
      return supports(Capability::avx512) && __builtin_cpu_supports("avx512vnni");
    case Capability::avx512:
      return supports(Capability::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
    case Capability::avx2_vnni:
      return supports(Capability::avx2) && __builtin_cpu_supports("avxvnni");
    case Capability::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    case Capability::portable: break;
  }
#endif
  return capability == Capability::portable;
}

Capability chosen() {
  const std::vector<Capability> supported = cpu_capabilities();
  if (const char* wanted = std::getenv("FUSEDRNN_CPU_CAPABILITY"))
    for (const Capability c : supported)
      if (std::strcmp(wanted, name_of(c)) == 0) return c;
  return supported.front();
}

}  // namespace

Capability cpu_capability() {
  static const Capability capability = chosen();
  return capability;
}

std::vector<Capability> cpu_capabilities() {
  std::vector<Capability> supported;
  for (const Capability c : kAll)
    if (supports(c)) supported.push_back(c);
  return supported;
}

const char* name_of(Capability capability) {
  switch (capability) {
    case Capability::avx512_bf16: return "avx512_bf16";
    case Capability::avx512_vnni: return "avx512_vnni";
    case Capability::avx512: return "avx512";
    case Capability::avx2_vnni: return "avx2_vnni";
    case Capability::avx2: return "avx2";
    case Capability::portable: break;
  }
  return "portable";
}

}  // namespace fusedrnn
