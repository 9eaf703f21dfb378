#include "program_source.h"

#include "cells/generate.h"
#include "stepwise/order.h"

namespace fusedrnn::cuda {
namespace {

std::string storage_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64: return "double";
    case Dtype::bf16: return "__nv_bfloat16";
    case Dtype::f16: return "__half";
    default: return "float";
  }
}

const char* name_of(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::tf32: return "Tf32";
    case Arithmetic::bf16: return "Bf16";
    case Arithmetic::f16: return "F16";
    default: return "F32";
  }
}

std::string stage_name(int i) { return "Stage" + std::to_string(i); }

// A struct's text, line by line.
class Struct {
 public:
  explicit Struct(const std::string& name, const std::string& base = {})
      : text_("struct " + name + (base.empty() ? "" : " : " + base) + " {\n") {}

  void line(const std::string& words) { text_ += "  " + words + "\n"; }
  void number(const char* name, int value) {
    line("static constexpr int " + std::string(name) + " = " + std::to_string(value) + ";");
  }
  void flag(const char* name, bool value) {
    line("static constexpr bool " + std::string(name) + (value ? " = true;" : " = false;"));
  }
  // A function of a slot, by its values at 0, 1, ...
  void function(const char* name, const std::vector<int>& values, const char* head = "") {
    std::string value = "-1";
    for (std::size_t slot = values.size(); slot-- > 0;)
      value =
          "slot == " + std::to_string(slot) + " ? " + std::to_string(values[slot]) + " : " + value;
    line(std::string(head) + "FUSEDRNN_CELL constexpr int " + name +
         "([[maybe_unused]] int slot) "
         "{ return " +
         value + "; }");
  }
  std::string text() const { return text_ + "};\n"; }

 private:
  std::string text_;
};

std::string cell(const Facts& facts) {
  Struct cell("Cell");
  std::string stages;
  for (int i = 0; i < facts.stages; ++i) stages += (i ? ", " : "") + stage_name(i);
  cell.line("using Stages = List<" + stages + ">;");
  cell.number("inputs", facts.inputs), cell.number("products", facts.products);
  cell.number("saved", facts.saved), cell.number("grads", facts.grads);
  cell.number("states", facts.states), cell.number("unit_weights", facts.unit_weights);
  cell.flag("has_carry", facts.has_carry);
  return cell.text();
}

const char* needs(Needs needs) {
  return needs == Needs::h ? "h" : needs == Needs::h_prev ? "h_prev" : "nothing";
}

// What a stage's struct says of its slots, by slot.
struct Slots {
  std::vector<int> gate_of_input, gate_of_product, input_of_product;
  std::vector<int> column_of_grad;  // of the gradients that the stage computes
  std::vector<int> own_grad;        // which of those a slot of the cell is, or -1

  Slots(const Program& program, const GateOrder& order, int i) {
    const StageFacts& stage = program.facts.stage[i];
    place_gates(stage, order, i);
    for (int slot = 0; slot < program.facts.grads; ++slot) {
      const bool own = program.stage[i].pass(PassKind::backward).gradients >> slot & 1;
      own_grad.push_back(own ? static_cast<int>(column_of_grad.size()) : -1);
      if (own) column_of_grad.push_back(order.column_of_gradient[slot]);
    }
  }

 private:
  // A kernel has late inputs last, wherever the facts have them. Gates are counted from the first
  // product's place.
  void place_gates(const StageFacts& stage, const GateOrder& order, int i) {
    int place[kMostGates] = {};
    const auto add_inputs = [&](bool late) {
      for (int slot = 0; slot < stage.inputs; ++slot) {
        const int at = slot - stage.first_late;
        if ((at >= 0 && at < stage.late) != late) continue;
        place[slot] = static_cast<int>(gate_of_input.size());
        gate_of_input.push_back(stage.gate_of_input[slot] - order.first_product[i]);
      }
    };
    add_inputs(false), add_inputs(true);
    for (int slot = 0; slot < stage.products; ++slot) {
      const int input = stage.input_of_product[slot];
      gate_of_product.push_back(order.place_of_product[i][slot]);
      input_of_product.push_back(input < 0 ? -1 : place[input]);
    }
  }
};

