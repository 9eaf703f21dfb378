// The version of the package that a library was built from. Each carries it, for Python to see that
// what it loads belongs together (fusedrnn/_native.py).
#include "version.h"

extern "C" __attribute__((visibility("default"))) const char* fusedrnn_version() {
  return FUSEDRNN_VERSION;
}
