// Replaces the toolkit's header, as cuda_bf16.h does.
#pragma once

struct __align__(2) __half {
  unsigned short bits;
};

__device__ __forceinline__ float __half2float(__half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
__device__ __forceinline__ __half __float2half_rn(float x) {
  __half rounded;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
  return rounded;
}
