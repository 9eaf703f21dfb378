// Weights made ready ahead of the calls that use them: fusedrnn::make_panels makes one buffer of a
// layer,
//
//   [header][panels of direction 0][of direction 1]      64-byte aligned, a multiple of 64 long
//
// whose panels are the backend's own business. Layers that stand on each other are their buffers
// one after the other. The header says what the panels are; all of it is compared to what a call
// needs and to what there is, so that nothing else is ever taken for panels.
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
};
static_assert(sizeof(PanelsHeader) == 64, "keeps the panels aligned");

}  // namespace fusedrnn
