// The mathematics of each cell, forward and backward, written once. CPU and CUDA include this file;
// `V` is some vectors of units on the CPU and one unit on the GPU, `M` supplies the functions of
// it. Of two products that are added, multiply_add says which one is not rounded first: left to the
// compiler, that would differ from one tile size to the next.
//
// Per unit a cell is described by lists of "slots", one value per unit each:
//   inputs    what the input projection supplies           LSTM i f g o   GRU r z n      RNN h
//   products  what the recurrent product supplies          LSTM i f g o   GRU n' r z     RNN h
//   saved     what backward needs of this step             LSTM i f g o c_prev   GRU n' r z n
//   grads     gradients of the pre-activations             LSTM i f g o   GRU n' r z n   RNN h
// where n' = W_hn h + b_hn, the part of the GRU's candidate that the reset gate scales. In `grads`
// the recurrent product's slots come first and the input projection's last, so that either is one
// contiguous range: for the GRU [n' r z] n and n' [r z n].
//
// Equations (torch.nn's; LSTM: Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al.
// 2000; GRU: Cho et al. 2014, reset after the product; RNN: Elman 1990):
//   LSTM  i,f,o = sigmoid(.)  g = tanh(.)  c = f c_prev + i g   h = o tanh(c)
//   GRU   r,z = sigmoid(.)  n = tanh(x_n + r n')  h = n + z (h_prev - n)
//   RNN   h = tanh(.) or max(., 0)
//   GRU with the reset gate before the product: n = tanh(x_n + W_n (r h_prev)), the rest as above
//
// A step is one product and what follows it, but for the GRU whose reset gate comes before the
// product: there the candidate's product waits for r h_prev of all units. That cell is divided into
// two parts, each a cell of its own to the kernels, with slots that are a range of the whole's:
//   gates      product of W_r, W_z and h_prev    ->  r, z, and r h_prev, the candidate's operand
//   candidate  product of W_n and r h_prev       ->  n, h
// Backward takes them in the other order: the candidate gives dn and dz, the product dn W_n is the
// gradient of r h_prev, and the gates give dr. Slots: inputs, products, saved and grads are all
// r z n. z is of the gates' product and the candidate's cell: forward it crosses over as "c", and
// the candidate saves it.
#pragma once

#include <type_traits>

#include "layer/problem.h"

#if defined(__CUDACC__)
#define FUSEDRNN_CELL __host__ __device__ __forceinline__ static
#else
#define FUSEDRNN_CELL __attribute__((always_inline)) static inline
#endif

namespace fusedrnn {

// A cell that is one part, itself.
template <class C>
struct UndividedCell {
  using Whole = C;
  using First = C;
  using Last = C;
  static constexpr int first_gate = 0;  // of the whole's gates, as inputs and products count them
  static constexpr int first_slot = 0;  // of the whole's saved values and gradients
};

template <class C>
constexpr bool is_part = !std::is_same_v<C, typename C::Whole>;
template <class C>
constexpr bool has_parts = !std::is_same_v<typename C::First, typename C::Last>;

struct LstmCell : UndividedCell<LstmCell> {
  static constexpr Cell cell = Cell::lstm;
  static constexpr int inputs = 4, products = 4, saved = 5, grads = 4;
  static constexpr bool has_c = true;            // carries c beside h
  static constexpr bool has_late_input = false;  // an input slot joins after the product
  static constexpr bool has_carry = false;       // h_prev reaches h other than through the product
  // Torch's gate that product (grad) slot s belongs to.
  FUSEDRNN_CELL constexpr int gate_of_product(int slot) { return slot; }
  FUSEDRNN_CELL constexpr int input_of_product(int slot) { return slot; }

  template <class M, class V>
  FUSEDRNN_CELL void forward(const V* product, V /*late*/, V /*h_prev*/, V& c, V& h, V* save) {
    const V i = M::sigmoid(product[0]), f = M::sigmoid(product[1]);
    const V g = M::tanh(product[2]), o = M::sigmoid(product[3]);
    save[0] = i, save[1] = f, save[2] = g, save[3] = o, save[4] = c;
    c = M::multiply_add(f, c, i * g);
    h = o * M::tanh(c);
  }

  // dc: gradient reaching c from the step after; on return that of c_prev. `h` is recomputed.
  template <class M, class V>
  FUSEDRNN_CELL void backward(const V* save, V& h, V dh, V& dc, V* grad, V& /*carry*/) {
    const V i = save[0], f = save[1], g = save[2], o = save[3], c_prev = save[4];
    const V tanh_c = M::tanh(M::multiply_add(f, c_prev, i * g));
    h = o * tanh_c;
    const V dh_o = dh * o;
    const V d = dc + (dh_o - dh_o * tanh_c * tanh_c);
    grad[0] = d * g * (i - i * i);
    grad[1] = d * c_prev * (f - f * f);
    grad[2] = d * i * (1 - g * g);
    grad[3] = dh * tanh_c * (o - o * o);
    dc = d * f;
  }
};

struct GruCell : UndividedCell<GruCell> {
  static constexpr Cell cell = Cell::gru;
  static constexpr int inputs = 3, products = 3, saved = 4, grads = 4;
  static constexpr bool has_c = false, has_late_input = true, has_carry = true;
  FUSEDRNN_CELL constexpr int gate_of_product(int slot) { return slot == 0 ? 2 : slot - 1; }
  FUSEDRNN_CELL constexpr int input_of_product(int slot) { return slot - 1; }  // -1: b_hn instead

