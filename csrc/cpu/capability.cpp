// Asks the processor and the build once; the environment may lower the answer.
#include "capability.h"

#include <cstdlib>
#include <cstring>
#include <iterator>

namespace fusedrnn::cpu {
namespace {

// From best to worst.
constexpr Capability kAll[] = {Capability::avx512_bf16, Capability::avx512_vnni,
                               Capability::avx512,      Capability::avx2_vnni,
                               Capability::avx2,        Capability::portable};

constexpr Capability kCompiled[] = {
#if FUSEDRNN_HAS_avx512_bf16
    Capability::avx512_bf16,
#endif
#if FUSEDRNN_HAS_avx512_vnni
    Capability::avx512_vnni,
#endif
#if FUSEDRNN_HAS_avx512
    Capability::avx512,
#endif
#if FUSEDRNN_HAS_avx2_vnni
    Capability::avx2_vnni,
#endif
#if FUSEDRNN_HAS_avx2
    Capability::avx2,
#endif
#if FUSEDRNN_HAS_portable
    Capability::portable,
#endif
};

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

template <class List>
std::string names_of(const List& capabilities) {
  std::string names;
  for (const Capability c : capabilities)
    names += (names.empty() ? "" : ", ") + std::string(name_of(c));
  return names;
}

struct Choice {
  Capability capability = Capability::portable;
  std::string error;
};

Choice choose() {
  const std::vector<Capability> possible = cpu_capabilities();
  if (possible.empty())
    return {Capability::portable,
            "this build of fusedrnn has kernels for " + names_of(kCompiled) +
                ", and this processor supports " + names_of(processor_capabilities()) +
                "; build it again on this machine, or anywhere with FUSEDRNN_CPU_TARGETS=all"};
  const char* const wanted = std::getenv("FUSEDRNN_CPU_CAPABILITY");
  if (!wanted || !*wanted) return {possible.front(), ""};
  for (const Capability c : possible)
    if (std::strcmp(wanted, name_of(c)) == 0) return {c, ""};
  return {possible.front(), "FUSEDRNN_CPU_CAPABILITY: expected one of " + names_of(possible) +
                                " (what this processor supports and this build has), got \"" +
                                wanted + "\""};
}

const Choice& choice() {
  static const Choice made = choose();
  return made;
}

}  // namespace

Capability cpu_capability() { return choice().capability; }
const std::string& cpu_capability_error() { return choice().error; }

std::vector<Capability> cpu_capabilities() {
  std::vector<Capability> possible;
  for (const Capability c : kCompiled)
    if (supports(c)) possible.push_back(c);
  return possible;
}

std::vector<Capability> processor_capabilities() {
  std::vector<Capability> supported;
  for (const Capability c : kAll)
    if (supports(c)) supported.push_back(c);
  return supported;
}

std::vector<Capability> compiled_capabilities() {
  return {std::begin(kCompiled), std::end(kCompiled)};
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

}  // namespace fusedrnn::cpu
