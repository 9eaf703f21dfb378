// What the forward and the backward walk share: where the steps and the rows of a sequence are.
#pragma once

#include <type_traits>

#include "arithmetic.cuh"
#include "team.cuh"
#include "walk_problem.h"

namespace fusedrnn::cuda {

constexpr int kMostThreads = kMostWarps * kLanes;

// The sequences of one team: their places among all, and the steps that they have.
struct Sequences {
  const WalkProblem& p;
  int first;  // of all
  int count;  // the last team's may be fewer than its rows

  __device__ __forceinline__ Sequences(const WalkProblem& problem, int tile, int rows)
      : p(problem), first(tile * rows), count(p.B - first < rows ? p.B - first : rows) {}

  // The rows of a step in arrays of [rows][...].
  struct Moment {
    int row = 0;    // of this team's first sequence
    int alive = 0;  // sequences of this team that have this step
  };
  __device__ __forceinline__ Moment moment(int t) const {
    if (!p.offsets) return {t * p.B + first, count};
    const int row = static_cast<int>(p.offsets[t]);
    const int left = static_cast<int>(p.offsets[t + 1]) - row - first;
    return {row + first, left < count ? left : count};
  }

  // The first of the steps [begin, end) that none of them has.
  __device__ __forceinline__ int end_of(int begin, int end) const {
    if (!p.offsets) return end;
    while (begin < end) {
      const int middle = (begin + end) / 2;
      if (moment(middle).alive > 0)
        begin = middle + 1;
      else
        end = middle;
    }
    return begin;
  }
};
using Moment = Sequences::Moment;

// The steps that a team walks, [begin, end) in t.
struct Steps {
  int begin = 0, end = 0;
  bool backwards = false;

  __device__ __forceinline__ int count() const { return end > begin ? end - begin : 0; }
  // t of the walk's s-th step.
  __device__ __forceinline__ int at(int s) const { return backwards ? end - 1 - s : begin + s; }
};

// Where a thread is: in the team, the block, the warp, and in a tile of sums (arithmetic.cuh).
struct Seat {
  int direction, tile;        // of the grid's teams
  int warp, lane, group, t4;  // t4: of a quad of lanes

  __device__ __forceinline__ Seat(const WalkProblem& p, int blocks)
      : warp(static_cast<int>(threadIdx.x) / kLanes),
        lane(static_cast<int>(threadIdx.x) % kLanes),
        group(lane / 4),
        t4(lane % 4) {
    const int team = static_cast<int>(blockIdx.x / static_cast<unsigned>(blocks));
    direction = team / p.tiles, tile = team % p.tiles;
  }
};

constexpr bool kModifies =
#if defined(__CUDA_ARCH__)
    __CUDA_ARCH__ >= 10 * kModifiedSince;
#else
    true;
#endif

// Where a kernel has the sizes of its team from: the launch tells them, so that one kernel serves
// all teams, or its type does.
struct Told {
  static constexpr bool fixed = false;
};
template <int kBlocks, int kUnits, int kRows>
struct Fixed {
  static constexpr bool fixed = true;
  static constexpr Team team = {kBlocks, kUnits, kRows, true};
};

// What a thread knows in either walk. `Sizes` has them as z_.
template <class Walk, class Team, class Sizes>
struct Walker : Sizes {
  using Sizes::z_;

  __device__ __forceinline__ Walker(const Walk& walk, char* shared)
      : Sizes(walk.sizes),
        w_(walk),
        seat_(walk, z_.blocks),
        d_(walk.direction[seat_.direction]),
        shared_(shared),
        team_(reinterpret_cast<uint64_t*>(shared + z_.barriers), static_cast<unsigned>(z_.blocks)),
        sequences_(walk, seat_.tile, z_.rows),
        first_unit_(static_cast<int>(team_.rank()) * z_.units) {}

