// How the ops are told of a cell: by the name of a compiled one, or by the text of a program, so
// that a graph that was saved needs nothing of the Python that made it. Part of the op layer, like
// layer_ops.cpp.
#pragma once

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>

#include "layer/problem.h"
#include "refuse.h"

namespace fusedrnn {

// The program of a text. It is read only once, and stays.
inline const Program& program_of(std::string_view text) {
  thread_local const Program* last = nullptr;  // most calls are of the cell of the call before
  if (last && last->text == text) return *last;
  static std::mutex mutex;
  static auto& known = *new std::unordered_map<std::string, std::unique_ptr<const Program>>;
  const std::lock_guard<std::mutex> guard(mutex);
  const std::string own(text);
  std::unique_ptr<const Program>& program = known[own];
  if (!program) {
    try {
      program = Program::parse(own);
    } catch (const std::invalid_argument& error) {
      known.erase(own);
      refuse(error.what());
    }
  }
  return *(last = program.get());
}

inline void set_cell(Shape& s, std::string_view cell) {
  for (int i = 0; i < kCells; ++i)
    if (cell == facts_of(Cell{i}).names.cell) {
      s.cell = Cell{i};
      return;
    }
  if (cell.find('\n') != std::string_view::npos) {
    s.program = &program_of(cell);
    return;
  }
  std::string names;
  for (int i = 0; i < kCells; ++i) names += std::string(facts_of(Cell{i}).names.cell) + ", ";
  refuse("cell: expected ", names, "or the program of a cell, got \"", cell, "\"");
}

}  // namespace fusedrnn
