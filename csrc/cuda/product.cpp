#include "product.h"

#include <limits>
#include <stdexcept>
#include <string>

namespace fusedrnn::cuda {
namespace {

// cuBLAS's constants (cublas_api.h, library_types.h): part of its ABI.
constexpr int kNoTranspose = 0, kTranspose = 1;
constexpr int kCompute32F = 68, kCompute64F = 70, kCompute32FFastTf32 = 77;
constexpr int kDefaultAlgorithm = -1;
// Default math, and sums of partial results stay in fp32 as well.
constexpr int kDisallowReducedPrecisionReduction = 16;

int type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64: return 1;    // CUDA_R_64F
    case Dtype::bf16: return 14;  // CUDA_R_16BF
    case Dtype::f16: return 2;    // CUDA_R_16F
    default: return 0;            // CUDA_R_32F
  }
}

void check(int status, const char* what) {
  if (status == 0) return;
  const char* const reason = status == 3    ? " (out of memory: use a smaller batch or fewer steps)"
                             : status == 8  ? " (this GPU's architecture cannot do it)"
                             : status == 15 ? " (this dtype is not supported on this GPU)"
                                            : "";
  throw std::runtime_error(std::string("cuBLAS: ") + what + " failed with status " +
                           std::to_string(status) + reason);
}

int narrow(int64_t n) {
  if (n > std::numeric_limits<int>::max())
    throw std::runtime_error("input: too large for one matrix product, a side of " +
                             std::to_string(n) + "; use a smaller batch or fewer steps");
  return static_cast<int>(n);
}

}  // namespace

Products::Products(const Context& context, Dtype operands)
    : cublas_(find_cublas()), handle_(context.blas), dtype_(operands) {
  if (!cublas_)
    throw std::runtime_error(
        "torch's cuBLAS was not found in this process: libtorch_cuda.so does not depend on one, "
        "and "
        "by name there is none, or several");
  compute_ = operands == Dtype::f64                         ? kCompute64F
             : operands == Dtype::f32 && context.allow_tf32 ? kCompute32FFastTf32
                                                            : kCompute32F;
  check(cublas_->get_math_mode(handle_, &mode_before_), "cublasGetMathMode");
  check(cublas_->set_math_mode(handle_, kDisallowReducedPrecisionReduction), "cublasSetMathMode");
}

Products::~Products() { cublas_->set_math_mode(handle_, mode_before_); }

void Products::multiply(int64_t M, int64_t N, int64_t K, const Operand& a, const Operand& b,
                        const Result& c, int batches) const {
  const double one = 1, beta = c.accumulate ? 1 : 0;
  const float one_single = 1, beta_single = c.accumulate ? 1 : 0;
  const bool wide = dtype_ == Dtype::f64;
  const void* const alpha_at = wide ? static_cast<const void*>(&one) : &one_single;
  const void* const beta_at = wide ? static_cast<const void*>(&beta) : &beta_single;
  const int op_a = a.transposed ? kTranspose : kNoTranspose;
  const int op_b = b.transposed ? kTranspose : kNoTranspose;
  const int m = narrow(N), n = narrow(M), k = narrow(K);  // cuBLAS's, of the transposed product
  const int type = type_of(dtype_), type_c = type_of(c.dtype);
  if (batches == 1) {  // may split k over the chip, which a batch of one might not
    check(cublas_->gemm(handle_, op_b, op_a, m, n, k, alpha_at, b.data, type, narrow(b.row), a.data,
                        type, narrow(a.row), beta_at, c.data, type_c, narrow(c.row), compute_,
                        kDefaultAlgorithm),
          "cublasGemmEx");
    return;
  }
  check(cublas_->gemm_strided_batched(handle_, op_b, op_a, m, n, k, alpha_at, b.data, type,
                                      narrow(b.row), b.batch, a.data, type, narrow(a.row), a.batch,
                                      beta_at, c.data, type_c, narrow(c.row), c.batch, batches,
                                      compute_, kDefaultAlgorithm),
        "cublasGemmStridedBatchedEx");
}

}  // namespace fusedrnn::cuda