  // Calls load(pairs), where the type of `pairs` says whether W_hh can be read two values at a
  // time. A kernel that knows its sizes is launched only where it can, if the arithmetic has pairs.
  template <class A, class F>
  __device__ __forceinline__ void with_pairs(const F& load) const {
    if constexpr (Sizes::kFixed)
      load(std::bool_constant<A::kReadsPairs>());
    else if (A::has_pairs(d_.w_hh, H()))
      load(std::true_type());
    else
      load(std::false_type());
  }

  // Hidden units; where the kernel knows its sizes, as many as the team has room for.
  __device__ __forceinline__ int H() const {
    if constexpr (Sizes::kFixed) return z_.blocks * z_.units;
    return w_.H;
  }
  __device__ __forceinline__ int Hp() const {
    if constexpr (Sizes::kFixed) return H();
    return w_.Hp;
  }
  __device__ __forceinline__ bool is_unit(int unit) const { return Sizes::kFixed || unit < w_.H; }

  // Where a lane finds a row of an array of rows of `width`, from its first unit on. A kernel that
  // knows its sizes has computed a place of the lane's own once and for all (place_of), from which
  // each row is only some rows away; there, rows count from the lane's first sequence.
  template <class T>
  __device__ __forceinline__ T* lane_of(T* place, T* array, int row, int width, int unit) const {
    if constexpr (Sizes::kFixed)
      return place ? place + static_cast<int64_t>(row) * width : nullptr;
    else
      return array ? array + static_cast<int64_t>(row) * width + unit : nullptr;
  }
  template <class T>
  __device__ __forceinline__ T* place_of(T* array, int row, int width, int unit) const {
    if (!array) return nullptr;
    return ptx::computed_here(array + static_cast<int64_t>(row) * width + unit);
  }
  __device__ __forceinline__ int from_lane(int sequence, int first) const {
    return Sizes::kFixed ? sequence - first : sequence;
  }

  // Turing has no registers left for modifiers, so the plan gives such calls there no team.
  __device__ __forceinline__ bool is_modified() const { return kModifies && w_.modified; }

  using Direction = typename Walk::Direction;
  // As d_, for what few calls do: its fields hold no registers meanwhile.
  __device__ __forceinline__ const Direction& direction_here() const {
    return w_.direction[ptx::computed_here(seat_.direction)];
  }
  // What a modifier has for a unit of the team's sequence b.
  template <class E>
  __device__ __forceinline__ float value(const WalkValues<const E>& values, int t, int b,
                                         int unit) const {
    return widen(values.at(t, sequences_.first + b)[unit]);
  }
  // The step after the boundary that the walk crosses on its way to step t of the team's sequence
  // b; -1: there is none.
  __device__ __forceinline__ int boundary(const Direction& d, int t, int b) const {
    const auto& reset = d.modifiers.reset;
    const int after = t + d.modifiers.ahead;
    if (!reset || after >= w_.T || b >= sequences_.moment(after).alive) return -1;
    return *reset.at(after, sequences_.first + b) ? after : -1;
  }
  __device__ __forceinline__ float reset_state(const Direction& d, int i, int boundary, int b,
                                               int unit) const {
    const auto& states = d.modifiers.reset_states[i];
    return states ? value(states, boundary, b, unit) : 0.0f;
  }

  __device__ __forceinline__ int64_t index(int b, int unit) const {  // in [B][H]
    return static_cast<int64_t>(sequences_.first + b) * H() + unit;
  }

  // One of a thread's own notes on a unit of a sequence, in memory.
  __device__ __forceinline__ float& note(const Direction& d, int b, int unit, int which) const {
    return d.notes[static_cast<int64_t>(which) * w_.B * H() + index(b, unit)];
  }

  const Walk& w_;
  const Seat seat_;
  const Direction& d_;
  char* const shared_;
  const Team team_;
  const Sequences sequences_;
  const int first_unit_;  // of this block
};

// Whether this architecture has what a kernel needs; where it has not, the kernel is empty.
template <class A, class Team>
constexpr bool kRunsHere =
#if defined(__CUDA_ARCH__)
    __CUDA_ARCH__ >= 10 * A::kSince && __CUDA_ARCH__ >= 10 * Team::kSince;
#else
    true;
#endif

}  // namespace fusedrnn::cuda
