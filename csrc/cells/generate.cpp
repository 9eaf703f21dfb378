#include "generate.h"

#include <cmath>
#include <cstdio>
#include <map>
#include <utility>

namespace fusedrnn {
namespace {

struct SpaceName {
  const char* function;  // of At
  const char* variable;
  bool numbered;
};
constexpr SpaceName kNames[kSpaces] = {
    {"product", "p", true},     {"late", "x", true},       {"h", "h", false},
    {"state", "s", true},       {"handed", "k", true},     {"weight", "w", true},
    {"saved", "save", true},    {"result", "r", false},    {"gradient", "g", true},
    {"of_result", "dr", false}, {"carry", "carry", false}, {nullptr, nullptr, false},
    {nullptr, nullptr, false}};  // numbers and temporaries are nowhere else

std::string number(double value) {
  if (std::isnan(value)) return "M::nan()";
  if (std::isinf(value)) return value < 0 ? "(-M::infinity())" : "M::infinity()";
  char digits[40];
  std::snprintf(digits, sizeof(digits), "%.17g", value);
  std::string text = digits;
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return "M::number(" + text + ")";
}

// The text of one pass. Each value has a variable of its own. Nothing is written to `unwanted`,
// which the program has for values that it needs itself.
class Text {
 public:
  Text(const Pass& pass, Space unwanted) : pass_(pass) {
    for (const Op& op : pass.ops) {
      std::string& held = variables_[key(op.to)];
      if (op.code == OpCode::copy) {
        held = operand(op.a);
      } else {
        const std::string value = expression(op);  // of what `to` held before, too
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
  static const SpaceName& names(Place at) { return kNames[static_cast<int>(at.space)]; }

  void line(const std::string& words) { text += "  " + words + ";\n"; }
  void define(const std::string& name, const std::string& value) {
    line("const auto " + name + " = " + value);
  }

  // A function of At: to read, or to write a value.
  static std::string access(Place at, const std::string& value = {}) {
    std::string arguments = names(at).numbered ? std::to_string(at.index) : "";
    if (!arguments.empty() && !value.empty()) arguments += ", ";
    return std::string(names(at).function) + "(" + arguments + value + ")";
  }

  std::string operand(Place at) {
    if (at.space == Space::number) return number(pass_.numbers[at.index]);
    std::string& held = variables_[key(at)];
    if (held.empty()) {
      held = names(at).variable + (names(at).numbered ? std::to_string(at.index) : "");
      define(held, "at." + access(at));
    }
    return held;
  }

  std::string expression(const Op& op) {
    const std::string a = operand(op.a), b = operand(op.b), c = operand(op.c);
    const auto of_one = [&](const char* name) { return "M::" + (name + ("(" + a + ")")); };
    const auto of_two = [&](const char* name) {
      return "M::" + (name + ("(" + a + ", " + b + ")"));
    };
    switch (op.code) {
      case OpCode::copy: return a;
      case OpCode::neg: return "-" + a;
      case OpCode::reciprocal: return of_one("reciprocal");
      case OpCode::sqrt: return of_one("sqrt");
      case OpCode::abs: return of_one("abs");
      case OpCode::sign: return of_one("sign");
      case OpCode::relu: return of_one("relu");
      case OpCode::sigmoid: return of_one("sigmoid");
      case OpCode::tanh: return of_one("tanh");
      case OpCode::exp: return of_one("exp");
      case OpCode::expm1: return of_one("expm1");
      case OpCode::log: return of_one("log");
      case OpCode::log1p: return of_one("log1p");
      case OpCode::softplus: return of_one("softplus");
      case OpCode::erf: return of_one("erf");
      case OpCode::sin: return of_one("sin");
      case OpCode::cos: return of_one("cos");
      case OpCode::add: return a + " + " + b;
      case OpCode::sub: return a + " - " + b;
      case OpCode::mul: return a + " * " + b;
      case OpCode::div: return a + " / " + b;
      case OpCode::maximum: return of_two("maximum");
      case OpCode::minimum: return of_two("minimum");
      case OpCode::gt: return of_two("gt");
      case OpCode::ge: return of_two("ge");
      case OpCode::eq: return of_two("eq");
      case OpCode::ne: return of_two("ne");
      case OpCode::fma: return "M::multiply_add(" + a + ", " + b + ", " + c + ")";
      case OpCode::fms: return "M::multiply_add(" + a + ", " + b + ", -" + c + ")";
      case OpCode::fnma: return "M::multiply_add(-" + a + ", " + b + ", " + c + ")";
      case OpCode::where: return "M::select(" + a + ", " + b + ", " + c + ")";
    }
    return {};
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
