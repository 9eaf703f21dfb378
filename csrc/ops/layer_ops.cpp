// The ops of the `fusedrnn` library: schemas, argument checks, allocation and the choice of
// backend. Only the op layer, this folder, knows torch, and knows it through the stable ABI (torch
// 2.10 and later): one binary serves every torch from there on.
//
// The checks here make every call safe, whoever makes it; the modules check before, with torch.nn's
// messages. See fusedrnn/_engine/ops.py for what the arguments mean.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cell_name.h"
#include "cells.h"
#include "cpu/backend.h"
#include "cpu/compiled.h"
#include "environment.h"
#include "layer/backend.h"
#include "layer/prepared.h"
#include "modifiers.h"
#include "stack.h"
#include "states.h"
#include "tensors.h"
#include "threads.h"
#include "weights.h"

namespace fusedrnn {
namespace {

// Backends by device type: the CPU's is here, CUDA's installs itself.
constexpr int kDeviceTypes = 2;
const Backend* g_backends[kDeviceTypes] = {&cpu::backend(), nullptr};

const Backend& backend_of(const Tensor& input) {
  check_environment();
  const Backend* const backend = g_backends[input.is_cpu() ? 0 : 1];
  FUSEDRNN_CHECK(backend, "fusedrnn has no CUDA kernels here, and input is on ", device_of(input),
                 "; fusedrnn.build_info()['without_cuda'] says why");
  return *backend;
}

// What only libtorch_cuda has. It is no dependency of ours, and nothing would bind a weak
// reference to it, but where a CUDA tensor exists it is in the process.
struct TorchCuda {
  AOTITorchError (*current_stream)(int32_t device_index, void** stream) = nullptr;
  AOTITorchError (*blas_handle)(void** handle) = nullptr;
};

const TorchCuda& torch_cuda() {
  static const TorchCuda found = [] {
    TorchCuda torch;
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return torch;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    };
    find(torch.current_stream, "aoti_torch_get_current_cuda_stream");
    find(torch.blas_handle, "torch_get_current_cuda_blas_handle");
    return torch;
  }();
  FUSEDRNN_CHECK(found.current_stream && found.blas_handle,
                 "libtorch_cuda.so of torch 2.10 or later was expected in this process");
  return found;
}

// Runs a backend's function on the input's device with what torch lends to it.
template <class P>
void run(const char* (*Backend::*pass)(const P&, const Context&), const P& problem,
         const Tensor& input, bool allow_tf32) {
  struct Scratch {
    const Tensor& like;
    std::vector<Tensor> tensors;
  } scratch{input, {}};
  Context context;
  context.allow_tf32 = allow_tf32;
  context.owner = &scratch;
  context.allocate = [](int64_t bytes, void* owner) -> void* {
    Scratch& to = *static_cast<Scratch*>(owner);
    const AtenTensorHandle handle = try_bytes(bytes, to.like);
    if (!handle) return nullptr;
    to.tensors.emplace_back(handle);
    return to.tensors.back().data_ptr();
  };
  const bool cpu = input.is_cpu();
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  if (cpu) {
    context.threads = thread_count();
    context.parallel_for = parallel_for;
  } else {
    const TorchCuda& torch = torch_cuda();
    const int32_t device = input.get_device_index();
    guard.emplace(device);
    TORCH_ERROR_CODE_CHECK(torch.current_stream(device, &context.stream));
    TORCH_ERROR_CODE_CHECK(torch.blas_handle(&context.blas));
  }
  const char* const error = (backend_of(input).*pass)(problem, context);
  FUSEDRNN_CHECK(!error, error);
}

// States that were not given are zeros, told by none or by an empty list.
const std::vector<Tensor>& or_none(const std::optional<std::vector<Tensor>>& hx) {
  static const std::vector<Tensor> none;
  return hx ? *hx : none;
}

// What the schemas have of a layer beside its tensors.
struct Layer {
  std::string_view cell;
  bool biases = false, projected = false, bidirectional = false;
};

// One layer call, checked: sizes, where everything is, and the contiguous copies that it needed.
// It holds as long as its arguments do.
struct Call {
  BackwardProblem problem;
  Roles roles;
  Tensor input;
  std::vector<Tensor> copies;
  std::vector<int64_t> offsets;

