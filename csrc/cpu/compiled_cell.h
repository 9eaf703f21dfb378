// What the C++ of a program (cells/generate.h) needs to be a file of its own, compiled for the
// instruction set of this machine:
//
//   #include "cpu/compiled_cell.h"
//   using Value = float;
//   <the text>
//   FUSEDRNN_STAGE(0, 3, 3, 1, ...)       of a stage that has a tile, see there
//   FUSEDRNN_COMPILED_CELL({FUSEDRNN_TILE(0)}, {{FUSEDRNN_PASS(forward_0), ...}})
//
// FUSEDRNN_KEY is given on the command line. The compiler contracts nothing by itself.
#pragma once

#define FUSEDRNN_ISA compiled
#define FUSEDRNN_CONTRACTS_NOTHING 1

#include "functions.h"
#include "gate_tile.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

#define FUSEDRNN_OF_ONE(name)                                         \
  FUSEDRNN_INLINE static V name(const V& a) {                         \
    return V::of([&](int i) { return Functions<F>::name(a.at[i]); }); \
  }
#define FUSEDRNN_OF_TWO(name)                                                  \
  FUSEDRNN_INLINE static V name(const V& a, const V& b) {                      \
    return V::of([&](int i) { return Functions<F>::name(a.at[i], b.at[i]); }); \
  }

// The functions of a program, for n vectors together.
template <class F, int n>
struct Arithmetic : RowsMath<F, n> {
  using V = Rows<F, n>;
  FUSEDRNN_INLINE static V number(double value) { return static_cast<F>(value); }
  FUSEDRNN_INLINE static V infinity() { return F(__builtin_inf()); }
  FUSEDRNN_INLINE static V nan() { return F(__builtin_nan("")); }
  FUSEDRNN_OF_ONE(reciprocal)
  FUSEDRNN_OF_ONE(sqrt)
  FUSEDRNN_OF_ONE(abs)
  FUSEDRNN_OF_ONE(sign)
  FUSEDRNN_OF_ONE(exp)
  FUSEDRNN_OF_ONE(expm1)
  FUSEDRNN_OF_ONE(log)
  FUSEDRNN_OF_ONE(log1p)
  FUSEDRNN_OF_ONE(softplus)
  FUSEDRNN_OF_ONE(erf)
  FUSEDRNN_OF_ONE(sin)
  FUSEDRNN_OF_ONE(cos)
  FUSEDRNN_OF_TWO(maximum)
  FUSEDRNN_OF_TWO(minimum)
  FUSEDRNN_OF_TWO(gt)
  FUSEDRNN_OF_TWO(ge)
  FUSEDRNN_OF_TWO(eq)
  FUSEDRNN_OF_TWO(ne)
  FUSEDRNN_INLINE static V select(const V& m, const V& a, const V& b) {
    return V::of([&](int i) { return Functions<F>::select(m.at[i], a.at[i], b.at[i]); });
  }
};

#undef FUSEDRNN_OF_ONE
#undef FUSEDRNN_OF_TWO

// The operands of n vectors of a tile, counted row by row.
template <class F, int n>
class Operands {
 public:
  using V = Rows<F, n>;
  FUSEDRNN_INLINE Operands(F* const* base, const Strides* strides) {
#pragma GCC unroll 16
    for (int i = 0; i < kSpaces; ++i) base_[i] = base[i], strides_[i] = strides[i];
  }
  FUSEDRNN_INLINE void go_to(int64_t first, int64_t vectors) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      row_[i] = vectors == 1 ? first + i : (first + i) / vectors;
      column_[i] = (first + i - row_[i] * vectors) * kLanes<F>;
    }
  }

  FUSEDRNN_INLINE V product(int i) const { return read(Space::product, i); }
  FUSEDRNN_INLINE V late(int i) const { return read(Space::late, i); }
  FUSEDRNN_INLINE V h() const { return read(Space::h, 0); }
  FUSEDRNN_INLINE V state(int i) const { return read(Space::state, i); }
  FUSEDRNN_INLINE V handed(int i) const { return read(Space::handed, i); }
  FUSEDRNN_INLINE V weight(int i) const { return read(Space::weight, i); }
  FUSEDRNN_INLINE V step_input(int i) const { return read(Space::step_input, i); }
  FUSEDRNN_INLINE V saved(int i) const { return read(Space::saved, i); }
  FUSEDRNN_INLINE V of_result() const { return read(Space::of_result, 0); }
  FUSEDRNN_INLINE V carry() const { return read(Space::carry, 0); }

  FUSEDRNN_INLINE void set_state(int i, const V& x) { write(Space::state, i, x); }
  FUSEDRNN_INLINE void set_handed(int i, const V& x) { write(Space::handed, i, x); }
  FUSEDRNN_INLINE void set_saved(int i, const V& x) { write(Space::saved, i, x); }
  FUSEDRNN_INLINE void set_result(const V& x) { write(Space::result, 0, x); }
  FUSEDRNN_INLINE void set_gradient(int i, const V& x) { write(Space::gradient, i, x); }
  FUSEDRNN_INLINE void set_carry(const V& x) { write(Space::carry, 0, x); }
  FUSEDRNN_INLINE void set_of_step_input(int i, const V& x) { write(Space::of_step_input, i, x); }

 private:
  FUSEDRNN_INLINE F* at(Space space, int i, int of) const {
    const Strides& strides = strides_[static_cast<int>(space)];
    return base_[static_cast<int>(space)] + i * strides.slot + row_[of] * strides.row + column_[of];
  }
  FUSEDRNN_INLINE V read(Space space, int i) const {
    return V::of([&](int of) { return load(at(space, i, of)); });
  }
  FUSEDRNN_INLINE void write(Space space, int i, const V& x) {
#pragma GCC unroll 8
    for (int of = 0; of < n; ++of) store(at(space, i, of), x.at[of]);
  }

  F* base_[kSpaces];
  Strides strides_[kSpaces];
  int64_t row_[n], column_[n];
};

