"""Prints what extras of pyproject.toml ask for, one requirement per line: `extras.py demo lint`.

pip can install an extra only together with the package, and these are needed without it: ruff and
the documentation's tools need no native library.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(*extras: str) -> list[str]:
    """What they ask for; one that names others of ours ("fusedrnn[bench,cli]") asks for theirs."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    found: dict[str, None] = {}
    for extra in extras:
        for wanted in project["optional-dependencies"][extra]:
            ours = re.fullmatch(rf"{project['name']}\[(.*)\]", wanted)
            found |= dict.fromkeys(requirements(*ours[1].split(",")) if ours else [wanted])
    return list(found)


if __name__ == "__main__":
    print("\n".join(requirements(*sys.argv[1:])))
