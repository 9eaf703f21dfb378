// The forward pass of a layer.
#pragma once

#include "layer.cuh"

namespace fusedrnn::cuda {

template <class E>
class LayerForward : Layer<E> {
  using Base = Layer<E>;
  using typename Base::S;

 public:
  LayerForward(const Problem& problem, const Context& context)
      : Base(problem, context, Pass::forward) {}

  void run() {
    this->allocate([this](Arena& arena) { place(arena); });
    if (this->walks()) return walk();
    const int64_t states = D_ * B_;
    w_hh_ = this->in_order(&Weights::w_hh, w_hh_copy_, R_);
    if (b_hh_copy_) this->in_order(&Weights::b_hh, b_hh_copy_, 1);
    if (p_.P) w_hr_ = this->joined(&Weights::w_hr, w_hr_copy_, p_.P * H_);
    h_ = Base::typed(p_.hn[0]);
    wide_ = this->has_wide_rows() && are_all_aligned();
    this->fill(h_, p_.hx[0], states * R_);
    for (int i = 1; i < facts_.states; ++i) this->fill(state_[i], p_.hx[i], states * H_);
    for (int64_t s = 0; s < p_.T; ++s) {
      if (s % plan_.forward_steps == 0) project_input(s);
      if (this->has_boundaries()) enter(s);
      for (int k = 0; k < facts_.stages; ++k) run_stage(s, k);
      if (p_.P) project_state(s);
    }
    for (int i = 1; i < facts_.states; ++i) this->keep(p_.hn[i], state_[i], states * H_);
  }

 private:
  void place(Arena& arena) {
    const int64_t states = D_ * B_;
    // Steps of a chunk have at most as many rows as its first for one direction, its last for the
    // other; B each is an upper bound that packed calls rarely reach.
    chunk_rows_ = std::min(plan_.forward_steps * B_, p_.rows);
    arena.place(gates_, D_ * chunk_rows_ * GH_);
    if (this->walks()) {
      this->place_offsets(arena);
      arena.place(w_hh_copy_, this->moved_w_hh_count());
      arena.place(notes_, is_modified() ? states * forward_notes(facts_.states) * H_ : 0);
      for (int i = 1; i < facts_.states; ++i)
        arena.place(state_[i], plan_.forward_steps < p_.T ? states * H_ : 0);
      return;
    }
    arena.place(product_, states * hidden_rows_);
    arena.place(masked_, p_.modifiers.recurrent_factor ? states * R_ : 0);
    arena.place(w_hh_copy_, this->in_order_count(R_));
    const bool moves_biases = p_.weights[0].b_hh && !order_.as_weights;
    arena.place(b_hh_copy_, moves_biases ? this->in_order_count(1) : 0);
    arena.place(hidden_, p_.P ? states * H_ : 0);
    arena.place(projected_, p_.P ? states * p_.P : 0);
    arena.place(w_hr_copy_, p_.P ? this->joined_count(p_.P * H_) : 0);
    arena.place(operand_, facts_.stages > 1 ? states * H_ : 0);
    arena.place(handed_, states * kernels_.handed * H_);
    for (int i = 1; i < facts_.states; ++i)
      arena.place(before_[i], facts_.stages > 1 && p_.modifiers.keep[i] ? states * H_ : 0);
    for (int i = 1; i < facts_.states; ++i)
      if (kIsHalf<E>)
        arena.place(state_[i], states * H_);
      else
        state_[i] = static_cast<S*>(p_.hn[i]);
  }

