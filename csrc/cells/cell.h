// The vocabulary in which a cell is written. The CPU and CUDA backends both include the cells: `V`
// is several vectors of units on the CPU and one unit on the GPU, and `M` supplies its functions.
// Where two products are added, M::multiply_add says which of them is not rounded first. Left to
// the compiler, that would differ from one tile size to the next.
//
// A step of a cell is a list of stages. A stage is one product with rows of W_hh and the pointwise
// work after it. Most cells have one stage; the cell's struct is then also the stage's. A stage is
// described by lists of slots. A slot holds one value per unit:
//
//   inputs         what the input projection supplies
//   products       what the recurrent product supplies. An input is added to its product, except
//                  for late inputs: those are the last ones, and the cell gets them separately
//   saved          what backward needs from this step
//   grads          gradients. Those of the products come first and those of the inputs last, so
//                  that each are one contiguous range; the two may overlap. After both come the
//                  gradients of the unit weights, which are summed over rows
//   states         what goes from step to step. The first is h, which travels between workers and
//                  is multiplied by W_hh; the others stay with their unit
//   unit weights   parameters with one value per unit, such as the peepholes of an LSTM
//   handed         named values that a stage leaves for later stages of the same step
//
// What a stage computes is its `result`. The last stage's result is h. Any other's is the operand
// of the next stage's product, which starts once the result is there for all units.
//
// A cell struct has
//   cell           its number in the ops' schemas and in files; it never changes
//   names          the names of the cell, of its class in the package, and of its slots (`Names`)
//   Stages         the list of its stages
//   inputs, products, saved, grads, states, unit_weights     how many slots of each there are
// and each stage has (in a cell of one stage, the same struct)
//   Whole, index   its cell, and its place in the list
//   first_gate     which of the cell's gates is gate 0 of this stage
//   first_slot     which of the cell's saved values and gradients is slot 0 of this stage
//   inputs, products, saved, grads, takes, gives             how many slots the stage itself has
//   late, has_carry, backward_needs, restores                see `Stage`
//   gate_of_input(slot), gate_of_product(slot), input_of_product(slot)
//   forward<M>(Forward&), backward<M>(Backward&)
#pragma once

#if defined(__CUDACC__)
#define FUSEDRNN_CELL __host__ __device__ __forceinline__ static
#else
#define FUSEDRNN_CELL __attribute__((always_inline)) static inline
#endif

