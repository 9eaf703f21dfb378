// What is asked of plans, for measuring: "key=value,key=value", from FUSEDRNN_PLAN in the
// environment when the library is loaded, or from whoever measures. Keys are the fields that
// `fusedrnn.plan` shows and that may be chosen freely; a key that a backend does not have is
// nothing to it.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>

namespace fusedrnn {

class PlanOverride {
 public:
  explicit PlanOverride(const char* text);  // null: nothing is asked

  // Why the text cannot be used; empty if it can.
  const std::string& error() const { return error_; }

  bool any() const { return !values_.empty(); }

  // A count: the one asked for, at most `most`.
  template <class Integer>
  void limit(const char* key, Integer& value, int64_t most) const {
    int64_t asked = 0;
    if (count(key, asked)) value = static_cast<Integer>(asked < most ? asked : most);
  }
  void flag(const char* key, bool& value) const;

  // One of the names of an enumeration, in its order.
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

// The one in force, the environment's at first. Whoever makes a plan asks for its error first.
PlanOverride& plan_override();

}  // namespace fusedrnn

// Puts `text` in the place of the environment's, in the library that it is called in.
extern "C" void fusedrnn_override_plan(const char* text);
