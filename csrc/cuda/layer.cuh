// One layer call on a CUDA device: what does not wait for a step is a large product before or after
// the walk; the walk is a team's (team/) or stepwise, on any GPU and for any size: for each stage
// of each step one product and one fused kernel (stepwise/). No driver knows which cell it is: a
// table has the kernels (kernels.h).
//
//   forward    chunk of steps:  gates = X W_ih^T
//              stepwise, each:  product = h W_hh^T;  cell   (projected: h = cell W_hr^T)
//   backward   stepwise, each:  cell;  dh = dgates W_hh     (projected: dh = dh W_hr first)
//              then:            dX = dgates W_ih;  dW = dgates^T [X, h before];  db = sums of
//              dgates
//
// In a cell of several stages, the first one's product is with h, and each other's with the
// operand that the stage before it left. W_hh has the stages' rows one after the other, or a copy
// of it has them so (stepwise/order.h).
//
//   forward    each stage:      product = operand W_stage^T;  kernel
//   backward   each, from last: kernel;  d operand = dgates of the stage W_stage
//
// A team walks each direction. Stepwise, both directions of a step are one product, batched, and
// one kernel; a packed call whose directions have different numbers of rows at a step takes a
// product for each. The order of a direction's steps: the first walks t = 0, 1, ..., the second
// T-1, T-2, ...; backward from the end.
//
// All is enqueued on one stream, nothing waits for the host: fit for capture in a CUDA graph, even
// a first call (capture.h).
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "capture.h"
#include "device.h"
#include "kernels.h"
#include "launch.cuh"
#include "layer.h"
#include "layer/backend.h"
#include "offsets.h"
#include "product.h"
#include "program_kernels.h"
#include "rows.cuh"
#include "stepwise/boundaries.cuh"
#include "stepwise/order.h"
#include "stepwise/projected.cuh"
#include "team/walk_launch.h"

namespace fusedrnn::cuda {

// Scratch of a call: placed twice, first to count the bytes, then to set the pointers. What is not
// needed is null.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
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

template <class T, class Data>
WalkValues<T> of_direction(const Spread<Data>& values, int d) {
  if (!values) return {};
  return {static_cast<T*>(values.data) + d * values.direction, values.step, values.row};
}

// What forward and backward share: sizes by short names, rows of a step, moves on the stream.
template <class E>
class Layer {
 protected:
  using S = Sum<E>;

  Layer(const Problem& problem, const Context& context, Pass pass)
      : p_(problem),
        facts_(problem.facts()),
        order_(facts_),
        plan_(plan_here(problem, pass, context.allow_tf32)),
        of_program_(table_of_program(problem, order_, plan_.walk, pass, context)),
        kernels_(problem.program ? of_program_.table() : kernels_of<E>(problem.cell)),
        context_(context),
        products_(context, Storage<E>::dtype),
        stream_(static_cast<cudaStream_t>(context.stream)),
        D_(problem.directions),
        B_(problem.B),
        H_(problem.H),
        R_(problem.R()),
        GH_(problem.input_rows()),
        hidden_rows_(problem.hidden_rows()),
        y_row_(problem.directions * problem.R()) {}

  static ProgramTable<E> table_of_program(const Problem& problem, const GateOrder& order,
                                          const WalkPlan& walk, Pass pass, const Context& context) {
    if (!problem.program) return {};
    const Program& program = *problem.program;
    ProgramTable<E> table(program, order);
    if (walk.team == CudaTeam::stepwise)
      table.set_steps(program_kernels(program, problem.dtype, context.stream));
    else
      table.set_walk(pass, walk.team,
                     program_walk(program, {pass, walk.arithmetic, walk.team}, context.stream));
    return table;
  }

  // Calls place(Arena&) to count, allocates, and calls it again to set the pointers.
  template <class F>
  void allocate(const F& place) const {
    Arena count(nullptr);
    place(count);
    void* const scratch = context_.allocate(count.bytes(), context_.owner);
    if (!scratch)
      throw std::runtime_error("out of memory: " + std::to_string(count.bytes()) +
                               " bytes of scratch of a layer could not be allocated; use a smaller "
                               "batch or fewer steps");
    Arena set(scratch);
    place(set);
  }

  static const E* typed(const void* data) { return static_cast<const E*>(data); }
  static E* typed(void* data) { return static_cast<E*>(data); }

  // A direction's part of an array of [D][B][width]; null if there is none.
  template <class T>
  T* of_direction(T* array, int d, int64_t width) const {
    return array ? array + d * B_ * width : nullptr;
  }

