// Runs a pass of a program (cells/program.h) on a tile: operation by operation, each for all of the
// tile's rows and units, which costs a switch an operation. No compiler is needed for that,
// and it takes a few percent longer than compiled code, since a tile's product takes so much more.
// Where the program was compiled (compiled.h), that runs instead, and gives the same bits.
#pragma once

#include "functions.h"
#include "spaces.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

// The operands of one operation.
template <class F>
struct Operands {
  F* to;
  const F *a, *b, *c;
  int64_t to_row, a_row, b_row, c_row;
};

// The vectors of a tile: rows of some vectors each.
struct Vectors {
  int64_t rows, each;
};

// n vectors together: of functions that are long chains of instructions they hide each other's
// latency. They are one to a row, or those of one row.
template <int n, bool kOfRow, class F, class Function>
FUSEDRNN_INLINE void together(const Operands<F>& o, int64_t r, int64_t v, const Function& f) {
  const auto at = [&](int i, int64_t row) __attribute__((always_inline)) {
    return kOfRow ? r * row + (v + i) * kLanes<F> : (r + i) * row;
  };
  Vec<F> x[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i)
    x[i] = f(load(o.a + at(i, o.a_row)), load(o.b + at(i, o.b_row)), load(o.c + at(i, o.c_row)));
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) store(o.to + at(i, o.to_row), x[i]);
}

// to = f(a, b, c) for each vector.
template <class F, class Function>
FUSEDRNN_INLINE void each(const Operands<F>& o, Vectors n, const Function& f) {
  int64_t r = 0;
  if (n.each == 1) {
    for (; r + 3 <= n.rows; r += 3) together<3, false>(o, r, 0, f);
    for (; r < n.rows; ++r) together<1, false>(o, r, 0, f);
    return;
  }
  for (; r < n.rows; ++r) {
    int64_t v = 0;
    for (; v + 2 <= n.each; v += 2) together<2, true>(o, r, v, f);
    if (v < n.each) together<1, true>(o, r, v, f);
  }
}

// One at a time: less code, for functions that cells are rarely made of.
template <class F, class Function>
FUSEDRNN_INLINE void rarely(const Operands<F>& o, Vectors n, const Function& f) {
  for (int64_t r = 0; r < n.rows; ++r)
    for (int64_t v = 0; v < n.each; ++v)
      together<1, true>(o, r, v, [&](Vec<F> a, Vec<F>, Vec<F>) { return f(a); });
}

template <class F>
__attribute__((noinline)) void interpret(const BoundPass<F>& pass, F* const (&base)[kSpaces],
                                         Vectors n) {
  using V = Vec<F>;
  using M = Math<F>;
  using Fn = Functions<F>;
  const auto at = [&](const BoundPlace& place) __attribute__((always_inline)) {
    return base[static_cast<int>(place.space)] + place.offset;
  };
  for (const BoundOp *op = pass.ops, *const end = op + pass.count; op != end; ++op) {
    const Operands<F> o{at(op->to), at(op->a), at(op->b), at(op->c),
                        op->to.row, op->a.row, op->b.row, op->c.row};
    switch (op->code) {
      case OpCode::copy: each(o, n, [](V a, V, V) { return a; }); break;
      case OpCode::neg: each(o, n, [](V a, V, V) { return -a; }); break;
      case OpCode::reciprocal: each(o, n, [](V a, V, V) { return 1 / a; }); break;
      case OpCode::sqrt: each(o, n, [](V a, V, V) { return Fn::sqrt(a); }); break;
      case OpCode::abs: each(o, n, [](V a, V, V) { return Fn::abs(a); }); break;
      case OpCode::sign: each(o, n, [](V a, V, V) { return Fn::sign(a); }); break;
      case OpCode::relu: each(o, n, [](V a, V, V) { return M::relu(a); }); break;
      case OpCode::sigmoid: each(o, n, [](V a, V, V) { return M::sigmoid(a); }); break;
      case OpCode::tanh: each(o, n, [](V a, V, V) { return M::tanh(a); }); break;
      case OpCode::exp: each(o, n, [](V a, V, V) { return Fn::exp(a); }); break;
      case OpCode::expm1: rarely(o, n, [](V a) { return Fn::expm1(a); }); break;
      case OpCode::log: rarely(o, n, [](V a) { return Fn::log(a); }); break;
      case OpCode::log1p: rarely(o, n, [](V a) { return Fn::log1p(a); }); break;
      case OpCode::softplus: rarely(o, n, [](V a) { return Fn::softplus(a); }); break;
      case OpCode::erf: rarely(o, n, [](V a) { return Fn::erf(a); }); break;
      case OpCode::sin: rarely(o, n, [](V a) { return Fn::sin(a); }); break;
      case OpCode::cos: rarely(o, n, [](V a) { return Fn::cos(a); }); break;
      case OpCode::add: each(o, n, [](V a, V b, V) { return a + b; }); break;
      case OpCode::sub: each(o, n, [](V a, V b, V) { return a - b; }); break;
      case OpCode::mul: each(o, n, [](V a, V b, V) { return a * b; }); break;
      case OpCode::div: each(o, n, [](V a, V b, V) { return a / b; }); break;
      case OpCode::maximum: each(o, n, [](V a, V b, V) { return Fn::maximum(a, b); }); break;
      case OpCode::minimum: each(o, n, [](V a, V b, V) { return Fn::minimum(a, b); }); break;
      case OpCode::gt: each(o, n, [](V a, V b, V) { return Fn::gt(a, b); }); break;
      case OpCode::ge: each(o, n, [](V a, V b, V) { return Fn::ge(a, b); }); break;
      case OpCode::eq: each(o, n, [](V a, V b, V) { return Fn::eq(a, b); }); break;
      case OpCode::ne: each(o, n, [](V a, V b, V) { return Fn::ne(a, b); }); break;
      case OpCode::fma: each(o, n, [](V a, V b, V c) { return M::multiply_add(a, b, c); }); break;
      case OpCode::fms: each(o, n, [](V a, V b, V c) { return M::multiply_add(a, b, -c); }); break;
      case OpCode::fnma: each(o, n, [](V a, V b, V c) { return M::multiply_add(-a, b, c); }); break;
      case OpCode::where: each(o, n, [](V a, V b, V c) { return Fn::select(a, b, c); }); break;
    }
  }
}

template <class F>
FUSEDRNN_INLINE void run_pass(const BoundPass<F>& pass, F* const (&base)[kSpaces], Vectors n) {
  if (pass.compiled) return pass.compiled(base, pass.strides, n.rows, n.each);
  interpret<F>(pass, base, n);
}

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
