// Random layers, float and int8, and what runs one: it makes the arrays, calls the kernels and
// returns what they wrote.
//
// FUSEDRNN_SANITIZED(of) says of which instruction sets there are kernels.
#pragma once

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arrays.h"
#include "cpu/kernels.h"
#include "layer/plan_override.h"
#include "layer/quantized.h"

namespace fusedrnn::cpu {

#define FUSEDRNN_DECLARE(isa) \
  namespace isa {             \
  const Kernels& table();     \
  }
FUSEDRNN_SANITIZED(FUSEDRNN_DECLARE)

struct FloatKernels {
  std::string name;
  Dtype dtype;
  int64_t (*forward)(const Problem&, const Plan&, ParallelFor, void* scratch);
  int64_t (*backward)(const BackwardProblem&, const Plan&, ParallelFor, void* scratch);
  int64_t (*make_panels)(const Problem&, void* panels);
};
struct Int8Kernels {
  std::string name;
  int64_t (*forward)(const QuantizedProblem&, const Plan&, ParallelFor, void* scratch);
  void (*quantize)(const Shape&, const Weights&, char* buffer);
};

// All that the tables have.
struct Sanitized {
  std::vector<FloatKernels> of_floats;
  std::vector<Int8Kernels> of_int8;

  Sanitized() {
#define FUSEDRNN_ADD(isa) add(#isa, isa::table());
    FUSEDRNN_SANITIZED(FUSEDRNN_ADD)
  }
  void add(const std::string& isa, const Kernels& table) {
    constexpr const char* kNames[kDtypes] = {"f64", "f32", "bf16", "f16"};
    for (int i = 0; i < kDtypes; ++i)
      if (table.forward[i])
        of_floats.push_back({isa + " " + kNames[i], static_cast<Dtype>(i), table.forward[i],
                             table.backward[i], table.make_panels[i]});
    if (table.forward_quantized)
      of_int8.push_back({isa + " int8", table.forward_quantized, table.quantize_weights});
  }
};
inline const Sanitized kSanitized;
inline const std::vector<FloatKernels>& kFloat = kSanitized.of_floats;
inline const std::vector<Int8Kernels>& kInt8 = kSanitized.of_int8;

constexpr const char* kSplits[] = {"batch", "units", "none"};

// What differs from run to run. It must not change any result.
struct How {
  std::string plan;  // as FUSEDRNN_PLAN
  int threads = 1;   // how many the plan is made for
  int lent = 1;      // how many parallel_for then has
  int fill = 0xff;   // the byte that fills what will be written: 0xff is NaN, and no address

  std::string text() const {
    char fills[8];
    std::snprintf(fills, sizeof(fills), "%02x", static_cast<unsigned>(fill));
    return "threads=" + std::to_string(threads) + " lent=" + std::to_string(lent) +
           " fill=" + fills + " plan=" + plan;
  }
};

struct Result {
  std::string name;
  Array values;
};
using Results = std::vector<Result>;

inline int g_lent = 1;

// Like torch's: each of several threads has a range of the indices.
inline void parallel_for(int64_t n, void (*body)(int64_t, int64_t, void*), void* context) {
  const int64_t each = div_up(n, g_lent);
  std::vector<std::thread> threads;
  for (int64_t begin = each; begin < n; begin += each)
    threads.emplace_back(body, begin, std::min(begin + each, n), context);
  body(0, std::min(each, n), context);
  for (std::thread& thread : threads) thread.join();
}

template <class Kernel, class P>
void call(Kernel kernel, const P& problem, const Plan& plan, const How& how) {
  g_lent = how.lent;
  const Array scratch(kernel(problem, plan, parallel_for, nullptr), how.fill);
  kernel(problem, plan, parallel_for, scratch.data());
}

inline void ask(const std::string& plan) {
  plan_override() = PlanOverride(plan.c_str());
  if (!plan_override().error().empty()) {
    std::fprintf(stderr, "%s\n", plan_override().error().c_str());
    std::abort();
  }
}

// What every layer has: sizes, input and weights.
struct Given {
  BackwardProblem p;  // points into what follows
  std::vector<int64_t> offsets;
  std::vector<Array> arrays;
  std::string text;

