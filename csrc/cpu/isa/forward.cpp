// Forward of one dtype, and the packing of its weights.
#include "cpu/forward.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template int64_t forward<Dtype::FUSEDRNN_DTYPE>(const Problem&, const Plan&, ParallelFor, void*);
template int64_t pack<Dtype::FUSEDRNN_DTYPE>(const Problem&, void*);

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