  int64_t step(int d, int64_t s) const { return d == 0 ? s : p_.T - 1 - s; }  // s: of the walk
  int64_t rows(int d, int64_t s) const { return p_.batch(step(d, s)); }
  const E* y(int d, int64_t t) const { return typed(p_.output) + p_.row(t, 0) * y_row_ + d * R_; }
  E* reserve(int d, int64_t t) const {
    if (!p_.reserve) return nullptr;
    return typed(p_.reserve) + (d * p_.rows + p_.row(t, 0)) * facts_.saved * p_.Hp();
  }
  StateBefore<E> before(int d, int64_t s) const {
    StateBefore<E> state;
    state.hx = of_direction(typed(p_.hx[0]), d, R_);
    if (s > 0) state.y = y(d, step(d, s - 1)), state.rows = rows(d, s - 1);
    state.boundary = boundary(d, s);
    return state;
  }

  // ---- Modifiers --------------------------------------------------------------------------------

  // Whether something happens between steps: in the stepwise walk a kernel of its own.
  bool has_boundaries() const { return p_.modifiers.reset || p_.modifiers.recurrent_factor; }
  // The step after the boundary that a direction may cross on its way to a step of the walk.
  int64_t after_boundary(int d, int64_t s) const { return d == 0 ? step(d, s) : step(d, s) + 1; }
  Boundary<E> boundary(int d, int64_t s) const {
    Boundary<E> boundary;
    const int64_t t = after_boundary(d, s);
    if (!p_.modifiers.reset || t == p_.T) return boundary;
    boundary.flags = of_step<const uint8_t>(p_.modifiers.reset, d, t);
    boundary.rows = p_.batch(t);
    for (int i = 0; i < facts_.states; ++i)
      boundary.states[i] = of_step<const E>(p_.modifiers.reset_states[i], d, t);
    return boundary;
  }
  template <class T, class Data>
  static StepValues<T> of_step(const Spread<Data>& values, int d, int64_t t) {
    return cuda::of_direction<T>(values, d).of_step(t);
  }
  template <class T, class Data>
  static StepInputValues<T> of_step(const StepInputs<Data>& values, int d, int64_t t) {
    const Spread<Data>& rows = values;
    return {of_step<T>(rows, d, t), values.kind, values.unit};
  }
  StepInputValues<const E> step_inputs(int d, int64_t s) const {
    return of_step<const E>(p_.modifiers.step_inputs, d, step(d, s));
  }
  StepValues<const E> factor(int d, int64_t s) const {
    return of_step<const E>(p_.modifiers.recurrent_factor, d, step(d, s));
  }
  StepValues<const E> keep_of(int state, int d, int64_t s) const {
    return of_step<const E>(p_.modifiers.keep[state], d, step(d, s));
  }
  // Row 0 of a step and direction in one of the states after each step, or their gradients.
  template <class T>
  T* of_states(T* states, int d, int64_t s) const {
    return states ? states + (p_.row(step(d, s), 0) * D_ + d) * H_ : nullptr;
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

  // One direction's weights where they are; both one after the other in scratch, for a batch.
  const E* joined(const void* Weights::* weight, E* scratch, int64_t count) const {
    if (D_ == 1) return typed(p_.weights[0].*weight);
    for (int d = 0; d < D_; ++d)
      copy(scratch + d * count, p_.weights[d].*weight, count * static_cast<int64_t>(sizeof(E)));
    return scratch;
  }
  int64_t joined_count(int64_t count) const { return D_ == 1 ? 0 : D_ * count; }

  // W_hh (`width` is R) or b_hh (1) of all directions, with the gates in the order of the stages.
  const E* in_order(const void* Weights::* weight, E* scratch, int64_t width) const {
    if (order_.as_weights) return joined(weight, scratch, hidden_rows_ * width);
    const int64_t gate = H_ * width;
    for (int d = 0; d < D_; ++d)
      for_each_range(order_.gate_of_product, facts_.products, [&](int at, int first, int count) {
        copy(scratch + d * hidden_rows_ * width + at * gate,
             typed(p_.weights[d].*weight) + first * gate,
             count * gate * static_cast<int64_t>(sizeof(E)));
      });
    return scratch;
  }
  int64_t in_order_count(int64_t width) const {
    return order_.as_weights ? joined_count(hidden_rows_ * width) : D_ * hidden_rows_ * width;
  }

  // ---- A team's walk ----------------------------------------------------------------------------

  bool walks() const { return plan_.walk.team != CudaTeam::stepwise; }

  // Where the offsets of a packed call go, which the host has and the device asks for.
  void place_offsets(Arena& arena) { arena.place(offsets_, walks() && p_.offsets ? p_.T + 1 : 0); }
  void copy_offsets() const {
    if (offsets_) fusedrnn::cuda::copy_offsets(p_.offsets, p_.T + 1, offsets_, stream_);
  }

  void describe(WalkProblem& walk) const {
    walk.H = static_cast<int>(H_), walk.Hp = static_cast<int>(p_.Hp());
    walk.B = static_cast<int>(B_), walk.y_row = static_cast<int>(y_row_);
    walk.offsets = offsets_;
    walk.tiles = static_cast<int>(div_up(B_, plan_.walk.size.rows));
    walk.T = static_cast<int>(p_.T);
  }
  DirectionModifiers<E> modifiers(int d) const {
    const Modifiers& all = p_.modifiers;
    DirectionModifiers<E> own;
    own.ahead = d;
    own.reset = cuda::of_direction<const uint8_t>(all.reset, d);
    own.recurrent_factor = cuda::of_direction<const E>(all.recurrent_factor, d);
    for (int i = 0; i < facts_.states; ++i) {
      own.reset_states[i] = cuda::of_direction<const E>(all.reset_states[i], d);
      own.keep[i] = cuda::of_direction<const E>(all.keep[i], d);
    }
    return own;
  }

  // The kernels of the walk, and which of a pair of them is for this team.
  const Kernels<E>& walk_kernels() const {
    return p_.program ? kernels_ : kernels_of<E>(p_.cell, plan_.walk.arithmetic);
  }
  int of_team() const { return plan_.walk.team == CudaTeam::cluster ? 1 : 0; }
  const FixedWalk<E>& fixed_walk() const {
    return walk_kernels().fixed[fixed_team(plan_.walk.arithmetic, plan_.walk.size)];
  }

  // W_hh of a direction for a walk. Kernels that are compiled for their team read values of two
  // bytes two at a time: W_hh is copied for them if it begins in the middle of two.
  int64_t moved_w_hh_count() const {
    bool moved = false;
    for (int d = 0; d < D_; ++d)
      moved = moved || reinterpret_cast<uintptr_t>(p_.weights[d].w_hh) % 4 != 0;
    return walks() && plan_.walk.size.fixed && kIsHalf<E> && moved ? D_ * hidden_rows_ * H_ : 0;
  }
  const E* walked_w_hh(int d, E* moved) const {
    const E* const there = typed(p_.weights[d].w_hh);
    if (!moved) return there;
    const int64_t count = hidden_rows_ * H_;
    copy(moved + d * count, there, count * static_cast<int64_t>(sizeof(E)));
    return moved + d * count;
  }

  // ---- Stepwise ---------------------------------------------------------------------------------

  // The largest batch of a step, over both directions.
  int64_t most_rows(int64_t s) const {
    int64_t most = 0;
    for (int d = 0; d < D_; ++d) most = std::max(most, rows(d, s));
    return most;
  }

  int last_stage() const { return facts_.stages - 1; }

  // Launches a stage's kernel over the first `units` of all rows: one unit per thread, or 16 bytes
  // of them where all that the kernel touches allows it.
  template <class Steps>
  void launch_stage(const char* what, void (*const (&kernels)[2])(Steps), int64_t s, int64_t units,
                    bool wide, const Steps& steps) const {
    const int width = wide ? static_cast<int>(16 / sizeof(E)) : 1;
    const Grid grid = grid_over(most_rows(s), units, width, D_);
    launch(what, kernels[wide], grid.grid, grid.block, stream_, steps);
  }
  // Whether rows of R begin at multiples of 16 bytes in arrays that do.
  bool has_wide_rows() const {
    return plan_.units_per_thread > 1 && R_ * static_cast<int64_t>(sizeof(E)) % 16 == 0;
  }
  template <class... T>
  static bool are_aligned(const T*... pointers) {
    return (... && (reinterpret_cast<uintptr_t>(pointers) % 16 == 0));
  }
  static bool is_whole(int64_t stride) {  // of 16 bytes
    return stride * static_cast<int64_t>(sizeof(E)) % 16 == 0;
  }
  // Whether the values of a modifier begin at multiples of 16 bytes for all steps and sequences.
  template <class Data>
  static bool are_aligned(const Spread<Data>& values) {
    return are_aligned(values.data) && is_whole(values.step) && is_whole(values.direction) &&
           is_whole(values.row);
  }
  // Step inputs that are the same for all units may be anywhere.
  template <class Data>
  static bool are_aligned(const StepInputs<Data>& values) {
    const Spread<Data>& rows = values;
    return !values.unit || (are_aligned(rows) && is_whole(values.kind));
  }
  bool are_modifiers_aligned() const {
    const Modifiers& all = p_.modifiers;
    bool are = are_aligned(all.recurrent_factor) && are_aligned(all.step_inputs);
    for (int i = 0; i < facts_.states; ++i)
      are = are && are_aligned(all.reset_states[i]) && are_aligned(all.keep[i]);
    return are;
  }

  const Problem& p_;
  const Facts& facts_;
  const GateOrder order_;
  const CudaPlan plan_;
  const ProgramTable<E> of_program_;
  const Kernels<E> kernels_;  // stepwise, and a program's walk
  const Context& context_;
  const Products products_;
  const cudaStream_t stream_;
  const int D_;
  const int64_t B_, H_, R_;
  const int64_t GH_, hidden_rows_;  // of W_ih, and of W_hh
  const int64_t y_row_;
  int64_t* offsets_ = nullptr;  // [T + 1] on the device, for the walk of a packed call
};

}  // namespace fusedrnn::cuda
