// Introspection for Python: what was built, what this processor runs, how a call would be run, and
// the processor's limits. No torch in here: the ops are in another library.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/capability.h"
#include "cpu/compiled.h"
#include "cpu/peak.h"
#include "cpu/plan.h"
#include "cpu/processors.h"
#include "cuda/plan.h"
#include "cuda/size_class.h"
#include "layer/plan_override.h"
#include "layer/version.h"
#include "ops/cells.h"

namespace py = pybind11;

namespace {

fusedrnn::Dtype parse_dtype(const std::string& name) {
  if (name == "float64") return fusedrnn::Dtype::f64;
  if (name == "float32") return fusedrnn::Dtype::f32;
  if (name == "bfloat16") return fusedrnn::Dtype::bf16;
  if (name == "float16") return fusedrnn::Dtype::f16;
  throw std::invalid_argument("dtype: expected float64, float32, bfloat16 or float16, got " + name);
}

int64_t positive(const char* name, int64_t value) {
  if (value <= 0)
    throw std::invalid_argument(std::string(name) + ": expected a positive number, got " +
                                std::to_string(value));
  return value;
}

py::dict cpu_plan(const fusedrnn::Shape& shape, int threads) {
  using namespace fusedrnn::cpu;
  const Plan p = plan_layer(shape, static_cast<int>(positive("threads", threads)));
  py::dict d;
  d["backend"] = "cpu";
  d["capability"] = name_of(cpu_capability());
  d["team"] = "ThreadTeam";
  d["threads"] = p.threads;
  d["direction_teams"] = p.direction_teams;
  d["split"] = p.split == Split::batch ? "batch" : p.split == Split::units ? "units" : "none";
  d["weights_in_place"] = p.in_place;
  d["fuse_input"] = p.fuse_input;
  d["forward_steps"] = p.forward_steps;
  d["backward_steps"] = p.backward_steps;
  return d;
}

// In the order of CudaTeam.
constexpr const char* kTeams[] = {"stepwise", "block", "cluster"};

fusedrnn::cuda::TeamSet teams_named(const std::vector<std::string>& names) {
  using namespace fusedrnn::cuda;
  TeamSet teams;
  for (const CudaTeam team : {CudaTeam::stepwise, CudaTeam::block, CudaTeam::cluster})
    if (std::find(names.begin(), names.end(), kTeams[static_cast<int>(team)]) == names.end())
      teams = teams.without(team);
  return teams;
}

py::dict walk_plan(const fusedrnn::cuda::WalkPlan& p) {
  using namespace fusedrnn::cuda;
  static constexpr const char* arithmetics[] = {"float32", "tf32", "bfloat16", "float16"};
  py::dict d;
  d["team"] = kTeams[static_cast<int>(p.team)];
  d["step_ns"] = p.step_ns;
  if (p.team == CudaTeam::stepwise) return d;
  d["arithmetic"] = arithmetics[static_cast<int>(p.arithmetic)];
  d["blocks"] = p.size.blocks;
  d["units"] = p.size.units;
  d["rows"] = p.size.rows;
  d["fixed"] = p.size.fixed;
  d["warps"] = p.warps;
  d["shared_bytes"] = p.shared_bytes;
  d["teams"] = p.teams;
  d["at_once"] = p.at_once;
  return d;
}

py::dict cuda_plan(const fusedrnn::Shape& shape, const py::dict& gpu, bool allow_tf32,
                   const std::vector<std::string>& forward_teams,
                   const std::vector<std::string>& backward_teams) {
  using namespace fusedrnn::cuda;
  CudaDevice device;
  const auto [major, minor] = gpu["capability"].cast<std::pair<int, int>>();
  device.capability = 10 * major + minor;
  device.multiprocessors = gpu["multiprocessors"].cast<int>();
  device.shared_bytes = gpu["shared_bytes"].cast<int>();
  device.guess_clusters();
  const CudaPlan p =
      plan_cuda(shape, device, Pass::forward, allow_tf32, teams_named(forward_teams));
  const CudaPlan back =
      plan_cuda(shape, device, Pass::backward, allow_tf32, teams_named(backward_teams));
  py::dict d;
  d["backend"] = "cuda";
  d["units_per_thread"] = p.units_per_thread;
  d["forward_steps"] = p.forward_steps;
  d["forward"] = walk_plan(p.walk);
  d["backward"] = walk_plan(back.walk);
  return d;
}

py::dict plan(const std::string& device, const std::string& cell, int64_t time, int64_t batch,
              int64_t input_size, int64_t hidden_size, int64_t proj_size, int directions,
              const std::string& dtype, int threads, bool training, bool panels,
              const py::dict& gpu, bool allow_tf32, const std::vector<std::string>& forward_teams,
              const std::vector<std::string>& backward_teams) {
  using namespace fusedrnn;
  for (const std::string* const error : {&plan_override().error(), &cpu::cpu_capability_error()})
    if (!error->empty()) throw std::invalid_argument(*error);
  if (device != "cpu" && device != "cuda")
    throw std::invalid_argument("device: expected cpu or cuda, got " + device);
  if (directions != 1 && directions != 2)
    throw std::invalid_argument("directions: expected 1 or 2, got " + std::to_string(directions));
  if (proj_size < 0)
    throw std::invalid_argument("proj_size: expected at least 0, got " + std::to_string(proj_size));
  Shape shape;
  set_cell(shape, cell);
  shape.dtype = parse_dtype(dtype);
  shape.T = positive("time", time);
  shape.B = positive("batch", batch);
  shape.I = positive("input_size", input_size);
  shape.H = positive("hidden_size", hidden_size);
  shape.P = proj_size;
  shape.rows = time * batch;
  shape.directions = directions;
  shape.training = training;
  shape.has_panels = panels;
  return device == "cpu" ? cpu_plan(shape, threads)
                         : cuda_plan(shape, gpu, allow_tf32, forward_teams, backward_teams);
}

// A list of words as a tuple.
py::tuple words(const char* text) {
  std::istringstream stream(text);
  std::vector<std::string> found;
  for (std::string word; stream >> word;) found.push_back(word);
  return py::tuple(py::cast(found));
}

// The facts of every compiled cell, by its number, for fusedrnn/cells/facts.py.
py::list cells() {
  using namespace fusedrnn;
  py::list list;
  for (int i = 0; i < kCells; ++i) {
    const Facts& facts = facts_of(Cell{i});
    py::dict d;
    d["name"] = facts.names.cell;
    d["module"] = facts.names.module;
    d["options"] = words(facts.names.options);
    d["gates"] = words(facts.names.gates);
    d["products"] = words(facts.names.products);
    d["saved"] = words(facts.names.saved);
    d["grads"] = words(facts.names.grads);
    d["states"] = words(facts.names.states);
    d["unit_weights"] = words(facts.names.unit_weights);
    d["stages"] = facts.stages;
    d["has_carry"] = facts.has_carry;
    d["projects"] = facts.projects;
    d["has_int8"] = facts.has_int8;
    list.append(d);
  }
  return list;
}

void override_plan(const std::string& text) {
  const fusedrnn::PlanOverride wanted(text.c_str());
  if (!wanted.error().empty()) throw std::invalid_argument(wanted.error());
  fusedrnn_override_plan(text.c_str());
}

py::list names_of(const std::vector<fusedrnn::cpu::Capability>& capabilities) {
  py::list names;
  for (const fusedrnn::cpu::Capability c : capabilities) names.append(fusedrnn::cpu::name_of(c));
  return names;
}

py::dict build_info() {
  py::dict d;
  d["version"] = fusedrnn_version();
  d["compiler"] =
#if defined(__clang__)
      std::string("clang ") + __clang_version__;
#else
      std::string("gcc ") + __VERSION__;
#endif
  d["torch"] = FUSEDRNN_TORCH_VERSION;
  d["cpu_targets"] = names_of(fusedrnn::cpu::compiled_capabilities());
  std::string target;
  py::list targets;
  for (std::istringstream words(FUSEDRNN_CUDA_TARGETS); words >> target;) targets.append(target);
  d["cuda_targets"] = targets;
  return d;
}

void check_limit(int threads, double seconds) {
  if (threads <= 0 || !(seconds > 0))
    throw std::invalid_argument("threads, seconds: expected positive numbers");
}

void def_limit(py::module_& m, const char* name, double (*limit)(int, double), const char* doc) {
  m.def(
      name,
      [limit](int threads, double seconds) {
        check_limit(threads, seconds);
        py::gil_scoped_release release;
        return limit(threads, seconds);
      },
      py::arg("threads"), py::arg("seconds"), doc);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Introspection of the native part of fusedrnn.";
  m.def("version", &fusedrnn_version);
  m.def("build_info", &build_info);
  m.def("cells", &cells, "The facts of every cell, by its number: csrc/cells/list.h as data.");
  m.def(
      "compiled_source",
      [](const std::string& program, const std::string& type) {
        return fusedrnn::cpu::compiled_source(fusedrnn::program_of(program), type);
      },
      py::arg("program"), py::arg("type"),
      "The C++ file of a cell's program, for values of type float or double.");
  m.def(
      "is_walked",
      [](const std::string& program) {
        return fusedrnn::cuda::is_walked(fusedrnn::program_of(program).facts);
      },
      py::arg("program"), "Whether teams on CUDA may walk a cell's program.");
  m.attr("RESERVE_UNITS") = fusedrnn::kHiddenPadding;
  m.def("cpu_capability", [] { return fusedrnn::cpu::name_of(fusedrnn::cpu::cpu_capability()); });
  m.def("cpu_capability_error", &fusedrnn::cpu::cpu_capability_error,
        "Why there is none, and calls are refused; empty if there is one.");
  m.def("cpu_capabilities", [] { return names_of(fusedrnn::cpu::cpu_capabilities()); });
  m.def("processor_capabilities", [] { return names_of(fusedrnn::cpu::processor_capabilities()); });
  m.def("plan", &plan, py::arg("device"), py::arg("cell"), py::arg("time"), py::arg("batch"),
        py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size"), py::arg("directions"),
        py::arg("dtype"), py::arg("threads"), py::arg("training"), py::arg("panels"),
        py::arg("gpu"), py::arg("allow_tf32"), py::arg("forward_teams"), py::arg("backward_teams"));
  m.attr("TEAMS") = py::make_tuple(kTeams[0], kTeams[1], kTeams[2]);
  m.def(
      "size_class",
      [](int64_t time, int64_t batch, int64_t input_size) {
        using namespace fusedrnn::cuda;
        return py::make_tuple(class_of_size(time), class_of_batch(batch),
                              class_of_size(input_size));
      },
      py::arg("time"), py::arg("batch"), py::arg("input_size"),
      "The largest sizes of the class of shapes that share what was measured of one of them.");
  m.def("override_plan", &override_plan, py::arg("text"),
        "Uses `text` instead of FUSEDRNN_PLAN for the plans that are shown.");
  m.def("usable_processors", &fusedrnn::cpu::usable_processors,
        "How many processors a team may have: by affinity, quota and FUSEDRNN_PROCESSORS.");
  m.def("quota_of", &fusedrnn::cpu::quota_of, py::arg("membership"), py::arg("root"),
        "The quota, in processors, that the control groups' files set; 0 if there is none.");
  def_limit(m, "fma_peak", &fusedrnn::cpu::fma_peak,
            "Measured fp32 multiply-add peak in FLOP/s of `threads` threads together.");
  def_limit(m, "bf16_peak", &fusedrnn::cpu::bf16_peak,
            "Measured peak of bf16 dot products in FLOP/s; 0 where this processor has none.");
  def_limit(m, "int8_peak", &fusedrnn::cpu::int8_peak,
            "Measured peak of int8 dot products in operations/s; 0 where this processor has none.");
  def_limit(m, "barrier_seconds", &fusedrnn::cpu::barrier_seconds,
            "Measured seconds of one barrier for `threads` threads.");
  m.def(
      "read_bandwidth",
      [](int64_t bytes, int threads, double seconds) {
        positive("bytes", bytes);
        check_limit(threads, seconds);
        py::gil_scoped_release release;
        return fusedrnn::cpu::read_bandwidth(bytes, threads, seconds);
      },
      py::arg("bytes"), py::arg("threads"), py::arg("seconds"),
      "Measured bytes per second of `threads` threads, each reading its own `bytes` repeatedly.");
}
