#include "generate.h"

#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <utility>

namespace fusedrnn {
namespace {

struct Accessor {
  const char* name;  // of At
  bool numbered;
};
constexpr Accessor kAccessors[kSpaces] = {
    {"product", true},       {"late", true},     {"h", false},         {"state", true},
    {"handed", true},        {"weight", true},   {"step_input", true}, {"saved", true},
    {"result", false},       {"gradient", true}, {"of_result", false}, {"carry", false},
    {"of_step_input", true}, {nullptr, false},   {nullptr, false}};  // numbers, temporaries

std::string number(double value) {
  if (std::isnan(value)) return "M::nan()";
  if (std::isinf(value)) return value < 0 ? "(-M::infinity())" : "M::infinity()";
  char digits[40];
  std::snprintf(digits, sizeof(digits), "%.17g", value);
  std::string text = digits;
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return "M::number(" + text + ")";
}

// The text of one pass. Each value has a variable of its own. A pass may compute values of the
// space `unwanted` for its own use; the text does not write them out.
class Text {
 public:
  Text(const Pass& pass, Space unwanted) : pass_(pass) {
    for (const Op& op : pass.ops) {
      std::string& held = variables_[key(op.to)];
      if (op.code == OpCode::copy) {
        held = operand(op.a);
      } else {
        const std::string value = expression(op);  // which may read what `to` held before
        held = "v" + std::to_string(values_++);
        define(held, value);
      }
      if (op.to.space != Space::temporary && op.to.space != unwanted)
        line("at.set_" + access(op.to, held));
    }
  }

  std::string text;

 private:
  static std::pair<Space, int> key(Place at) { return {at.space, at.index}; }
  static const Accessor& accessor(Place at) { return kAccessors[static_cast<int>(at.space)]; }

  void line(const std::string& words) { text += "  " + words + ";\n"; }
  void define(const std::string& name, const std::string& value) {
    line("const auto " + name + " = " + value);
  }

  // A function of At: to read, or to write a value.
  static std::string access(Place at, const std::string& value = {}) {
    std::string arguments = accessor(at).numbered ? std::to_string(at.index) : "";
    if (!arguments.empty() && !value.empty()) arguments += ", ";
    return std::string(accessor(at).name) + "(" + arguments + value + ")";
  }

  std::string operand(Place at) {
    if (at.space == Space::number) return number(pass_.numbers[at.index]);
    std::string& held = variables_[key(at)];
    if (held.empty()) {
      held = accessor(at).name + (accessor(at).numbered ? std::to_string(at.index) : "");
      define(held, "at." + access(at));
    }
    return held;
  }

  static std::string call(const char* name, std::initializer_list<std::string> arguments) {
    std::string words;
    for (const std::string& argument : arguments) words += (words.empty() ? "" : ", ") + argument;
    return std::string("M::") + name + "(" + words + ")";
  }

  std::string expression(const Op& op) {
    const std::string a = operand(op.a), b = operand(op.b), c = operand(op.c);
    switch (op.code) {
      case OpCode::copy: return a;
      case OpCode::neg: return "-" + a;
      case OpCode::add: return a + " + " + b;
      case OpCode::sub: return a + " - " + b;
      case OpCode::mul: return a + " * " + b;
      case OpCode::div: return a + " / " + b;
      case OpCode::fma: return call("multiply_add", {a, b, c});
      case OpCode::fms: return call("multiply_add", {a, b, "-" + c});
      case OpCode::fnma: return call("multiply_add", {"-" + a, b, c});
      case OpCode::where: return call("select", {a, b, c});
      default: break;
    }
    const Operation& operation = operation_of(op.code);
    return operation.operands == 1 ? call(operation.name, {a}) : call(operation.name, {a, b});
  }

  const Pass& pass_;
  std::map<std::pair<Space, int>, std::string> variables_;
  int values_ = 0;
};

std::string function(const char* name, int stage, const Pass& pass,
                     Space unwanted = Space::temporary) {
  return "template <class M, class At>\nFUSEDRNN_CELL void " + std::string(name) + "_" +
         std::to_string(stage) + "(At& at) {\n" + Text(pass, unwanted).text + "}\n";
}

}  // namespace

std::string generated(const Program& program) {
  std::string text;
  for (int i = 0; i < program.facts.stages; ++i) {
    const StageProgram& stage = program.stage[i];
    text += function("forward", i, stage.pass(PassKind::forward), Space::saved);
    text += function("forward_saving", i, stage.pass(PassKind::forward_saving));
    text += function("backward", i, stage.pass(PassKind::backward), Space::result);
    if (program.facts.stage[i].restores)
      text += function("backward_restoring", i, stage.pass(PassKind::backward_restoring));
  }
  return text;
}

}  // namespace fusedrnn
