// Asks the processor once, lets the environment lower the answer.
#include "capability.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace fusedrnn {
namespace {

Capability supported() {
#if defined(FUSEDRNN_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (vnni && __builtin_cpu_supports("avx512bf16")) return Capability::avx512_bf16;
  if (vnni) return Capability::avx512_vnni;
  return avx512 ? Capability::avx512 : avx2 ? Capability::avx2 : Capability::portable;
#else
  return Capability::portable;
#endif
}

Capability chosen() {
  const Capability best = supported();
  if (const char* wanted = std::getenv("FUSEDRNN_CPU_CAPABILITY"))
    for (const Capability c :
         {Capability::portable, Capability::avx2, Capability::avx512, Capability::avx512_vnni})
      if (std::strcmp(wanted, name_of(c)) == 0 && c < best) return c;
  return best;
}

}  // namespace

Capability cpu_capability() {
  static const Capability capability = chosen();
  return capability;
}

const char* name_of(Capability capability) {
  switch (capability) {
    case Capability::avx512_bf16: return "avx512_bf16";
    case Capability::avx512_vnni: return "avx512_vnni";
    case Capability::avx512: return "avx512";
    case Capability::avx2: return "avx2";
    case Capability::portable: break;
  }
  return "portable";
}

}  // namespace fusedrnn
