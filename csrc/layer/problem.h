// What crosses from the op layer to a backend: one layer call, one or both directions, as plain
// sizes, strides and pointers. No torch and no CUDA in here; kernels know a layer by this alone.
//
//   input    [T][B][I], strides input_step and input_row (elements), innermost contiguous
//   output   [rows][D*R], contiguous; rows counts the (t, b) pairs that are alive
//   reserve  [D][rows][saved][Hp], in the storage type; what forward keeps for backward
//   hx, hn   [D][B][R];  cx, cn [D][B][H];  R = P if projected, else H;  Hp = H rounded up to 16
//
// Packed sequences are torch's: step t holds batch(t) rows, batch(t) never grows with t, and row
// offsets[t] + b of input and output is sequence b at step t.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedrnn {

enum class Cell : int { rnn_tanh = 0, rnn_relu = 1, lstm = 2, gru = 3, gru_reset_before = 4 };
constexpr int kCells = 5;
enum class Dtype : int { f64, f32, bf16, f16 };

constexpr int64_t kHiddenPadding = 16;  // Hp is a multiple of this, whatever the vector width
constexpr int kMaxDirections = 2;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t div_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

constexpr int gates_of(Cell cell) {
  constexpr int kGates[kCells] = {1, 1, 4, 3, 3};
  return kGates[static_cast<int>(cell)];
}
// Slots of Hp values that forward keeps per row: LSTM i f g o c_prev; GRU hn r z n, or with the
// reset before the product r z n; RNN none.
constexpr int saved_of(Cell cell) {
  constexpr int kSaved[kCells] = {0, 0, 5, 4, 3};
  return kSaved[static_cast<int>(cell)];
}

// Whether a step is two products, the second of what comes of the first (cell.h).
constexpr bool is_divided(Cell cell) { return cell == Cell::gru_reset_before; }

constexpr int64_t size_of(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

// The sizes alone: all that a plan depends on.
struct Shape {
  Cell cell = Cell::lstm;
  Dtype dtype = Dtype::f32;
  int64_t T = 0, B = 0, I = 0, H = 0, P = 0;  // P = 0: not projected
  int64_t rows = 0;                           // alive (t, b) pairs, T*B unless packed
  int directions = 1;
  bool training = false;   // forward keeps the reserve
  bool prepacked = false;  // the weights come packed, see packed.h

  int64_t R() const { return P ? P : H; }
  int64_t Hp() const { return round_up(H, kHiddenPadding); }
};

// Weights of one direction, in torch's order and layout (rows are gates, then units).
struct Weights {
  const void* w_ih = nullptr;  // [G*H][I]
  const void* w_hh = nullptr;  // [G*H][R]
  const void* b_ih = nullptr;  // [G*H] or null
  const void* b_hh = nullptr;
  const void* w_hr = nullptr;  // [P][H] or null
};

struct WeightGradients {  // null: not asked for
  void* w_ih = nullptr;
  void* w_hh = nullptr;
  void* b_ih = nullptr;
  void* b_hh = nullptr;
  void* w_hr = nullptr;
};

struct Problem : Shape {
  const int64_t* offsets = nullptr;  // [T+1], packed only; null: every step has B rows

  const void* input = nullptr;
  int64_t input_step = 0, input_row = 0;
  const void* hx = nullptr;  // null: zeros
  const void* cx = nullptr;
  Weights weights[kMaxDirections];
  const void* panels = nullptr;  // the same as the backend packs them, if prepacked
  bool backwards = false;        // the first step visits units from the last to the first

  void* output = nullptr;   // backward reads what forward wrote
  void* reserve = nullptr;  // null: not kept
  void* hn = nullptr;
  void* cn = nullptr;

  int64_t batch(int64_t t) const { return offsets ? offsets[t + 1] - offsets[t] : B; }
  int64_t row(int64_t t, int64_t b) const { return (offsets ? offsets[t] : t * B) + b; }
  int64_t input_offset(int64_t t, int64_t b) const {
    return offsets ? row(t, b) * input_row : t * input_step + b * input_row;
  }
};

// What backward adds: incoming gradients (null: zero) and where the results go (null: not asked).
struct BackwardProblem : Problem {
  const void* grad_output = nullptr;  // [rows][D*R], contiguous
  const void* grad_hn = nullptr;
  const void* grad_cn = nullptr;

  void* grad_input = nullptr;  // [rows][I], contiguous
  void* grad_hx = nullptr;
  void* grad_cx = nullptr;
  WeightGradients grad_weights[kMaxDirections];
};

}  // namespace fusedrnn
