// THE list of cells, and what is known about each. `with_cell` goes from a cell's number to its
// struct, and `facts_of` to its facts, as data. Code that needs to know whether a cell has a second
// state, a carry or more than one stage asks the facts; no code compares cells.
#pragma once

#include <type_traits>

#include "gru.h"
#include "lstm.h"
#include "rnn.h"

namespace fusedrnn {

template <class... C, class... D, class... Rest>
auto joined(List<C...>, List<D...>, Rest... rest) {
  if constexpr (sizeof...(Rest) == 0)
    return List<C..., D...>();
  else
    return joined(List<C..., D...>(), rest...);
}

using Cells = decltype(joined(RnnCells(), LstmCells(), GruCells()));
constexpr int kCells = Cells::count;

// What a gate, a product or a gradient may be numbered up to.
constexpr int kMostGates = 12, kMostGrads = 36;

// What backends that do not know a cell when they are compiled ask of one of its stages. Inputs,
// products and gradients have slots, cell.h says in what order; a slot that has rows in a weight
// has those of one gate.
struct StageFacts {
  int inputs = 0, products = 0, saved = 0;
  int late = 0;   // inputs that are not added to a product
  int apart = 0;  // products that no input is added to
  int takes = 0, gives = 0;
  // Which of the cell's slots the stage's first ones are.
  int first_input = 0, first_saved = 0;
  int first_product = 0;  // the gradient of the first product
  // Which of the stage's own slots the first late input and the first product apart are.
  int first_late = 0, first_apart = 0;
  bool has_carry = false, restores = false;
  Needs backward_needs = Needs::nothing;
  signed char gate_of_input[kMostGates] = {};    // among those of W_ih
  signed char gate_of_product[kMostGates] = {};  // among those of W_hh
  signed char input_of_product[kMostGates] = {};
};

struct Facts {
  Names names = {};
  int inputs = 0, products = 0;  // the gates of W_ih, and those of W_hh
  int saved = 0, grads = 0, states = 0, unit_weights = 0, stages = 0;
  int step_inputs = 0;  // values that are given for each step beside the input; of programs only
  int first_input_grad = 0, first_unit_grad = 0;
  bool has_late_input = false;
  bool has_carry = false;  // h_prev reaches h other than through a product
  bool projects = false;   // h may be projected; backward computes the unprojected h again
  bool has_int8 = false;   // its weights may be int8
  StageFacts stage[kMaxStages] = {};
  signed char gate_of_input[kMostGates] = {};  // those of all stages

