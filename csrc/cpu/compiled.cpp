#include "compiled.h"

#include <dlfcn.h>

#include "cells/generate.h"

namespace fusedrnn::cpu {

std::string compiled_source(const Program& program, const std::string& type) {
  std::string passes;
  for (int i = 0; i < program.facts.stages; ++i) {
    const char* const restoring =
        program.facts.stage[i].restores ? "backward_restoring" : "backward";
    passes += i ? ", {" : "{";
    for (const char* const name : {"forward", "forward_saving", "backward", restoring}) {
      const char* const comma = passes.back() == '{' ? "" : ", ";
      passes += comma + ("FUSEDRNN_PASS(" + std::string(name) + "_" + std::to_string(i) + ")");
    }
    passes += "}";
  }
  return "#include \"cpu/compiled_cell.h\"\n\n" + generated(program) + "\nFUSEDRNN_COMPILED_CELL(" +
         type + ", " + passes + ")\n";
}

std::string use_compiled(const Program& program, const std::string& key, const std::string& file) {
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return dlerror();
  const auto* const cell =
      static_cast<const CompiledCell*>(dlsym(library, "fusedrnn_compiled_cell"));
  const bool fits = cell && cell->version == kCompiledVersion && cell->key == key &&
                    (cell->value_bytes == 4 || cell->value_bytes == 8);
  if (!fits) {
    dlclose(library);
    return file + " was not compiled of this cell by this version";
  }
  program.compiled[cell->value_bytes == 4].store(cell, std::memory_order_release);
  return {};
}

}  // namespace fusedrnn::cpu
