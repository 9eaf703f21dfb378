// The version of the package that a library was built from. Each library carries it, so that Python
// can check that the libraries it loads belong together (fusedrnn/_engine/native.py).
#include "version.h"

extern "C" __attribute__((visibility("default"))) const char* fusedrnn_version() {
  return FUSEDRNN_VERSION;
}
