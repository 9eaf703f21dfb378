// The teams whose walks are compiled for them, so that a step's loops unroll and nothing in it asks
// for a size: the teams that a plan takes for common hidden sizes, of one and of two eights of
// sequences. For each there is a kernel of each walked cell in the arithmetics that are named. Any
// other team, a call with modifiers and a written cell have the kernel that is told its sizes.
#pragma once

#include "walk.h"

namespace fusedrnn::cuda {

struct FixedTeam {
  int blocks, units, rows;
  bool half, tf32, f32;

  constexpr bool serves(Arithmetic a) const {
    return is_half(a) ? half : a == Arithmetic::tf32 ? tf32 : f32;
  }
};

// Whoever compiles kernels for a device that is not a GPU may want fewer.
#ifdef FUSEDRNN_FIXED_TEAMS
constexpr FixedTeam kFixedTeams[] = {FUSEDRNN_FIXED_TEAMS};
#else
constexpr FixedTeam kFixedTeams[] = {
    {1, 64, 8, true, true, false},    {4, 16, 8, true, true, true},
    {8, 16, 8, true, true, true},     {16, 16, 8, true, true, true},
    {16, 32, 8, true, true, false},   {16, 48, 8, true, false, false},
    {8, 16, 16, true, false, false},  {16, 16, 16, true, false, false},
    {16, 32, 16, true, false, false},
};
#endif
constexpr int kFixedTeamCount = static_cast<int>(sizeof(kFixedTeams) / sizeof(kFixedTeams[0]));

// Which of them a team is; -1: none.
constexpr int fixed_team(Arithmetic a, int blocks, int units, int rows) {
  for (int i = 0; i < kFixedTeamCount; ++i) {
    const FixedTeam& team = kFixedTeams[i];
    if (team.blocks == blocks && team.units == units && team.rows == rows && team.serves(a))
      return i;
  }
  return -1;
}

}  // namespace fusedrnn::cuda
