// How many processors a team may have: those that the calling thread may run on, but no more than
// the quota of the process's control group pays for. A team of more threads only waits for itself.
#pragma once

#include <string>

namespace fusedrnn {

// At least one. FUSEDRNN_PROCESSORS=n says it instead, and that they are there: teams then wait for
// all of their threads.
int usable_processors();
bool processors_are_given();

// Of so many threads those that have a processor. The system is asked every 10 ms at most: asking
// takes as long as a small layer's step.
int usable_for(int threads);

const std::string& processors_error();  // why FUSEDRNN_PROCESSORS can't be used; else empty

// The least quota, in processors, of the control groups that `membership` (a file such as
// /proc/self/cgroup) names, their parents', under `root` (as /sys/fs/cgroup); 0 without one.
double quota_of(const std::string& membership, const std::string& root);

}  // namespace fusedrnn
