// The dtypes that the kernels compute in.
#pragma once

namespace fusedrnn {

enum class Dtype : int { f64, f32, bf16, f16 };

}  // namespace fusedrnn
