// The backward pass of a layer.
#pragma once

#include "layer.cuh"

namespace fusedrnn::cuda {

template <class E>
class LayerBackward : Layer<E> {
  using Base = Layer<E>;
  using typename Base::S;

 public:
  LayerBackward(const BackwardProblem& problem, const Context& context)
      : Base(problem, context, Pass::backward), b_(problem) {
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
    this->walks() ? walk() : walk_stepwise();
    for (int d = 0; d < D_; ++d) differentiate_weights(d);
    if (b_.grad_input) differentiate_input();
  }

 private:
  void walk() {
    this->copy_offsets();
    BackwardWalk<E> walk;
    this->describe(walk);
    walk.sizes = backward_sizes(p_.cell, plan_.walk.arithmetic, plan_.walk.size);
    walk.T = static_cast<int>(p_.T);
    for (int d = 0; d < D_; ++d) {
      auto& to = walk.direction[d];
      const auto state = [&](auto* states) { return states ? states + d * B_ * H_ : nullptr; };
      to.w_hh = Base::typed(p_.weights[d].w_hh);
      to.hx = state(Base::typed(p_.hx));
      to.grad_hn = state(Base::typed(b_.grad_hn)), to.grad_cn = state(Base::typed(b_.grad_cn));
      to.grad_hx = state(Base::typed(b_.grad_hx)), to.grad_cx = state(Base::typed(b_.grad_cx));
      to.grad_y = grad_y(d, 0);
      to.y = this->y(d, 0);
      to.save = this->reserve(d, 0);
      to.grads = at(grads_, d, 0, parts_ * H_);
    }
    this->with_walk([&](auto cell, auto arithmetic) {
      launch_backward<decltype(cell), decltype(arithmetic)>(plan_.walk, walk, D_, stream_);
    });
    if constexpr (!std::is_same_v<E, double>)  // no team walks in it
      if (wants_w_hh_) keep_states_before(walk);
  }
  void keep_states_before(const BackwardWalk<E>& walk) {
    StatesBefore<E> states;
    states.T = walk.T, states.B = walk.B, states.H = walk.H, states.y_row = walk.y_row;
    states.offsets = walk.offsets;
    for (int d = 0; d < D_; ++d)
      states.direction[d] = {walk.direction[d].y, walk.direction[d].hx, at(h_before_, d, 0, H_)};
    const dim3 grid(static_cast<unsigned>(p_.T), static_cast<unsigned>(D_),
                    static_cast<unsigned>(std::min<int64_t>(div_up(B_, 8), 1024)));
    launch("states before the steps", store_before<E>, grid, dim3(kBlockThreads), stream_, states);
  }

  void walk_stepwise() {
    const int64_t states = D_ * B_;
    w_hh_ = this->joined(&Weights::w_hh, w_hh_copy_, GH_ * R_);
    if (p_.P) w_hr_ = this->joined(&Weights::w_hr, w_hr_copy_, p_.P * H_);
    this->fill(dh_, b_.grad_hn, states * R_);
    if (p_.cell == Cell::lstm) this->fill(dc_, b_.grad_cn, states * H_);
    for (int64_t s = p_.T - 1; s >= 0; --s) {
      if (p_.P) project_gradient(s);
      if (this->divided())
        differentiate_parts(s);
      else
        differentiate_cells(s);
      if (s > 0 || b_.grad_hx) multiply_gradient(s);
    }
    if (b_.grad_hx) this->keep(b_.grad_hx, dh_, states * R_);
    if (b_.grad_cx) this->keep(b_.grad_cx, dc_, states * H_);
  }

  void place(Layout& layout) {
    const int64_t states = D_ * B_;
    layout.place(grads_, D_ * p_.rows * parts_ * H_);
    layout.place(h_before_, wants_w_hh_ ? D_ * p_.rows * R_ : 0);
    layout.place(sums_, wants_biases_ ? slices_of(p_.rows) * parts_ * H_ : 0);
    layout.place(grad_input_, sums_input() ? p_.rows * p_.I : 0);
    this->place_offsets(layout);
    if (this->walks()) return;
    layout.place(dh_, states * R_);
    layout.place(dc_, p_.cell == Cell::lstm ? states * H_ : 0);
    layout.place(w_hh_copy_, this->joined_count(GH_ * R_));
    layout.place(hidden_grad_, p_.P || this->divided() ? states * H_ : 0);
    layout.place(projected_grads_, p_.P ? D_ * p_.rows * p_.P : 0);
    const bool wants_hidden = wants_w_hr_ || (this->divided() && wants_w_hh_);
    layout.place(hidden_, wants_hidden ? D_ * p_.rows * H_ : 0);
    layout.place(w_hr_copy_, p_.P ? this->joined_count(p_.P * H_) : 0);
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
    const BackwardSteps<E> steps = describe_steps(s);
    this->with_cell(touched(), [&](auto cell, auto width) {
      launch_step<decltype(cell), decltype(width)::value>(s, steps);
    });
  }

