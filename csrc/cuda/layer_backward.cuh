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
    grads_row_ = facts_.grads * H_;
    wants_first_ = b_.grad_hx[0] || b_.grad_reset_states[0];
    for_input_ranges([this](int64_t, int64_t, int64_t) { ++input_ranges_; });
    for (int d = 0; d < D_; ++d) {
      const WeightGradients& wanted = b_.grad_weights[d];
      wants_w_hh_ |= wanted.w_hh != nullptr;
      wants_w_hr_ |= wanted.w_hr != nullptr;
      wants_sums_ |= wanted.b_ih || wanted.b_hh || wanted.w_unit;
    }
  }

  void run() {
    this->allocate([this](Arena& arena) { place(arena); });
    this->walks() ? walk() : walk_stepwise();
    for (int d = 0; d < D_; ++d) differentiate_weights(d);
    if (b_.grad_input) differentiate_input();
  }

 private:
  // Whether a team's walk has more to do than in most calls.
  bool is_modified() const { return b_.has_grad_states() || p_.modifiers.any(); }
  void walk() {
    this->copy_offsets();
    BackwardWalk<E> walk;
    this->describe(walk);
    walk.sizes = backward_sizes(walked_cell(facts_), plan_.walk.arithmetic, plan_.walk.size);
    walk.wants_first = wants_first_;
    walk.modified = is_modified();
    for (int d = 0; d < D_; ++d) {
      auto& to = walk.direction[d];
      to.w_hh = this->walked_w_hh(d, w_hh_copy_);
      to.w_unit = Base::typed(p_.weights[d].w_unit);
      to.hx = this->of_direction(Base::typed(p_.hx[0]), d, H_);
      for (int i = 0; i < facts_.states; ++i) {
        to.grad_hn[i] = this->of_direction(Base::typed(b_.grad_hn[i]), d, H_);
        to.grad_hx[i] = this->of_direction(Base::typed(b_.grad_hx[i]), d, H_);
        to.grad_reset_states[i] = cuda::of_direction<S>(b_.grad_reset_states[i], d);
      }
      for (int i = 1; i < facts_.states; ++i)
        if (b_.grad_states[i]) to.grad_states[i - 1] = Base::typed(b_.grad_states[i]) + d * H_;
      to.modifiers = this->modifiers(d);
      to.notes = this->of_direction(notes_, d, backward_notes(facts_.states) * H_);
      to.grad_y = grad_y(d, 0);
      to.y = this->y(d, 0);
      to.save = this->reserve(d, 0);
      to.grads = at(grads_, d, 0, grads_row_);
    }
    const auto kernel = plan_.walk.size.fixed ? this->fixed_walk().backward
                                              : this->walk_kernels().walk_backward[this->of_team()];
    launch_teams("the backward walk", kernel, walk, plan_.walk, D_, stream_);
    if constexpr (!std::is_same_v<E, double>)  // no team walks in it
      if (wants_w_hh_) keep_states_before(walk);
  }
  void keep_states_before(const BackwardWalk<E>& walk) {
    StatesBefore<E> states;
    states.T = walk.T, states.B = walk.B, states.H = walk.H, states.y_row = walk.y_row;
    states.offsets = walk.offsets;
    for (int d = 0; d < D_; ++d)
      states.direction[d] = {walk.direction[d].y, walk.direction[d].hx, at(h_before_, d, 0, H_),
                             walk.direction[d].modifiers};
    const dim3 grid(static_cast<unsigned>(p_.T), static_cast<unsigned>(D_),
                    static_cast<unsigned>(std::min<int64_t>(div_up(B_, 8), 1024)));
    launch("states before the steps", store_before<E>, grid, dim3(kBlockThreads), stream_, states);
  }

  void walk_stepwise() {
    const int64_t states = D_ * B_;
    w_hh_ = this->in_order(&Weights::w_hh, w_hh_copy_, R_);
    if (p_.P) w_hr_ = this->joined(&Weights::w_hr, w_hr_copy_, p_.P * H_);
    wide_ = this->has_wide_rows() &&
            Base::are_aligned(p_.hx[0], p_.output, p_.reserve, b_.grad_output) &&
            Base::are_aligned(p_.weights[0].w_unit, p_.weights[1].w_unit) &&
            this->are_modifiers_aligned() && Base::are_aligned(b_.grad_step_inputs);
    for (const void* states : b_.grad_states) wide_ = wide_ && Base::are_aligned(states);
    this->fill(dh_, b_.grad_hn[0], states * R_);
    for (int i = 1; i < facts_.states; ++i) this->fill(dstate_[i], b_.grad_hn[i], states * H_);
    for (int64_t s = p_.T - 1; s >= 0; --s) {
      if (p_.P) project_gradient(s);
      for (int k = this->last_stage(); k >= 0; --k) differentiate_stage(s, k);
      if (this->has_boundaries()) leave(s);
    }
    if (b_.grad_hx[0]) this->keep(b_.grad_hx[0], dh_, states * R_);
    for (int i = 1; i < facts_.states; ++i)
      if (b_.grad_hx[i]) this->keep(b_.grad_hx[i], dstate_[i], states * H_);
  }

  void place(Arena& arena) {
    const int64_t states = D_ * B_, rows = D_ * p_.rows;
    const bool divided = facts_.stages > 1;
    arena.place(grads_, rows * grads_row_);
    arena.place(h_before_, wants_w_hh_ ? rows * R_ : 0);
    arena.place(sums_, wants_sums_ ? slices_of(p_.rows) * grads_row_ : 0);
    arena.place(grad_input_, sums_input() ? p_.rows * p_.I : 0);
    this->place_offsets(arena);
    if (this->walks()) {
      arena.place(notes_, is_modified() ? states * backward_notes(facts_.states) * H_ : 0);
      arena.place(w_hh_copy_, this->moved_w_hh_count());
      return;
    }
    arena.place(dh_, states * R_);
    for (int i = 1; i < facts_.states; ++i)
      arena.place(kept_[i], divided && p_.modifiers.keep[i] ? states * H_ : 0);
    arena.place(masked_grad_, p_.modifiers.recurrent_factor ? states * R_ : 0);
    for (int i = 1; i < facts_.states; ++i) arena.place(dstate_[i], states * H_);
    arena.place(w_hh_copy_, this->in_order_count(R_));
    arena.place(hidden_grad_, p_.P ? states * H_ : 0);
    arena.place(operand_grad_, divided ? states * H_ : 0);
    arena.place(handed_, states * kernels_.handed_back * H_);
    arena.place(projected_grads_, p_.P ? rows * p_.P : 0);
    arena.place(hidden_, wants_w_hr_ ? rows * H_ : 0);
    arena.place(operands_, wants_w_hh_ ? this->last_stage() * rows * H_ : 0);
    arena.place(w_hr_copy_, p_.P ? this->joined_count(p_.P * H_) : 0);
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
      to.factor = this->factor(d, s), to.keep = this->keep_of(0, d, s);
    }
    const Grid grid = grid_over(this->most_rows(s), p_.P, 1, D_);
    launch("a projected backward step", add_projected<E>, grid.grid, grid.block, stream_, steps);
    this->multiply_step(
        s, H_, p_.P,
        {at(projected_grads_, 0, this->step(0, s), p_.P), p_.P, false, between_directions(s, p_.P)},
        {w_hr_, H_, false, p_.P * H_}, {hidden_grad_, H_, Storage<E>::sum_dtype, B_ * H_});
  }

  // A stage's kernel, and the product after it: the gradient of what the stage multiplies.
  void differentiate_stage(int64_t s, int k) {
    const StageKernels<E>& stage = kernels_.stages[k];
    this->launch_stage("a backward step", stage.backward, s, H_, wide_, describe_stage(s, k));
    if (k == 0 && s == 0 && !wants_first_) return;
    const int64_t gate = stage.first_gate * H_;
    S* const to = k > 0 ? operand_grad_ : masked_grad_ ? masked_grad_ : dh_;
    const bool adds = to == dh_ && passes();  // kernels left there what passes by products
    if (!stage.products) {
      if (!adds) this->clear(to, D_ * B_ * R_ * static_cast<int64_t>(sizeof(S)));
      return;
    }
    this->multiply_step(s, R_, stage.products * H_,
                        {at(grads_, 0, this->step(0, s), grads_row_) + gate, grads_row_, false,
                         between_directions(s, grads_row_)},
                        {w_hh_ + gate * R_, R_, false, hidden_rows_ * R_},
                        {to, R_, Storage<E>::sum_dtype, B_ * R_, adds});
  }
  // Whether some of the gradient of h passes by the products.
  bool passes() const { return facts_.has_carry || p_.modifiers.keep[0]; }

  // What goes on to the step before, if modifiers have a say in it.
  void leave(int64_t s) {
    LeftSteps<E> steps;
    steps.R = R_, steps.H = H_;
    for (int d = 0; d < D_; ++d) {
      auto& to = steps.direction[d];
      to.rows = this->rows(d, s);
      to.boundary = this->boundary(d, s);
      if (s > 0 || wants_first_) to.dh = this->of_direction(dh_, d, R_);
      for (int i = 1; i < facts_.states; ++i)
        to.dstate[i - 1] = this->of_direction(dstate_[i], d, H_);
      to.factor = this->factor(d, s);
      to.product = this->of_direction(masked_grad_, d, R_), to.passes = passes();
      for (int i = 0; to.boundary.flags && i < facts_.states; ++i)
        to.grad_reset_states[i] =
            Base::template of_step<S>(b_.grad_reset_states[i], d, this->after_boundary(d, s));
    }
    const Grid grid = grid_over(this->most_rows(s), std::max(R_, H_), 1, D_);
    launch("leaving a step", leave_step<E>, grid.grid, grid.block, stream_, steps);
  }

  BackwardSteps<E> describe_stage(int64_t s, int k) const {
    const bool last = k == this->last_stage();
    BackwardSteps<E> steps;
    steps.H = H_, steps.Hp = p_.Hp(), steps.y_row = y_row_, steps.states_row = D_ * H_;
    for (int d = 0; d < D_; ++d) {
      const int64_t t = this->step(d, s);
      BackwardStep<E>& to = steps.direction[d];
      to.rows = this->rows(d, s);
      to.grad_y = last && !p_.P ? grad_y(d, t) : nullptr;
      to.dresult = this->of_direction(!last ? operand_grad_ : p_.P ? hidden_grad_ : dh_, d, H_);
      to.carry = this->of_direction(dh_, d, R_);
      for (int i = 1; i < facts_.states; ++i) {
        to.dstate[i - 1] = this->of_direction(dstate_[i], d, H_);
        to.kept[i - 1] = kept_[i] ? this->of_direction(kept_[i], d, H_) : to.dstate[i - 1];
        to.grad_states[i - 1] = this->of_states(Base::typed(b_.grad_states[i]), d, s);
        to.keep[i] = this->keep_of(i, d, s);
      }
      if (!p_.P) to.keep[0] = this->keep_of(0, d, s);
      to.factor = this->factor(d, s);
      to.save = this->reserve(d, t);
      to.w_unit = Base::typed(p_.weights[d].w_unit);
      to.y = this->y(d, t);
      to.before = this->before(d, s);
      to.h_before = last && !p_.P ? at(h_before_, d, t, H_) : nullptr;
      to.handed = this->of_direction(handed_, d, kernels_.handed_back * H_);
      to.result = at(last ? hidden_ : operand_of(k + 1), d, t, H_);
      to.grads = at(grads_, d, t, grads_row_);
      steps.step_inputs[d] = this->step_inputs(d, s);
      steps.of_step_inputs[d] = Base::template of_step<E>(b_.grad_step_inputs, d, t);
    }
    return steps;
  }

  // What a stage after the first multiplied, of all steps; null if that is not asked for.
  E* operand_of(int k) const {
    return operands_ ? operands_ + (k - 1) * D_ * p_.rows * H_ : nullptr;
  }

  // The gates' gradients that belong to the input's projection. Of most cells they are one range of
  // columns, and those of late inputs. f(column of the gradients, row of W_ih, how many)
  template <class F>
  void for_input_ranges(const F& f) const {
    for_each_range(order_.column_of_input, facts_.inputs,
                   [&](int gate, int column, int count) { f(column * H_, gate * H_, count * H_); });
  }

  void differentiate_weights(int d) {
    const WeightGradients& to = b_.grad_weights[d];
    const int64_t rows = p_.rows, width = grads_row_;
    const E* const grads = grads_ + d * rows * width;
    constexpr Dtype dtype = Storage<E>::dtype;
    for (int k = 0; to.w_hh && k < facts_.stages; ++k) {
      const StageKernels<E>& stage = kernels_.stages[k];
      const E* const operand = (k == 0 ? h_before_ : operand_of(k)) + d * rows * R_;
      for_each_range(order_.gate_of_product + stage.first_gate, stage.products,
                     [&](int at, int gate, int count) {
                       const int64_t column = (stage.first_gate + at) * H_;
                       products_.multiply(count * H_, R_, rows, {grads + column, width, true},
                                          {operand, R_},
                                          {Base::typed(to.w_hh) + gate * H_ * R_, R_, dtype});
                     });
    }
    if (to.w_ih)
      for_input_ranges([&](int64_t column, int64_t gate, int64_t count) {
        products_.multiply(count, p_.I, rows, {grads + column, width, true},
                           {p_.input, p_.input_row},
                           {Base::typed(to.w_ih) + gate * p_.I, p_.I, dtype});
      });
    if (to.w_hr)
      products_.multiply(p_.P, H_, rows, {projected_grads_ + d * rows * p_.P, p_.P, true},
                         {hidden_ + d * rows * H_, H_}, {to.w_hr, H_, dtype});
    if (to.b_ih || to.b_hh || to.w_unit) sum_over_rows(to, grads);
  }

  // Gradients of the biases and of the unit weights.
  void sum_over_rows(const WeightGradients& to, const E* grads) {
    const auto blocks = [](int64_t n, int64_t each) {
      return static_cast<unsigned>(div_up(n, each));
    };
    RowSums<E> sums;
    sums.partial = sums_;
    sums.slices = slices_of(p_.rows), sums.columns = grads_row_, sums.H = H_;
    sums.products = facts_.products, sums.first_unit = facts_.first_unit_grad;
    for (int gate = 0; gate < facts_.inputs; ++gate)
      sums.input_of[order_.column_of_input[gate]] = static_cast<signed char>(1 + gate);
    std::copy_n(order_.gate_of_product, facts_.products, sums.gate_of_product);
    sums.b_ih = Base::typed(to.b_ih), sums.b_hh = Base::typed(to.b_hh);
    sums.w_unit = Base::typed(to.w_unit);
    launch("sums of gradients over rows", sum_slices<E>,
           dim3(blocks(sums.columns, kSumColumns), static_cast<unsigned>(sums.slices)),
           dim3(kSumColumns, kSumWarps), stream_, grads, p_.rows, sums.columns, sums_);
    launch("bias gradients", store_sums<E>, dim3(blocks(sums.columns, kBlockThreads)),
           dim3(kBlockThreads), stream_, sums);
  }

  // Several products add up to it: in half precision, in a copy that keeps the whole sum.
  bool sums_input() const { return b_.grad_input && kIsHalf<E> && D_ * input_ranges_ > 1; }
  void differentiate_input() {
    const int64_t width = grads_row_;
    void* const to = grad_input_ ? static_cast<void*>(grad_input_) : b_.grad_input;
    const Dtype dtype = grad_input_ ? Storage<E>::sum_dtype : Storage<E>::dtype;
    bool accumulate = false;
    for (int d = 0; d < D_; ++d)
      for_input_ranges([&](int64_t column, int64_t gate, int64_t count) {
        products_.multiply(p_.rows, p_.I, count, {grads_ + d * p_.rows * width + column, width},
                           {Base::typed(p_.weights[d].w_ih) + gate * p_.I, p_.I},
                           {to, p_.I, dtype, 0, accumulate});
        accumulate = true;
      });
    if constexpr (kIsHalf<E>)
      if (grad_input_) convert(grad_input_, Base::typed(b_.grad_input), p_.rows * p_.I, stream_);
  }

  using Base::D_, Base::B_, Base::H_, Base::R_, Base::hidden_rows_, Base::y_row_;
  using Base::facts_, Base::order_, Base::kernels_, Base::p_, Base::plan_;
  using Base::products_, Base::stream_;

  const BackwardProblem& b_;
  int64_t grads_row_ = 0;     // elements of all gradients of a row
  int input_ranges_ = 0;      // products that the input's gradient is the sum of
  bool wants_first_ = false;  // the gradient of h before the first step
  bool wants_w_hh_ = false, wants_w_hr_ = false, wants_sums_ = false;
  bool wide_ = false;             // kernels take 16 bytes of units per thread
  E* grads_ = nullptr;            // [D][rows][grads][H]
  E* h_before_ = nullptr;         // [D][rows][R]
  S* dh_ = nullptr;               // [D][B][R]
  float* notes_ = nullptr;        // of a walk, [D][B][backward_notes][H]
  S* kept_[kMaxStates] = {};      // [D][B][H], of cells of several stages: what passes them by
  S* masked_grad_ = nullptr;      // [D][B][R], of h times its factor
  S* dstate_[kMaxStates] = {};    // [D][B][H]
  S* hidden_grad_ = nullptr;      // [D][B][H], projected: dh W_hr
  S* operand_grad_ = nullptr;     // [D][B][H], of what the stage after multiplied
  S* handed_ = nullptr;           // [D][B][handed back][H]
  E* projected_grads_ = nullptr;  // [D][rows][P]
  E* hidden_ = nullptr;           // [D][rows][H], projected: h before its projection
  E* operands_ = nullptr;         // [stages after the first][D][rows][H]
  S* sums_ = nullptr;             // [slices][grads][H]
  S* grad_input_ = nullptr;       // [rows][I]
  E *w_hh_copy_ = nullptr, *w_hr_copy_ = nullptr;
  const E *w_hh_ = nullptr, *w_hr_ = nullptr;
};

template <class E>
void layer_backward(const BackwardProblem& problem, const Context& context) {
  const RelaxedCapture relaxed;
  until_launched([&] { LayerBackward<E>(problem, context).run(); });
}

}  // namespace fusedrnn::cuda
