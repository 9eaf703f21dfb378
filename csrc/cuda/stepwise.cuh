// The stepwise tier: for each step one matrix product and one fused kernel, on any GPU and for any
// size. Everything that does not wait for a step is a large product before or after the walk.
//
//   forward    chunk of steps:  gates = X W_ih^T
//              each step:       product = h W_hh^T;  cell   (projected: h = cell W_hr^T)
//   backward   each step:       cell;  dh = dgates W_hh     (projected: dh = dh W_hr first)
//              then:            dX = dgates W_ih;  dW = dgates^T [X, h before];  db = sums of
//              dgates
//
// Both directions of a step are one product, batched, and one kernel; a packed call whose
// directions have different numbers of rows at a step takes a product for each. The order of a
// direction's steps: the first walks t = 0, 1, ..., the second T-1, T-2, ...; backward from the
// end.
//
// All is enqueued on one stream, nothing waits for the host: fit for capture in a CUDA graph.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../backend.h"
#include "cells.cuh"
#include "plan.h"
#include "product.h"
#include "rows.cuh"
#include "stepwise.h"

namespace fusedrnn {

// Scratch of a call: laid out twice, first to count the bytes, then to set the pointers. What is
// not needed is null.
class Layout {
 public:
  explicit Layout(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  void place(T*& pointer, int64_t count) {
    pointer = base_ && count ? reinterpret_cast<T*>(base_ + bytes_) : nullptr;
    bytes_ = round_up(bytes_ + count * static_cast<int64_t>(sizeof(T)), 256);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// What forward and backward share: sizes by short names, rows of a step, moves on the stream.
template <class E>
class Stepwise {
 protected:
  using S = Sum<E>;

  Stepwise(const Problem& problem, const Context& context)
      : p_(problem),
        context_(context),
        plan_(plan_cuda(problem)),
        products_(context, Storage<E>::dtype),
        stream_(static_cast<cudaStream_t>(context.stream)),
        D_(problem.directions),
        B_(problem.B),
        H_(problem.H),
        R_(problem.R()),
        GH_(gates_of(problem.cell) * problem.H),
        y_row_(problem.directions * problem.R()) {}

  // Calls layout(Layout&) to count, allocates, and calls it again to set the pointers.
  template <class F>
  void allocate(const F& layout) const {
    Layout count(nullptr);
    layout(count);
    void* const scratch = context_.allocate(count.bytes(), context_.owner);
    if (!scratch)
      throw std::runtime_error("out of memory: " + std::to_string(count.bytes()) +
                               " bytes of scratch of a layer could not be allocated; use a smaller "
                               "batch or fewer steps");
    Layout set(scratch);
    layout(set);
  }

  static const E* typed(const void* data) { return static_cast<const E*>(data); }
  static E* typed(void* data) { return static_cast<E*>(data); }

  int64_t step(int d, int64_t s) const { return d == 0 ? s : p_.T - 1 - s; }  // s: of the walk
  int64_t rows(int d, int64_t s) const { return p_.batch(step(d, s)); }
  const E* y(int d, int64_t t) const { return typed(p_.output) + p_.row(t, 0) * y_row_ + d * R_; }
  E* reserve(int d, int64_t t) const {
    if (!p_.reserve) return nullptr;
    return typed(p_.reserve) + (d * p_.rows + p_.row(t, 0)) * saved_of(p_.cell) * p_.Hp();
  }
  StateBefore<E> before(int d, int64_t s) const {
    StateBefore<E> state;
    state.hx = p_.hx ? typed(p_.hx) + d * B_ * R_ : nullptr;
    if (s > 0) state.y = y(d, step(d, s - 1)), state.rows = rows(d, s - 1);
    return state;
  }

  bool same_rows(int64_t s) const { return D_ == 1 || rows(0, s) == rows(1, s); }

  // A product of one step for all directions: a batch of two where both have as many rows.
  void multiply_step(int64_t s, int64_t N, int64_t K, const Operand& a, const Operand& b,
                     const Result& c) const {
    if (same_rows(s)) return products_.multiply(rows(0, s), N, K, a, b, c, D_);
    for (int d = 0; d < D_; ++d) {
      Operand a_of = a, b_of = b;
      Result c_of = c;
      a_of.data = typed(a.data) + d * a.batch;
      b_of.data = typed(b.data) + d * b.batch;
      c_of.data = static_cast<S*>(c.data) + d * c.batch;
      products_.multiply(rows(d, s), N, K, a_of, b_of, c_of);
    }
  }

  void copy(void* to, const void* from, int64_t bytes) const {
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_),
          "copying");
  }
  void clear(void* to, int64_t bytes) const {
    check(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream_), "clearing");
  }
  template <class To>
  void fill(To* to, const void* from, int64_t count) const {  // zeros if from is null
    if (!from) return clear(to, count * static_cast<int64_t>(sizeof(To)));
    if constexpr (sizeof(To) == sizeof(E))
      copy(to, from, count * static_cast<int64_t>(sizeof(E)));
    else
      convert(typed(from), to, count, stream_);
  }
  void keep(void* to, const S* from, int64_t count) const {  // a state for the caller
    if constexpr (kIsHalf<E>)
      convert(from, typed(to), count, stream_);
    else if (to != from)
      copy(to, from, count * static_cast<int64_t>(sizeof(E)));
  }

