// Nothing of it is needed where kernels are compiled at run time: NVRTC knows threadIdx and the
// like.
#pragma once
