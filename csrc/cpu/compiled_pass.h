// What a compiled program (compiled.h) looks like. The library and the file that was compiled both
// include this, and know nothing else of one another: a change in here changes kCompiledVersion.
#pragma once

#include <cstdint>

namespace fusedrnn::cpu {

constexpr int kCompiledVersion = 1;

// In elements.
struct Strides {
  int64_t slot = 0, row = 0;
};

// Runs a pass on a tile, rows of some vectors of units each. `base` and `strides` are by space
// (spaces.h).
template <class F>
using CompiledPass = void (*)(F* const* base, const Strides* strides, int64_t rows,
                              int64_t vectors);

// The symbol fusedrnn_compiled_cell of such a file.
struct CompiledCell {
  int version, value_bytes;
  const char* key;         // what it was made of
  void (*passes[2][4])();  // by stage and PassKind; null where there is none
};

}  // namespace fusedrnn::cpu