  const void* random(Random& random, int64_t count, int below = 0) {
    arrays.push_back(random_array(random, p.dtype, count, below));
    return arrays.back().data();
  }
  // Values of some width for each step, direction and sequence, or the same for all of them.
  Spread<const void> spread(Random& random_, int64_t width) {
    Spread<const void> s;
    int64_t count = width;
    const auto stride = [&](int64_t n) {
      if (random_.chance(30)) return int64_t{0};
      const int64_t between = count;
      count *= n;
      return between;
    };
    s.row = stride(p.B), s.direction = stride(p.directions), s.step = stride(p.T);
    s.data = random(random_, count);
    return s;
  }
};

// The name of a cell's state, h first.
inline std::string state_name(const Shape& shape, int state) {
  std::istringstream words(shape.facts().names.states);
  std::string word;
  for (int i = 0; i <= state; ++i) words >> word;
  return word;
}

// What is not left to chance: the first problems have every combination.
struct Dealt {
  Cell cell{};
  bool is_program;  // a cell that is none of the compiled ones
  const char* split;
  bool packed, fused;
  std::size_t kernels;
  int64_t forward_steps;

  Dealt(int64_t index, std::size_t kinds) {
    const auto next = [&](int64_t n) {
      const int64_t digit = index % n;
      index /= n;
      return digit;
    };
    forward_steps = 2 + index % 2;
    const int64_t chosen = next(kCells + 1);
    is_program = chosen == kCells;
    if (!is_program) cell = static_cast<Cell>(chosen);
    split = kSplits[next(3)];
    packed = next(2);
    kernels = static_cast<std::size_t>(next(static_cast<int64_t>(kinds)));
    fused = next(2);
  }
};

// Those of programs.txt, which end in a line of their own.
inline const std::vector<std::unique_ptr<const Program>>& programs() {
  static const auto all = [] {
    std::vector<std::unique_ptr<const Program>> found;
    std::ifstream file(FUSEDRNN_PROGRAMS);
    std::string text;
    for (std::string line; std::getline(file, line);) {
      text += line + "\n";
      if (line == "end") found.push_back(Program::parse(std::exchange(text, {})));
    }
    return found;
  }();
  return all;
}

inline void give_sizes(Random& random, const Dealt& dealt, Given& given) {
  BackwardProblem& p = given.p;
  p.cell = dealt.cell;
  if (dealt.is_program) {
    const int64_t last = static_cast<int64_t>(programs().size()) - 1;
    p.program = programs()[static_cast<std::size_t>(random.between(0, last))].get();
  }
  // The last chunk is shorter.
  p.T = random.chance(10) ? 1 : dealt.forward_steps * random.between(1, 3) + 1;
  p.B = random.chance(15) ? random.between(1, 2) : random.between(3, 9);
  p.I = random.between(1, random.chance(20) ? 70 : 20);
  p.H = random.between(1, random.chance(20) ? 70 : 20);
  p.P = p.facts().projects && random.chance(40) ? random.between(1, 20) : 0;
  p.rows = p.T * p.B;
}

inline void give_offsets(Random& random, Given& given) {
  BackwardProblem& p = given.p;
  int64_t alive = p.B;
  given.offsets = {0};
  for (int64_t t = 0; t < p.T; ++t) {
    given.offsets.push_back(given.offsets.back() + alive);
    if (random.chance(50)) alive = random.between(1, alive);
  }
  p.offsets = given.offsets.data();
  p.rows = given.offsets.back();
}

// Steps first or sequences first; rows with gaps between them or without, or all the same row.
inline void give_input(Random& random, Given& given) {
  BackwardProblem& p = given.p;
  const int64_t width = p.I + (random.chance(30) ? random.between(1, 5) : 0);
  const bool steps_first = random.chance(50);
  p.input_row = p.offsets || steps_first ? width : p.T * width;
  p.input_step = p.offsets ? 0 : steps_first ? p.B * width : width;
  if (random.chance(10)) p.input_row = 0;
  const int64_t last =
      p.offsets ? (p.rows - 1) * p.input_row : (p.T - 1) * p.input_step + (p.B - 1) * p.input_row;
  p.input = given.random(random, last + p.I);
}

inline void give_weights(Random& random, Given& given) {
  BackwardProblem& p = given.p;
  const int64_t inputs = p.input_rows(), products = p.hidden_rows();
  const int64_t of_units = p.facts().unit_weights * p.H;
  const bool biases = random.chance(70);
  for (int d = 0; d < p.directions; ++d) {
    Weights& w = p.weights[d];
    w.w_ih = given.random(random, inputs * p.I, 3);
    w.w_hh = given.random(random, products * p.R(), 3);
    if (biases) w.b_ih = given.random(random, inputs), w.b_hh = given.random(random, products);
    if (p.P) w.w_hr = given.random(random, p.P * p.H, 3);
    if (of_units) w.w_unit = given.random(random, of_units, 3);
  }
}

inline void give_modifiers(Random& random, Given& given) {
  BackwardProblem& p = given.p;
  Modifiers& m = p.modifiers;
  const int states = p.facts().states;
  if (random.chance(50)) {
    given.arrays.emplace_back(p.T * p.B, 0);
    char* const reset = given.arrays.back().data();
    for (int64_t i = 0; i < p.T * p.B; ++i) reset[i] = random.chance(30);
    m.reset = {reinterpret_cast<const uint8_t*>(reset), p.B, 0, 1};
    if (random.chance(50))
      for (int i = 0; i < states; ++i) m.reset_states[i] = given.spread(random, p.width(i));
  }
  if (random.chance(50)) m.recurrent_factor = given.spread(random, p.R());
  for (int i = 0; i < states; ++i)
    if (random.chance(40)) m.keep[i] = given.spread(random, p.width(i));
}

// A value for each unit, or one for all; the same for both directions, or not.
inline void give_step_inputs(Random& random, Given& given) {
  BackwardProblem& p = given.p;
  const int64_t kinds = p.facts().step_inputs;
  if (!kinds) return;
  StepInputs<const void>& to = p.modifiers.step_inputs;
  const int64_t directions = random.chance(50) ? p.directions : 1;
  to.unit = random.chance(70);
  to.kind = to.unit ? p.H : 1, to.row = kinds * to.kind;
  to.direction = directions > 1 ? p.B * to.row : 0, to.step = directions * p.B * to.row;
  to.data = given.random(random, p.T * to.step);
}

inline std::string text_of(const BackwardProblem& p) {
  std::string text = p.facts().names.cell;
  const auto add = [&](const char* name, int64_t value) {
    text += std::string(" ") + name + "=" + std::to_string(value);
  };
  add("T", p.T), add("B", p.B), add("I", p.I), add("H", p.H), add("P", p.P), add("rows", p.rows);
  add("directions", p.directions), add("input_step", p.input_step), add("input_row", p.input_row);
  const auto flag = [&](const std::string& name, bool is) {
    if (is) text += " " + name;
  };
  flag("training", p.training), flag("has_panels", p.has_panels), flag("backwards", p.backwards);
  flag("offsets", p.offsets), flag("biases", p.weights[0].b_ih);
  flag("reset", p.modifiers.reset.data), flag("factor", p.modifiers.recurrent_factor.data);
  flag("step_inputs", p.modifiers.step_inputs.data);
  flag("grad_output", p.grad_output), flag("grad_input", p.grad_input);
  flag("grad_step_inputs", p.grad_step_inputs.data);
  for (int i = 0; i < p.facts().states; ++i) {
    const std::string state = state_name(p, i);
    flag(state + "x", p.hx[i]);
    flag("grad_" + state + "n", p.grad_hn[i]), flag("grad_" + state + "x", p.grad_hx[i]);
    flag("keep_" + state, p.modifiers.keep[i].data), flag("all_" + state, p.states[i]);
    flag("reset_" + state, p.modifiers.reset_states[i].data);
  }
  return text;
}

// Runs forward and, if training, backward. The gradients that are not null in `given` are asked
// for; the results take their place.
inline Results run_layer(const FloatKernels& kernels, const BackwardProblem& given,
                         const How& how) {
  BackwardProblem p = given;
  Results results;
  const auto result = [&](const std::string& name, int64_t count) {
    results.push_back({name, Array(count * size_of(p.dtype), how.fill)});
    return results.back().values.data();
  };
  const auto wanted = [&](void*& gradient, const std::string& name, int64_t count) {
    if (gradient) gradient = result(name, count);
  };
  ask(how.plan);
  const int64_t D = p.directions;
  const auto values_of = [&](int state) { return D * p.B * p.width(state); };
  p.output = result("output", p.rows * D * p.R());
  const int states = p.facts().states;
  for (int i = 0; i < states; ++i) p.hn[i] = result(state_name(p, i) + "n", values_of(i));
  for (int i = 1; i < states; ++i) wanted(p.states[i], "all " + state_name(p, i), p.rows * D * p.H);
  if (p.training && p.facts().saved)
    p.reserve = result("reserve", D * p.rows * p.facts().saved * p.Hp());
  Array panels;
  if (p.has_panels) {
    panels = Array(kernels.make_panels(p, nullptr), how.fill);
    kernels.make_panels(p, panels.data());
    p.panels = panels.data();
    for (int i = 0; i < states && !p.training; ++i) {
      if (!p.hx[i]) continue;  // else as a stream calls: states are replaced
      std::memcpy(p.hn[i], p.hx[i], static_cast<std::size_t>(values_of(i) * size_of(p.dtype)));
      p.hx[i] = p.hn[i];
    }
  }
  call(kernels.forward, static_cast<const Problem&>(p), plan_layer(p, how.threads), how);
  if (!p.training) return results;

  p.has_panels = false, p.panels = nullptr;
  wanted(p.grad_input, "grad_input", p.rows * p.I);
  for (int i = 0; i < states; ++i)
    wanted(p.grad_hx[i], "grad_" + state_name(p, i) + "x", values_of(i));
  for (int i = 0; i < states; ++i) {
    if (!p.grad_reset_states[i]) continue;
    const int64_t width = p.width(i);
    p.grad_reset_states[i] = {nullptr, D * p.B * width, p.B * width, width};
    results.push_back({"grad_reset_" + state_name(p, i),
                       Array(p.T * D * p.B * width * size_of(p.dtype), 0)});  // is added to
    p.grad_reset_states[i].data = results.back().values.data();
  }
  if (p.grad_step_inputs) {
    const int64_t row = p.facts().step_inputs * p.H;
    results.push_back({"grad_step_inputs",
                       Array(p.T * D * p.B * row * size_of(p.dtype), 0)});  // has gaps if packed
    StepInputs<void>& to = p.grad_step_inputs;
    to.data = results.back().values.data();
    to.step = D * p.B * row, to.direction = p.B * row, to.row = row, to.kind = p.H;
  }
  const int64_t inputs = p.input_rows(), products = p.hidden_rows();
  for (int d = 0; d < p.directions; ++d) {
    WeightGradients& g = p.grad_weights[d];
    wanted(g.w_ih, "grad_w_ih", inputs * p.I), wanted(g.w_hh, "grad_w_hh", products * p.R());
    wanted(g.b_ih, "grad_b_ih", inputs), wanted(g.b_hh, "grad_b_hh", products);
    wanted(g.w_hr, "grad_w_hr", p.P * p.H);
    wanted(g.w_unit, "grad_w_unit", p.facts().unit_weights * p.H);
  }
  call(kernels.backward, p, plan_layer(p, how.threads), how);
  return results;
}

inline Given random_layer(Random& random, const Dealt& dealt, const FloatKernels& kernels) {
  Given given;
  BackwardProblem& p = given.p;
  p.dtype = kernels.dtype;
  p.directions = random.chance(40) ? 2 : 1;
  give_sizes(random, dealt, given);
  if (dealt.packed) give_offsets(random, given);
  give_input(random, given);
  give_weights(random, given);
  static char asked;
  if (random.chance(50)) {
    give_modifiers(random, given);
    for (int i = 1; i < p.facts().states; ++i)
      if (random.chance(50)) p.states[i] = &asked;
  }
  give_step_inputs(random, given);
  p.training = random.chance(75);
  p.has_panels = random.chance(25);
  p.backwards = random.chance(20);
  const int states = p.facts().states;
  const auto values_of = [&](int state) { return p.directions * p.B * p.width(state); };
  if (random.chance(70))
    for (int i = 0; i < states; ++i) p.hx[i] = given.random(random, values_of(i));
  if (p.training) {
    if (random.chance(80)) p.grad_output = given.random(random, p.rows * p.directions * p.R());
    for (int i = 0; i < states; ++i)
      if (random.chance(50)) p.grad_hn[i] = given.random(random, values_of(i));
    for (int i = 1; i < states; ++i)
      if (p.states[i] && random.chance(70))
        p.grad_states[i] = given.random(random, p.rows * p.directions * p.H);
    for (int i = 0; i < states; ++i)  // in the compute type, which half types are not
      if (p.modifiers.reset && size_of(p.dtype) > 2 && random.chance(70))
        p.grad_reset_states[i].data = &asked;
    const auto ask_for = [&](void*& gradient) { gradient = random.chance(70) ? &asked : nullptr; };
    ask_for(p.grad_input);
    if (p.modifiers.step_inputs) ask_for(p.grad_step_inputs.data);
    for (int i = 0; i < states; ++i)
      if (p.hx[i]) ask_for(p.grad_hx[i]);
    for (int d = 0; d < p.directions; ++d) {
      WeightGradients& g = p.grad_weights[d];
      ask_for(g.w_ih), ask_for(g.w_hh);
      if (p.weights[0].b_ih) ask_for(g.b_ih), ask_for(g.b_hh);
      if (p.P) ask_for(g.w_hr);
      if (p.facts().unit_weights) ask_for(g.w_unit);
    }
  }
  given.text = kernels.name + " " + text_of(p);
  return given;
}

inline Results run_int8(const Int8Kernels& kernels, const BackwardProblem& given, const How& how) {
  QuantizedProblem p;
  static_cast<Shape&>(p) = given;
  Results results;
  const auto result = [&](const std::string& name, int64_t count, const void* before) {
    results.push_back({name, Array(count * int64_t{sizeof(float)}, how.fill)});
    Array& values = results.back().values;
    if (before) std::memcpy(values.data(), before, static_cast<std::size_t>(values.bytes()));
    return reinterpret_cast<float*>(values.data());
  };
  const Array buffer(QuantizedLayout(p).bytes, how.fill);
  kernels.quantize(p, given.weights[0], buffer.data());
  p.buffer = buffer.data();
  p.input = static_cast<const float*>(given.input);
  p.input_step = given.input_step, p.input_row = given.input_row;
  p.output = result("output", p.rows * p.R(), nullptr);
  for (int i = 0; i < p.facts().states; ++i)
    p.states[i] = result(state_name(p, i), p.B * p.width(i), given.hx[i]);
  Plan plan;
  ask(how.plan);
  override_plan(p, how.threads, plan);
  call(kernels.forward, p, plan, how);
  return results;
}

inline Given random_int8(Random& random, const Dealt& dealt, const Int8Kernels& kernels) {
  Given given;
  give_sizes(random, dealt, given);
  give_input(random, given);
  give_weights(random, given);
  for (int i = 0; i < given.p.facts().states; ++i)
    given.p.hx[i] = given.random(random, given.p.B * given.p.width(i));
  given.p.has_panels = true;
  given.text = kernels.name + " " + text_of(given.p);
  return given;
}

}  // namespace fusedrnn::cpu
