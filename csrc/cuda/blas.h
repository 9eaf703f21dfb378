// cuBLAS as the process already has it (torch's own), found at run time: no header, no link.
#pragma once
#include <cstdint>
namespace fusedrnn::cuda {
// The few functions used, with cuBLAS's C signatures (enums as int, handles and scalars as void*).
struct Cublas {
  int (*gemm)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
              const void* a, int type_a, int lda, const void* b, int type_b, int ldb,
              const void* beta, void* c, int type_c, int ldc, int compute_type,
              int algorithm);  // cublasGemmEx
  int (*gemm_strided_batched)(void* handle, int op_a, int op_b, int m, int n, int k,
                              const void* alpha, const void* a, int type_a, int lda,
                              long long stride_a, const void* b, int type_b, int ldb,
                              long long stride_b, const void* beta, void* c, int type_c, int ldc,
                              long long stride_c, int batch_count, int compute_type,
                              int algorithm);  // cublasGemmStridedBatchedEx
  int (*get_math_mode)(void* handle, int* mode);
  int (*set_math_mode)(void* handle, int mode);
};
const Cublas* find_cublas();  // torch's; null: none in this process, or several to guess from
}  // namespace fusedrnn::cuda