  // Whether a team's walk has more to do than in most calls.
  bool is_modified() const { return p_.wants_all_states() || p_.modifiers.any(); }
  void walk() {
    this->copy_offsets();
    for (int64_t s = 0; s < p_.T; s += plan_.forward_steps) {
      project_input(s);
      walk_steps(s, std::min(s + plan_.forward_steps, p_.T));
    }
  }
  // A team's steps [s, end) of the walk.
  void walk_steps(int64_t s, int64_t end) {
    ForwardWalk<E> walk;
    this->describe(walk);
    walk.sizes = forward_sizes(walked_cell(facts_), plan_.walk.arithmetic, plan_.walk.size);
    walk.first = s == 0, walk.last = end == p_.T;
    walk.modified = is_modified();
    for (int d = 0; d < D_; ++d) {
      auto& to = walk.direction[d];
      const Weights& weights = p_.weights[d];
      to.begin = static_cast<int>(d == 0 ? s : p_.T - end);
      to.end = static_cast<int>(d == 0 ? end : p_.T - s);
      to.gates = gates_ + d * chunk_rows_ * GH_, to.first_row = static_cast<int>(first_row_[d]);
      to.w_hh = this->walked_w_hh(d, w_hh_copy_);
      to.b_ih = Base::typed(weights.b_ih), to.b_hh = Base::typed(weights.b_hh);
      to.w_unit = Base::typed(weights.w_unit);
      to.h_out = this->of_direction(Base::typed(p_.hn[0]), d, H_);
      to.h_in = walk.first ? this->of_direction(Base::typed(p_.hx[0]), d, H_) : to.h_out;
      for (int i = 1; i < facts_.states; ++i) {
        auto& state = to.state[i - 1];
        state.in = this->of_direction(Base::typed(p_.hx[i]), d, H_);
        state.out = this->of_direction(Base::typed(p_.hn[i]), d, H_);
        state.between = this->of_direction(state_[i], d, H_);
        state.all = p_.states[i] ? Base::typed(p_.states[i]) + d * H_ : nullptr;
      }
      to.modifiers = this->modifiers(d);
      to.notes = this->of_direction(notes_, d, forward_notes(facts_.states) * H_);
      to.y = Base::typed(p_.output) + d * R_;
      to.save = this->reserve(d, 0);
    }
    const auto kernel = plan_.walk.size.fixed ? this->fixed_walk().forward
                                              : this->walk_kernels().walk_forward[this->of_team()];
    launch_teams("the forward walk", kernel, walk, plan_.walk, D_, stream_);
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

  // What a step begins with, if modifiers have a say in it.
  void enter(int64_t s) {
    EnteredSteps<E> steps;
    steps.R = R_, steps.H = H_;
    for (int d = 0; d < D_; ++d) {
      auto& to = steps.direction[d];
      to.rows = this->rows(d, s);
      to.boundary = this->boundary(d, s);
      to.h = this->of_direction(h_, d, R_);
      for (int i = 1; i < facts_.states; ++i)
        to.state[i - 1] = this->of_direction(state_[i], d, H_);
      to.factor = this->factor(d, s);
      to.operand = this->of_direction(masked_, d, R_);
    }
    const Grid grid = grid_over(this->most_rows(s), std::max(R_, H_), 1, D_);
    launch("entering a step", enter_step<E>, grid.grid, grid.block, stream_, steps);
  }

  // A stage of a step: the product of its rows of W_hh with h, or with what the stage before left,
  // and its kernel.
  void run_stage(int64_t s, int k) {
    const StageKernels<E>& stage = kernels_.stages[k];
    const int64_t columns = stage.products * H_;
    const E* const operand = k > 0 ? operand_ : masked_ ? masked_ : h_;
    if (columns)
      this->multiply_step(s, columns, R_, {operand, R_, false, B_ * R_},
                          {w_hh_ + stage.first_gate * H_ * R_, R_, true, hidden_rows_ * R_},
                          {product_, columns, Storage<E>::sum_dtype, B_ * hidden_rows_});
    this->launch_stage("a forward step", stage.forward, s, p_.reserve ? p_.Hp() : H_, wide_,
                       describe_steps(s));
  }

  bool are_all_aligned() const {
    bool are = Base::are_aligned(p_.output, p_.reserve) && this->are_modifiers_aligned();
    for (const void* state : p_.hn) are = are && Base::are_aligned(state);
    for (const void* states : p_.states) are = are && Base::are_aligned(states);
    for (const Weights& w : p_.weights) are = are && Base::are_aligned(w.b_ih, w.b_hh, w.w_unit);
    return are;
  }

  ForwardSteps<E> describe_steps(int64_t s) const {
    ForwardSteps<E> steps;
    steps.H = H_, steps.Hp = p_.Hp(), steps.states_row = D_ * H_;
    for (int d = 0; d < D_; ++d) {
      const int64_t t = this->step(d, s);
      ForwardStep<E>& to = steps.direction[d];
      to.rows = this->rows(d, s);
      to.gates = gates_ + (d * chunk_rows_ + p_.row(t, 0) - first_row_[d]) * GH_;
      to.product = product_ + d * B_ * hidden_rows_;
      to.b_ih = Base::typed(p_.weights[d].b_ih);
      to.b_hh = b_hh_copy_ ? b_hh_copy_ + d * hidden_rows_ : Base::typed(p_.weights[d].b_hh);
      to.w_unit = Base::typed(p_.weights[d].w_unit);
      to.h = this->of_direction(p_.P ? hidden_ : h_, d, H_);
      for (int i = 1; i < facts_.states; ++i) {
        to.state[i - 1] = this->of_direction(state_[i], d, H_);
        to.before[i - 1] = this->of_direction(before_[i], d, H_);
        to.states[i - 1] = this->of_states(Base::typed(p_.states[i]), d, s);
        to.keep[i] = this->keep_of(i, d, s);
      }
      if (!p_.P) to.keep[0] = this->keep_of(0, d, s);
      to.factor = this->factor(d, s);
      to.handed = this->of_direction(handed_, d, kernels_.handed * H_);
      to.operand = this->of_direction(operand_, d, H_);
      to.y = p_.P ? nullptr : const_cast<E*>(this->y(d, t));
      to.y_row = y_row_;
      to.save = this->reserve(d, t);
      steps.step_inputs[d] = this->step_inputs(d, s);
    }
    return steps;
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
      to.keep = this->keep_of(0, d, s);
    }
    const Grid grid = grid_over(this->most_rows(s), p_.P, 1, D_);
    launch("a projected step", store_projected<E>, grid.grid, grid.block, stream_, steps);
  }

