// The processor's own limits, that benchmarks compare with: measured, since data sheets know
// neither the clock that a loaded core keeps nor what a virtual machine leaves of a cache.
#pragma once

#include <cstdint>

namespace fusedrnn::cpu {

// Operations per second (two per multiply-add) that `threads` threads reach together with
// independent multiply-adds in registers, measured for `seconds`.
double fma_peak(int threads, double seconds);  // fp32
// The same of dot products of pairs of bf16 and of fours of int8, on AVX-512; 0 where
// the chip has none there.
double bf16_peak(int threads, double seconds);
double int8_peak(int threads, double seconds);

// Bytes per second that `threads` threads read together, each its own `bytes` again and again.
double read_bandwidth(std::int64_t bytes, int threads, double seconds);

// Seconds that `threads` threads take for one meeting at the barrier of team.h, as the least of
// many batches of meetings within `seconds`: one thread's lost time slice is not the barrier's. 0
// for one thread.
double barrier_seconds(int threads, double seconds);

}  // namespace fusedrnn::cpu
