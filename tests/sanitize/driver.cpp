// Runs the CPU kernels on random problems while a sanitizer watches: AddressSanitizer and UBSan, or
// ThreadSanitizer. No torch, no OpenMP: threads are std::threads, so that ThreadSanitizer sees when
// they begin and end, and they meet in no way that it does not understand.
//
//   driver [--seed 1] [--first 0] [--problems 60] [--seconds 1000] [--fault 0] [--late 0]
//
// Every array is an allocation of its exact size, and there are poisoned gaps between the arrays in
// scratch memory (csrc/cpu/walk.h). Each problem is computed several times: by one thread, and then
// by several threads, with other plans. Whatever is written was filled with something else before.
// Results have to be finite, and have the same bits each time.
//
// A problem depends only on the seed and its index. The first ones have every cell with every
// split, with packed sequences and without. --fault 1 makes a mistake that every sanitizer has to
// see; --late 1 shows what a team does when its threads come one after the other.
#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "layers.h"

namespace fusedrnn::cpu {
namespace {

// This command and what it computes, for the reader of a sanitizer's report.
std::string g_command, g_problem;

// Runs that have to agree. What affects rounding (csrc/cpu/plan.cpp) is the same in all of them.
std::vector<How> ways(Random& random, const Dealt& dealt, const BackwardProblem& p) {
  std::string rounding = "fuse_input=" + std::to_string(dealt.fused);
  rounding += ",backward_steps=" + std::to_string(random.between(1, p.T));
  rounding += ",weights_in_place=" + std::to_string(random.chance(20));
  std::vector<How> found(1);
  found[0].plan = rounding;
  const auto add = [&](int threads, int lent, int fill, const char* split, int64_t forward_steps) {
    How how{rounding, threads, lent, fill};
    how.plan += ",threads=" + std::to_string(threads) + ",split=" + split +
                ",forward_steps=" + std::to_string(forward_steps) +
                ",direction_teams=" + std::to_string(random.between(1, p.directions));
    found.push_back(how);
  };
  const auto threads = [&] { return static_cast<int>(random.between(2, 4)); };
  const int several = threads();
  add(several, several, 0x3c, dealt.split, dealt.forward_steps);
  const int other = threads();
  add(other, static_cast<int>(random.between(1, other)), 0xff, kSplits[random.between(0, 2)],
      random.between(1, p.T));
  return found;
}

bool fails(const std::string& why) {
  std::fprintf(stderr, "%s\n  %s\n", why.c_str(), g_problem.c_str());
  return false;
}

bool agree(const std::function<Results(const How&)>& run, const std::vector<How>& hows,
           Dtype dtype) {
  const std::string problem = g_problem;
  Results expected;
  for (const How& how : hows) {
    g_problem = problem + "\n  " + how.text();
    Results found = run(how);
    if (expected.empty()) {
      for (const Result& result : found) {
        const int64_t at = not_finite(result.values, dtype);
        if (at >= 0) return fails(result.name + ": not finite at " + std::to_string(at));
      }
      expected = std::move(found);
      continue;
    }
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const Array &one = expected[i].values, &other = found[i].values;
      const char* const end = one.data() + one.bytes();
      const auto differing = std::mismatch<const char*>(one.data(), end, other.data());
      if (differing.first != end)
        return fails(expected[i].name + ": other bits than by one thread, first at " +
                     std::to_string((differing.first - one.data()) / size_of(dtype)));
    }
  }
  return true;
}

bool solve(int64_t seed, int64_t index) {
  g_problem = g_command + " --problems 1 --seed " + std::to_string(seed) + " --first " +
              std::to_string(index) + "\n  ";
  Random random(static_cast<uint64_t>(seed), static_cast<uint64_t>(index));
  const Dealt dealt(index, kFloat.size() + kInt8.size());
  if (dealt.kernels < kFloat.size()) {
    const FloatKernels& kernels = kFloat[dealt.kernels];
    const Given given = random_layer(random, dealt, kernels);
    g_problem += given.text;
    return agree([&](const How& how) { return run_layer(kernels, given.p, how); },
                 ways(random, dealt, given.p), given.p.dtype);
  }
  if (dealt.is_program || !facts_of(dealt.cell).has_int8) return true;
  const Int8Kernels& kernels = kInt8[dealt.kernels - kFloat.size()];
  const Given given = random_int8(random, dealt, kernels);
  g_problem += given.text;
  return agree([&](const How& how) { return run_int8(kernels, given.p, how); },
               ways(random, dealt, given.p), given.p.dtype);
}

// All threads write an array's last byte, and then the byte after it. ThreadSanitizer stops at the
// first of these: what it says about the second depends on whose memory that was.
void commit_a_fault() {
  g_problem = g_command + " --fault 1";
  g_lent = 2;
  const Array array(8, 0);
  char* end = array.data() + array.bytes();
  for (char* at : {end - 1, end})
    parallel_for(
        g_lent, [](int64_t, int64_t, void* to) { ++*static_cast<volatile char*>(to); }, at);
}

// Torch's pool may do this while another call has its threads.
void one_after_the_other(int64_t n, void (*body)(int64_t, int64_t, void*), void* context) {
  for (int64_t i = 0; i < n; ++i) std::thread(body, i, i + 1, context).join();
}

void come_late() {
  run_team(
      one_after_the_other, 3, 0,
      [](int rank, int size, void*) { std::printf("%d of %d\n", rank, size); }, nullptr);
}

}  // namespace
}  // namespace fusedrnn::cpu

extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }

int main(int count, char** words) {
  struct {
    const char* name;
    int64_t value;
  } options[] = {{"--seed", 1},       {"--first", 0}, {"--problems", 60},
                 {"--seconds", 1000}, {"--fault", 0}, {"--late", 0}};
  const auto& [seed, first, problems, seconds, fault, late] = options;
  for (int i = 1; i + 1 < count; i += 2)
    for (auto& option : options)
      if (!std::strcmp(words[i], option.name)) option.value = std::atoll(words[i + 1]);
  fusedrnn::cpu::g_command = words[0];
  __sanitizer_set_death_callback(
      [] { std::fprintf(stderr, "while computing\n  %s\n", fusedrnn::cpu::g_problem.c_str()); });
  if (fault.value) fusedrnn::cpu::commit_a_fault();
  if (late.value) return fusedrnn::cpu::come_late(), 0;
  setenv("FUSEDRNN_PROCESSORS", "8", 1);  // teams wait for all of their threads
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds.value);
  int64_t solved = 0;
  bool right = true;
  for (; solved < problems.value && std::chrono::steady_clock::now() < end; ++solved)
    right &= fusedrnn::cpu::solve(seed.value, first.value + solved);
  std::printf("%lld problems\n", static_cast<long long>(solved));
  return right ? 0 : 1;
}
