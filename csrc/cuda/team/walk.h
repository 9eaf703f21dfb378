// The sizes of a team's walk, as the plan and the kernels both need them: who has which part of
// W_hh, and where everything lies in a block's shared memory. No CUDA in here.
//
// A team of `blocks` blocks walks the steps of `rows` sequences in one direction. Block r has the
// units [r * units, (r + 1) * units): the rows of W_hh of all their gates. Products run on
// fragments: 16 rows by `fragment_depth` columns of weights, 512 bytes. A warp holds some of them
// in its registers and the rest in shared memory, in the order in which it uses them.
//
//   forward    weights [16 = 8 units x 2 gates][k = hidden units]   times   h [k][8 sequences]
//   backward   weights [16 = hidden units][k = own gates, units]    times   dgates [k][8 sequences]
//
// Forward, the eight-row halves of fragments are the gates of eight units one after the other:
// LSTM (i f)(g o), a "group" of 8 units; GRU (n' r)(z n')(r z) and RNN (h h), groups of 16. So a
// lane has all gates of its units. A group's product may be cut into `parts` along k, for as many
// warps.
//
// The right operand lies in blocks of 16 bytes along k (8 halves or 4 floats) and 8 sequences,
// which ldmatrix reads without bank conflicts, a block's units in one piece:
//
//   [rows / 8][k / per block][8 sequences][16 bytes]
//
// Where parts do not divide the depth, the last one's fragments are zeros beyond it, and so is the
// operand.
#pragma once

#include "layer/sizes.h"

namespace fusedrnn::cuda {

enum class CudaTeam : int {
  stepwise,  // none: per step one matrix product and one fused kernel
  block,     // one block
  cluster,   // the blocks of a cluster
};

// How the recurrent product is made. All sum in fp32.
enum class Arithmetic : int { f32, tf32, bf16, f16 };

constexpr bool is_half(Arithmetic a) { return a == Arithmetic::bf16 || a == Arithmetic::f16; }
constexpr int bytes_of(Arithmetic a) { return is_half(a) ? 2 : 4; }
constexpr int fragment_depth(Arithmetic a) { return is_half(a) ? 16 : 8; }

constexpr int kModifiedSince = 80;  // the compute capability from which walks know modifiers

constexpr int kLanes = 32;
constexpr int kMostWarps = 12;  // 384 threads, so that one has 168 registers
constexpr int kColumns = 8;     // sequences of one product
constexpr int kTile = 16;       // rows of a fragment; units of a block come in as many
constexpr int kFragmentBytes = 512;
constexpr int kCoreBytes = 128;                       // 8 sequences x 16 bytes of an operand
constexpr int kPortableBlocks = 8, kMostBlocks = 16;  // of a cluster

// Fragments of weights that a warp holds in registers, four registers of a thread each: forward the
// first fragments along the depth of its first group, backward those of its first tiles; as many as
// compile without spills. Without tensor cores weights are read from shared memory by whoever needs
// them.
constexpr int kHeldTiles = 3;

// What a walk has to know of a cell: how many slots of each kind it has.
struct WalkedCell {
  int inputs, products, late, saved, grads, states, unit_weights;