namespace fusedrnn {

enum class Cell : int {};  // list.h has them all

constexpr int kMaxStates = 4, kMaxStages = 2;

// The names of what a cell has; each field is a list of words. Python reads them, too.
struct Names {
  const char* cell;
  const char* module;   // the class of the package whose layers these are
  const char* options;  // the arguments that make the class this cell, "nonlinearity=relu"
  const char* gates;    // in the order of the weights' rows, which is also that of the inputs
  const char* products;
  const char* saved;
  const char* grads;
  const char* states;
  const char* unit_weights;
};

// What backward is given in `h`, in addition to what forward saved.
enum class Needs { nothing, h_prev, h };

template <class... S>
struct List {
  static constexpr int count = static_cast<int>(sizeof...(S));
};

// What holds for most stages.
struct Stage {
  static constexpr int takes = 0;           // handed slots that an earlier stage left
  static constexpr int gives = 0;           // handed slots that this stage leaves
  static constexpr int late = 0;            // inputs, the last ones, that no product gets
  static constexpr bool has_carry = false;  // h_prev reaches h other than through a product
  static constexpr bool restores = false;   // backward computes forward's result again
  static constexpr Needs backward_needs = Needs::nothing;
  // Only stages of compiled programs (program.h) have these.
  static constexpr bool reads_h = false;          // forward reads h_prev, also without a carry
  static constexpr bool reads_all_saved = false;  // backward reads what other stages saved
  static constexpr int takes_back = 0;            // handed gradients that a later stage left
  static constexpr int gives_back = 0;            // handed gradients that this stage leaves
  static constexpr int step_inputs = 0;           // what is given at each step beside the input
  static constexpr int of_step_inputs = 0;        // bits of those whose gradients it computes
  // A stage may end in sums over all units of a row (layer normalisation needs them); a team then
  // adds one number per row and worker. No backend does that yet, so a stage that asks for it does
  // not compile.
  static constexpr int row_sums = 0;
  // The gate of torch's that the slot of an input, or of a product (or gradient), belongs to,
  // counted from the stage's first gate.
  FUSEDRNN_CELL constexpr int gate_of_input(int slot) { return slot; }
  FUSEDRNN_CELL constexpr int gate_of_product(int slot) { return slot; }
  // The input that is added to the product in this slot; -1 if none is, and only b_hh is added.
  FUSEDRNN_CELL constexpr int input_of_product(int slot) { return slot; }
  // Where a GPU keeps the gradient in a slot of the stage S, among all of the cell: those of the
  // products are in the order of the gates.
  template <class S>
  FUSEDRNN_CELL constexpr int column_of_grad(int slot) {
    return S::first_slot + (slot < S::products ? S::gate_of_product(slot) : slot);
  }
};

// A cell with only one stage: itself.
template <class C>
struct OneStage : Stage {
  using Whole = C;
  using Stages = List<C>;
  static constexpr int index = 0, first_gate = 0, first_slot = 0;
  static constexpr int unit_weights = 0;
};

// How long an array of n slots is: an array of none is not C++.
template <int n>
constexpr int kAtLeastOne = n ? n : 1;

// One unit of one sequence, forward. Fields for what a cell does not have are not set.
template <class S, class V>
struct Forward {
  using C = typename S::Whole;
  V product[kAtLeastOne<S::products>];
  V late[kAtLeastOne<S::late>];
  V h_prev;
  // Those after h: their values before the step, which the cell replaces by those after it.
  V state[kAtLeastOne<C::states - 1>];
  V handed[kAtLeastOne<(S::takes > S::gives ? S::takes : S::gives)>];
  V unit_weight[kAtLeastOne<C::unit_weights>];
  V step_input[kAtLeastOne<S::step_inputs>];
  V save[kAtLeastOne<S::saved>];
  V result;
};

// The saved values that a stage's backward reads: which of the cell's they are.
template <class S>
constexpr int saved_read = S::reads_all_saved ? S::Whole::saved : S::saved;
template <class S>
constexpr int first_saved_read = S::reads_all_saved ? 0 : S::first_slot;

// The same, backward. d... is the gradient of the loss with respect to ...
template <class S, class V>
struct Backward {
  using C = typename S::Whole;
  V save[kAtLeastOne<saved_read<S>>];
  V unit_weight[kAtLeastOne<C::unit_weights>];
  V step_input[kAtLeastOne<S::step_inputs>];
  V h;        // as `backward_needs` says
  V dresult;  // the last stage's includes what the next step carried past its products
  // For the states after the step; the cell replaces them by those for the states before it.
  V dstate[kAtLeastOne<C::states - 1>];
  V handed[kAtLeastOne<(S::takes_back > S::gives_back ? S::takes_back : S::gives_back)>];
  V carry;   // the gradient that reaches h_prev past the products; the last stage sets it first
  V result;  // only if the stage `restores`
  V grad[kAtLeastOne<S::grads>];
  V of_step_input[kAtLeastOne<S::step_inputs>];  // those of the stage's bits
};

template <int i, class L>
struct Pick;
template <int i, class S, class... Rest>
struct Pick<i, List<S, Rest...>> : Pick<i - 1, List<Rest...>> {};
template <class S, class... Rest>
struct Pick<0, List<S, Rest...>> {
  using type = S;
};

template <class C>
constexpr int stages_of = C::Stages::count;
template <class C, int i>
using StageOf = typename Pick<i, typename C::Stages>::type;
template <class C>
using FirstStage = StageOf<C, 0>;
template <class C>
using LastStage = StageOf<C, stages_of<C> - 1>;

template <class S>
constexpr bool is_first = S::index == 0;
template <class S>
constexpr bool is_last = S::index + 1 == stages_of<typename S::Whole>;

// Calls f(S()) for each stage S of a cell, in order.
template <class C, int i = 0, class F>
constexpr inline __attribute__((always_inline)) void for_each_stage(const F& f) {
  f(StageOf<C, i>());
  if constexpr (i + 1 < stages_of<C>) for_each_stage<C, i + 1>(f);
}
// Calls f(S()) for each stage S of a cell, from the last to the first.
template <class C, int i = stages_of<C> - 1, class F>
constexpr inline __attribute__((always_inline)) void for_each_stage_backwards(const F& f) {
  f(StageOf<C, i>());
  if constexpr (i > 0) for_each_stage_backwards<C, i - 1>(f);
}

// The slots at which the gradients of the inputs and of the unit weights begin.
template <class C>
constexpr int first_input_grad = C::grads - C::unit_weights - C::inputs;
template <class C>
constexpr int first_unit_grad = C::grads - C::unit_weights;
// How many values per unit the stages hand on within a step.
template <class C>
constexpr int handed_of = StageOf<C, 0>::gives;
// How many gradients per unit they hand on, on the way back.
template <class C>
constexpr int handed_back_of = LastStage<C>::gives_back;

}  // namespace fusedrnn
