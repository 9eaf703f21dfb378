// An override of plans, for measuring: "key=value,key=value". It comes from the environment
// variable FUSEDRNN_PLAN when the library is loaded, or from the code that measures. Keys are those
// fields shown by `fusedrnn.plan` that may be chosen freely. A backend ignores the keys that it
// does not have.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>

namespace fusedrnn {

class PlanOverride {
 public:
  explicit PlanOverride(const char* text);  // null: overrides nothing

  // Why the text cannot be used; empty if it can.
  const std::string& error() const { return error_; }

  bool any() const { return !values_.empty(); }

  // Sets a count to the one asked for, but to at most `most`.
  template <class Integer>
  void limit(const char* key, Integer& value, int64_t most) const {
    int64_t asked = 0;
    if (count(key, asked)) value = static_cast<Integer>(asked < most ? asked : most);
  }
  void flag(const char* key, bool& value) const;

  // Sets an enumerator by its name; `names` has the enumeration's order.
  template <class Enum>
  void choose(const char* key, Enum& value, std::initializer_list<const char*> names) const {
    const auto found = values_.find(key);
    if (found == values_.end()) return;
    int index = 0;
    for (const char* name : names) {
      if (found->second == name) value = static_cast<Enum>(index);
      ++index;
    }
  }

 private:
  bool count(const char* key, int64_t& value) const;
  std::map<std::string, std::string> values_;
  std::string error_;
};

// The override in force: at first that of the environment. Check its error before making a plan.
PlanOverride& plan_override();

}  // namespace fusedrnn

// Replaces the override in force by `text`, in the library whose function this is.
extern "C" void fusedrnn_override_plan(const char* text);
// Whether one is in force there.
extern "C" int fusedrnn_plan_is_overridden();
