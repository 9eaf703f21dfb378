// Random layers, float and int8, and a run of one: arrays are made, kernels called, and what they
// wrote is returned.
//
// FUSEDRNN_SANITIZED(of) and FUSEDRNN_SANITIZED_INT8(of) say which kernels there are.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arrays.h"
#include "cpu/kernels.h"
#include "layer/plan_override.h"
#include "layer/quantized.h"

#define FUSEDRNN_DECLARE(isa, ...) FUSEDRNN_DECLARE_KERNELS(isa)
FUSEDRNN_SANITIZED(FUSEDRNN_DECLARE)
FUSEDRNN_SANITIZED_INT8(FUSEDRNN_DECLARE)

namespace fusedrnn::cpu {

struct FloatKernels {
  const char* name;
  Dtype dtype;
  int64_t (*forward)(const Problem&, const Plan&, ParallelFor, void* scratch);
  int64_t (*backward)(const BackwardProblem&, const Plan&, ParallelFor, void* scratch);
  int64_t (*pack)(const Problem&, void* panels);
};
struct Int8Kernels {
  const char* name;
  int64_t (*forward)(const QuantizedProblem&, const Plan&, ParallelFor, void* scratch);
  void (*quantize)(const Shape&, const Weights&, char* packed);
};
#define FUSEDRNN_FLOAT(isa, dtype)                                                         \
  {#isa " " #dtype, Dtype::dtype, isa::forward<Dtype::dtype>, isa::backward<Dtype::dtype>, \
   isa::pack<Dtype::dtype>},
#define FUSEDRNN_INT8(isa) {#isa " int8", isa::forward_quantized, isa::quantize_weights},
inline const std::vector<FloatKernels> kFloat = {FUSEDRNN_SANITIZED(FUSEDRNN_FLOAT)};
inline const std::vector<Int8Kernels> kInt8 = {FUSEDRNN_SANITIZED_INT8(FUSEDRNN_INT8)};

constexpr Cell kEveryCell[] = {Cell::lstm, Cell::gru, Cell::gru_reset_before, Cell::rnn_tanh,
                               Cell::rnn_relu};
constexpr const char* kCellNames[kCells] = {"rnn_tanh", "rnn_relu", "lstm", "gru",
                                            "gru_reset_before"};
constexpr const char* kSplits[] = {"batch", "units", "none"};

// What differs from run to run, and may change no result.
struct How {
  std::string plan;  // as FUSEDRNN_PLAN
  int threads = 1;   // that the plan is made for
  int lent = 1;      // that parallel_for then has
  int fill = 0xff;   // the byte that is in all that is written: 0xff is NaN, and no address

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

// As torch's: each of some threads has a range of the indices.
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

// What every layer has: sizes, where its input is, weights.
struct Given {
  BackwardProblem p;  // points into what follows
  std::vector<int64_t> offsets;
  std::vector<Array> arrays;
  std::string text;

