// The instruction sets whose kernels each capability runs. setup.py has the same table: it compiles
// the kernels for the capabilities that a build is for (FUSEDRNN_HAS_<name>).
#include "kernels.h"

#include <initializer_list>

#include "capability.h"

namespace fusedrnn::cpu {

namespace avx512_bf16 {
const Kernels& table();  // bf16 only
}
namespace avx512_vnni {
const Kernels& table();  // int8 weights only
}
namespace avx512 {
const Kernels& table();
}
namespace avx2_vnni {
const Kernels& table();  // int8 weights only
}
namespace avx2 {
const Kernels& table();
}
namespace portable {
const Kernels& table();
}

namespace {

template <class Kernel>
void take(Kernel& kernel, Kernel from) {
  if (!kernel) kernel = from;
}

// Takes each kernel from the first table that has it.
Kernels merged(std::initializer_list<const Kernels*> tables) {
  Kernels found = {};
  for (const Kernels* const table : tables) {
    for (int i = 0; i < kDtypes; ++i) {
      take(found.forward[i], table->forward[i]);
      take(found.backward[i], table->backward[i]);
      take(found.make_panels[i], table->make_panels[i]);
    }
    take(found.forward_quantized, table->forward_quantized);
    take(found.quantize_weights, table->quantize_weights);
  }
  return found;
}

Kernels chosen() {
  switch (cpu_capability()) {
#if FUSEDRNN_HAS_avx512_bf16
    case Capability::avx512_bf16:
      return merged({&avx512_bf16::table(), &avx512_vnni::table(), &avx512::table()});
#endif
#if FUSEDRNN_HAS_avx512_vnni
    case Capability::avx512_vnni: return merged({&avx512_vnni::table(), &avx512::table()});
#endif
#if FUSEDRNN_HAS_avx512
    case Capability::avx512: return avx512::table();
#endif
#if FUSEDRNN_HAS_avx2_vnni
    case Capability::avx2_vnni: return merged({&avx2_vnni::table(), &avx2::table()});
#endif
#if FUSEDRNN_HAS_avx2
    case Capability::avx2: return avx2::table();
#endif
#if FUSEDRNN_HAS_portable
    case Capability::portable: return portable::table();
#endif
    default: break;  // not in this build, so never chosen
  }
  __builtin_unreachable();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels found = chosen();
  return found;
}

}  // namespace fusedrnn::cpu
