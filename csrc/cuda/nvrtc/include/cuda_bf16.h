// Replaces the toolkit's header, which may be missing where kernels are compiled at run time. It
// has the type, and the conversions that the kernels use.
#pragma once

struct __align__(2) __nv_bfloat16 {
  unsigned short bits;
};

__device__ __forceinline__ float __bfloat162float(__nv_bfloat16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
__device__ __forceinline__ __nv_bfloat16 __float2bfloat16_rn(float x) {
  __nv_bfloat16 rounded;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
#else
  unsigned bits = __float_as_uint(x);
  if (x != x)
    bits = 0x7fffu << 16;
  else
    bits += 0x7fffu + (bits >> 16 & 1);
  rounded.bits = static_cast<unsigned short>(bits >> 16);
#endif
  return rounded;
}
