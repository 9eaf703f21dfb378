// The ops of the `fusedrnn` library: schemas, argument checks, allocation and the choice of
// backend. Only the op layer knows torch (this, quantized_ops.cpp, and the headers tensors.h,
// weights.h, stack.h and threads.h), and knows it through the stable ABI (torch 2.10 and later):
// one binary serves every torch from there on.
//
// The checks here make every call safe, whoever makes it; the modules check before, with torch.nn's
// messages. See fusedrnn/ops.py for what the arguments mean.
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

#include "cpu/backend.h"
#include "environment.h"
#include "layer/backend.h"
#include "layer/prepared.h"
#include "stack.h"
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

// One layer call, checked: sizes, and contiguous tensors that live as long as the call.
struct Call {
  BackwardProblem problem;
  Tensor input;
  std::optional<Tensor> hx, cx;
  std::vector<Tensor> weights;
  std::vector<int64_t> offsets;
  int per_direction = 0;
  bool has_biases = false;

  Sizes output_sizes() const {
    const BackwardProblem& p = problem;
    const int64_t width = p.directions * p.R();
    return p.offsets ? Sizes{p.rows, width} : Sizes{p.T, p.B, width};
  }
  Sizes hidden_sizes() const { return {problem.directions, problem.B, problem.R()}; }
  Sizes cell_sizes() const { return {problem.directions, problem.B, problem.H}; }
  Sizes reserve_sizes() const {
    return {problem.directions, problem.rows, saved_of(problem.cell), problem.Hp()};
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
           const std::optional<Tensor>& hx, const std::optional<Tensor>& cx,
           const std::vector<Tensor>& weights, int64_t cell, bool has_biases, bool bidirectional) {
  Call call;
  BackwardProblem& p = call.problem;
  FUSEDRNN_CHECK(cell >= 0 && cell < kCells, "cell: expected 0 to ", kCells - 1, ", got ", cell);
  p.cell = static_cast<Cell>(cell);
  p.dtype = dtype_of("input", input);
  p.directions = bidirectional ? 2 : 1;
  const int64_t dims = batch_sizes ? 2 : 3;
  FUSEDRNN_CHECK(input.dim() == dims, "input: expected ", dims, " dimensions, got ", input.dim());
  p.I = input.size(dims - 1);
  FUSEDRNN_CHECK(p.I > 0, "input: expected at least one feature, got shape ",
                 to_string(sizes_of(input)));

  check_weights(weights, has_biases, p);
  call.per_direction = static_cast<int>(weights.size()) / p.directions;

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
  // The largest arrays have rows * 5 * Hp values; beyond this, byte counts would overflow.
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 1024;
  const int64_t widest = p.Hp() + p.R() + p.I;
  FUSEDRNN_CHECK(p.B <= kMost / p.T && (p.rows == 0 || widest <= kMost / p.rows),
                 "input: too large, got shape ", to_string(sizes_of(input)));

  for (std::size_t i = 0; i < weights.size(); ++i) {
    const char* const name =
        weight_name(i, static_cast<std::size_t>(call.per_direction), has_biases);
    check_like(name, weights[i], input);
    call.weights.push_back(dense(name, weights[i]));
  }
  FUSEDRNN_CHECK(!cx || p.cell == Cell::lstm, "cx: only an LSTM has a cell state");
  FUSEDRNN_CHECK(p.cell != Cell::lstm || hx.has_value() == cx.has_value(),
                 "hx, cx: expected both or neither");
  if (hx) {
    check_like("hx", *hx, input);
    check_sizes("hx", *hx, call.hidden_sizes());
    call.hx = dense("hx", *hx);
  }
  if (cx) {
    check_like("cx", *cx, input);
    check_sizes("cx", *cx, call.cell_sizes());
    call.cx = dense("cx", *cx);
  }

  call.has_biases = has_biases;
  place_input(input, batch_sizes.has_value(), call);
  p.hx = data_of("hx", call.hx);
  p.cx = data_of("cx", call.cx);
  for (int d = 0; d < p.directions; ++d) p.weights[d] = weights_at(call.weights, has_biases, p, d);
  return call;
}

// ---- weights packed ahead -----------------------------------------------------------------------

// What the header of a layer's packed weights says, or would say.
PackedHeader header_of(const Problem& p, bool has_biases, const Backend& backend) {
  FUSEDRNN_CHECK(backend.pack, "packed: this device packs no weights ahead; call without it");
  PackedHeader header;
  header.magic = PackedHeader::kMagic;
  header.bytes = static_cast<int64_t>(sizeof(header)) + round_up(backend.pack(p, nullptr), 64);
  header.I = p.I, header.H = p.H, header.P = p.P;
  header.cell = static_cast<int32_t>(p.cell);
  header.dtype = static_cast<int32_t>(p.dtype);
  header.directions = p.directions;
  header.has_biases = has_biases;
  header.layout = backend.packed_layout();
  return header;
}

Tensor pack_weights(std::vector<Tensor> weights, int64_t cell, bool has_biases,
                    bool bidirectional) {
  FUSEDRNN_CHECK(!weights.empty() && weights[0].dim() == 2,
                 "weights: expected w_ih of shape [gates * hidden_size, input_size] first");
  dtype_of("w_ih", weights[0]);  // refuses by this name; `check` would say "input"
  // The checks are those of a call on no sequences.
  const Tensor nothing = new_tensor({1, 0, weights[0].size(1)}, weights[0]);
  const Call call = check(nothing, {}, {}, {}, weights, cell, has_biases, bidirectional);
  const Backend& backend = backend_of(nothing);
  const PackedHeader header = header_of(call.problem, has_biases, backend);
  Tensor packed = new_bytes(header.bytes, nothing);
  char* const to = static_cast<char*>(packed.mutable_data_ptr());
  std::memset(to, 0, static_cast<std::size_t>(header.bytes));
  std::memcpy(to, &header, sizeof(header));
  backend.pack(call.problem, to + sizeof(header));
  return packed;
}

std::string describe(const PackedHeader& header) {
  static constexpr const char* cells[kCells] = {"rnn_tanh", "rnn_relu", "lstm", "gru",
                                                "gru_reset_before"};
  static constexpr const char* dtypes[] = {"float64", "float32", "bfloat16", "float16"};
  const bool known =
      header.cell >= 0 && header.cell < kCells && header.dtype >= 0 && header.dtype < 4;
  if (header.magic != PackedHeader::kMagic || !known) return "no packed weights";
  return std::string(cells[header.cell]) + "(I=" + std::to_string(header.I) +
         ", H=" + std::to_string(header.H) + ", P=" + std::to_string(header.P) + ") in " +
         dtypes[header.dtype] + (header.has_biases ? " with biases, " : " without biases, ") +
         std::to_string(header.directions) + " direction(s), " + std::to_string(header.bytes) +
         " bytes in layout " + std::to_string(header.layout);
}

// The header of the layer that begins `at` bytes into packed weights; zeros if there is none.
PackedHeader read_header(const PackedBytes& packed, int64_t at) {
  PackedHeader header;
  if (packed.size - at >= static_cast<int64_t>(sizeof(header)))
    std::memcpy(&header, packed.data + at, sizeof(header));
  return header;
}

// Has the layer use the packed weights that begin at `at`, unless they are another's or not whole.
void use_packed(const PackedBytes& packed, int64_t at, bool has_biases, const Backend& backend,
                Problem& p) {
  const PackedHeader found = read_header(packed, at), needed = header_of(p, has_biases, backend);
  FUSEDRNN_CHECK(
      std::memcmp(&found, &needed, sizeof(found)) == 0 && found.bytes <= packed.size - at,
      "packed: expected weights of ", describe(needed), ", got those of ", describe(found), ", ",
      packed.size - at, " bytes there");
  p.prepacked = true;
  p.panels = packed.data + at + sizeof(found);
}

// What the header of a layer in a stack of layers says, as the sizes of a call. The sizes are bound
// by the bytes that there are, so that no product of them overflows.
bool read_sizes(const PackedHeader& header, int64_t bytes, Shape& s) {
  const int64_t width = header.P ? header.P : header.H;
  if (header.magic != PackedHeader::kMagic || header.cell < 0 || header.cell >= kCells ||
      header.directions != 1 || header.I <= 0 || header.H <= 0 || header.P < 0 ||
      (header.P > 0 && header.cell != static_cast<int32_t>(Cell::lstm)) || header.I > bytes ||
      header.P > bytes || header.H > bytes / (header.I + width))
    return false;
  s.cell = static_cast<Cell>(header.cell);
  s.I = header.I, s.H = header.H, s.P = header.P;
  return true;
}

Tensor packed_forward(const Tensor& input, const Tensor& packed, Tensor h, std::optional<Tensor> c,
                      bool backwards) {
  const PackedBytes bytes = packed_bytes(packed, input);
  const Backend& backend = backend_of(input);
  Problem p;
  const auto read = [&](int64_t at, Shape& s) {
    const PackedHeader header = read_header(bytes, at);
    FUSEDRNN_CHECK(read_sizes(header, bytes.size, s),
                   "packed: expected what fusedrnn::pack_weights returned for one direction, got ",
                   describe(header), " at byte ", at, " of ", bytes.size);
    static_cast<Shape&>(p) = s;
    use_packed(bytes, at, header.has_biases != 0, backend, p);
    return header.bytes;
  };
  p.backwards = backwards;
  return forward_stack(input, bytes, h, c, read, [&](const StackedLayer& layer) {
    p.input = layer.input;
    p.input_step = layer.input_step, p.input_row = layer.input_row;
    p.output = layer.output;
    p.hx = p.hn = layer.h, p.cx = p.cn = layer.c;
    run<Problem>(&Backend::forward, p, input, false);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward(
    const Tensor& input, std::optional<Tensor> batch_sizes, std::optional<Tensor> hx,
    std::optional<Tensor> cx, std::vector<Tensor> weights, int64_t cell, bool has_biases,
    bool bidirectional, bool save, bool allow_tf32, std::optional<Tensor> packed) {
  Call call = check(input, batch_sizes, hx, cx, weights, cell, has_biases, bidirectional);
  BackwardProblem& p = call.problem;
  p.training = save;
  if (packed) {
    const PackedBytes bytes = packed_bytes(*packed, input);
    use_packed(bytes, 0, has_biases, backend_of(input), p);
    FUSEDRNN_CHECK(read_header(bytes, 0).bytes == bytes.size,
                   "packed: expected the weights of one layer, got more after them");
  }
  const bool lstm = p.cell == Cell::lstm;
  Tensor output = new_pooled("output", call.output_sizes(), input);
  Tensor hn = new_tensor(call.hidden_sizes(), input);
  Tensor cn = new_tensor(lstm ? call.cell_sizes() : Sizes{0}, input);
  Tensor reserve =
      save ? new_pooled("reserve", call.reserve_sizes(), input) : new_tensor({0}, input);
  if (p.rows == 0) return {output, hn, cn, reserve};
  p.output = output.data_ptr();
  p.hn = hn.data_ptr();
  p.cn = lstm ? cn.data_ptr() : nullptr;
  p.reserve = save && saved_of(p.cell) ? reserve.data_ptr() : nullptr;
  run<Problem>(&Backend::forward, p, input, allow_tf32);
  return {output, hn, cn, reserve};
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    std::optional<Tensor> grad_output, std::optional<Tensor> grad_hn, std::optional<Tensor> grad_cn,
    const Tensor& input, std::optional<Tensor> batch_sizes, std::optional<Tensor> hx,
    std::optional<Tensor> cx, std::vector<Tensor> weights, const Tensor& output,
    const Tensor& reserve, int64_t cell, bool has_biases, bool bidirectional, int64_t needs,
    bool allow_tf32) {
  Call call = check(input, batch_sizes, hx, cx, weights, cell, has_biases, bidirectional);
  BackwardProblem& p = call.problem;
  p.training = true;
  const auto given = [&](const char* name, const std::optional<Tensor>& t, const Sizes& sizes) {
    if (!t) return std::optional<Tensor>();
    check_like(name, *t, input);
    check_sizes(name, *t, sizes);
    return std::optional<Tensor>(dense(name, *t));
  };
  const bool lstm = p.cell == Cell::lstm;
  FUSEDRNN_CHECK(lstm || !grad_cn, "grad_cn: only an LSTM has a cell state");
  const std::optional<Tensor> dy = given("grad_output", grad_output, call.output_sizes());
  const std::optional<Tensor> dhn = given("grad_hn", grad_hn, call.hidden_sizes());
  const std::optional<Tensor> dcn = given("grad_cn", grad_cn, call.cell_sizes());
  const Tensor y = *given("output", output, call.output_sizes());
  check_like("reserve", reserve, input);
  FUSEDRNN_CHECK(sizes_of(reserve) == call.reserve_sizes() && reserve.is_contiguous(),
                 "reserve: expected what layer_forward(..., save=True) returned, of shape ",
                 to_string(call.reserve_sizes()), ", got ", to_string(sizes_of(reserve)));

  p.output = data_of("output", y);
  p.reserve = data_of("reserve", reserve);
  if (!saved_of(p.cell)) p.reserve = nullptr;
  p.grad_output = data_of("grad_output", dy);
  p.grad_hn = data_of("grad_hn", dhn);
  p.grad_cn = data_of("grad_cn", dcn);

  // A gradient that was asked for, or nothing.
  const bool nothing = p.rows == 0;
  const auto gradient = [&](bool wanted, const Sizes& sizes, bool pooled = false) {
    return !wanted   ? new_tensor({0}, input)
           : nothing ? zeros(sizes, input)
           : pooled  ? new_pooled("grad_input", sizes, input)
                     : new_tensor(sizes, input);
  };
  const auto pointer = [&](bool wanted, const Tensor& t) {
    return wanted && !nothing ? t.data_ptr() : nullptr;
  };
  const bool wants_input = needs & 1, wants_hx = (needs & 2) && hx, wants_cx = (needs & 4) && cx;
  Tensor grad_input = gradient(wants_input, sizes_of(input), true);
  Tensor grad_hx = gradient(wants_hx, call.hidden_sizes());
  Tensor grad_cx = gradient(wants_cx, call.cell_sizes());
  std::vector<Tensor> grad_weights;
  for (std::size_t i = 0; i < call.weights.size(); ++i)
    grad_weights.push_back(gradient(needs >> (3 + i) & 1, sizes_of(call.weights[i])));
  if (nothing) return {grad_input, grad_hx, grad_cx, grad_weights};

  p.grad_input = pointer(wants_input, grad_input);
  p.grad_hx = pointer(wants_hx, grad_hx);
  p.grad_cx = pointer(wants_cx, grad_cx);
  for (int d = 0; d < p.directions; ++d) {
    const auto wanted = [&](int i) -> void* {
      const std::size_t at = static_cast<std::size_t>(d * call.per_direction + i);
      return pointer(needs >> (3 + at) & 1, grad_weights[at]);
    };
    WeightGradients& to = p.grad_weights[d];
    to.w_ih = wanted(0);
    to.w_hh = wanted(1);
    if (has_biases) to.b_ih = wanted(2), to.b_hh = wanted(3);
    if (p.P) to.w_hr = wanted(call.per_direction - 1);
  }
  run(&Backend::backward, p, input, allow_tf32);
  return {grad_input, grad_hx, grad_cx, grad_weights};
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY(fusedrnn, m) {
  m.def(
      "layer_forward(Tensor input, Tensor? batch_sizes, Tensor? hx, Tensor? cx, Tensor[] weights, "
      "int cell, bool has_biases, bool bidirectional, bool save, "
      "bool allow_tf32=False, Tensor? packed=None) "
      "-> (Tensor output, Tensor hn, Tensor cn, Tensor reserve)");
  m.def(
      "layer_backward(Tensor? grad_output, Tensor? grad_hn, Tensor? grad_cn, Tensor input, "
      "Tensor? batch_sizes, Tensor? hx, Tensor? cx, Tensor[] weights, Tensor output, "
      "Tensor reserve, int cell, bool has_biases, bool bidirectional, int needs, "
      "bool allow_tf32=False) "
      "-> (Tensor grad_input, Tensor grad_hx, Tensor grad_cx, Tensor[] grad_weights)");
  m.def("pack_weights(Tensor[] weights, int cell, bool has_biases, bool bidirectional) -> Tensor");
  m.def(
      "packed_forward(Tensor input, Tensor packed, Tensor(a!) h, Tensor(b!)? c, "
      "bool backwards=False) -> Tensor");
}

extern "C" __attribute__((visibility("default"))) const fusedrnn::Backend* fusedrnn_use_backend(
    int device_type, const fusedrnn::Backend* backend) {
  if (device_type < 0 || device_type >= fusedrnn::kDeviceTypes) return nullptr;
  return std::exchange(fusedrnn::g_backends[device_type], backend);
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) {
  m.impl("layer_forward", TORCH_BOX(&fusedrnn::layer_forward));
  m.impl("layer_backward", TORCH_BOX(&fusedrnn::layer_backward));
}

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("layer_forward", TORCH_BOX(&fusedrnn::layer_forward));
  m.impl("layer_backward", TORCH_BOX(&fusedrnn::layer_backward));
  m.impl("pack_weights", TORCH_BOX(&fusedrnn::pack_weights));
  m.impl("packed_forward", TORCH_BOX(&fusedrnn::packed_forward));
}
