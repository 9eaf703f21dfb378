// Reads an override, and says what is wrong with it: which keys there are and which values.
#include "plan_override.h"

#include <cstdlib>

namespace fusedrnn {
namespace {

constexpr const char* kVariable = "FUSEDRNN_PLAN";

// What a value may be. "count" stands for a positive number and "flag" for 0 or 1; otherwise the
// value is one of the words.
struct Key {
  const char* name;
  const char* values;
};
constexpr Key kKeys[] = {
    {"backward_steps", "count"},
    {"blocks", "count"},
    {"direction_teams", "count"},
    {"fixed", "flag"},
    {"forward_steps", "count"},
    {"fuse_input", "flag"},
    {"rows", "count"},
    {"split", "|none|batch|units|"},
    {"team", "|stepwise|block|cluster|"},
    {"threads", "count"},
    {"units_per_thread", "count"},
    {"weights_in_place", "flag"},
};

bool is_count(const std::string& value) {
  return !value.empty() && value.size() <= 9 && value[0] != '0' &&
         value.find_first_not_of("0123456789") == std::string::npos;
}

bool allowed(const std::string& values, const std::string& value) {
  if (values == "count") return is_count(value);
  if (values == "flag") return value == "0" || value == "1";
  return values.find("|" + value + "|") != std::string::npos;
}

std::string expected(std::string values) {
  if (values == "count") return "a positive number";
  if (values == "flag") return "0 or 1";
  values = values.substr(1, values.size() - 2);
  for (std::size_t at; (at = values.find('|')) != std::string::npos;) values.replace(at, 1, ", ");
  return "one of " + values;
}

}  // namespace

PlanOverride::PlanOverride(const char* text) {
  std::string rest = text ? text : "";
  while (!rest.empty()) {
    const std::size_t end = rest.find(',');
    const std::string entry = rest.substr(0, end);
    rest = end == std::string::npos ? "" : rest.substr(end + 1);
    const std::size_t equals = entry.find('=');
    const std::string name = entry.substr(0, equals);
    const Key* key = nullptr;
    std::string names;
    for (const Key& k : kKeys) {
      if (name == k.name) key = &k;
      names += (names.empty() ? "" : ", ") + std::string(k.name);
    }
    if (!key || equals == std::string::npos) {
      error_ = std::string(kVariable) + ": expected key=value,... with keys among " + names +
               ", got \"" + entry + "\"";
      return;
    }
    const std::string value = entry.substr(equals + 1);
    if (!allowed(key->values, value)) {
      error_ = std::string(kVariable) + ": " + name + ": expected " + expected(key->values) +
               ", got \"" + value + "\"";
      return;
    }
    values_[name] = value;
  }
}

bool PlanOverride::count(const char* key, int64_t& value) const {
  const auto found = values_.find(key);
  if (found == values_.end()) return false;
  value = std::strtoll(found->second.c_str(), nullptr, 10);
  return true;
}

void PlanOverride::flag(const char* key, bool& value) const {
  const auto found = values_.find(key);
  if (found != values_.end()) value = found->second == "1";
}

PlanOverride& plan_override() {
  static PlanOverride override(std::getenv(kVariable));
  return override;
}

}  // namespace fusedrnn

extern "C" __attribute__((visibility("default"))) void fusedrnn_override_plan(const char* text) {
  fusedrnn::plan_override() = fusedrnn::PlanOverride(text);
}

extern "C" __attribute__((visibility("default"))) int fusedrnn_plan_is_overridden() {
  return fusedrnn::plan_override().any();
}
