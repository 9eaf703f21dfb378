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
    this->allocate([this](Layout& layout) { place(layout); });
    if (this->walks()) return walk();
    const int64_t states = D_ * B_;
    w_hh_ = this->joined(&Weights::w_hh, w_hh_copy_, GH_ * R_);
    if (p_.P) w_hr_ = this->joined(&Weights::w_hr, w_hr_copy_, p_.P * H_);
    h_ = Base::typed(p_.hn);
    this->fill(h_, p_.hx, states * R_);
    if (p_.cell == Cell::lstm) this->fill(c_, p_.cx, states * H_);
    for (int64_t s = 0; s < p_.T; ++s) {
      if (s % plan_.forward_steps == 0) project_input(s);
      if (this->divided()) {
        walk_part<GruResetBeforeCell::First>(s);
        walk_part<GruResetBeforeCell::Last>(s);
        continue;
      }
      multiply_state(s, h_, 0, GH_);
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
    if (this->walks()) {
      this->place_offsets(layout);
      if (p_.cell == Cell::lstm) layout.place(c_, plan_.forward_steps < p_.T ? D_ * B_ * H_ : 0);
      return;
    }
    layout.place(product_, D_ * B_ * GH_);
    layout.place(w_hh_copy_, this->joined_count(GH_ * R_));
    layout.place(hidden_, p_.P ? D_ * B_ * H_ : 0);
    layout.place(projected_, p_.P ? D_ * B_ * p_.P : 0);
    layout.place(w_hr_copy_, p_.P ? this->joined_count(p_.P * H_) : 0);
    layout.place(operand_, this->divided() ? D_ * B_ * H_ : 0);
    if (this->divided()) layout.place(c_, D_ * B_ * H_);
    if (p_.cell != Cell::lstm) return;
    if (kIsHalf<E>)
      layout.place(c_, D_ * B_ * H_);
    else
      c_ = static_cast<S*>(p_.cn);
  }

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
    walk.sizes = forward_sizes(p_.cell, plan_.walk.arithmetic, plan_.walk.size);
    walk.first = s == 0, walk.last = end == p_.T;
    for (int d = 0; d < D_; ++d) {
      auto& to = walk.direction[d];
      const Weights& weights = p_.weights[d];
      const auto state = [&](auto* states) { return states ? states + d * B_ * H_ : nullptr; };
      to.begin = static_cast<int>(d == 0 ? s : p_.T - end);
      to.end = static_cast<int>(d == 0 ? end : p_.T - s);
      to.gates = gates_ + d * chunk_rows_ * GH_, to.first_row = static_cast<int>(first_row_[d]);
      to.w_hh = Base::typed(weights.w_hh);
      to.b_ih = Base::typed(weights.b_ih), to.b_hh = Base::typed(weights.b_hh);
      to.h_out = state(Base::typed(p_.hn));
      to.h_in = walk.first ? state(Base::typed(p_.hx)) : to.h_out;
      to.c_in = state(Base::typed(p_.cx)), to.c_out = state(Base::typed(p_.cn));
      to.c = state(c_);
      to.y = Base::typed(p_.output) + d * R_;
      to.save = this->reserve(d, 0);
    }
    this->with_walk([&](auto cell, auto arithmetic) {
      launch_forward<decltype(cell), decltype(arithmetic)>(plan_.walk, walk, D_, stream_);
    });
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

  // The product of `columns` rows of W_hh with h, or with what the first part of a cell made of it.
  void multiply_state(int64_t s, const E* h, int64_t first, int64_t columns) {
    this->multiply_step(s, columns, R_, {h, R_, false, B_ * R_},
                        {w_hh_ + first * R_, R_, true, GH_ * R_},
                        {product_, columns, Storage<E>::sum_dtype, B_ * GH_});
  }

  void update_state(int64_t s) {
    const ForwardSteps<E> steps = describe_steps(s);
    this->with_cell(touched(), [&](auto cell, auto width) {
      launch_step<decltype(cell), decltype(width)::value>(s, steps);
    });
  }

  // One part of a step, product and all.
  template <class Part>
  void walk_part(int64_t s) {
    constexpr bool kFirst = std::is_same_v<Part, typename Part::Whole::First>;
    multiply_state(s, kFirst ? h_ : operand_, Part::first_gate * H_, Part::products * H_);
    ForwardSteps<E> steps = describe_steps(s);
    if (kFirst)
      for (int d = 0; d < D_; ++d)
        steps.direction[d].y = operand_ + d * B_ * H_, steps.direction[d].y_row = H_;
    this->template with_part<Part>(touched(), [&](auto part, auto width) {
      launch_step<decltype(part), decltype(width)::value>(s, steps);
    });
  }

  std::array<const void*, 8> touched() const {
    const Weights *const first = &p_.weights[0], *const second = &p_.weights[D_ - 1];
    return {first->b_ih, first->b_hh, second->b_ih, second->b_hh,
            p_.output,   p_.hn,       p_.cn,        p_.reserve};
  }

  ForwardSteps<E> describe_steps(int64_t s) const {
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
    return steps;
  }

  template <class C, int N>
  void launch_step(int64_t s, const ForwardSteps<E>& steps) {
    const int64_t units = p_.reserve ? p_.Hp() : H_;
    const Grid grid = grid_over(this->most_rows(s), units, N, D_);
    launch("a forward step", forward_cell<C, E, N>, grid.grid, grid.block, stream_, steps);
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
  S* c_ = nullptr;                          // [D][B][H], which is cn but in half precision; of a
                                            // divided cell what one part hands to the other
  E* operand_ = nullptr;                    // [D][B][H], its second product's
  E* hidden_ = nullptr;                     // [D][B][H], before its projection
  S* projected_ = nullptr;                  // [D][B][P]
  E *w_hh_copy_ = nullptr, *w_hr_copy_ = nullptr;
  const E *w_hh_ = nullptr, *w_hr_ = nullptr;
};

template <class E>
void layer_forward(const Problem& problem, const Context& context) {
  LayerForward<E>(problem, context).run();
}

}  // namespace fusedrnn::cuda
