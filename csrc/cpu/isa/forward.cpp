// Forward for one dtype, and making its panels.
#include "cpu/forward_walk.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template int64_t forward<Dtype::FUSEDRNN_DTYPE>(const Problem&, const Plan&, ParallelFor, void*);
template int64_t make_panels<Dtype::FUSEDRNN_DTYPE>(const Problem&, void*);

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
