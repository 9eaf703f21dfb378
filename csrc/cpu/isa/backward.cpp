// Backward of one dtype.
#include "../backward.h"

namespace fusedrnn {
namespace FUSEDRNN_ISA {

template int64_t backward<Dtype::FUSEDRNN_DTYPE>(const BackwardProblem&, const Plan&, ParallelFor,
                                                 void*);

}  // namespace FUSEDRNN_ISA
}  // namespace fusedrnn
