// How many processors a team may have: those that the calling thread may run on, but no more than
// the quota of the process's control group pays for. A larger team would only wait for itself.
#pragma once

#include <string>

namespace fusedrnn::cpu {

// At least one. FUSEDRNN_PROCESSORS=n sets the number instead, and promises that so many are free:
// teams then wait for all of their threads.
int usable_processors();
bool processors_are_given();

// How many of these threads have a processor. It asks the system at most every 10 ms, since small
// layers would feel the cost of that call.
int usable_for(int threads);

// The plan that `plan_of(threads)` makes. If it has more threads than there are processors, the
// plan for as many threads as there are processors.
template <class PlanOf>
auto plan_for_processors(int threads, PlanOf plan_of) {
  const auto plan = plan_of(threads);
  const int usable = usable_for(plan.threads);
  return usable < plan.threads ? plan_of(usable) : plan;
}

const std::string& processors_error();  // why FUSEDRNN_PROCESSORS can't be used; else empty

// The least quota, in processors, of the control groups that the file `membership` names (such as
// /proc/self/cgroup) and of their parents, which are folders under `root` (such as /sys/fs/cgroup);
// 0 if none has a quota.
double quota_of(const std::string& membership, const std::string& root);

}  // namespace fusedrnn::cpu