  // One direction's weights where they are; both behind each other in scratch, for a batch.
  const E* joined(const void* Weights::* weight, E* scratch, int64_t count) const {
    if (D_ == 1) return typed(p_.weights[0].*weight);
    for (int d = 0; d < D_; ++d)
      copy(scratch + d * count, p_.weights[d].*weight, count * static_cast<int64_t>(sizeof(E)));
    return scratch;
  }
  int64_t joined_count(int64_t count) const { return D_ == 1 ? 0 : D_ * count; }

  // The largest batch of a step, over both directions.
  int64_t most_rows(int64_t s) const {
    int64_t most = 0;
    for (int d = 0; d < D_; ++d) most = std::max(most, rows(d, s));
    return most;
  }

  // Runs f<C, N>() for the cell and for one unit per thread or 16 bytes of them.
  template <class F>
  void with_cell(std::initializer_list<const void*> touched, const F& f) const {
    bool wide = plan_.units_per_thread > 1 && R_ * static_cast<int64_t>(sizeof(E)) % 16 == 0;
    for (const void* pointer : touched) wide &= reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
    switch (p_.cell) {
      case Cell::lstm: return with_width<LstmCell>(wide, f);
      case Cell::gru: return with_width<GruCell>(wide, f);
      case Cell::rnn_tanh: return with_width<RnnCell<true>>(wide, f);
      default: return with_width<RnnCell<false>>(wide, f);
    }
  }

  const Problem& p_;
  const Context& context_;
  const CudaPlan plan_;
  const Products products_;
  const cudaStream_t stream_;
  const int D_;
  const int64_t B_, H_, R_, GH_, y_row_;

 private:
  template <class C, class F>
  void with_width(bool wide, const F& f) const {
    wide ? f(C(), std::integral_constant<int, 16 / sizeof(E)>())
         : f(C(), std::integral_constant<int, 1>());
  }
};

template <class E>
class StepwiseForward : Stepwise<E> {
  using Base = Stepwise<E>;
  using typename Base::S;

 public:
  StepwiseForward(const Problem& problem, const Context& context) : Base(problem, context) {}

  void run() {
    this->allocate([this](Layout& layout) { place(layout); });
    const int64_t states = D_ * B_;
    w_hh_ = this->joined(&Weights::w_hh, w_hh_copy_, GH_ * R_);
    if (p_.P) w_hr_ = this->joined(&Weights::w_hr, w_hr_copy_, p_.P * H_);
    h_ = Base::typed(p_.hn);
    this->fill(h_, p_.hx, states * R_);
    if (p_.cell == Cell::lstm) this->fill(c_, p_.cx, states * H_);
    for (int64_t s = 0; s < p_.T; ++s) {
      if (s % plan_.forward_steps == 0) project_input(s);
      multiply_state(s);
      update_state(s);
      if (p_.P) project_state(s);
    }
    if (p_.cell == Cell::lstm) this->keep(p_.cn, c_, states * H_);
  }

