// The teams whose walks are compiled for them, so that a step's loops unroll and nothing in it asks
// for a size: those that a plan takes for common hidden sizes, with 8 and with 16 sequences. For
// each team there is a kernel of each walked cell in some arithmetics. Any other team, a call with
// modifiers and a written cell have the kernel that is told its sizes.
#pragma once

#include "walk.h"

namespace fusedrnn::cuda {

// Each has those of the ones before, too.
enum class Arithmetics : int { half, tensor_cores, all };

struct FixedTeam {
  int blocks, units, rows;
  Arithmetics arithmetics;

  constexpr bool serves(Arithmetic a) const {
    return is_half(a) || arithmetics == Arithmetics::all ||
           (a == Arithmetic::tf32 && arithmetics == Arithmetics::tensor_cores);
  }
};

// The emulation compiles fewer.
#ifdef FUSEDRNN_FIXED_TEAMS
constexpr FixedTeam kFixedTeams[] = {FUSEDRNN_FIXED_TEAMS};
#else
constexpr FixedTeam kFixedTeams[] = {
    {1, 64, 8, Arithmetics::tensor_cores},   // H = 64
    {4, 16, 8, Arithmetics::all},            // 64
    {8, 16, 8, Arithmetics::all},            // 128
    {16, 16, 8, Arithmetics::all},           // 256
    {16, 32, 8, Arithmetics::tensor_cores},  // 512
    {16, 48, 8, Arithmetics::half},          // 768
    {8, 16, 16, Arithmetics::half},          // 128
    {16, 16, 16, Arithmetics::half},         // 256
    {16, 32, 16, Arithmetics::half},         // 512
};
#endif
constexpr int kFixedTeamCount = static_cast<int>(sizeof(kFixedTeams) / sizeof(kFixedTeams[0]));

// A team's place among them; -1 if it is none of them, or not in this arithmetic.
constexpr int fixed_team(Arithmetic a, const Team& team) {
  for (int i = 0; i < kFixedTeamCount; ++i) {
    const FixedTeam& fixed = kFixedTeams[i];
    if (fixed.blocks == team.blocks && fixed.units == team.units && fixed.rows == team.rows &&
        fixed.serves(a))
      return i;
  }
  return -1;
}
// Whether one of these kernels walks a layer of H hidden units: all units of its team are such.
constexpr bool has_fixed_walk(Arithmetic a, const Team& team, int H) {
  return team.blocks * team.units == H && fixed_team(a, team) >= 0;
}

}  // namespace fusedrnn::cuda
