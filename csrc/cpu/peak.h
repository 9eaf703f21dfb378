// The processor's own limit, that benchmarks compare with.
#pragma once

namespace fusedrnn {

// FLOP/s (fp32, two per multiply-add) that `threads` threads reach together with independent
// multiply-adds in registers, measured for `seconds`.
double fma_peak(int threads, double seconds);

}  // namespace fusedrnn