 private:
  void place(Layout& layout) {
    // Steps of a chunk have at most as many rows as its first for one direction, its last for the
    // other; B each is an upper bound that packed calls rarely reach.
    chunk_rows_ = std::min(plan_.forward_steps * B_, p_.rows);
    layout.place(gates_, D_ * chunk_rows_ * GH_);
    layout.place(product_, D_ * B_ * GH_);
    layout.place(w_hh_copy_, this->joined_count(GH_ * R_));
    layout.place(hidden_, p_.P ? D_ * B_ * H_ : 0);
    layout.place(projected_, p_.P ? D_ * B_ * p_.P : 0);
    layout.place(w_hr_copy_, p_.P ? this->joined_count(p_.P * H_) : 0);
    if (p_.cell != Cell::lstm) return;
    if (kIsHalf<E>)
      layout.place(c_, D_ * B_ * H_);
    else
      c_ = static_cast<S*>(p_.cn);
  }

  // The gates of the next `forward_steps` steps of each direction, in the order of t.
  void project_input(int64_t s) {
    const int64_t last = std::min(s + plan_.forward_steps, p_.T) - 1;
    for (int d = 0; d < D_; ++d) {
      const int64_t first_t = std::min(this->step(d, s), this->step(d, last));
      const int64_t last_t = std::max(this->step(d, s), this->step(d, last));
      first_row_[d] = p_.row(first_t, 0);
      const int64_t rows = p_.row(last_t, 0) + p_.batch(last_t) - first_row_[d];
      products_.multiply(rows, GH_, p_.I,
                         {Base::typed(p_.input) + first_row_[d] * p_.input_row, p_.input_row},
                         {p_.weights[d].w_ih, p_.I, true},
                         {gates_ + d * chunk_rows_ * GH_, GH_, Storage<E>::sum_dtype});
    }
  }

  void multiply_state(int64_t s) {
    this->multiply_step(s, GH_, R_, {h_, R_, false, B_ * R_}, {w_hh_, R_, true, GH_ * R_},
                        {product_, GH_, Storage<E>::sum_dtype, B_ * GH_});
  }

  void update_state(int64_t s) {
    ForwardSteps<E> steps;
    steps.H = H_, steps.Hp = p_.Hp();
    for (int d = 0; d < D_; ++d) {
      const int64_t t = this->step(d, s);
      ForwardStep<E>& to = steps.direction[d];
      to.rows = this->rows(d, s);
      to.gates = gates_ + (d * chunk_rows_ + p_.row(t, 0) - first_row_[d]) * GH_;
      to.product = product_ + d * B_ * GH_;
      to.b_ih = Base::typed(p_.weights[d].b_ih);
      to.b_hh = Base::typed(p_.weights[d].b_hh);
      to.h = p_.P ? hidden_ + d * B_ * H_ : h_ + d * B_ * H_;
      to.c = c_ + (c_ ? d * B_ * H_ : 0);
      to.y = p_.P ? nullptr : const_cast<E*>(this->y(d, t));
      to.y_row = y_row_;
      to.save = this->reserve(d, t);
    }
    const Weights *const first = &p_.weights[0], *const second = &p_.weights[D_ - 1];
    this->with_cell(
        {first->b_ih, first->b_hh, second->b_ih, second->b_hh, p_.output, p_.hn, p_.cn, p_.reserve},
        [&](auto cell, auto width) {
          constexpr int N = decltype(width)::value;
          const int64_t units = p_.reserve ? p_.Hp() : H_;
          const Grid grid = grid_over(this->most_rows(s), units, N, D_);
          launch("a forward step", forward_cell<decltype(cell), E, N>, grid.grid, grid.block,
                 stream_, steps);
        });
  }

  void project_state(int64_t s) {
    this->multiply_step(s, p_.P, H_, {hidden_, H_, false, B_ * H_}, {w_hr_, H_, true, p_.P * H_},
                        {projected_, p_.P, Storage<E>::sum_dtype, B_ * p_.P});
    ProjectedSteps<E> steps;
    steps.P = p_.P, steps.y_row = y_row_;
    for (int d = 0; d < D_; ++d) {
      auto& to = steps.direction[d];
      to.rows = this->rows(d, s);
      to.projected = projected_ + d * B_ * p_.P;
      to.h = h_ + d * B_ * p_.P;
      to.y = const_cast<E*>(this->y(d, this->step(d, s)));
    }
    const Grid grid = grid_over(this->most_rows(s), p_.P, 1, D_);
    launch("a projected step", store_projected<E>, grid.grid, grid.block, stream_, steps);
  }