  // A cell of two parts: dh stands in for their dc, so that all that reaches h before the step adds
  // up there. Between them is the product with the last part's weights, the gradient of its
  // operand.
  void differentiate_parts(int64_t s) {
    using First = GruResetBeforeCell::First;
    using Last = GruResetBeforeCell::Last;
    BackwardSteps<E> steps = describe_steps(s);
    for (int d = 0; d < D_; ++d) {
      BackwardStep<E>& to = steps.direction[d];
      to.dc = to.dh, to.dh = nullptr, to.h = nullptr;
    }
    this->template with_part<Last>(touched(), [&](auto part, auto width) {
      launch_step<decltype(part), decltype(width)::value>(s, steps);
    });
    const int64_t width = parts_ * H_, gate = Last::first_gate * H_;
    this->multiply_step(
        s, H_, Last::products * H_,
        {at(grads_, 0, this->step(0, s), width) + gate, width, false, between_directions(s, width)},
        {w_hh_ + gate * R_, R_, false, GH_ * R_},
        {hidden_grad_, H_, Storage<E>::sum_dtype, B_ * H_});
    for (int d = 0; d < D_; ++d) {
      BackwardStep<E>& to = steps.direction[d];
      to.grad_y = nullptr, to.h_before = nullptr;
      to.dh = hidden_grad_ + d * B_ * H_;
      to.h = at(hidden_, d, this->step(d, s), H_);
    }
    this->template with_part<First>(touched(), [&](auto part, auto width) {
      launch_step<decltype(part), decltype(width)::value>(s, steps);
    });
  }

  std::array<const void*, 4> touched() const {
    return {p_.hx, p_.output, p_.reserve, b_.grad_output};
  }

  BackwardSteps<E> describe_steps(int64_t s) const {
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
    return steps;
  }

  template <class C, int N>
  void launch_step(int64_t s, const BackwardSteps<E>& steps) {
    const Grid grid = grid_over(this->most_rows(s), H_, N, D_);
    launch("a backward step", backward_cell<C, E, N>, grid.grid, grid.block, stream_, steps);
  }

  // dh of the step before. The cell of a GRU left there what passes by the product.
  void multiply_gradient(int64_t s) {
    const int64_t width = parts_ * H_;
    const bool passes = p_.cell == Cell::gru || this->divided();
    this->multiply_step(
        s, R_, state_gates() * H_,
        {at(grads_, 0, this->step(0, s), width), width, false, between_directions(s, width)},
        {w_hh_, R_, false, GH_ * R_}, {dh_, R_, Storage<E>::sum_dtype, B_ * R_, passes});
  }

  // How many gates' product is with h itself; they come first.
  int64_t state_gates() const {
    return this->divided() ? GruResetBeforeCell::First::products : gates_of(p_.cell);
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
    if (to.w_hh) {
      const int64_t of_state = state_gates() * H_;
      products_.multiply(of_state, R_, rows, {grads, width, true}, {h_before_ + d * rows * R_, R_},
                         {to.w_hh, R_, dtype});
      if (this->divided())
        products_.multiply(GH_ - of_state, R_, rows, {grads + of_state, width, true},
                           {hidden_ + d * rows * H_, H_},
                           {Base::typed(to.w_hh) + of_state * R_, R_, dtype});
    }
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
  using Base::p_, Base::plan_, Base::products_, Base::stream_;

  const BackwardProblem& b_;
  int64_t parts_ = 0;  // of the gates' gradients: G, and one more for the GRU
  bool wants_w_hh_ = false, wants_w_hr_ = false, wants_biases_ = false;
  E* grads_ = nullptr;            // [D][rows][parts][H]
  E* h_before_ = nullptr;         // [D][rows][R]
  S* dh_ = nullptr;               // [D][B][R]
  S* dc_ = nullptr;               // [D][B][H]
  S* hidden_grad_ = nullptr;      // [D][B][H], projected: dh W_hr; of two parts: of the operand
  E* projected_grads_ = nullptr;  // [D][rows][P]
  E* hidden_ = nullptr;           // [D][rows][H], projected: h before its projection; of two
                                  // parts: the second one's operand
  S* sums_ = nullptr;             // [slices][parts][H]
  S* grad_input_ = nullptr;       // [rows][I]
  E *w_hh_copy_ = nullptr, *w_hr_copy_ = nullptr;
  const E *w_hh_ = nullptr, *w_hr_ = nullptr;
};

template <class E>
void layer_backward(const BackwardProblem& problem, const Context& context) {
  LayerBackward<E>(problem, context).run();
}

}  // namespace fusedrnn::cuda
