// Reads the text of a program. It comes from anywhere (an op takes any string), so everything is
// checked here: after that, kernels run it as it is.
#include "program.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace fusedrnn {
namespace {

using Words = std::vector<std::string>;

constexpr int kVersion = 1;
constexpr std::size_t kMostBytes = 1 << 20, kMostOps = 1000;
constexpr int kMostUnitWeights = 8;
static_assert(2 * kMostGates + kMostUnitWeights <= kMostGrads);

constexpr Operation kOperations[] = {
    {"copy", 1},  {"neg", 1},      {"reciprocal", 1}, {"sqrt", 1},    {"abs", 1},     {"sign", 1},
    {"relu", 1},  {"sigmoid", 1},  {"tanh", 1},       {"exp", 1},     {"expm1", 1},   {"log", 1},
    {"log1p", 1}, {"softplus", 1}, {"erf", 1},        {"sin", 1},     {"cos", 1},     {"add", 2},
    {"sub", 2},   {"mul", 2},      {"div", 2},        {"maximum", 2}, {"minimum", 2}, {"gt", 2},
    {"ge", 2},    {"eq", 2},       {"ne", 2},         {"fma", 3},     {"fms", 3},     {"fnma", 3},
    {"where", 3}};
static_assert(std::size(kOperations) == static_cast<std::size_t>(OpCode::where) + 1);

struct SpaceName {
  const char* name;
  bool numbered;
};
// By space; where backward has another name, it comes second.
constexpr SpaceName kForward[kSpaces] = {
    {"p", true},      {"x", true},      {"h", false},     {"s", true},  {"k", true},
    {"w", true},      {"e", true},      {"save", true},   {"r", false}, {nullptr, false},
    {nullptr, false}, {nullptr, false}, {nullptr, false}, {"#", false}, {"t", true}};
constexpr SpaceName kBackward[kSpaces] = {
    {nullptr, false}, {nullptr, false}, {"h", false},   {"ds", true}, {"dk", true},
    {"w", true},      {"e", true},      {"save", true}, {"r", false}, {"g", true},
    {"dr", false},    {"carry", false}, {"de", true},   {"#", false}, {"t", true}};

Words split(const std::string& line) {
  Words words;
  std::istringstream stream(line);
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

// The places of a pass that hold a value, or that are needed.
class Places {
 public:
  bool has(Place at) const { return places_[index(at)]; }
  void put(Place at) { places_[index(at)] = true; }
  void drop(Place at) { places_[index(at)] = false; }
  void put(Space space, int begin, int end) {
    for (int i = begin; i < end; ++i) put({space, static_cast<uint8_t>(i)});
  }

 private:
  static std::size_t index(Place at) { return static_cast<std::size_t>(at.space) * 256 + at.index; }
  std::array<bool, kSpaces * 256> places_ = {};
};

template <class F>
void for_each_source(const Op& op, const F& f) {
  const Place sources[] = {op.a, op.b, op.c};
  for (int i = 0; i < operation_of(op.code).operands; ++i) f(sources[i]);
}

// The pass without what is not needed for the places that are `live` in the end.
Pass pruned(const Pass& whole, Places live) {
  Pass pass = whole;
  pass.ops.clear();
  for (auto op = whole.ops.rbegin(); op != whole.ops.rend(); ++op) {
    if (!live.has(op->to)) continue;
    live.drop(op->to);
    for_each_source(*op, [&](Place from) { live.put(from); });
    pass.ops.push_back(*op);
  }
  std::reverse(pass.ops.begin(), pass.ops.end());
  return pass;
}

}  // namespace

const Operation& operation_of(OpCode code) { return kOperations[static_cast<std::size_t>(code)]; }

bool reads(const Pass& pass, Space space) {
  return std::any_of(pass.ops.begin(), pass.ops.end(), [&](const Op& op) {
    return op.a.space == space || op.b.space == space || op.c.space == space;
  });
}

class ProgramReader {
 public:
  explicit ProgramReader(const std::string& text) : text_(text), lines_(text) {}