  using Base::D_, Base::B_, Base::H_, Base::R_, Base::GH_, Base::y_row_;
  using Base::p_, Base::plan_, Base::products_, Base::stream_;

  int64_t chunk_rows_ = 0;
  int64_t first_row_[kMaxDirections] = {};  // of the chunk in gates_
  S* gates_ = nullptr;                      // [D][chunk_rows][G][H]
  S* product_ = nullptr;                    // [D][B][G][H]
  E* h_ = nullptr;                          // [D][B][R], which is hn
  S* c_ = nullptr;                          // [D][B][H], which is cn but in half precision
  E* hidden_ = nullptr;                     // [D][B][H], before its projection
  S* projected_ = nullptr;                  // [D][B][P]
  E *w_hh_copy_ = nullptr, *w_hr_copy_ = nullptr;
  const E *w_hh_ = nullptr, *w_hr_ = nullptr;
};

template <class E>
class StepwiseBackward : Stepwise<E> {
  using Base = Stepwise<E>;
  using typename Base::S;

 public:
  StepwiseBackward(const BackwardProblem& problem, const Context& context)
      : Base(problem, context), b_(problem) {
    parts_ = gates_of(p_.cell) + (p_.cell == Cell::gru);
    for (int d = 0; d < D_; ++d) {
      const WeightGradients& wanted = b_.grad_weights[d];
      wants_w_hh_ |= wanted.w_hh != nullptr;
      wants_w_hr_ |= wanted.w_hr != nullptr;
      wants_biases_ |= wanted.b_ih || wanted.b_hh;
    }
  }

  void run() {
    this->allocate([this](Layout& layout) { place(layout); });
    const int64_t states = D_ * B_;
    w_hh_ = this->joined(&Weights::w_hh, w_hh_copy_, GH_ * R_);
    if (p_.P) w_hr_ = this->joined(&Weights::w_hr, w_hr_copy_, p_.P * H_);
    this->fill(dh_, b_.grad_hn, states * R_);
    if (p_.cell == Cell::lstm) this->fill(dc_, b_.grad_cn, states * H_);
    for (int64_t s = p_.T - 1; s >= 0; --s) {
      if (p_.P) project_gradient(s);
      differentiate_cells(s);
      if (s > 0 || b_.grad_hx) multiply_gradient(s);
    }
    if (b_.grad_hx) this->keep(b_.grad_hx, dh_, states * R_);
    if (b_.grad_cx) this->keep(b_.grad_cx, dc_, states * H_);
    for (int d = 0; d < D_; ++d) differentiate_weights(d);
    if (b_.grad_input) differentiate_input();
  }

 private:
  void place(Layout& layout) {
    const int64_t states = D_ * B_;
    layout.place(grads_, D_ * p_.rows * parts_ * H_);
    layout.place(h_before_, wants_w_hh_ ? D_ * p_.rows * R_ : 0);
    layout.place(dh_, states * R_);
    layout.place(dc_, p_.cell == Cell::lstm ? states * H_ : 0);
    layout.place(w_hh_copy_, this->joined_count(GH_ * R_));
    layout.place(hidden_grad_, p_.P ? states * H_ : 0);
    layout.place(projected_grads_, p_.P ? D_ * p_.rows * p_.P : 0);
    layout.place(hidden_, wants_w_hr_ ? D_ * p_.rows * H_ : 0);
    layout.place(w_hr_copy_, p_.P ? this->joined_count(p_.P * H_) : 0);
    layout.place(sums_, wants_biases_ ? slices_of(p_.rows) * parts_ * H_ : 0);
    layout.place(grad_input_, sums_input() ? p_.rows * p_.I : 0);
  }

