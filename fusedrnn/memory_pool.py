"""Memory that the CPU's kernels keep for their next call: how much it is, and giving it back.

    fusedrnn.memory_pool.held_bytes()     idle in the pool now
    fusedrnn.memory_pool.limit_bytes()    how much may be idle there
    fusedrnn.memory_pool.trim()           gives back to the system what is idle

Fresh memory costs a page fault for each page, a third of the time of a training step. So scratch,
and the large results of a call when their tensors die, go to a pool, from where the next call takes
them (csrc/cpu/memory.h). Memory in use is not counted: it belongs to tensors or to a running call.

There is one pool per process. A forked child has a copy of its own.
"""

from __future__ import annotations

import ctypes

from fusedrnn._engine.ops import LIBRARY

__all__ = ["held_bytes", "limit_bytes", "trim"]

LIBRARY.fusedrnn_pool_held_bytes.restype = ctypes.c_size_t
LIBRARY.fusedrnn_pool_bound_bytes.restype = ctypes.c_size_t
LIBRARY.fusedrnn_pool_trim.restype = None
LIBRARY.fusedrnn_pool_error.restype = ctypes.c_char_p


def held_bytes() -> int:
    """How much memory is idle in the pool.

    >>> fusedrnn.memory_pool.trim()
    >>> fusedrnn.memory_pool.held_bytes()
    0
    """
    held: int = LIBRARY.fusedrnn_pool_held_bytes()
    return held


def limit_bytes() -> int:
    """How much memory may be idle in the pool; what is given back beyond that is freed.

    It is what the environment variable FUSEDRNN_POOL_MB said in MiB when the pool was first used,
    512 without it. With 0 nothing is kept.

    Raises:
        RuntimeError: FUSEDRNN_POOL_MB is not a whole number; then layers refuse to run, too.
    """
    error: bytes = LIBRARY.fusedrnn_pool_error()
    if error:
        raise RuntimeError(error.decode(errors="replace"))
    limit: int = LIBRARY.fusedrnn_pool_bound_bytes()
    return limit


def trim() -> None:
    """Gives all memory that is idle in the pool back to the system.

    The next call takes fresh memory, which makes it slower. Any thread may call it at any time.
    """
    LIBRARY.fusedrnn_pool_trim()