// A function of a stage's struct that runs a pass.
void add_pass(Struct& to, int i, const std::string& name, const std::string& unit,
              const std::string& pass) {
  to.line("template <class M, class V>");
  to.line("FUSEDRNN_CELL void " + name + "(" + unit + "<" + stage_name(i) + ", V>& unit) {");
  to.line("  " + unit + "Pass<" + stage_name(i) + ", V> at{unit};");
  to.line("  " + pass + "_" + std::to_string(i) + "<M>(at);");
  to.line("}");
}

std::string stage(const Program& program, const GateOrder& order, int i) {
  const Facts& facts = program.facts;
  const StageFacts& s = facts.stage[i];
  const StageProgram& passes = program.stage[i];
  const Slots slots(program, order, i);
  const bool last = i + 1 == facts.stages;
  Struct to(stage_name(i), "Stage");
  to.line("using Whole = Cell;");
  to.number("index", i), to.number("first_gate", order.first_product[i]);
  to.number("first_slot", s.first_saved), to.number("saved", s.saved);
  to.number("inputs", s.inputs), to.number("late", s.late), to.number("products", s.products);
  to.number("grads", static_cast<int>(slots.column_of_grad.size()));
  to.number("states", facts.states), to.number("unit_weights", facts.unit_weights);
  to.number("takes", s.takes), to.number("gives", s.gives);
  to.number("takes_back", last ? 0 : program.stage[i + 1].handed_back);
  to.number("gives_back", last ? passes.handed_back : 0);
  to.number("step_inputs", facts.step_inputs);
  to.number("of_step_inputs", static_cast<int>(passes.pass(PassKind::backward).of_step_inputs));
  to.flag("has_carry", s.has_carry), to.flag("restores", s.restores);
  to.flag("reads_h", reads(passes.pass(PassKind::forward_saving), Space::h));
  to.flag("reads_all_saved", true);
  to.line(std::string("static constexpr Needs backward_needs = Needs::") + needs(s.backward_needs) +
          ";");
  to.function("gate_of_input", slots.gate_of_input);
  to.function("gate_of_product", slots.gate_of_product);
  to.function("input_of_product", slots.input_of_product);
  to.function("column_of_grad", slots.column_of_grad, "template <class> ");
  to.function("own_grad", slots.own_grad);
  add_pass(to, i, "forward", "Forward", "forward_saving");
  add_pass(to, i, "backward", "Backward", s.restores ? "backward_restoring" : "backward");
  return to.text();
}

// The program's structs, and the header of the kernels that take them.
std::string text_of(const Program& program, const std::string& header) {
  const GateOrder order(program.facts);
  const int stages = program.facts.stages;
  std::string text =
      "#include \"" + header +
      "\"\n#include \"cuda/program_pass.cuh\"\nnamespace fusedrnn::cuda::program {\n" +
      generated(program);
  for (int i = 0; i < stages; ++i) text += "struct " + stage_name(i) + ";\n";
  text += cell(program.facts);
  for (int i = 0; i < stages; ++i) text += stage(program, order, i);
  return text + "}  // namespace fusedrnn::cuda::program\n";
}

// The instance of a kernel for a stage, and for what else it is a template of.
std::string instance(const std::string& kernel, int stage, const std::string& more) {
  return "fusedrnn::cuda::" + kernel + "<fusedrnn::cuda::program::" + stage_name(stage) + ", " +
         more + ">";
}

}  // namespace

KernelSource kernel_source(const Program& program, Dtype dtype) {
  KernelSource source = {text_of(program, "cuda/stepwise/stage.cuh"), {}};
  const std::string wide = std::to_string(16 / size_of(dtype));
  for (int i = 0; i < program.facts.stages; ++i)
    for (const char* kernel : {"forward_cell", "backward_cell"})
      for (const std::string& units : {std::string("1"), wide})
        source.names.push_back(instance(kernel, i, storage_type(dtype) + ", " + units));
  return source;
}

KernelSource walk_source(const Program& program, const WalkKernel& walk) {
  const std::string kernel = walk.pass == Pass::forward ? "walk_forward" : "walk_backward";
  const char* const team = walk.team == CudaTeam::cluster ? "ClusterTeam" : "BlockTeam";
  const std::string space = "fusedrnn::cuda::";
  return {
      text_of(program, "cuda/team/" + kernel + ".cuh"),
      {instance(kernel, 0,
                space + name_of(walk.arithmetic) + ", " + space + team + ", " + space + "Told")}};
}

}  // namespace fusedrnn::cuda
