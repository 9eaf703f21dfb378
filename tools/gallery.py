"""Runs the examples as they are by default and makes the gallery of what they drew: `make gallery`.

    docs/gallery/<example>.png    the picture of each
    docs/gallery.md               the page: picture, command, and what the run printed

`gallery.py stock voice` runs these only, and keeps what the page says of the others.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/gallery.md"

EXAMPLES = (
    "timeseries", "stock", "autoregressive", "digits", "sentiment", "tagging", "caption", "charlm",
    "memory", "dropout", "voice", "compare",
)  # fmt: skip
"""In the order of the page: from numbers to letters, then what lies behind them."""

HEAD = """\
# Gallery

What the examples draw, and what they print, as they are by default: each runs in under two minutes
on two cores, with nothing downloaded. Most take `--cell`, `--impl` and `--epochs`; `--help` says
what else. `make data` installs the packages whose data they read. `make gallery` made this page.
"""


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in EXAMPLES]
    if unknown:
        sys.exit(f"gallery: expected some of {', '.join(EXAMPLES)}, got {', '.join(unknown)}")
    sections = kept()
    for name in names or EXAMPLES:
        sections[name] = section(name)
        order = [example for example in EXAMPLES if example in sections]
        text = "\n".join([HEAD, *(sections[example] for example in order)])
        PAGE.write_text(text, encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


def kept() -> dict[str, str]:
    """The sections of the page as it is, by their examples."""
    if not PAGE.exists():
        return {}
    parts = re.split(r"^(?=## )", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {part.split("`examples/")[1].split(".py`")[0]: part.rstrip() + "\n" for part in parts}


def section(name: str) -> str:
    """Runs one example; its section of the page. An example that fails ends all."""
    picture = PAGE.parent / "gallery" / f"{name}.png"
    script = ROOT / "examples" / f"{name}.py"
    print(f"{name}:", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, script, "--plot", picture], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - start
    print(f"{done.stdout}{name}: {seconds:.0f} s", flush=True)
    if done.returncode:
        sys.exit(f"gallery: {script.relative_to(ROOT)} ended with status {done.returncode}")
    printed = [line for line in done.stdout.splitlines() if not line.startswith("plot: ")]
    title = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or name).split("\n")
    return "\n".join([
        f"## {title[0].rstrip('.')}",
        "",
        f"`examples/{name}.py`, {seconds:.0f} seconds on {date.today():%Y-%m-%d}.",
        "",
        f"![{title[0].rstrip('.')}](gallery/{name}.png)",
        "",
        "```text",
        re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in printed)).strip(),
        "```",
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