  std::unique_ptr<const Program> read() {
    if (text_.size() > kMostBytes) fail("longer than a megabyte");
    program_->text = text_;
    header();
    Facts& facts = program_->facts;
    keyword();
    while (keyword_ == "stage") {
      if (facts.stages == kMaxStages) fail("more than two stages");
      stage();
    }
    is("end");
    if (!facts.stages) fail("no stage");
    check_gates();
    place_slots();
    for (int i = 0; i < facts.stages; ++i) pass(i, true);
    for (int i = facts.stages; i-- > 0;) pass(i, false);
    check_stages();
    name();
    return std::move(program_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::invalid_argument("cell: expected the program of a cell, got " + what +
                                (line_.empty() ? "" : " in the line \"" + line_ + "\""));
  }

  // The first word of the next line, whose others are then `rest_`.
  const std::string& keyword() {
    if (!std::getline(lines_, line_)) {
      line_.clear();
      fail("a text that ends too early");
    }
    rest_ = split(line_);
    if (rest_.empty()) fail("an empty line");
    keyword_ = rest_.front();
    rest_.erase(rest_.begin());
    return keyword_;
  }
  void is(const char* wanted) const {
    if (keyword_ != wanted) fail(std::string("no \"") + wanted + "\"");
  }
  const Words& expect(const char* wanted) {
    keyword();
    is(wanted);
    return rest_;
  }
  Words some(const char* wanted, int least, int most) {
    const Words found = expect(wanted);
    const int count = static_cast<int>(found.size());
    if (count < least || count > most)
      fail(std::to_string(count) + " words instead of " + std::to_string(least) + " to " +
           std::to_string(most));
    return found;
  }

  void header() {
    const Words cell = some("cell", 2, 2);
    if (cell[0] != std::to_string(kVersion))
      fail("version " + cell[0] + " (this fusedrnn reads version " + std::to_string(kVersion) +
           ")");
    name_ = cell[1];
    gates_ = some("gates", 1, kMostGates);
    states_ = some("states", 1, kMaxStates);
    unit_weights_ = some("unit_weights", 0, kMostUnitWeights);
    some("unit_init", static_cast<int>(unit_weights_.size()),
         static_cast<int>(unit_weights_.size()));
    program_->facts.step_inputs = static_cast<int>(some("step_inputs", 0, kMostStepInputs).size());
    expect("define");
    while (keyword() != "return") continue;  // Python's
  }

  int gate(const std::string& name) const {
    const auto at = std::find(gates_.begin(), gates_.end(), name);
    if (at == gates_.end()) fail("a gate " + name + " that is not declared");
    return static_cast<int>(at - gates_.begin());
  }
  std::vector<int> gates(const char* wanted) {
    std::vector<int> found;
    for (const std::string& name : some(wanted, 0, kMostGates)) {
      found.push_back(gate(name));
      if (std::count(found.begin(), found.end(), found.back()) > 1) fail("a gate twice");
    }
    return found;
  }

  struct Lines {
    Words forward, backward;
  };

  void stage() {
    const int at = program_->facts.stages++;
    StageFacts& facts = program_->facts.stage[at];
    apart_[at] = gates("apart"), joint_[at] = gates("joint"), late_[at] = gates("late");
    const Words saved = some("saved", 0, kMostSaved);
    facts.saved = static_cast<int>(saved.size());
    saved_.insert(saved_.end(), saved.begin(), saved.end());
    const std::string needs = some("needs", 1, 1)[0];
    if (needs == "h_prev")
      facts.backward_needs = Needs::h_prev;
    else if (needs == "h")
      facts.backward_needs = Needs::h;
    else if (needs != "nothing")
      fail("needs that are not nothing, h_prev or h");
    expect("forward");
    while (keyword() != "backward") lines_of_[at].forward.push_back(line_);
    while (keyword() != "stage" && keyword_ != "end") lines_of_[at].backward.push_back(line_);
  }

  // Each product and each input of a gate is in one stage.
  void check_gates() {
    line_.clear();
    const std::size_t count = gates_.size();
    std::vector<int> inputs(count), products(count);
    for (int i = 0; i < program_->facts.stages; ++i) {
      for (const int g : apart_[i]) ++products[static_cast<std::size_t>(g)];
      for (const int g : late_[i]) ++inputs[static_cast<std::size_t>(g)];
      for (const int g : joint_[i])
        ++products[static_cast<std::size_t>(g)], ++inputs[static_cast<std::size_t>(g)];
      const bool last = i + 1 == program_->facts.stages;
      if (last && apart_[i].empty() && joint_[i].empty()) fail("a cell without recurrent product");
    }
    for (std::size_t g = 0; g < count; ++g) {
      if (inputs[g] > 1 || products[g] > 1) fail("the gate " + gates_[g] + " more than once");
      if (inputs[g] + products[g] == 0) fail("a gate " + gates_[g] + " of no use");
      gate_of_w_ih_.push_back(program_->facts.inputs);
      gate_of_w_hh_.push_back(program_->facts.products);
      program_->facts.inputs += inputs[g], program_->facts.products += products[g];
    }
    if (!program_->facts.inputs) fail("a cell without any input");
  }

  // The order of the slots, see cells/cell.h. The second stage is the first one's mirror image:
  // so the products of a stage, and the inputs of all, are each one contiguous range.
  void place_slots() {
    Facts& facts = program_->facts;
    facts.states = static_cast<int>(states_.size());
    facts.unit_weights = static_cast<int>(unit_weights_.size());
    int input = 0, saved = 0, grad = 0;
    for (int i = 0; i < facts.stages; ++i) {
      StageFacts& s = facts.stage[i];
      const bool mirrored = i == 1;
      s.apart = static_cast<int>(apart_[i].size()), s.late = static_cast<int>(late_[i].size());
      const int joint = static_cast<int>(joint_[i].size());
      s.inputs = joint + s.late, s.products = joint + s.apart;
      s.first_late = mirrored ? 0 : joint;
      s.first_apart = mirrored ? joint : 0;
      s.first_input = input, s.first_saved = saved;
      s.first_product = grad + (mirrored ? s.late : 0);
      const int first_joint_input = mirrored ? s.late : 0, first_joint = mirrored ? 0 : s.apart;
      for (int j = 0; j < joint; ++j) {
        s.gate_of_input[first_joint_input + j] = row(gate_of_w_ih_, joint_[i], j);
        s.gate_of_product[first_joint + j] = row(gate_of_w_hh_, joint_[i], j);
        s.input_of_product[first_joint + j] = static_cast<signed char>(first_joint_input + j);
      }
      for (int j = 0; j < s.late; ++j)
        s.gate_of_input[s.first_late + j] = row(gate_of_w_ih_, late_[i], j);
      for (int j = 0; j < s.apart; ++j) {
        s.gate_of_product[s.first_apart + j] = row(gate_of_w_hh_, apart_[i], j);
        s.input_of_product[s.first_apart + j] = -1;
      }
      if (i == 0) facts.first_input_grad = s.apart;
      std::copy_n(s.gate_of_input, s.inputs, facts.gate_of_input + input);
      input += s.inputs, saved += s.saved, grad += s.inputs + s.apart;
      facts.has_late_input |= s.late > 0;
    }
    facts.saved = saved;
    if (saved > kMostSaved) fail("more saved values than there is room for");
    facts.first_unit_grad = grad;
    facts.grads = grad + facts.unit_weights;
  }
  static signed char row(const std::vector<int>& row_of_gate, const std::vector<int>& gates,
                         int j) {
    const int gate = gates[static_cast<std::size_t>(j)];
    return static_cast<signed char>(row_of_gate[static_cast<std::size_t>(gate)]);
  }

  // ---- the operations of a pass -----------------------------------------------------------------

  int number_of(const std::string& digits) const {
    int number = 0;
    const char* const end = digits.data() + digits.size();
    const auto [stop, error] = std::from_chars(digits.data(), end, number);
    if (error != std::errc() || stop != end || number < 0 || number > 255)
      fail("an operand with the number " + digits);
    return number;
  }

  Place operand(const std::string& word, bool forward, Pass& pass) const {
    if (word[0] == '#') return constant(word.substr(1), pass);
    const std::size_t letters = std::min(word.find_first_of("0123456789"), word.size());
    const std::string name = word.substr(0, letters), digits = word.substr(letters);
    const SpaceName* const names = forward ? kForward : kBackward;
    for (int i = 0; i < kSpaces; ++i)
      if (names[i].name && name == names[i].name && names[i].numbered == !digits.empty())
        return place(static_cast<Space>(i), names[i].numbered ? number_of(digits) : 0);
    fail("an operand " + word);
  }

  Place place(Space space, int number) const {
    if (space == Space::state) --number;  // the text counts h
    if (space == Space::state && number < 0) fail("a state with the number 0, which is h");
    return {space, static_cast<uint8_t>(number)};
  }

  Place constant(const std::string& digits, Pass& pass) const {
    double value = 0;
    const char* const end = digits.data() + digits.size();
    const auto [stop, error] = std::from_chars(digits.data(), end, value);
    if (error != std::errc() || stop != end) fail("a number " + digits);
    std::size_t at = 0;
    // 0.0 and -0.0 are two numbers, and a NaN is one.
    const auto same = [&](double other) {
      return __builtin_memcmp(&other, &value, sizeof(value)) == 0;
    };
    while (at < pass.numbers.size() && !same(pass.numbers[at])) ++at;
    if (at == pass.numbers.size()) pass.numbers.push_back(value);
    if (at > 255) fail("more numbers than there is room for");
    return {Space::number, static_cast<uint8_t>(at)};
  }

  Op operation(const std::string& line, bool forward, Pass& pass) {
    line_ = line;
    const Words words = split(line);
    if (words.size() < 4 || words[1] != "=") fail("no operation");
    const auto found = std::find_if(std::begin(kOperations), std::end(kOperations),
                                    [&](const Operation& o) { return words[2] == o.name; });
    if (found == std::end(kOperations)) fail("an operation " + words[2]);
    if (static_cast<int>(words.size()) != 3 + found->operands) fail("a wrong number of operands");
    Op op{};
    op.code = static_cast<OpCode>(found - std::begin(kOperations));
    op.to = operand(words[0], forward, pass);
    Place* const sources[] = {&op.a, &op.b, &op.c};
    for (int i = 0; i < found->operands; ++i)
      *sources[i] = operand(words[static_cast<std::size_t>(3 + i)], forward, pass);
    // All three can be read, whatever the operation is.
    for (int i = found->operands; i < 3; ++i) *sources[i] = op.a;
    return op;
  }

  // The places that hold a value before a pass.
  Places given(int i, bool forward) const {
    const Facts& facts = program_->facts;
    const StageFacts& s = facts.stage[i];
    Places places;
    places.put(Space::weight, 0, facts.unit_weights);
    places.put(Space::step_input, 0, facts.step_inputs);
    places.put(Space::number, 0, 256);
    places.put(Space::state, 0, facts.states - 1);
    if (forward) {
      places.put(Space::product, 0, s.products);
      places.put(Space::late, 0, s.late);
      places.put(Space::h, 0, 1);
      places.put(Space::handed, 0, s.takes);
    } else {
      places.put(Space::saved, 0, facts.saved);
      if (s.backward_needs != Needs::nothing) places.put(Space::h, 0, 1);
      places.put(Space::of_result, 0, 1);
      const bool second = i + 1 < facts.stages;
      if (second && facts.stage[i + 1].has_carry) places.put(Space::carry, 0, 1);
      if (second) places.put(Space::handed, 0, program_->stage[i + 1].handed_back);
    }
    return places;
  }

  // Whether an operation of a pass may write there.
  bool may_write(int i, bool forward, Place to) const {
    const Facts& facts = program_->facts;
    const StageFacts& s = facts.stage[i];
    const bool last = i + 1 == facts.stages, several = facts.stages > 1;
    switch (to.space) {
      case Space::temporary: return to.index < kMostTemporaries;
      case Space::result: return true;
      case Space::state: return to.index < facts.states - 1 && (!forward || last);
      case Space::handed: return several && (forward ? !last : last) && to.index < kMostHanded;
      case Space::saved:
        return forward && to.index >= s.first_saved && to.index < s.first_saved + s.saved;
      case Space::gradient: return !forward && to.index < facts.grads;
      case Space::carry: return !forward;
      case Space::of_step_input: return !forward && to.index < facts.step_inputs;
      default: return false;
    }
  }

  // The first stage adds to the carry of the second, even where the program knows that to be zero:
  // with zoneout, the share of the gradient that bypasses the cell is there, too.
  void add_to_carry(Pass& pass) const {
    constexpr Place carry{Space::carry, 0};
    const auto write = std::find_if(pass.ops.begin(), pass.ops.end(),
                                    [](const Op& op) { return op.to.space == Space::carry; });
    if (write == pass.ops.end() || reads(pass, Space::carry)) return;
    if (pass.temporaries == kMostTemporaries) fail("more temporaries than there is room for");
    const Place own{Space::temporary, static_cast<uint8_t>(pass.temporaries++)};
    write->to = own;
    pass.ops.push_back({OpCode::add, carry, own, carry, own});
  }

  void pass(int i, bool forward) {
    Facts& facts = program_->facts;
    StageFacts& s = facts.stage[i];
    StageProgram& to = program_->stage[i];
    const Words& lines = forward ? lines_of_[i].forward : lines_of_[i].backward;
    if (lines.size() > kMostOps) fail("more operations than there is room for");
    if (forward && i == 1) s.takes = facts.stage[0].gives;
    Places there = given(i, forward), written;
    Pass whole;
    for (const std::string& line : lines) {
      const Op op = operation(line, forward, whole);
      for_each_source(op, [&](Place from) {
        if (!there.has(from)) fail("an operand that has no value yet");
        reads_h_ |= from.space == Space::h;
      });
      if (!may_write(i, forward, op.to)) fail("a place that cannot be written to");
      const bool once = op.to.space != Space::temporary;
      if (once && written.has(op.to)) fail("a place that is written twice");
      const bool is_gradient = op.to.space == Space::gradient ||
                               op.to.space == Space::of_step_input ||
                               (op.to.space == Space::state && !forward);
      if (is_gradient) {
        if (written_.has(op.to)) fail("a gradient that is written twice");
        written_.put(op.to);
      }
      written.put(op.to), there.put(op.to);
      if (op.to.space == Space::gradient) whole.gradients |= uint64_t{1} << op.to.index;
      if (op.to.space == Space::of_step_input) whole.of_step_inputs |= uint32_t{1} << op.to.index;
      if (op.to.space == Space::temporary)
        whole.temporaries = std::max(whole.temporaries, op.to.index + 1);
      if (op.to.space == Space::handed) {
        int& handed = forward ? s.gives : to.handed_back;
        handed = std::max(handed, op.to.index + 1);
      }
      whole.ops.push_back(op);
    }
    if (!forward && i + 1 < facts.stages) add_to_carry(whole);
    // A tile has the slots of its own stage.
    for (Op& op : whole.ops)
      for (Place* const operand : {&op.to, &op.a, &op.b, &op.c})
        if (forward && operand->space == Space::saved)
          operand->index = static_cast<uint8_t>(operand->index - s.first_saved);
    line_.clear();
    for (const double value : whole.numbers) {
      whole.numbers32.insert(whole.numbers32.end(), kNumberBytes / 4, static_cast<float>(value));
      whole.numbers64.insert(whole.numbers64.end(), kNumberBytes / 8, value);
    }
    const auto all = [&](Space space, int begin, int end) {
      for (int at = begin; at < end; ++at)
        if (!written.has({space, static_cast<uint8_t>(at)})) fail("not all results of a pass");
    };
    Places wanted;
    if (forward) {
      all(Space::result, 0, 1);
      all(Space::saved, s.first_saved, s.first_saved + s.saved);
      all(Space::handed, 0, s.gives);
      if (i + 1 == facts.stages) all(Space::state, 0, facts.states - 1);
      wanted.put(Space::result, 0, 1);
      wanted.put(Space::handed, 0, s.gives);
      wanted.put(Space::state, 0, facts.states - 1);
      to.pass(PassKind::forward) = pruned(whole, wanted);
      wanted.put(Space::saved, 0, s.saved);
      to.pass(PassKind::forward_saving) = pruned(whole, wanted);
      return;
    }
    if (i == 1) all(Space::gradient, s.first_product, s.first_product + s.products);
    all(Space::handed, 0, to.handed_back);
    s.has_carry = written.has({Space::carry, 0});
    s.restores = written.has({Space::result, 0});
    wanted.put(Space::gradient, 0, facts.grads);
    wanted.put(Space::handed, 0, to.handed_back);
    wanted.put(Space::state, 0, facts.states - 1);
    wanted.put(Space::carry, 0, 1);
    wanted.put(Space::of_step_input, 0, facts.step_inputs);
    to.pass(PassKind::backward) = pruned(whole, wanted);
    wanted.put(Space::result, 0, 1);
    to.pass(PassKind::backward_restoring) = pruned(whole, wanted);
  }

  void check_stages() {
    Facts& facts = program_->facts;
    for (int at = 0; at < facts.grads; ++at)
      if (!written_.has({Space::gradient, static_cast<uint8_t>(at)})) fail("too few gradients");
    for (int at = 0; at < facts.states - 1; ++at)
      if (!written_.has({Space::state, static_cast<uint8_t>(at)})) fail("too few gradients");
    for (int at = 0; at < facts.step_inputs; ++at)
      if (!written_.has({Space::of_step_input, static_cast<uint8_t>(at)}))
        fail("too few gradients");
    facts.has_carry = facts.last().has_carry;
    for (int i = 0; i < facts.stages; ++i) {
      if (facts.stage[i].has_carry != facts.has_carry) fail("a carry in only one stage");
      if (i + 1 < facts.stages && !facts.stage[i].restores)
        fail("a first stage that does not restore its result");
    }
    facts.projects = facts.stages == 1 && facts.last().restores;
    if (facts.projects && (reads_h_ || facts.has_carry))
      fail("a cell that restores its h and reads h apart from the products");
    if (facts.stages > 1 && facts.last().restores) fail("a last of two stages that restores h");
    if (facts.stages > 1 && facts.stage[0].backward_needs == Needs::h)
      fail("a first of two stages that needs h after the step");
  }

  const char* keep(std::string words) {
    program_->names_.push_back(std::move(words));
    return program_->names_.back().c_str();
  }
  static std::string joined(const Words& words) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
    return text;
  }

  void name() {
    Names& names = program_->facts.names;
    names.cell = keep(name_), names.module = "Recurrent", names.options = "";
    names.gates = keep(joined(gates_)), names.products = names.grads = "";
    names.saved = keep(joined(saved_)), names.states = keep(joined(states_));
    names.unit_weights = keep(joined(unit_weights_));
  }

  const std::string& text_;
  std::istringstream lines_;
  std::string line_, keyword_;
  Words rest_;

  std::unique_ptr<Program> program_ = std::make_unique<Program>();
  std::string name_;
  Words gates_, states_, unit_weights_, saved_;
  std::vector<int> apart_[kMaxStages], joint_[kMaxStages], late_[kMaxStages];  // gates
  std::vector<int> gate_of_w_ih_, gate_of_w_hh_;
  Lines lines_of_[kMaxStages];
  Places written_;  // gradients, by either stage
  bool reads_h_ = false;
};

std::unique_ptr<const Program> Program::parse(const std::string& text) {
  return ProgramReader(text).read();
}

}  // namespace fusedrnn
