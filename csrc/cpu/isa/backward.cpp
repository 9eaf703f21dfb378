// Backward for one dtype.
#include "cpu/backward_walk.h"

namespace fusedrnn::cpu {
namespace FUSEDRNN_ISA {

template int64_t backward<Dtype::FUSEDRNN_DTYPE>(const BackwardProblem&, const Plan&, ParallelFor,
                                                 void*);

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn::cpu
