"""Runs a program whose second process is killed in the middle of its second checkpoint.

    torchrun --nproc-per-node=2 tests/killed_while_saving.py PROGRAM ARGUMENTS...

"In the middle": its part of the state is written, the index of the whole is not.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import Any

from torch.distributed.checkpoint import FileSystemWriter

saves = 0
write = FileSystemWriter.write_data


def write_and_die(self: FileSystemWriter, *arguments: Any, **options: Any) -> Any:
    global saves
    saves += 1
    written = write(self, *arguments, **options)
    if saves == 2 and os.environ["RANK"] == "1":
        written.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    return written


FileSystemWriter.write_data = write_and_die
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as Python does for a program
runpy.run_path(sys.argv[0], run_name="__main__")
