// cuBLAS for the emulation: cublasGemmEx and its strided batches on the host, for the types that
// csrc/cuda asks for. Column-major as cuBLAS is; sums run over k in one order, in fp32 (fp64 for
// fp64), whatever the sizes. Arguments are checked as cuBLAS checks them.
#include "cuda/blas.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace fusedrnn::cuda {
namespace {

constexpr int kSuccess = 0, kInvalidValue = 7, kNotSupported = 15;         // cublasStatus_t
constexpr int kF32 = 0, kF64 = 1, kF16 = 2, kBf16 = 14;                    // cudaDataType_t
constexpr int k32F = 68, k32FPedantic = 69, k64F = 70, k32FFastTf32 = 77;  // cublasComputeType_t
constexpr int kTf32Mode = 3;  // CUBLAS_TF32_TENSOR_OP_MATH

thread_local int math_mode = 0;

// ---- Values in memory -----------------------------------------------------------------------

float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct F64 {
  using Stored = double;
  static double load(double v) { return v; }
  static double store(double v) { return v; }
};
struct F32 {
  using Stored = float;
  static float load(float v) { return v; }
  static float store(float v) { return v; }
};
struct Tf32 {  // fp32 in memory, ten bits of mantissa in the product
  using Stored = float;
  static float load(float v) {
    return std::isfinite(v) ? bits_to_float((float_to_bits(v) + 0x1000) & ~0x1fffu) : v;
  }
  static float store(float v) { return v; }
};
struct Bf16 {
  using Stored = __nv_bfloat16;
  static float load(__nv_bfloat16 v) { return __bfloat162float(v); }
  static __nv_bfloat16 store(float v) { return __float2bfloat16_rn(v); }
};
struct F16 {
  using Stored = __half;
  static float load(__half v) { return __half2float(v); }
  static __half store(float v) { return __float2half_rn(v); }
};

// ---- The product ----------------------------------------------------------------------------

constexpr int kColumns = 4, kRows = 64;
constexpr int64_t kSlice = 64;  // of k: long sums are made of short ones, as a GPU's are

template <class T>
struct Matrix {  // column-major, or the transpose of that
  const T* data;
  int64_t leading;
  bool transposed;
  T operator()(int64_t row, int64_t column) const {
    return transposed ? data[row * leading + column] : data[column * leading + row];
  }
};

template <class Type, class Sum>
struct Packed {  // [k][size rounded up to a tile]
  std::vector<Sum> values;
  int64_t stride;
  Packed(const Matrix<typename Type::Stored>& m, int64_t k, int64_t size, int tile, bool by_row)
      : values(size_t(k) * size_t((size + tile - 1) / tile * tile)),
        stride((size + tile - 1) / tile * tile) {
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < size; ++j) {
        values[size_t(i * stride + j)] = Sum(Type::load(by_row ? m(j, i) : m(i, j)));
      }
    }
  }
  const Sum* at(int64_t i, int64_t j) const { return &values[size_t(i * stride + j)]; }
};

// C[m][n] = alpha A[m][k] B[k][n] + beta C. C is not read if beta is zero, nor A and B if alpha is.
template <class Type, class Out, class Sum>
void multiply(int m, int n, int k, Sum alpha, const Matrix<typename Type::Stored>& a,
              const Matrix<typename Type::Stored>& b, Sum beta, typename Out::Stored* c,
              int64_t ldc) {
  if (alpha == Sum(0)) k = 0;
  const Packed<Type, Sum> rows(a, k, m, kRows, true), columns(b, k, n, kColumns, false);
  for (int64_t j0 = 0; j0 < n; j0 += kColumns) {
    for (int64_t i0 = 0; i0 < m; i0 += kRows) {
      Sum sums[kColumns][kRows] = {};
      for (int64_t l0 = 0; l0 < k; l0 += kSlice) {
        Sum slice[kColumns][kRows] = {};
        for (int64_t l = l0; l < std::min<int64_t>(k, l0 + kSlice); ++l) {
          const Sum* left = rows.at(l, i0);
          const Sum* right = columns.at(l, j0);
          for (int j = 0; j < kColumns; ++j) {
            for (int i = 0; i < kRows; ++i) slice[j][i] += left[i] * right[j];
          }
        }
        for (int j = 0; j < kColumns; ++j) {
          for (int i = 0; i < kRows; ++i) sums[j][i] += slice[j][i];
        }
      }
      for (int64_t j = j0; j < std::min<int64_t>(n, j0 + kColumns); ++j) {
        for (int64_t i = i0; i < std::min<int64_t>(m, i0 + kRows); ++i) {
          auto& place = c[j * ldc + i];
          Sum value = k == 0 ? Sum(0) : alpha * sums[j - j0][i - i0];
          if (beta != Sum(0)) value += beta * Sum(Out::load(place));
          place = Out::store(value);
        }
      }
    }
  }
}

