#include "compiled.h"

#include <dlfcn.h>

#include "cells/generate.h"

namespace fusedrnn::cpu {

namespace {

// Whether a stage's products and inputs are one block, whose tile has one vector of units. (Tiles
// of one product have up to four, and compilers would be long at work.) Step inputs have no place
// in a tile's registers.
bool has_tile(const Facts& facts, const StageFacts& stage) {
  return !facts.step_inputs && stage.products > 1 && stage.products + stage.late <= 4 &&
         stage.apart == stage.late && stage.apart <= 1 && stage.first_apart == 0;
}

// "{a, b}" of words.
std::string listed(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return "{" + text + "}";
}

}  // namespace

std::string compiled_source(const Program& program, const std::string& type) {
  const Facts& facts = program.facts;
  std::string stages;
  std::vector<std::string> tiles, passes;
  for (int i = 0; i < facts.stages; ++i) {
    const StageFacts& stage = facts.stage[i];
    const std::string index = std::to_string(i);
    tiles.push_back(has_tile(facts, stage) ? "FUSEDRNN_TILE(" + index + ")" : "nullptr");
    if (has_tile(facts, stage)) {
      const bool reads_h = reads(program.stage[i].pass(PassKind::forward_saving), Space::h);
      stages += "FUSEDRNN_STAGE(" + index;
      for (const int number :
           {stage.inputs, stage.products, stage.apart, int{reads_h}, stage.saved, stage.takes,
            stage.gives, facts.states, facts.unit_weights, facts.stages})
        stages += ", " + std::to_string(number);
      stages += ")\n";
    }
    std::vector<std::string> of_stage;
    const char* const restoring = stage.restores ? "backward_restoring" : "backward";
    for (const std::string name : {"forward", "forward_saving", "backward", restoring})
      of_stage.push_back("FUSEDRNN_PASS(" + name + "_" + index + ")");
    passes.push_back(listed(of_stage));
  }
  return "#include \"cpu/compiled_cell.h\"\n\nusing Value = " + type + ";\n\n" +
         generated(program) + "\n" + stages + "FUSEDRNN_COMPILED_CELL(" + listed(tiles) + ", " +
         listed(passes) + ")\n";
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
