// The register tiles for one type of operands. All dtypes that are multiplied in this type share
// them: half precision is multiplied as float32, except where bf16 has its own instructions.
#include "cpu/gate_tile.h"
#include "cpu/grad_tile.h"
#include "cpu/program_tile.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

using F = ComputeOf<Dtype::FUSEDRNN_DTYPE>;
using E = OperandOf<StorageOf<Dtype::FUSEDRNN_DTYPE>>::type;

template struct GateTiles<E, F>;
template struct GradTiles<E, F>;
template void linear(int64_t, int64_t, const LinearTile<E, F>&);

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
