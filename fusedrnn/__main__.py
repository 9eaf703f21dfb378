"""`python -m fusedrnn`, and the command `fusedrnn` that an installation brings: command_line/."""

from __future__ import annotations

import sys

from fusedrnn.command_line import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
