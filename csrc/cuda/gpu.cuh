// The two things of CUDA that C++ cannot spell: where shared memory is declared. Everything else in
// a kernel is CUDA as it is written anywhere, launched by cudaLaunchKernelEx.
//
//   FUSEDRNN_SHARED(float, tile, [32][33]);        __shared__ float tile[32][33];
//   FUSEDRNN_SHARED(int, count, );                 __shared__ int count;
//   FUSEDRNN_DYNAMIC_SHARED(float, scratch);       float* scratch: the launch's shared bytes
//
// Both may be defined by whatever stands in for the CUDA runtime, before this file is read.
#pragma once

#include <cuda_runtime.h>

#ifndef FUSEDRNN_SHARED
#define FUSEDRNN_SHARED(type, name, extents) __shared__ type name extents
#endif

#ifndef FUSEDRNN_DYNAMIC_SHARED
#define FUSEDRNN_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(128) unsigned char fusedrnn_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(fusedrnn_dynamic_shared)
#endif
