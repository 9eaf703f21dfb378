// The version of the package that this was built from.
#pragma once

extern "C" const char* fusedrnn_version();
