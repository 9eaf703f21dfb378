// Weights made ready ahead of the calls that use them: fusedrnn::make_panels makes one buffer of a
// layer,
//
//   [header][program][panels of direction 0][of direction 1]      64-byte aligned, a multiple of
//                                                                64 long
//
// whose panels are the backend's own business. The program's text is there if the cell is one.
// Layers that stand on each other are their buffers one after the other. The header says what the
// panels are; all of it is compared to what a call needs and to what there is, so that nothing else
// is ever taken for panels.
#pragma once

#include "problem.h"

namespace fusedrnn {

struct PanelsHeader {
  static constexpr int64_t kMagic = 0x316e6e7264657375;  // "usedrnn1"

  int64_t magic = 0;
  int64_t bytes = 0;  // of the layer, header and panels
  int64_t I = 0, H = 0, P = 0;
  int32_t cell = 0, dtype = 0, directions = 0, biases = 0;
  int64_t layout = 0;  // what the backend calls its panels' layout
  int64_t text = 0;    // bytes of the program's text; cell is then kProgram
  int64_t reserved[7] = {};

  int64_t before_panels() const { return static_cast<int64_t>(sizeof(*this)) + round_up(text, 64); }
};
static_assert(sizeof(PanelsHeader) == 128, "keeps the panels aligned");
constexpr int32_t kProgram = -1;

}  // namespace fusedrnn
