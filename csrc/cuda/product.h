// Matrix products in row-major terms, batched over directions, by cuBLAS.
//
//   C[M][N] (+)= A[M][K] B[K][N]
//
// cuBLAS counts columns first. A row-major matrix is the transpose of a column-major one, so that
// C^T = B^T A^T is asked for: the operands change places and nothing is moved.
#pragma once

#include "blas.h"
#include "layer/backend.h"

namespace fusedrnn::cuda {

// A stored matrix, `row` elements from one row to the next; `transposed`: it holds the operand's
// transpose. `batch`: elements from one direction's matrix to the other's.
struct Operand {
  const void* data = nullptr;
  int64_t row = 0;
  bool transposed = false;
  int64_t batch = 0;
};

struct Result {
  void* data = nullptr;
  int64_t row = 0;
  Dtype dtype = Dtype::f32;
  int64_t batch = 0;
  bool accumulate = false;
};

// Products of operands of one dtype, with sums in fp64 or fp32 (tf32 products where allowed). Sets
// up torch's handle for them and puts it back when it goes. Throws std::runtime_error.
class Products {
 public:
  Products(const Context& context, Dtype operands);
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  void multiply(int64_t M, int64_t N, int64_t K, const Operand& a, const Operand& b,
                const Result& c, int batches = 1) const;

 private:
  const Cublas* cublas_;
  void* handle_;
  Dtype dtype_;
  int compute_;
  int mode_before_ = 0;
};

}  // namespace fusedrnn::cuda
