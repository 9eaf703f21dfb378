// Which instruction set's kernels a capability runs. setup.py compiles those of the capabilities
// that a build is for (FUSEDRNN_HAS_<name>), and has the same table.
#include "kernels.h"

#include "capability.h"

FUSEDRNN_DECLARE_KERNELS(avx512_bf16)  // bf16 alone
FUSEDRNN_DECLARE_KERNELS(avx512_vnni)  // int8 weights alone
FUSEDRNN_DECLARE_KERNELS(avx512)
FUSEDRNN_DECLARE_KERNELS(avx2_vnni)  // int8 weights alone
FUSEDRNN_DECLARE_KERNELS(avx2)
FUSEDRNN_DECLARE_KERNELS(portable)

namespace fusedrnn::cpu {

#define FUSEDRNN_BY_DTYPE(pass, isa, bf16_isa) \
  {isa::pass<Dtype::f64>, isa::pass<Dtype::f32>, bf16_isa::pass<Dtype::bf16>, isa::pass<Dtype::f16>}
#define FUSEDRNN_CASE(capability, isa, bf16_isa, int8_isa) \
  case Capability::capability: {                           \
    static constexpr Kernels found = {                     \
        FUSEDRNN_BY_DTYPE(forward, isa, bf16_isa),         \
        FUSEDRNN_BY_DTYPE(backward, isa, bf16_isa),        \
        FUSEDRNN_BY_DTYPE(pack, isa, bf16_isa),            \
        int8_isa::forward_quantized,                       \
        int8_isa::quantize_weights,                        \
    };                                                     \
    return found;                                          \
  }

const Kernels& kernels() {
  switch (cpu_capability()) {
#if FUSEDRNN_HAS_avx512_bf16
    FUSEDRNN_CASE(avx512_bf16, avx512, avx512_bf16, avx512_vnni)
#endif
#if FUSEDRNN_HAS_avx512_vnni
    FUSEDRNN_CASE(avx512_vnni, avx512, avx512, avx512_vnni)
#endif
#if FUSEDRNN_HAS_avx512
    FUSEDRNN_CASE(avx512, avx512, avx512, avx512)
#endif
#if FUSEDRNN_HAS_avx2_vnni
    FUSEDRNN_CASE(avx2_vnni, avx2, avx2, avx2_vnni)
#endif
#if FUSEDRNN_HAS_avx2
    FUSEDRNN_CASE(avx2, avx2, avx2, avx2)
#endif
#if FUSEDRNN_HAS_portable
    FUSEDRNN_CASE(portable, portable, portable, portable)
#endif
    default: break;  // not in this build, so never chosen
  }
  __builtin_unreachable();
}

}  // namespace fusedrnn::cpu
