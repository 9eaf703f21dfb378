// Programs that were compiled. Python finds a compiler, runs it on the text that cells/generate.h
// gives, and keeps the result (fusedrnn/cells/compiling.py). Here it is loaded, and from then on
// the walks' tiles call it. It does to each vector what the interpreter does, with the same bits,
// so that it makes no difference when that happens.
#pragma once

#include <string>

#include "cells/program.h"
#include "compiled_pass.h"

namespace fusedrnn::cpu {

// The pass as it was compiled; null if it wasn't yet.
template <class F>
CompiledPass<F> compiled_pass(const Program& program, int stage, PassKind kind) {
  const void* const cell = program.compiled[sizeof(F) == 4].load(std::memory_order_acquire);
  if (!cell) return nullptr;
  const auto& passes = static_cast<const CompiledCell*>(cell)->passes;
  return reinterpret_cast<CompiledPass<F>>(passes[stage][static_cast<int>(kind)]);
}

// The file to compile, for a value type: "float" or "double".
std::string compiled_source(const Program& program, const std::string& type);

// Runs a program by a file that was compiled of it, from now on and for good. Returns what is wrong
// with the file, or nothing.
std::string use_compiled(const Program& program, const std::string& key, const std::string& file);

}  // namespace fusedrnn::cpu
