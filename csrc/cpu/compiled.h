// Programs that were compiled. Python finds a compiler, runs it on the text that cells/generate.h
// gives, and keeps the result (fusedrnn/_engine/compiling.py). Here it is loaded, and from then on
// the tiles of the walks call it. It computes the same bits as the interpreter, so it makes no
// difference when that happens.
#pragma once

#include <string>

#include "cells/program.h"
#include "compiled_pass.h"

namespace fusedrnn::cpu {

// The code for values of this many bytes; null until there is some.
inline const CompiledCell* compiled_cell(const Program& program, std::size_t bytes) {
  const void* const cell = program.compiled[bytes == 4].load(std::memory_order_acquire);
  return static_cast<const CompiledCell*>(cell);
}

template <class F>
CompiledPass<F> compiled_pass(const Program& program, int stage, PassKind kind) {
  const CompiledCell* const cell = compiled_cell(program, sizeof(F));
  return cell ? reinterpret_cast<CompiledPass<F>>(cell->passes[stage][static_cast<int>(kind)])
              : nullptr;
}
inline auto compiled_tile(const Program& program, std::size_t bytes, int stage) -> void (*)() {
  const CompiledCell* const cell = compiled_cell(program, bytes);
  return cell ? cell->tiles[stage] : nullptr;
}

// The file to compile, for a value type: "float" or "double".
std::string compiled_source(const Program& program, const std::string& type);

// Runs a program by a file that was compiled of it, from now on and for good. Returns what is wrong
// with the file, or nothing.
std::string use_compiled(const Program& program, const std::string& key, const std::string& file);

}  // namespace fusedrnn::cpu