  template <class M, class V>
  FUSEDRNN_CELL void forward(const V* product, V late, V h_prev, V& /*c*/, V& h, V* save) {
    const V r = M::sigmoid(product[1]), z = M::sigmoid(product[2]);
    const V n = M::tanh(late + r * product[0]);
    save[0] = product[0], save[1] = r, save[2] = z, save[3] = n;
    h = n + z * (h_prev - n);
  }

  // `h` holds h_prev. carry: what of dh reaches h_prev past the product.
  template <class M, class V>
  FUSEDRNN_CELL void backward(const V* save, V& h, V dh, V& /*dc*/, V* grad, V& carry) {
    const V n_hidden = save[0], r = save[1], z = save[2], n = save[3];
    const V dn = dh * (1 - z) * (1 - n * n);
    grad[0] = dn * r;
    grad[1] = dn * n_hidden * (r - r * r);
    grad[2] = dh * (h - n) * (z - z * z);
    grad[3] = dn;
    carry = dh * z;
  }
};

struct GruResetBeforeCell;

struct ResetBeforeGates {
  using Whole = GruResetBeforeCell;
  static constexpr int first_gate = 0, first_slot = 0;
  static constexpr int inputs = 2, products = 2, saved = 1, grads = 1;
  static constexpr bool has_c = true, has_late_input = false, has_carry = true;
  FUSEDRNN_CELL constexpr int gate_of_product(int slot) { return slot; }
  FUSEDRNN_CELL constexpr int input_of_product(int slot) { return slot; }

  // Of h the candidate's operand, of c its update gate.
  template <class M, class V>
  FUSEDRNN_CELL void forward(const V* product, V /*late*/, V h_prev, V& c, V& h, V* save) {
    const V r = M::sigmoid(product[0]);
    save[0] = r;
    c = M::sigmoid(product[1]);
    h = r * h_prev;
  }

  // dh: of the candidate's operand, which is computed again into `h`, where h_prev was. dc: what
  // reaches h_prev past the products, to which its way through the operand is added.
  template <class M, class V>
  FUSEDRNN_CELL void backward(const V* save, V& h, V dh, V& dc, V* grad, V& /*carry*/) {
    const V r = save[0];
    grad[0] = dh * h * (r - r * r);
    dc = M::multiply_add(dh, r, dc);
    h = r * h;
  }
};

struct ResetBeforeCandidate {
  using Whole = GruResetBeforeCell;
  static constexpr int first_gate = 2, first_slot = 1;
  static constexpr int inputs = 1, products = 1, saved = 2, grads = 2;
  static constexpr bool has_c = true, has_late_input = false, has_carry = true;
  FUSEDRNN_CELL constexpr int gate_of_product(int slot) { return slot; }
  FUSEDRNN_CELL constexpr int input_of_product(int slot) { return slot; }

  template <class M, class V>
  FUSEDRNN_CELL void forward(const V* product, V /*late*/, V h_prev, V& c, V& h, V* save) {
    const V z = c, n = M::tanh(product[0]);
    save[0] = z, save[1] = n;
    h = n + z * (h_prev - n);
  }

  // dc: what of dh came past the product of the step after; on return what goes past this one's.
  template <class M, class V>
  FUSEDRNN_CELL void backward(const V* save, V& h, V dh, V& dc, V* grad, V& /*carry*/) {
    const V z = save[0], n = save[1], d = dh + dc;
    grad[0] = d * (h - n) * (z - z * z);
    grad[1] = d * (1 - z) * (1 - n * n);
    dc = d * z;
  }
};

struct GruResetBeforeCell {
  using Whole = GruResetBeforeCell;
  using First = ResetBeforeGates;
  using Last = ResetBeforeCandidate;
  static constexpr Cell cell = Cell::gru_reset_before;
  static constexpr int inputs = 3, products = 3, saved = 3, grads = 3;
  static constexpr bool has_c = false, has_late_input = false, has_carry = true;
  FUSEDRNN_CELL constexpr int gate_of_product(int slot) { return slot; }
};
static_assert(has_parts<GruResetBeforeCell> && is_divided(GruResetBeforeCell::cell));

template <bool kTanh>
struct RnnCell : UndividedCell<RnnCell<kTanh>> {
  static constexpr Cell cell = kTanh ? Cell::rnn_tanh : Cell::rnn_relu;
  static constexpr int inputs = 1, products = 1, saved = 0, grads = 1;
  static constexpr bool has_c = false, has_late_input = false, has_carry = false;
  FUSEDRNN_CELL constexpr int gate_of_product(int slot) { return slot; }
  FUSEDRNN_CELL constexpr int input_of_product(int slot) { return slot; }

  template <class M, class V>
  FUSEDRNN_CELL void forward(const V* product, V /*late*/, V /*h_prev*/, V& /*c*/, V& h, V*) {
    h = kTanh ? M::tanh(product[0]) : M::relu(product[0]);
  }

  // `h` holds this step's h.
  template <class M, class V>
  FUSEDRNN_CELL void backward(const V*, V& h, V dh, V& /*dc*/, V* grad, V& /*carry*/) {
    grad[0] = kTanh ? dh * (1 - h * h) : M::where_positive(h, dh);
  }
};

}  // namespace fusedrnn
