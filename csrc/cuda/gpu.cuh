// What the CPU's compiler cannot spell: shared memory. The emulation defines these first.
#pragma once

#ifndef FUSEDRNN_SHARED
#define FUSEDRNN_SHARED(type, name, dimensions) __shared__ type name dimensions
#endif