  const void* random(Random& random, int64_t count, int below = 0) {
    arrays.push_back(random_array(random, p.dtype, count, below));
    return arrays.back().data();
  }
};

// What is not left to chance: the first problems have every combination.
struct Dealt {
  Cell cell;
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
    cell = kEveryCell[next(kCells)];
    split = kSplits[next(3)];
    packed = next(2);
    kernels = static_cast<std::size_t>(next(static_cast<int64_t>(kinds)));
    fused = next(2);
  }
};

inline void give_sizes(Random& random, const Dealt& dealt, Given& given) {
  BackwardProblem& p = given.p;
  p.cell = dealt.cell;
  // The last chunk is a shorter one.
  p.T = random.chance(10) ? 1 : dealt.forward_steps * random.between(1, 3) + 1;
  p.B = random.chance(15) ? random.between(1, 2) : random.between(3, 9);
  p.I = random.between(1, random.chance(20) ? 70 : 20);
  p.H = random.between(1, random.chance(20) ? 70 : 20);
  p.P = p.cell == Cell::lstm && random.chance(40) ? random.between(1, 20) : 0;
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

// Steps or sequences first, rows apart or all the same one.
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
  const int64_t rows = gates_of(p.cell) * p.H;
  const bool biases = random.chance(70);
  for (int d = 0; d < p.directions; ++d) {
    Weights& w = p.weights[d];
    w.w_ih = given.random(random, rows * p.I, 3);
    w.w_hh = given.random(random, rows * p.R(), 3);
    if (biases) w.b_ih = given.random(random, rows), w.b_hh = given.random(random, rows);
    if (p.P) w.w_hr = given.random(random, p.P * p.H, 3);
  }
}

inline std::string text_of(const BackwardProblem& p) {
  std::string text = kCellNames[static_cast<int>(p.cell)];
  const auto add = [&](const char* name, int64_t value) {
    text += std::string(" ") + name + "=" + std::to_string(value);
  };
  add("T", p.T), add("B", p.B), add("I", p.I), add("H", p.H), add("P", p.P), add("rows", p.rows);
  add("directions", p.directions), add("input_step", p.input_step), add("input_row", p.input_row);
  const std::pair<const char*, bool> flags[] = {
      {"training", p.training},       {"prepacked", p.prepacked},    {"backwards", p.backwards},
      {"offsets", p.offsets},         {"biases", p.weights[0].b_ih}, {"hx", p.hx},
      {"grad_output", p.grad_output}, {"grad_hn", p.grad_hn},        {"grad_cn", p.grad_cn},
      {"grad_input", p.grad_input},   {"grad_hx", p.grad_hx},        {"grad_cx", p.grad_cx},
  };
  for (const auto& [name, is] : flags)
    if (is) text += std::string(" ") + name;
  return text;
}

// One run of forward and, if training, of backward. In p the gradients that are asked for are not
// null: the results take their place.
inline Results run_layer(const FloatKernels& kernels, const BackwardProblem& given,
                         const How& how) {
  BackwardProblem p = given;
  Results results;
  const auto result = [&](const char* name, int64_t count) {
    results.push_back({name, Array(count * size_of(p.dtype), how.fill)});
    return results.back().values.data();
  };
  const auto wanted = [&](void*& gradient, const char* name, int64_t count) {
    if (gradient) gradient = result(name, count);
  };
  ask(how.plan);
  const int64_t D = p.directions, hidden = D * p.B * p.R(), cells = D * p.B * p.H;
  p.output = result("output", p.rows * D * p.R());
  p.hn = result("hn", hidden);
  if (p.cell == Cell::lstm) p.cn = result("cn", cells);
  if (p.training && saved_of(p.cell))
    p.reserve = result("reserve", D * p.rows * saved_of(p.cell) * p.Hp());
  Array panels;
  if (p.prepacked) {
    panels = Array(kernels.pack(p, nullptr), how.fill);
    kernels.pack(p, panels.data());
    p.panels = panels.data();
    if (p.hx && !p.training) {  // as a stream calls: states are replaced
      const auto replace = [](const void*& before, void* after, int64_t bytes) {
        std::memcpy(after, before, static_cast<std::size_t>(bytes));
        before = after;
      };
      replace(p.hx, p.hn, hidden * size_of(p.dtype));
      if (p.cx) replace(p.cx, p.cn, cells * size_of(p.dtype));
    }
  }
  call(kernels.forward, static_cast<const Problem&>(p), plan_layer(p, how.threads), how);
  if (!p.training) return results;

  p.prepacked = false, p.panels = nullptr;
  wanted(p.grad_input, "grad_input", p.rows * p.I);
  wanted(p.grad_hx, "grad_hx", hidden);
  wanted(p.grad_cx, "grad_cx", cells);
  const int64_t rows = gates_of(p.cell) * p.H;
  for (int d = 0; d < p.directions; ++d) {
    WeightGradients& g = p.grad_weights[d];
    wanted(g.w_ih, "grad_w_ih", rows * p.I), wanted(g.w_hh, "grad_w_hh", rows * p.R());
    wanted(g.b_ih, "grad_b_ih", rows), wanted(g.b_hh, "grad_b_hh", rows);
    wanted(g.w_hr, "grad_w_hr", p.P * p.H);
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
  p.training = random.chance(75);
  p.prepacked = random.chance(25);
  p.backwards = random.chance(20);
  const bool lstm = p.cell == Cell::lstm;
  const int64_t hidden = p.directions * p.B * p.R(), cells = p.directions * p.B * p.H;
  if (random.chance(70)) {
    p.hx = given.random(random, hidden);
    if (lstm) p.cx = given.random(random, cells);
  }
  if (p.training) {
    if (random.chance(80)) p.grad_output = given.random(random, p.rows * p.directions * p.R());
    if (random.chance(50)) p.grad_hn = given.random(random, hidden);
    if (lstm && random.chance(50)) p.grad_cn = given.random(random, cells);
    static char asked;
    const auto ask_for = [&](void*& gradient) { gradient = random.chance(70) ? &asked : nullptr; };
    ask_for(p.grad_input);
    if (p.hx) ask_for(p.grad_hx);
    if (p.cx) ask_for(p.grad_cx);
    for (int d = 0; d < p.directions; ++d) {
      WeightGradients& g = p.grad_weights[d];
      ask_for(g.w_ih), ask_for(g.w_hh);
      if (p.weights[0].b_ih) ask_for(g.b_ih), ask_for(g.b_hh);
      if (p.P) ask_for(g.w_hr);
    }
  }
  given.text = std::string(kernels.name) + " " + text_of(p);
  return given;
}

inline Results run_int8(const Int8Kernels& kernels, const BackwardProblem& given, const How& how) {
  QuantizedProblem p;
  static_cast<Shape&>(p) = given;
  Results results;
  const auto result = [&](const char* name, int64_t count, const void* before) {
    results.push_back({name, Array(count * int64_t{sizeof(float)}, how.fill)});
    Array& values = results.back().values;
    if (before) std::memcpy(values.data(), before, static_cast<std::size_t>(values.bytes()));
    return reinterpret_cast<float*>(values.data());
  };
  const Array packed(QuantizedLayout(p).bytes, how.fill);
  kernels.quantize(p, given.weights[0], packed.data());
  p.packed = packed.data();
  p.input = static_cast<const float*>(given.input);
  p.input_step = given.input_step, p.input_row = given.input_row;
  p.output = result("output", p.rows * p.R(), nullptr);
  p.h = result("h", p.B * p.R(), given.hx);
  if (p.cell == Cell::lstm) p.c = result("c", p.B * p.H, given.cx);
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
  given.p.hx = given.random(random, given.p.B * given.p.R());
  if (given.p.cell == Cell::lstm) given.p.cx = given.random(random, given.p.B * given.p.H);
  given.p.prepacked = true;
  given.text = std::string(kernels.name) + " " + text_of(given.p);
  return given;
}

}  // namespace fusedrnn::cpu
