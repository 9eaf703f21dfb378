// The processor's own limits, which benchmarks compare with. They are measured, since data sheets
// give neither the clock that a core keeps under load nor how much of a cache a virtual machine
// has.
#pragma once

#include <cstdint>

namespace fusedrnn::cpu {

// Operations per second (two per multiply-add) that `threads` threads reach together with
// independent multiply-adds in registers, measured for `seconds`.
double fma_peak(int threads, double seconds);  // fp32
// Operations per second of AVX-512's dot products of two bf16 or four int8 values; 0 where the chip
// has no such instruction.
double bf16_peak(int threads, double seconds);
double int8_peak(int threads, double seconds);

// Bytes per second that `threads` threads read together, each reading its own `bytes` repeatedly.
double read_bandwidth(std::int64_t bytes, int threads, double seconds);

// Seconds that `threads` threads take for one meeting at the barrier of team.h; 0 for one thread.
// It is the least of many batches of meetings within `seconds`: if a thread loses its time slice,
// that is not the barrier's cost.
double barrier_seconds(int threads, double seconds);

}  // namespace fusedrnn::cpu
