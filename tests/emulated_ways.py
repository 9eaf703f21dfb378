"""The child that checks ways, with the emulation in the place of a GPU.

python tests/emulated_ways.py REQUEST
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path

from cuda_emulation import backend as emulated

from fusedrnn import _C
from fusedrnn._engine.ways import Way
from fusedrnn.testing import ways


def override_of(emulation: ctypes.CDLL) -> Callable[[str], None]:
    """Overrides the plans of the emulated kernels."""

    def override(text: str) -> None:
        _C.override_plan(text)
        emulation.fusedrnn_override_plan(text.encode())

    return override


def main(file: str) -> None:
    """Checks what the file says."""
    request = json.loads(Path(file).read_text())
    with emulated.installed() as emulation:
        ways.say({"ready": "emulated"})
        asked = [Way(*way) for way in request["ways"]]
        ways.check_all(asked, "cpu", ways.say, override_of(emulation))


if __name__ == "__main__":
    main(*sys.argv[1:])