  // What has so many values for each step and direction.
  Sizes sizes_of_steps(int64_t width) const {
    const BackwardProblem& p = problem;
    width *= p.directions;
    return p.offsets ? Sizes{p.rows, width} : Sizes{p.T, p.B, width};
  }
  Sizes output_sizes() const { return sizes_of_steps(problem.R()); }
  Sizes state_sizes(int state) const { return fusedrnn::state_sizes(problem, state); }
  Sizes reserve_sizes() const {
    return {problem.directions, problem.rows, problem.facts().saved, problem.Hp()};
  }
};

void read_batch_sizes(const Tensor& batch_sizes, int64_t rows, Call& call) {
  FUSEDRNN_CHECK(batch_sizes.is_cpu() && batch_sizes.scalar_type() == ScalarType::Long &&
                     batch_sizes.dim() == 1 && batch_sizes.numel() > 0,
                 "batch_sizes: expected a non-empty int64 CPU tensor of shape (T,), got ",
                 dtype_name(batch_sizes), " of shape ", to_string(sizes_of(batch_sizes)));
  const Tensor sizes = dense("batch_sizes", batch_sizes);
  const int64_t* const size = static_cast<const int64_t*>(data_of("batch_sizes", sizes));
  const int64_t T = sizes.size(0);
  call.offsets.resize(static_cast<std::size_t>(T) + 1);
  int64_t total = 0;
  for (int64_t t = 0; t < T; ++t) {
    FUSEDRNN_CHECK(size[t] > 0 && (t == 0 || size[t] <= size[t - 1]) && size[t] <= rows - total,
                   "batch_sizes: expected positive, non-increasing sizes that add up to input's ",
                   rows, " rows, got ", size[t], " at step ", t);
    call.offsets[static_cast<std::size_t>(t)] = total;
    total += size[t];
  }
  FUSEDRNN_CHECK(total == rows, "batch_sizes: expected a sum of ", rows,
                 ", the rows of input, got ", total);
  call.offsets[static_cast<std::size_t>(T)] = total;
  call.problem.T = T;
  call.problem.B = size[0];
}

// Where the rows of input are; copies it if the backend could not read it in place.
void place_input(const Tensor& input, bool packed, Call& call) {
  BackwardProblem& p = call.problem;
  const int64_t rows_dim = packed ? 0 : 1;
  const auto place = [&] {
    p.input = data_of("input", call.input);
    p.input_row = call.input.stride(rows_dim);
    p.input_step = packed ? 0 : call.input.stride(0);
  };
  call.input = input;
  if (input.stride(rows_dim + 1) != 1 && p.I > 1) call.input = dense("input", input);
  place();
  if (!backend_of(input).even_rows) return;
  // The stride of a dimension of size one means nothing.
  if (packed ? p.rows == 1 : p.B == 1) p.input_row = packed || p.T == 1 ? p.I : p.input_step;
  const bool even = packed || p.T == 1 || p.B == 1 || p.input_step == p.B * p.input_row;
  if (even && p.input_row >= p.I) return;
  call.input = dense("input", input);
  place();
  p.input_row = p.I;
}

Call check(const Tensor& input, const std::optional<Tensor>& batch_sizes,
           const std::vector<Tensor>& hx, const std::vector<Tensor>& weights, const Layer& layer) {
  Call call;
  BackwardProblem& p = call.problem;
  set_cell(p, layer.cell);
  p.dtype = dtype_of("input", input);
  p.directions = layer.bidirectional ? 2 : 1;
  const int64_t dims = batch_sizes ? 2 : 3;
  FUSEDRNN_CHECK(input.dim() == dims, "input: expected ", dims, " dimensions, got ", input.dim());
  p.I = input.size(dims - 1);
  FUSEDRNN_CHECK(p.I > 0, "input: expected at least one feature, got shape ",
                 to_string(sizes_of(input)));

  call.roles = roles_of(p.facts(), layer.biases, layer.projected);
  check_weights(weights, call.roles, layer.projected, p);

  if (batch_sizes) {
    read_batch_sizes(*batch_sizes, input.size(0), call);
    p.offsets = call.offsets.data();
  } else {
    p.T = input.size(0);
    p.B = input.size(1);
  }
  FUSEDRNN_CHECK(p.T > 0, "input: expected at least one step, got shape ",
                 to_string(sizes_of(input)));
  p.rows = batch_sizes ? input.size(0) : p.T * p.B;
  // The largest arrays have a few values for each row and unit (8 bytes each at most); beyond
  // this, byte counts would overflow.
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 1024;
  const int64_t widest = p.Hp() + p.R() + p.I;
  FUSEDRNN_CHECK(p.B <= kMost / p.T && (p.rows == 0 || widest <= kMost / p.rows),
                 "input: too large, got shape ", to_string(sizes_of(input)));

  for_each_weight(call.roles, p.directions, [&](Role role, std::size_t i, int) {
    check_like(name_of(role), weights[i], input);
  });
  if (!hx.empty()) check_states("hx", hx, p.facts());
  for (std::size_t i = 0; i < hx.size(); ++i) {
    check_like(kHx[i], hx[i], input);
    check_sizes(kHx[i], hx[i], call.state_sizes(static_cast<int>(i)));
  }

  place_weights(weights, call.roles, p.directions, p.weights, call.copies);
  place_input(input, batch_sizes.has_value(), call);
  for (std::size_t i = 0; i < hx.size(); ++i) p.hx[i] = place(kHx[i], hx[i], call.copies);
  return call;
}

// ---- weights made ready ahead, as panels --------------------------------------------------------

// What the header of a layer's panels says, or would say.
PanelsHeader header_of(const Problem& p, bool biases, const Backend& backend) {
  FUSEDRNN_CHECK(backend.make_panels,
                 "panels: this device makes no panels ahead; call without them");
  PanelsHeader header;
  header.magic = PanelsHeader::kMagic;
  header.I = p.I, header.H = p.H, header.P = p.P;
  header.cell = p.program ? kProgram : static_cast<int32_t>(p.cell);
  header.text = p.program ? static_cast<int64_t>(p.program->text.size()) : 0;
  header.bytes = header.before_panels() + round_up(backend.make_panels(p, nullptr), 64);
  header.dtype = static_cast<int32_t>(p.dtype);
  header.directions = p.directions;
  header.biases = biases;
  header.layout = backend.panels_layout();
  return header;
}

Tensor make_panels(const std::vector<Tensor>& weights, const CellName& cell, bool biases,
                   bool projected, bool bidirectional) {
  FUSEDRNN_CHECK(!weights.empty() && weights[0].dim() == 2,
                 "weights: expected w_ih of shape [gates * hidden_size, input_size] first");
  dtype_of("w_ih", weights[0]);  // refuses by this name; `check` would say "input"
  // The checks are those of a call on no sequences.
  const Tensor nothing = new_tensor({1, 0, weights[0].size(1)}, weights[0]);
  const Call call =
      check(nothing, {}, {}, weights, {cell.text(), biases, projected, bidirectional});
  const Backend& backend = backend_of(nothing);
  const PanelsHeader header = header_of(call.problem, biases, backend);
  Tensor panels = new_bytes(header.bytes, nothing);
  char* const to = static_cast<char*>(panels.mutable_data_ptr());
  std::memset(to, 0, static_cast<std::size_t>(header.bytes));
  std::memcpy(to, &header, sizeof(header));
  if (call.problem.program)
    std::memcpy(to + sizeof(header), call.problem.program->text.data(),
                call.problem.program->text.size());
  backend.make_panels(call.problem, to + header.before_panels());
  return panels;
}

std::string describe(const PanelsHeader& header) {
  static constexpr const char* dtypes[] = {"float64", "float32", "bfloat16", "float16"};
  const bool known =
      header.cell >= kProgram && header.cell < kCells && header.dtype >= 0 && header.dtype < 4;
  if (header.magic != PanelsHeader::kMagic || !known) return "no panels";
  const char* const cell =
      header.cell == kProgram ? "a program" : facts_of(Cell{header.cell}).names.cell;
  return std::string(cell) + "(I=" + std::to_string(header.I) + ", H=" + std::to_string(header.H) +
         ", P=" + std::to_string(header.P) + ") in " + dtypes[header.dtype] +
         (header.biases ? " with biases, " : " without biases, ") +
         std::to_string(header.directions) + " direction(s), " + std::to_string(header.bytes) +
         " bytes in layout " + std::to_string(header.layout);
}

// The header of the layer that begins `at` bytes into the panels; zeros if there is none.
PanelsHeader read_header(const ReadyBytes& panels, int64_t at) {
  PanelsHeader header;
  if (panels.size - at >= static_cast<int64_t>(sizeof(header)))
    std::memcpy(&header, panels.data + at, sizeof(header));
  return header;
}

// The text of a program after a header; none if it is not all there.
std::string text_in(const ReadyBytes& panels, int64_t at, const PanelsHeader& header) {
  const int64_t first = at + static_cast<int64_t>(sizeof(header));
  if (header.text < 0 || header.text > panels.size - first) return {};
  return std::string(panels.data + first, static_cast<std::size_t>(header.text));
}

// Has the layer use the panels that begin at `at`, unless they are another's or not whole.
void use_panels(const ReadyBytes& panels, int64_t at, bool biases, const Backend& backend,
                Problem& p) {
  const PanelsHeader found = read_header(panels, at), needed = header_of(p, biases, backend);
  FUSEDRNN_CHECK(std::memcmp(&found, &needed, sizeof(found)) == 0 &&
                     found.bytes <= panels.size - at &&
                     (!p.program || p.program->text == text_in(panels, at, found)),
                 "panels: expected those of ", describe(needed), ", got those of ", describe(found),
                 ", ", panels.size - at, " bytes there");
  p.has_panels = true;
  p.panels = panels.data + at + found.before_panels();
}

// What the header of a layer in a stack of layers says, as the sizes of a call. The sizes are bound
// by the bytes that there are, so that no product of them overflows.
bool read_sizes(const ReadyBytes& panels, int64_t at, const PanelsHeader& header, Shape& s) {
  const int64_t bytes = panels.size, width = header.P ? header.P : header.H;
  if (header.magic != PanelsHeader::kMagic || header.cell < kProgram || header.cell >= kCells ||
      header.directions != 1 || header.I <= 0 || header.H <= 0 || header.P < 0 ||
      header.I > bytes || header.P > bytes || header.H > bytes / (header.I + width))
    return false;
  s.cell = Cell{}, s.program = nullptr;
  if (header.cell != kProgram) {
    s.cell = static_cast<Cell>(header.cell);
  } else {
    const std::string text = text_in(panels, at, header);
    if (text.empty()) return false;
    s.program = &program_of(text);
  }
  s.I = header.I, s.H = header.H, s.P = header.P;
  return header.P == 0 || s.facts().projects;
}

Tensor panels_forward(const Tensor& input, const Tensor& panels, const std::vector<Tensor>& hx,
                      bool backwards, const std::optional<Tensor>& step_inputs) {
  const ReadyBytes bytes = ready_bytes("panels", panels, input);
  const Backend& backend = backend_of(input);
  Problem p;
  const auto read = [&](int64_t at, Shape& s) {
    const PanelsHeader header = read_header(bytes, at);
    FUSEDRNN_CHECK(read_sizes(bytes, at, header, s),
                   "panels: expected what fusedrnn::make_panels returned for one direction, got ",
                   describe(header), " at byte ", at, " of ", bytes.size);
    static_cast<Shape&>(p) = s;
    use_panels(bytes, at, header.biases != 0, backend, p);
    check_step_inputs(step_inputs.has_value(), p);
    return header.bytes;
  };
  p.backwards = backwards;
  std::optional<Tensor> of_steps;  // [layers, T, B, K, H]
  return forward_stack(input, "panels", bytes, hx, read, [&](const StackedLayer& layer) {
    if (step_inputs) {
      if (!of_steps) {
        const Sizes sizes{hx[0].size(0), p.T, p.B};
        of_steps = ready_step_inputs(*step_inputs, sizes, p, input);
      }
      place_step_inputs(*of_steps, layer.index, p);
    }
    p.input = layer.input;
    p.input_step = layer.input_step, p.input_row = layer.input_row;
    p.output = layer.output;
    for (int i = 0; i < kMaxStates; ++i) p.hx[i] = p.hn[i] = layer.states[i];
    run<Problem>(&Backend::forward, p, input, false);
  });
}

// ---- one layer ----------------------------------------------------------------------------------

struct ForwardResults {
  Tensor output;
  std::vector<Tensor> hn;
  Tensor reserve;
  std::vector<Tensor> states;  // after each step, of those after h
};

ForwardResults forward(Call& call, const Tensor& input, bool save, bool wants_states,
                       bool allow_tf32) {
  BackwardProblem& p = call.problem;
  p.training = save;
  ForwardResults results{
      new_pooled("output", call.output_sizes(), input),
      {},
      save ? new_pooled("reserve", call.reserve_sizes(), input) : new_tensor({0}, input),
      {}};
  results.hn.reserve(2 * kMaxStates);
  const int states = p.facts().states;
  for (int i = 0; i < states; ++i) results.hn.push_back(new_tensor(call.state_sizes(i), input));
  for (int i = 1; wants_states && i < states; ++i)
    results.states.push_back(new_pooled("states", call.sizes_of_steps(p.H), input));
  if (p.rows == 0) return results;
  p.output = results.output.data_ptr();
  for (int i = 0; i < states; ++i) p.hn[i] = results.hn[static_cast<std::size_t>(i)].data_ptr();
  for (std::size_t i = 0; i < results.states.size(); ++i)
    p.states[1 + i] = results.states[i].data_ptr();
  p.reserve = save && p.facts().saved ? results.reserve.data_ptr() : nullptr;
  run<Problem>(&Backend::forward, p, input, allow_tf32);
  return results;
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> layer_forward(
    const Tensor& input, const std::optional<Tensor>& batch_sizes,
    const std::optional<std::vector<Tensor>>& given_hx, const std::vector<Tensor>& weights,
    const CellName& cell, bool biases, bool projected, bool bidirectional, bool save,
    bool allow_tf32, const std::optional<Tensor>& panels) {
  Call call = check(input, batch_sizes, or_none(given_hx), weights,
                    {cell.text(), biases, projected, bidirectional});
  check_step_inputs(false, call.problem);
  if (panels) {
    const ReadyBytes bytes = ready_bytes("panels", *panels, input);
    use_panels(bytes, 0, biases, backend_of(input), call.problem);
    FUSEDRNN_CHECK(read_header(bytes, 0).bytes == bytes.size,
                   "panels: expected those of one layer, got more after them");
  }
  ForwardResults results = forward(call, input, save, false, allow_tf32);
  return {std::move(results.output), std::move(results.hn), std::move(results.reserve)};
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> modified_forward(
    const Tensor& input, const std::optional<Tensor>& batch_sizes,
    const std::optional<std::vector<Tensor>>& given_hx, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& reset, const std::optional<std::vector<Tensor>>& reset_states,
    const std::optional<Tensor>& recurrent_factor, const std::optional<std::vector<Tensor>>& keep,
    const std::optional<Tensor>& step_inputs, const CellName& cell, bool biases, bool projected,
    bool bidirectional, bool save, bool states, bool allow_tf32) {
  Call call = check(input, batch_sizes, or_none(given_hx), weights,
                    {cell.text(), biases, projected, bidirectional});
  place_modifiers({reset, reset_states, recurrent_factor, keep, step_inputs}, input, call.problem,
                  call.copies);
  ForwardResults results = forward(call, input, save, states, allow_tf32);
  for (Tensor& state : results.states) results.hn.push_back(std::move(state));
  return {std::move(results.output), std::move(results.hn), std::move(results.reserve)};
}

// The results of layer_backward: those that `needs` asks for, and for the others shape [0]. Its
// bits are in the order of the operands: input, the cell's states, the weights.
class Gradients {
 public:
  Gradients(const Tensor& input, int64_t needs, bool nothing)
      : input_(input), needs_(needs), nothing_(nothing) {}

  Tensor of_input() {
    const bool wanted = next();
    if (!wanted || nothing_) return make(wanted, sizes_of(input_));
    return new_pooled("grad_input", sizes_of(input_), input_);
  }
  // The next operand's, to be added to.
  template <class Like>
  Tensor of_zeros(const Sizes& sizes, const Like& options) {
    return next() ? zeros(sizes, options) : new_tensor({0}, options);
  }
  // The next operand's.
  Tensor of(const Sizes& sizes, bool there = true) { return make(next() && there, sizes); }
  // For operands that were not given.
  void skip(int64_t count) { bit_ += static_cast<int>(count); }
  // Where a gradient is to be written, null if it is not.
  void* place(const Tensor& gradient) const {
    return nothing_ || is_missing(gradient) ? nullptr : gradient.data_ptr();
  }

 private:
  bool next() { return needs_ >> bit_++ & 1; }
  Tensor make(bool wanted, const Sizes& sizes) const {
    if (!wanted) return new_tensor({0}, input_);
    return nothing_ ? zeros(sizes, input_) : new_tensor(sizes, input_);
  }

  const Tensor& input_;
  const int64_t needs_;
  const bool nothing_;
  int bit_ = 0;
};

struct GivenGradients {
  const std::optional<Tensor>& output;
  const std::vector<Tensor>& states;  // final ones, then those after each step, if any
};

// What forward returned, and the gradients of it, checked and placed.
void place_results(const GivenGradients& grads, const Tensor& output, const Tensor& reserve,
                   const Tensor& input, Call& call) {
  BackwardProblem& p = call.problem;
  p.training = true;
  const auto given = [&](const char* name, const Tensor& t, const Sizes& sizes) {
    check_like(name, t, input);
    check_sizes(name, t, sizes);
  };
  if (grads.output) given("grad_output", *grads.output, call.output_sizes());
  const std::size_t states = static_cast<std::size_t>(p.facts().states);
  if (grads.states.size() != 2 * states - 1 && !grads.states.empty())
    check_states("grad_hn", grads.states, p.facts());
  for (std::size_t i = 0; i < grads.states.size(); ++i)
    if (!is_missing(grads.states[i]))
      given(kGradHn[i], grads.states[i],
            i < states ? call.state_sizes(static_cast<int>(i)) : call.sizes_of_steps(p.H));
  given("output", output, call.output_sizes());
  check_like("reserve", reserve, input);
  FUSEDRNN_CHECK(sizes_of(reserve) == call.reserve_sizes() && reserve.is_contiguous(),
                 "reserve: expected what layer_forward(..., save=True) returned, of shape ",
                 to_string(call.reserve_sizes()), ", got ", to_string(sizes_of(reserve)));

  p.output = place("output", output, call.copies);
  p.reserve = data_of("reserve", reserve);
  if (!p.facts().saved) p.reserve = nullptr;
  if (grads.output) p.grad_output = place("grad_output", *grads.output, call.copies);
  for (std::size_t i = 0; i < grads.states.size(); ++i)
    if (!is_missing(grads.states[i]))
      (i < states ? p.grad_hn[i] : p.grad_states[1 + i - states]) =
          place(kGradHn[i], grads.states[i], call.copies);
}

struct BackwardResults {
  Tensor input;
  std::vector<Tensor> hx, weights;
};

// Allocates the gradients of the operands, in the order of the bits of `needs`.
BackwardResults place_gradients(Gradients& gradients, const std::vector<Tensor>& hx,
                                const std::vector<Tensor>& weights, Call& call) {
  BackwardProblem& p = call.problem;
  BackwardResults results{gradients.of_input(), {}, {}};
  p.grad_input = gradients.place(results.input);
  for (int i = 0; i < p.facts().states; ++i) {
    Tensor gradient = gradients.of(call.state_sizes(i), !hx.empty());
    p.grad_hx[i] = gradients.place(gradient);
    if (!hx.empty()) results.hx.push_back(std::move(gradient));
  }
  for_each_weight(call.roles, p.directions, [&](Role role, std::size_t i, int d) {
    results.weights.push_back(gradients.of(sizes_of(weights[i])));
    weight_of(p.grad_weights[d], role) = gradients.place(results.weights.back());
  });
  return results;
}

// Places the gradient of the step inputs. After the end of a packed sequence it is zero.
Tensor place_grad_step_inputs(Gradients& gradients, Call& call, const Tensor& input) {
  BackwardProblem& p = call.problem;
  const int64_t kinds = p.facts().step_inputs;
  if (!kinds) return new_tensor({0}, input);
  const Sizes sizes{p.T, p.directions, p.B, kinds, p.H};
  Tensor gradient = p.offsets ? gradients.of_zeros(sizes, input) : gradients.of(sizes);
  StepInputs<void>& to = p.grad_step_inputs;
  to.data = gradients.place(gradient);
  to.kind = p.H, to.row = kinds * p.H;
  to.direction = p.B * to.row, to.step = p.directions * to.direction;
  return gradient;
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> layer_backward(
    const std::optional<Tensor>& grad_output, const std::vector<Tensor>& grad_hn,
    const Tensor& input, const std::optional<Tensor>& batch_sizes,
    const std::optional<std::vector<Tensor>>& given_hx, const std::vector<Tensor>& weights,
    const Tensor& output, const Tensor& reserve, const CellName& cell, bool biases, bool projected,
    bool bidirectional, int64_t needs, bool allow_tf32) {
  const std::vector<Tensor>& hx = or_none(given_hx);
  Call call =
      check(input, batch_sizes, hx, weights, {cell.text(), biases, projected, bidirectional});
  check_step_inputs(false, call.problem);
  place_results({grad_output, grad_hn}, output, reserve, input, call);
  Gradients gradients(input, needs, call.problem.rows == 0);
  BackwardResults results = place_gradients(gradients, hx, weights, call);
  if (call.problem.rows > 0) run(&Backend::backward, call.problem, input, allow_tf32);
  return {std::move(results.input), std::move(results.hx), std::move(results.weights)};
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, Tensor>
modified_backward(const std::optional<Tensor>& grad_output, const std::vector<Tensor>& grad_states,
                  const Tensor& input, const std::optional<Tensor>& batch_sizes,
                  const std::optional<std::vector<Tensor>>& given_hx,
                  const std::vector<Tensor>& weights, const std::optional<Tensor>& reset,
                  const std::optional<std::vector<Tensor>>& given_reset_states,
                  const std::optional<Tensor>& recurrent_factor,
                  const std::optional<std::vector<Tensor>>& keep,
                  const std::optional<Tensor>& step_inputs, const Tensor& output,
                  const Tensor& reserve, const CellName& cell, bool biases, bool projected,
                  bool bidirectional, int64_t needs, bool allow_tf32) {
  const std::vector<Tensor>&hx = or_none(given_hx), &reset_states = or_none(given_reset_states);
  Call call =
      check(input, batch_sizes, hx, weights, {cell.text(), biases, projected, bidirectional});
  BackwardProblem& p = call.problem;
  place_modifiers({reset, given_reset_states, recurrent_factor, keep, step_inputs}, input, p,
                  call.copies);
  place_results({grad_output, grad_states}, output, reserve, input, call);
  Gradients gradients(input, needs, p.rows == 0);
  BackwardResults results = place_gradients(gradients, hx, weights, call);
  // Sums over the boundaries of a sequence, in the compute type.
  Options compute(input);
  const bool half = size_of(p.dtype) == 2;
  if (half) compute.dtype = aoti_torch_dtype_float32();
  std::vector<Tensor> of_reset;
  for (std::size_t i = 0; i < reset_states.size(); ++i) {
    of_reset.push_back(gradients.of_zeros(sizes_of(reset_states[i]), compute));
    Tensor& sum = of_reset.back();
    if (void* const data = gradients.place(sum))
      p.grad_reset_states[i] = {data, stride_of(sum, 0), stride_of(sum, 1), stride_of(sum, 2)};
  }
  gradients.skip(p.facts().states - static_cast<int64_t>(reset_states.size()));
  Tensor of_step_inputs = place_grad_step_inputs(gradients, call, input);
  if (p.rows > 0) run(&Backend::backward, p, input, allow_tf32);
  for (Tensor& sum : of_reset) {
    if (!half) continue;
    Tensor rounded = new_tensor(sizes_of(sum), input);
    sum = torch::stable::copy_(rounded, sum);
  }
  return {std::move(results.input), std::move(results.hx), std::move(results.weights),
          std::move(of_reset), std::move(of_step_inputs)};
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY(fusedrnn, m) {
  m.def(
      "layer_forward(Tensor input, Tensor? batch_sizes, Tensor[]? hx, Tensor[] weights, str cell, "
      "bool biases, bool projected, bool bidirectional, bool save, bool allow_tf32=False, "
      "Tensor? panels=None) -> (Tensor output, Tensor[] hn, Tensor reserve)");
  m.def(
      "layer_backward(Tensor? grad_output, Tensor[] grad_hn, Tensor input, Tensor? batch_sizes, "
      "Tensor[]? hx, Tensor[] weights, Tensor output, Tensor reserve, str cell, bool biases, "
      "bool projected, bool bidirectional, int needs, bool allow_tf32=False) "
      "-> (Tensor grad_input, Tensor[] grad_hx, Tensor[] grad_weights)");
  // Beside the others, which do not pay for arguments that they do not have.
  m.def(
      "modified_forward(Tensor input, Tensor? batch_sizes, Tensor[]? hx, Tensor[] weights, "
      "Tensor? reset, Tensor[]? reset_states, Tensor? recurrent_factor, Tensor[]? keep, "
      "Tensor? step_inputs, str cell, "
      "bool biases, bool projected, bool bidirectional, bool save, bool states, "
      "bool allow_tf32=False) -> (Tensor output, Tensor[] states, Tensor reserve)");
  m.def(
      "modified_backward(Tensor? grad_output, Tensor[] grad_states, Tensor input, "
      "Tensor? batch_sizes, Tensor[]? hx, Tensor[] weights, Tensor? reset, "
      "Tensor[]? reset_states, Tensor? recurrent_factor, Tensor[]? keep, Tensor? step_inputs, "
      "Tensor output, Tensor reserve, str cell, bool biases, bool projected, bool bidirectional, "
      "int needs, "
      "bool allow_tf32=False) -> (Tensor grad_input, Tensor[] grad_hx, Tensor[] grad_weights, "
      "Tensor[] grad_reset_states, Tensor grad_step_inputs)");
  m.def(
      "make_panels(Tensor[] weights, str cell, bool biases, bool projected, bool bidirectional) "
      "-> Tensor");
  m.def(
      "panels_forward(Tensor input, Tensor panels, Tensor(a!)[] hx, bool backwards=False, "
      "Tensor? step_inputs=None) -> Tensor");
}

extern "C" __attribute__((visibility("default"))) const fusedrnn::Backend* fusedrnn_use_backend(
    int device_type, const fusedrnn::Backend* backend) {
  if (device_type < 0 || device_type >= fusedrnn::kDeviceTypes) return nullptr;
  return std::exchange(fusedrnn::g_backends[device_type], backend);
}

// Runs the program of a text by a file that was compiled of it (cpu/compiled.h). Returns what is
// wrong, a text that stays until the calling thread's next call, or null.
extern "C" __attribute__((visibility("default"))) const char* fusedrnn_use_compiled(
    const char* program, const char* key, const char* file) {
  thread_local std::string error;
  try {
    error = fusedrnn::cpu::use_compiled(fusedrnn::program_of(program), key, file);
  } catch (const std::exception& exception) {
    error = exception.what();
  }
  return error.empty() ? nullptr : error.c_str();
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) {
  m.impl("layer_forward", TORCH_BOX(&fusedrnn::layer_forward));
  m.impl("layer_backward", TORCH_BOX(&fusedrnn::layer_backward));
  m.impl("modified_forward", TORCH_BOX(&fusedrnn::modified_forward));
  m.impl("modified_backward", TORCH_BOX(&fusedrnn::modified_backward));
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("layer_forward", TORCH_BOX(&fusedrnn::layer_forward));
  m.impl("layer_backward", TORCH_BOX(&fusedrnn::layer_backward));
  m.impl("modified_forward", TORCH_BOX(&fusedrnn::modified_forward));
  m.impl("modified_backward", TORCH_BOX(&fusedrnn::modified_backward));
  m.impl("make_panels", TORCH_BOX(&fusedrnn::make_panels));
  m.impl("panels_forward", TORCH_BOX(&fusedrnn::panels_forward));
}