// Functions are long chains of instructions: two vectors hide each other's latency.
constexpr int kPassVectors = 2;

template <class F, class Pass>
FUSEDRNN_INLINE void each_vector(F* const* base, const Strides* strides, int64_t rows,
                                 int64_t vectors, const Pass& pass) {
  int64_t next = 0;
  const int64_t count = rows * vectors;
  const auto run = [&](auto n) __attribute__((always_inline)) {
    Operands<F, n> at(base, strides);
    for (; next + n <= count; next += n) {
      at.go_to(next, vectors);
      pass(at, Arithmetic<F, n>());
    }
  };
  run(std::integral_constant<int, kPassVectors>());
  run(std::integral_constant<int, 1>());
}

// A stage whose products and inputs are one block (gate_tile.h) is like a compiled cell's. Its
// forward tile takes the sums from the registers that they were summed in.
template <int kInputs, int kProducts, bool kApart, bool kReadsH, int kSaved, int kTakes, int kGives,
          int kStates, int kUnitWeights, int kStages>
struct BlockStage : Stage {
  struct Whole {
    static constexpr int states = kStates, unit_weights = kUnitWeights;
    struct Stages {
      static constexpr int count = kStages;
    };
  };
  static constexpr int inputs = kInputs, products = kProducts, saved = kSaved;
  static constexpr int takes = kTakes, gives = kGives;
  static constexpr int late = kApart;
  static constexpr bool reads_h = kReadsH;
  FUSEDRNN_CELL constexpr int input_of_product(int slot) { return slot - kApart; }
};

// The operands of a unit, for a pass.
template <class S, class V>
struct UnitOperands {
  Forward<S, V>& unit;
  FUSEDRNN_INLINE const V& product(int i) const { return unit.product[i]; }
  FUSEDRNN_INLINE const V& late(int i) const { return unit.late[i]; }
  FUSEDRNN_INLINE const V& h() const { return unit.h_prev; }
  FUSEDRNN_INLINE V state(int i) const { return unit.state[i]; }
  FUSEDRNN_INLINE const V& handed(int i) const { return unit.handed[i]; }
  FUSEDRNN_INLINE const V& weight(int i) const { return unit.unit_weight[i]; }
  FUSEDRNN_INLINE void set_state(int i, const V& x) { unit.state[i] = x; }
  FUSEDRNN_INLINE void set_handed(int i, const V& x) { unit.handed[i] = x; }
  FUSEDRNN_INLINE void set_saved(int i, const V& x) { unit.save[i] = x; }
  FUSEDRNN_INLINE void set_result(const V& x) { unit.result = x; }
};

template <class V>
struct ArithmeticFor;
template <class F, int n>
struct ArithmeticFor<Rows<F, n>> {
  using type = Arithmetic<F, n>;
};

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu

#define FUSEDRNN_PASS(name)                                                                \
  reinterpret_cast<void (*)()>(static_cast<fusedrnn::cpu::CompiledPass<Value>>(            \
      [](Value* const* base, const fusedrnn::cpu::Strides* strides, int64_t rows,          \
         int64_t vectors) {                                                                \
        using namespace fusedrnn::cpu::FUSEDRNN_ISA;                                       \
        each_vector<Value>(base, strides, rows, vectors,                                   \
                           [](auto& at, auto m)                                            \
                               __attribute__((always_inline)) { name<decltype(m)>(at); }); \
      }))

// Whose forward is forward_saving_<index> of the text.
#define FUSEDRNN_STAGE(index, ...)                                             \
  struct Stage##index : fusedrnn::cpu::FUSEDRNN_ISA::BlockStage<__VA_ARGS__> { \
    template <class M, class V>                                                \
    FUSEDRNN_CELL void forward(fusedrnn::Forward<Stage##index, V>& unit) {     \
      using namespace fusedrnn::cpu::FUSEDRNN_ISA;                             \
      UnitOperands<Stage##index, V> at{unit};                                  \
      forward_saving_##index<typename ArithmeticFor<V>::type>(at);             \
    }                                                                          \
  };

#define FUSEDRNN_TILE(index)    \
  reinterpret_cast<void (*)()>( \
      fusedrnn::cpu::FUSEDRNN_ISA::run_any_gate_tile<Stage##index, Value, Value>)

#define FUSEDRNN_COMPILED_CELL(...)                            \
  extern "C" __attribute__((visibility("default")))            \
  const fusedrnn::cpu::CompiledCell fusedrnn_compiled_cell;    \
  const fusedrnn::cpu::CompiledCell fusedrnn_compiled_cell = { \
      fusedrnn::cpu::kCompiledVersion, sizeof(Value), FUSEDRNN_KEY, __VA_ARGS__};