  using Base::D_, Base::B_, Base::H_, Base::R_, Base::GH_, Base::hidden_rows_, Base::y_row_;
  using Base::facts_, Base::order_, Base::kernels_, Base::p_, Base::plan_;
  using Base::products_, Base::stream_;

  int64_t chunk_rows_ = 0;
  int64_t first_row_[kMaxDirections] = {};  // of the chunk in gates_
  S* gates_ = nullptr;                      // [D][chunk_rows][G][H]
  S* product_ = nullptr;                    // [D][B][products][H]
  E* h_ = nullptr;                          // [D][B][R], which is hn[0]
  S* state_[kMaxStates] = {};               // [D][B][H], which is hn but in half precision
  S* handed_ = nullptr;                     // [D][B][handed][H]
  S* before_[kMaxStates] = {};              // [D][B][H], of cells of several stages: as they began
  float* notes_ = nullptr;                  // of a walk, [D][B][forward_notes][H]
  E* masked_ = nullptr;                     // [D][B][R], h times its factor
  E* operand_ = nullptr;                    // [D][B][H], of the next stage's product
  E* hidden_ = nullptr;                     // [D][B][H], before its projection
  S* projected_ = nullptr;                  // [D][B][P]
  E *w_hh_copy_ = nullptr, *w_hr_copy_ = nullptr, *b_hh_copy_ = nullptr;
  const E *w_hh_ = nullptr, *w_hr_ = nullptr;
  bool wide_ = false;  // kernels take 16 bytes of units per thread
};

template <class E>
void layer_forward(const Problem& problem, const Context& context) {
  const RelaxedCapture relaxed;
  until_launched([&] { LayerForward<E>(problem, context).run(); });
}

}  // namespace fusedrnn::cuda