struct Call {
  int op_a, op_b, m, n, k;
  const void *alpha, *a;
  int lda;
  long long stride_a;
  const void* b;
  int ldb;
  long long stride_b;
  const void* beta;
  void* c;
  int ldc;
  long long stride_c;
  int batch;
};

template <class Type, class Out, class Sum>
int run(const Call& call) {
  using In = typename Type::Stored;
  Sum alpha, beta;
  memcpy(&alpha, call.alpha, sizeof alpha);
  memcpy(&beta, call.beta, sizeof beta);
  for (int i = 0; i < call.batch && call.m && call.n; ++i) {
    multiply<Type, Out, Sum>(
        call.m, call.n, call.k, alpha,
        {static_cast<const In*>(call.a) + i * call.stride_a, call.lda, call.op_a != 0},
        {static_cast<const In*>(call.b) + i * call.stride_b, call.ldb, call.op_b != 0}, beta,
        static_cast<typename Out::Stored*>(call.c) + i * call.stride_c, call.ldc);
  }
  return kSuccess;
}

bool is_valid(const Call& call) {
  const auto is_op = [](int op) { return op >= 0 && op <= 2; };
  if (!is_op(call.op_a) || !is_op(call.op_b)) return false;
  if (call.m < 0 || call.n < 0 || call.k < 0 || call.batch < 0) return false;
  if (call.lda < std::max(1, call.op_a ? call.k : call.m)) return false;
  if (call.ldb < std::max(1, call.op_b ? call.n : call.k)) return false;
  if (call.ldc < std::max(1, call.m)) return false;
  if (!call.alpha || !call.beta) return false;
  if (!call.m || !call.n || !call.batch) return true;
  return call.c && (!call.k || (call.a && call.b));
}

int gemm_strided_batched(void*, int op_a, int op_b, int m, int n, int k, const void* alpha,
                         const void* a, int type_a, int lda, long long stride_a, const void* b,
                         int type_b, int ldb, long long stride_b, const void* beta, void* c,
                         int type_c, int ldc, long long stride_c, int batch, int compute, int) {
  const Call call{op_a, op_b, m,        n,    k, alpha, a,        lda,  stride_a,
                  b,    ldb,  stride_b, beta, c, ldc,   stride_c, batch};
  if (!is_valid(call)) return kInvalidValue;
  if (type_a != type_b) return kNotSupported;
  const bool tf32 = compute == k32FFastTf32 || (compute == k32F && math_mode == kTf32Mode);
  const bool f32 = compute == k32F || compute == k32FPedantic;
  if (type_a == kF64 && type_c == kF64 && compute == k64F) return run<F64, F64, double>(call);
  if (type_a == kF32 && type_c == kF32 && tf32) return run<Tf32, F32, float>(call);
  if (type_a == kF32 && type_c == kF32 && f32) return run<F32, F32, float>(call);
  if (type_a == kBf16 && type_c == kBf16 && f32) return run<Bf16, Bf16, float>(call);
  if (type_a == kBf16 && type_c == kF32 && f32) return run<Bf16, F32, float>(call);
  if (type_a == kF16 && type_c == kF16 && f32) return run<F16, F16, float>(call);
  if (type_a == kF16 && type_c == kF32 && f32) return run<F16, F32, float>(call);
  return kNotSupported;
}

int gemm(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
         int type_a, int lda, const void* b, int type_b, int ldb, const void* beta, void* c,
         int type_c, int ldc, int compute, int algorithm) {
  return gemm_strided_batched(handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb,
                              0, beta, c, type_c, ldc, 0, 1, compute, algorithm);
}

int get_math_mode(void*, int* mode) { return *mode = math_mode, kSuccess; }
int set_math_mode(void*, int mode) { return math_mode = mode, kSuccess; }

}  // namespace

const Cublas* find_cublas() {
  static const Cublas functions{gemm, gemm_strided_batched, get_math_mode, set_math_mode};
  return &functions;
}

}  // namespace fusedrnn::cuda