  // The place of step t in an array of [D][rows][width].
  template <class T>
  T* at(T* array, int d, int64_t t, int64_t width) const {
    return array ? array + (d * p_.rows + p_.row(t, 0)) * width : nullptr;
  }
  const E* grad_y(int d, int64_t t) const {
    if (!b_.grad_output) return nullptr;
    return Base::typed(b_.grad_output) + p_.row(t, 0) * y_row_ + d * R_;
  }
  // Elements from direction 0's rows at step s to direction 1's, in an array of [D][rows][width].
  int64_t between_directions(int64_t s, int64_t width) const {
    return (p_.rows + p_.row(this->step(1, s), 0) - p_.row(this->step(0, s), 0)) * width;
  }

  void project_gradient(int64_t s) {
    ProjectedGradients<E> steps;
    steps.P = p_.P, steps.y_row = y_row_;
    for (int d = 0; d < D_; ++d) {
      const int64_t t = this->step(d, s);
      auto& to = steps.direction[d];
      to.rows = this->rows(d, s);
      to.grad_y = grad_y(d, t);
      to.dh = dh_ + d * B_ * p_.P;
      to.before = this->before(d, s);
      to.h_before = at(h_before_, d, t, p_.P);
      to.grads = at(projected_grads_, d, t, p_.P);
    }
    const Grid grid = grid_over(this->most_rows(s), p_.P, 1, D_);
    launch("a projected backward step", add_projected<E>, grid.grid, grid.block, stream_, steps);
    this->multiply_step(
        s, H_, p_.P,
        {at(projected_grads_, 0, this->step(0, s), p_.P), p_.P, false, between_directions(s, p_.P)},
        {w_hr_, H_, false, p_.P * H_}, {hidden_grad_, H_, Storage<E>::sum_dtype, B_ * H_});
  }

  void differentiate_cells(int64_t s) {
    BackwardSteps<E> steps;
    steps.H = H_, steps.Hp = p_.Hp(), steps.y_row = y_row_;
    for (int d = 0; d < D_; ++d) {
      const int64_t t = this->step(d, s);
      BackwardStep<E>& to = steps.direction[d];
      to.rows = this->rows(d, s);
      to.grad_y = p_.P ? nullptr : grad_y(d, t);
      to.dh = (p_.P ? hidden_grad_ : dh_) + d * B_ * H_;
      to.dc = dc_ + (p_.cell == Cell::lstm ? d * B_ * H_ : 0);
      to.save = this->reserve(d, t);
      to.y = this->y(d, t);
      to.before = this->before(d, s);
      to.h_before = p_.P ? nullptr : at(h_before_, d, t, H_);
      to.h = at(hidden_, d, t, H_);
      to.grads = at(grads_, d, t, parts_ * H_);
    }
    this->with_cell({p_.hx, p_.output, p_.reserve, b_.grad_output}, [&](auto cell, auto width) {
      constexpr int N = decltype(width)::value;
      const Grid grid = grid_over(this->most_rows(s), H_, N, D_);
      launch("a backward step", backward_cell<decltype(cell), E, N>, grid.grid, grid.block, stream_,
             steps);
    });
  }

  // dh of the step before. The GRU's cell left there what passes by the product.
  void multiply_gradient(int64_t s) {
    const int64_t width = parts_ * H_;
    this->multiply_step(
        s, R_, GH_,
        {at(grads_, 0, this->step(0, s), width), width, false, between_directions(s, width)},
        {w_hh_, R_, false, GH_ * R_},
        {dh_, R_, Storage<E>::sum_dtype, B_ * R_, p_.cell == Cell::gru});
  }

  // The parts of the gates' gradients that belong to the input's projection: one range of columns,
  // for the GRU two. f(column of the gradients, row of W_ih, how many)
  template <class F>
  void for_input_parts(const F& f) const {
    if (p_.cell != Cell::gru) return f(0, 0, GH_);
    f(0, 0, 2 * H_);
    f(3 * H_, 2 * H_, H_);
  }

