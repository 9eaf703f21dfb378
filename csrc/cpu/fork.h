// Whether torch's threads are there. After a fork the OpenMP pool of the parent does not exist in
// the child, and waiting for it would never end: the child works alone.
#pragma once

namespace fusedrnn::cpu {

bool is_forked();  // also true if that can't be known

}  // namespace fusedrnn::cpu
