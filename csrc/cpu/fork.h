// Tells whether torch's threads exist. After a fork, the child does not have the OpenMP pool of its
// parent, and waiting for it would never end, so the child uses only the calling thread.
#pragma once

namespace fusedrnn::cpu {

bool is_forked();  // also true if that can't be known

}  // namespace fusedrnn::cpu
