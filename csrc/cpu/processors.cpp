// Reads the affinity of the calling thread each time, but the quota of the control groups only
// once: the quota rarely changes, and several files have to be read for it.
#include "processors.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>

namespace fusedrnn::cpu {
namespace {

// The quota in a control group's own folder. In version 2 one file has quota and period, "max
// 100000" or "150000 100000". In version 1 there are two files with one number each, and a quota of
// -1 means none.
double quota_in(const std::string& folder) {
  double quota = 0, period = 0;
  if (std::ifstream both(folder + "/cpu.max"); both) {
    both >> quota >> period;  // "max" is not a number
    return both && period > 0 ? quota / period : 0;
  }
  std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
  std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  return quota > 0 && period > 0 ? quota / period : 0;
}

int from_affinity() {
  // A bound thread sees only its own place. Whoever bound the threads also chose their number.
  static const bool bound = [] {
    for (const char* name : {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"})
      if (std::getenv(name)) return true;
    return false;
  }();
  cpu_set_t set;
  constexpr int kMany = 1 << 20;  // if there are too many for the set, or threads are bound
  return bound || sched_getaffinity(0, sizeof(set), &set) != 0 ? kMany : CPU_COUNT(&set);
}

struct Given {
  int processors = 0;
  std::string error;

  Given() {
    const char* const text = std::getenv("FUSEDRNN_PROCESSORS");
    if (!text || !*text) return;
    const std::string digits = text;
    if (digits.size() <= 6 && digits.find_first_not_of("0123456789") == std::string::npos)
      processors = std::atoi(text);
    if (processors < 1)
      error = "FUSEDRNN_PROCESSORS: expected a positive whole number, got \"" + digits + "\"";
  }
};

const Given& given() {
  static const Given found;
  return found;
}

}  // namespace

double quota_of(const std::string& membership, const std::string& root) {
  double least = 0;
  std::ifstream lines(membership);
  for (std::string line; std::getline(lines, line);) {  // number:controllers:/path
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = ',' + line.substr(first + 1, second - first - 1) + ',';
    const bool unified = controllers == ",,";
    if (!unified && controllers.find(",cpu,") == std::string::npos) continue;
    // Up to the root: there a container sees its own group, whatever its path is called outside.
    for (std::string path = line.substr(second + 1);;) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      const double quota = quota_in(root + (unified ? "" : "/cpu") + path);
      if (quota > 0 && (least == 0 || quota < least)) least = quota;
      if (path.empty()) break;
      path.erase(path.rfind('/'));
    }
  }
  return least;
}

int usable_processors() {
  if (given().processors) return given().processors;
  static const int paid =
      static_cast<int>(std::min(std::ceil(quota_of("/proc/self/cgroup", "/sys/fs/cgroup")), 1e6));
  const int allowed = from_affinity();
  return std::max(1, paid ? std::min(paid, allowed) : allowed);
}

int usable_for(int threads) {
  using Clock = std::chrono::steady_clock;
  thread_local Clock::time_point until;
  thread_local int known = 1;
  if (threads == 1) return 1;
  if (const auto now = Clock::now(); now >= until) {
    known = usable_processors();
    until = now + std::chrono::milliseconds(10);
  }
  return std::min(threads, known);
}

bool processors_are_given() { return given().processors > 0; }

const std::string& processors_error() { return given().error; }

}  // namespace fusedrnn::cpu