  constexpr int halves() const { return products % 2 ? 2 : 1; }    // eights in a group
  constexpr int tiles() const { return products * halves() / 2; }  // of a group
  constexpr int biases() const { return products + late; }         // of a unit
};
template <class C>
constexpr WalkedCell walked = {C::inputs, C::products, C::late,        C::saved,
                               C::grads,  C::states,   C::unit_weights};

constexpr int least(int a, int b) { return a < b ? a : b; }
constexpr int most(int a, int b) { return a < b ? b : a; }
constexpr int cut(int n, int by) { return (n + by - 1) / by; }

// Registers of a thread for everything else: inputs, results and sums in forward, what was kept and
// what is found in backward. A cell that needs many leaves fewer for weights, and one that needs
// more than these is not walked.
constexpr int kOtherRegisters = 102;
constexpr int others_forward(const WalkedCell& cell, int value_bytes) {
  return cell.halves() * (2 * cell.inputs + cell.saved * value_bytes / 2) + 4 * cell.tiles();
}
constexpr int others_backward(const WalkedCell& cell, int value_bytes) {
  return 2 * cell.saved + cell.grads * value_bytes / 2 + 4;
}

constexpr int held_forward(const WalkedCell& cell, Arithmetic a) {  // along the depth
  if (a == Arithmetic::f32) return 0;
  const int room = kOtherRegisters - others_forward(cell, bytes_of(a));
  // Turing needs registers for fp16: it makes a product of two.
  const int fragments = a == Arithmetic::tf32 || cell.late > 0 ? 16
                        : a == Arithmetic::f16                 ? 18
                                                               : 20;
  return most(least(fragments, room / 4), 0) / cell.tiles();
}
constexpr int held_backward(const WalkedCell& cell, Arithmetic a, CudaTeam team) {
  if (a == Arithmetic::f32) return 0;
  const int room = kOtherRegisters - others_backward(cell, bytes_of(a));
  const int held = a == Arithmetic::tf32 || team == CudaTeam::block ? 6 : 7;
  // What the cell itself computes with takes registers, too.
  const int taken = (cell.unit_weights > 0) + (most(cell.inputs, cell.products) > 4);
  return most(least(held, room / (4 * kHeldTiles)) - taken, 0);
}

// A kernel that is compiled for its team knows how many threads share a multiprocessor's registers,
// and holds weights in all but these: for addresses and counts, and for what a cell needs and the
// sums of each column.
constexpr int kFixedForward = 56, kFixedBackward = 44;
constexpr int registers_of(int warps) { return least(65536 / (warps * kLanes) / 8 * 8, 255); }
constexpr int fixed_held_forward(const WalkedCell& cell, Arithmetic a, int warps, int columns,
                                 int depth) {
  if (a == Arithmetic::f32) return 0;
  const int others = kFixedForward + columns * (16 + others_forward(cell, bytes_of(a)));
  const int held = most(registers_of(warps) - others, 0) / 4 / cell.tiles();
  return least(held, depth);
}
constexpr int fixed_held_backward(const WalkedCell& cell, Arithmetic a, int warps, int columns,
                                  int tiles, int depth) {
  if (a == Arithmetic::f32) return 0;
  const int others = kFixedBackward + 8 * (columns + tiles) + others_backward(cell, bytes_of(a));
  return least(depth, most(registers_of(warps) - others, 0) / 4 / tiles);
}

// Lays regions of shared memory out one after the other.
struct Regions {
  int bytes = 0;
  constexpr int take(int count) {
    const int at = bytes;
    bytes += (count + 127) / 128 * 128;
    return at;
  }
};

// What a plan decides of a walk.
struct Team {
  int blocks = 1, units = 0, rows = 0;
  bool fixed = false;  // its kernels are compiled for these sizes (fixed.h), and serve no other
  constexpr CudaTeam kind() const { return blocks == 1 ? CudaTeam::block : CudaTeam::cluster; }
};

// Forward, the slices of h go to the other blocks by stores of 16 bytes, which arrive first, or if
// they are larger than this by bulk copies, which one thread starts.
constexpr int kBulkBytes = 2048;

// Offsets in bytes from the start of a block's shared memory.
struct WalkSizes {
  int blocks = 1, units = 0, rows = 0;
  int warps = 0;
  int depth = 0;         // of the product, in fragments
  int turns = 1;         // groups (backward: tiles) of a warp, one after the other
  int columns = 0;       // eights of sequences
  int operand = 0;       // bytes of the right operand, of which there are two in turn
  int column_bytes = 0;  // of it, for 8 sequences
  int fragments = 0, fragments_of_warp = 0;
  int state = 0;
  int barriers = 0;
  int bytes = 0;
};

// Sums of a tile that parts leave for others: the first two leave those for each other, the rest
// for both.
constexpr int fixed_sums(int parts) { return 2 * parts - 2; }

struct ForwardSizes : WalkSizes {
  int groups = 0, parts = 1;
  int leaders = 0;     // warps of one part; the first part's, or first two's, compute the cells
  int part_depth = 0;  // of the product, in fragments
  int held = 0;        // fragments of a tile that a warp holds, along the depth
  int slice = 0;       // bytes of the operand that are a block's own
  int sums = 0;
  int biases = 0;  // and the unit weights
};

// Fragments of a group that one warp multiplies with in less time than several take to do so and
// to add their sums, if it need not compute too many cells, either.
constexpr int alone_fragments(Arithmetic a) { return a == Arithmetic::f32 ? 0 : 24; }
constexpr int kAloneProducts = 4;  // of a lane's units

constexpr ForwardSizes forward_sizes(const WalkedCell& cell, Arithmetic arithmetic,
                                     const Team& team) {
  ForwardSizes s;
  s.blocks = team.blocks, s.units = team.units, s.rows = team.rows;
  s.columns = team.rows / kColumns;
  const int k = team.blocks * team.units, halves = cell.halves();
  s.depth = k / fragment_depth(arithmetic);
  s.groups = team.units / (8 * halves);
  s.turns = cut(s.groups, kMostWarps);
  s.leaders = cut(s.groups, s.turns);
  const bool alone = s.turns > 1 || (s.depth * cell.tiles() <= alone_fragments(arithmetic) &&
                                     halves * cell.products <= kAloneProducts);
  s.parts = alone ? 1 : most(1, least(kMostWarps / s.leaders, s.depth));
  s.part_depth = cut(s.depth, s.parts);
  s.parts = cut(s.depth, s.part_depth);  // none of them empty
  s.warps = s.leaders * s.parts;
  s.held = team.fixed ? fixed_held_forward(cell, arithmetic, s.warps, s.columns, s.part_depth)
                      : least(s.part_depth, held_forward(cell, arithmetic));
  s.fragments_of_warp = (s.turns * s.part_depth - s.held) * cell.tiles();

  Regions regions;
  s.slice = kColumns * team.units * bytes_of(arithmetic);
  s.column_bytes =
      kColumns * s.parts * s.part_depth * fragment_depth(arithmetic) * bytes_of(arithmetic);
  s.operand = s.columns * s.column_bytes;
  regions.take(2 * s.operand);
  s.fragments = regions.take(s.warps * s.fragments_of_warp * kFragmentBytes);
  // Places are used in turn. A kernel for these sizes has them for each column, but none for the
  // sums that a part adds to its own.
  const int slots = 2 * (team.fixed ? s.columns * fixed_sums(s.parts) : 2 * s.parts);
  const int sums = slots * s.groups * cell.tiles() * kLanes;
  s.sums = regions.take(s.parts > 1 ? sums * 8 : 0);
  const int own = (cell.biases() + cell.unit_weights) * team.units;
  s.biases = regions.take(team.fixed ? 0 : own * 4);
  const int states = s.turns * s.columns * halves * 2 * cell.states * s.leaders * kLanes;
  s.state = regions.take(team.fixed ? 0 : states * 4);  // fixed: they are in registers
  s.barriers = regions.take(16);
  s.bytes = regions.bytes;
  return s;
}

struct BackwardSizes : WalkSizes {
  int inbox = 0, inbox_bytes = 0;  // of which there are two in turn
  int tiles = 0;                   // of 16 hidden units
  int full_warps = 0;              // that have `turns` tiles; the others have one fewer
  int fragments_of_other = 0;
  int group = 0;                      // tiles that a warp multiplies with at the same time
  int held = 0;                       // fragments of a tile of the first group in registers
  int block_tiles = 0;                // of one block's units
  int hop_blocks = 0, hop_tiles = 0;  // from a warp's tile to its next: blocks, tiles beyond them
  int items = 0;                      // eights of units times eights of sequences
  int unit_weights = 0;
  bool shared_items = false;  // two warps have an item each, one every second sequence
};

constexpr BackwardSizes backward_sizes(const WalkedCell& cell, Arithmetic arithmetic,
                                       const Team& team) {
  BackwardSizes s;
  s.blocks = team.blocks, s.units = team.units, s.rows = team.rows;
  s.columns = team.rows / kColumns;
  const int k = cell.products * team.units;
  s.depth = k / fragment_depth(arithmetic);
  s.tiles = team.blocks * team.units / kTile;
  s.items = team.units / 8 * s.columns;
  s.warps = least(kMostWarps, most(s.tiles, s.items));
  if (2 * s.items <= kMostWarps) s.warps = most(s.warps, 2 * s.items);
  s.shared_items = 2 * s.items <= s.warps;
  s.turns = cut(s.tiles, s.warps);
  s.block_tiles = team.units / kTile;
  s.hop_blocks = s.warps / s.block_tiles, s.hop_tiles = s.warps % s.block_tiles;
  s.full_warps = s.tiles - (s.turns - 1) * s.warps;
  // Kernels for these sizes multiply with a tile that a warp lacks, too, of zeros.
  s.group = team.fixed ? cut(s.turns, cut(s.turns, kHeldTiles)) : kHeldTiles;
  s.held = team.fixed ? fixed_held_backward(cell, arithmetic, s.warps, s.columns, s.group, s.depth)
                      : least(s.depth, held_backward(cell, arithmetic, team.kind()));
  const auto fragments = [&](int tiles) {
    return tiles * s.depth - least(tiles, s.group) * s.held;
  };
  s.fragments_of_warp = fragments(team.fixed ? cut(s.turns, s.group) * s.group : s.turns);
  s.fragments_of_other = team.fixed ? s.fragments_of_warp : fragments(s.turns - 1);

  Regions regions;
  s.column_bytes = kColumns * k * bytes_of(arithmetic);
  s.operand = s.columns * s.column_bytes;
  regions.take(2 * s.operand);
  s.inbox_bytes = team.blocks * team.units * team.rows * 4;
  s.inbox = regions.take(2 * s.inbox_bytes);
  s.fragments = regions.take(
      (s.full_warps * s.fragments_of_warp + (s.warps - s.full_warps) * s.fragments_of_other) *
      kFragmentBytes);
  s.unit_weights = regions.take(cell.unit_weights * team.units * 4);
  const int states = cut(s.items, s.warps) * 2 * cell.states * s.warps * kLanes;
  s.state = regions.take(team.fixed ? 0 : states * 4);
  s.barriers = regions.take(16);
  s.bytes = regions.bytes;
  return s;
}

}  // namespace fusedrnn::cuda