  void differentiate_weights(int d) {
    const WeightGradients& to = b_.grad_weights[d];
    const int64_t rows = p_.rows, width = parts_ * H_;
    const E* const grads = grads_ + d * rows * width;
    constexpr Dtype dtype = Storage<E>::dtype;
    if (to.w_hh)
      products_.multiply(GH_, R_, rows, {grads, width, true}, {h_before_ + d * rows * R_, R_},
                         {to.w_hh, R_, dtype});
    if (to.w_ih)
      for_input_parts([&](int64_t column, int64_t gate, int64_t count) {
        products_.multiply(count, p_.I, rows, {grads + column, width, true},
                           {p_.input, p_.input_row},
                           {Base::typed(to.w_ih) + gate * p_.I, p_.I, dtype});
      });
    if (to.w_hr)
      products_.multiply(p_.P, H_, rows, {projected_grads_ + d * rows * p_.P, p_.P, true},
                         {hidden_ + d * rows * H_, H_}, {to.w_hr, H_, dtype});
    if (to.b_ih || to.b_hh) differentiate_biases(to, grads);
  }

  void differentiate_biases(const WeightGradients& to, const E* grads) {
    const auto blocks = [](int64_t n, int64_t each) {
      return static_cast<unsigned>(div_up(n, each));
    };
    BiasGradients<E> sums;
    sums.partial = sums_;
    sums.slices = slices_of(p_.rows), sums.columns = parts_ * H_, sums.gates = GH_;
    sums.shared = p_.cell == Cell::gru ? 2 * H_ : GH_;
    sums.b_ih = Base::typed(to.b_ih), sums.b_hh = Base::typed(to.b_hh);
    launch("sums of bias gradients", sum_slices<E>,
           dim3(blocks(sums.columns, kSumColumns), static_cast<unsigned>(sums.slices)),
           dim3(kSumColumns, kSumWarps), stream_, grads, p_.rows, sums.columns, sums_);
    launch("bias gradients", store_biases<E>, dim3(blocks(sums.columns, kBlockThreads)),
           dim3(kBlockThreads), stream_, sums);
  }

  // Several products add up to it: in half precision, in a copy that keeps the whole sum.
  bool sums_input() const {
    return b_.grad_input && kIsHalf<E> && (D_ > 1 || p_.cell == Cell::gru);
  }
  void differentiate_input() {
    const int64_t width = parts_ * H_;
    void* const to = grad_input_ ? static_cast<void*>(grad_input_) : b_.grad_input;
    const Dtype dtype = grad_input_ ? Storage<E>::sum_dtype : Storage<E>::dtype;
    bool accumulate = false;
    for (int d = 0; d < D_; ++d)
      for_input_parts([&](int64_t column, int64_t gate, int64_t count) {
        products_.multiply(p_.rows, p_.I, count, {grads_ + d * p_.rows * width + column, width},
                           {Base::typed(p_.weights[d].w_ih) + gate * p_.I, p_.I},
                           {to, p_.I, dtype, 0, accumulate});
        accumulate = true;
      });
    if constexpr (kIsHalf<E>)
      if (grad_input_) convert(grad_input_, Base::typed(b_.grad_input), p_.rows * p_.I, stream_);
  }

  using Base::D_, Base::B_, Base::H_, Base::R_, Base::GH_, Base::y_row_;
  using Base::p_, Base::products_, Base::stream_;

  const BackwardProblem& b_;
  int64_t parts_ = 0;  // of the gates' gradients: G, and one more for the GRU
  bool wants_w_hh_ = false, wants_w_hr_ = false, wants_biases_ = false;
  E* grads_ = nullptr;            // [D][rows][parts][H]
  E* h_before_ = nullptr;         // [D][rows][R]
  S* dh_ = nullptr;               // [D][B][R]
  S* dc_ = nullptr;               // [D][B][H]
  S* hidden_grad_ = nullptr;      // [D][B][H], projected: dh W_hr
  E* projected_grads_ = nullptr;  // [D][rows][P]
  E* hidden_ = nullptr;           // [D][rows][H], projected: h before its projection
  S* sums_ = nullptr;             // [slices][parts][H]
  S* grad_input_ = nullptr;       // [rows][I]
  E *w_hh_copy_ = nullptr, *w_hr_copy_ = nullptr;
  const E *w_hh_ = nullptr, *w_hr_ = nullptr;
};

template <class E>
void stepwise_forward(const Problem& problem, const Context& context) {
  StepwiseForward<E>(problem, context).run();
}
template <class E>
void stepwise_backward(const BackwardProblem& problem, const Context& context) {
  StepwiseBackward<E>(problem, context).run();
}

}  // namespace fusedrnn