  constexpr const StageFacts& last() const { return stage[stages - 1]; }
};

// The operand of a second stage would have to be rounded at each step, and the format of the
// quantized buffer (layer/quantized.h) has no place for unit weights.
template <class C>
constexpr bool has_int8 = stages_of<C> == 1 && C::unit_weights == 0;

namespace facts {

constexpr int words(const char* text) {
  int count = 0;
  for (bool inside = false; *text; ++text) {
    if (*text != ' ' && !inside) ++count;
    inside = *text != ' ';
  }
  return count;
}

template <class C, int i>
constexpr bool stage_fits() {
  using S = StageOf<C, i>;
  static_assert(S::index == i && std::is_same_v<typename S::Whole, C>, "a stage of another cell");
  static_assert(S::row_sums == 0, "no backend adds over the units of a row yet");
  static_assert(i > 0 ? S::takes <= handed_of<C> : S::takes == 0,
                "a stage takes what an earlier one gives");
  static_assert(S::has_carry == C::has_carry,
                "h_prev passes by the products of all stages or none");
  static_assert(i == 0 || S::late == 0, "only a first stage has late inputs");
  if constexpr (i + 1 < stages_of<C>) {
    using Next = StageOf<C, i + 1>;
    static_assert(S::restores, "the gradient of W_hh needs the next stage's operand again");
    static_assert(Next::first_gate == S::first_gate + S::inputs &&
                      Next::first_slot >= S::first_slot + S::saved,
                  "stages have the gates and the saved values one after the other");
    return stage_fits<C, i + 1>();
  }
  return S::first_gate + S::inputs == C::inputs && S::first_slot + S::saved == C::saved;
}

template <class S>
constexpr StageFacts stage_of() {
  static_assert(S::inputs <= kMostGates && S::products <= kMostGates, "room for their gates");
  StageFacts stage;
  stage.inputs = S::inputs, stage.products = S::products, stage.saved = S::saved;
  stage.takes = S::takes, stage.gives = S::gives;
  stage.first_input = S::first_gate, stage.first_saved = S::first_slot;
  stage.first_product = S::first_gate;  // of several stages only products have gradients
  stage.has_carry = S::has_carry, stage.restores = S::restores;
  stage.backward_needs = S::backward_needs;
  for (int slot = 0; slot < S::inputs; ++slot)
    stage.gate_of_input[slot] = static_cast<signed char>(S::first_gate + slot);
  for (int slot = 0; slot < S::products; ++slot) {
    const int input = S::input_of_product(slot);
    stage.gate_of_product[slot] =
        static_cast<signed char>(S::first_gate + S::gate_of_product(slot));
    stage.input_of_product[slot] = static_cast<signed char>(input < 0 ? -1 : input);
    stage.apart += input < 0;
  }
  stage.late = S::late;
  stage.first_late = S::inputs - stage.late;
  return stage;
}

// A cell that contradicts itself does not compile.
template <class C>
constexpr Facts of() {
  static_assert(words(C::names.cell) == 1 && words(C::names.module) == 1, "a cell has a name");
  static_assert(words(C::names.gates) == C::inputs, "as many gates as inputs");
  static_assert(words(C::names.products) == C::products, "as many products as their names");
  static_assert(words(C::names.saved) == C::saved, "as many saved values as their names");
  static_assert(words(C::names.grads) == C::grads, "as many gradients as their names");
  static_assert(words(C::names.states) == C::states, "as many states as their names");
  static_assert(words(C::names.unit_weights) == C::unit_weights, "as many as their names");
  static_assert(C::states >= 1 && C::states <= kMaxStates, "h, and some that stay");
  static_assert(stages_of<C> <= kMaxStages, "no more stages than backends have room for");
  static_assert(C::products == C::inputs, "W_ih and W_hh have rows for the same gates");
  static_assert(stages_of<C> == 1 || C::grads - C::unit_weights == C::products,
                "stages have the gradients of their products one after the other, and no others");
  static_assert(C::products <= C::grads && C::inputs <= C::grads - C::unit_weights,
                "a gradient for each input, product and unit weight");
  static_assert(stage_fits<C, 0>(), "all of the cell's inputs and saved values have a stage");
  Facts facts;
  facts.names = C::names;
  facts.inputs = C::inputs, facts.products = C::products, facts.saved = C::saved;
  facts.grads = C::grads, facts.states = C::states, facts.unit_weights = C::unit_weights;
  facts.stages = stages_of<C>;
  facts.has_late_input = FirstStage<C>::late > 0;
  facts.has_carry = C::has_carry;
  facts.projects = stages_of<C> == 1 && LastStage<C>::restores;
  facts.has_int8 = has_int8<C>;
  facts.first_input_grad = first_input_grad<C>, facts.first_unit_grad = first_unit_grad<C>;
  for_each_stage<C>([&](auto own) {
    using S = decltype(own);
    facts.stage[S::index] = stage_of<S>();
    for (int slot = S::first_gate; slot < S::first_gate + S::inputs; ++slot)
      facts.gate_of_input[slot] = static_cast<signed char>(slot);
  });
  return facts;
}

struct Table {
  Facts of_cell[kCells] = {};
  bool has[kCells] = {};
  bool whole = true;  // every number from 0 on belongs to exactly one cell

  template <class... C>
  constexpr explicit Table(List<C...>) {
    (add<C>(), ...);
    for (const bool is : has) whole = whole && is;
  }
  template <class C>
  constexpr void add() {
    const int at = static_cast<int>(C::cell);
    whole = whole && at >= 0 && at < kCells && !has[at];
    if (at >= 0 && at < kCells) of_cell[at] = of<C>(), has[at] = true;
  }
};

inline constexpr Table kTable{Cells()};
static_assert(kTable.whole, "the cells' numbers are 0, 1, 2, ..., each once");

template <class F, class C, class... Rest>
auto with(List<C, Rest...>, Cell cell, const F& call) {
  if (cell == C::cell) return call(C());
  if constexpr (sizeof...(Rest) > 0) return with(List<Rest...>(), cell, call);
  __builtin_unreachable();  // the table is whole, and ops refuse numbers beyond it
}

}  // namespace facts

constexpr const Facts& facts_of(Cell cell) { return facts::kTable.of_cell[static_cast<int>(cell)]; }

// Calls call(C()) for the struct C of a cell.
template <class F>
auto with_cell(Cell cell, const F& call) {
  return facts::with(Cells(), cell, call);
}

}  // namespace fusedrnn
