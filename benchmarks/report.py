"""The results of a run as JSON, a Markdown table and a plot, and the summary in the README.

    benchmarks/results/<name>/results.json   every figure, and what it was measured on
                              report.md      made from it (tables.py), to read
                              ratios.png     made from it (ratios.py), to look at

`write` makes all three; `remake` makes the last two again from the first.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.tables import PICTURE, Results, markdown, ratio_lines
from benchmarks.whole import write_whole

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"


def write(folder: Path, results: Results) -> None:
    """Writes the JSON and all that is made from it."""
    keep(folder, results)
    remake(folder)


def keep(folder: Path, results: Results) -> None:
    """Writes the JSON: also of a run that is interrupted after this."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "results.json", json.dumps(results, indent=1) + "\n")


def remake(folder: Path) -> None:
    """Makes the Markdown and the picture from the JSON."""
    from benchmarks import figures, ratios  # matplotlib: other reports need none

    results = json.loads((folder / "results.json").read_text())
    (folder / "report.md").write_text(markdown(results))
    if picture := ratios.figure(results):
        figures.save(picture, folder / PICTURE)


def newest() -> Path:
    """The folder of the latest run of all CPU rows."""
    dates = {
        path.parent: results["machine"]["date"]
        for path in RESULTS.glob("*/results.json")
        if (results := json.loads(path.read_text())).get("whole")
    }
    if not dates:
        raise FileNotFoundError(
            f"no run of all rows under {RESULTS}; run `python -m benchmarks` first"
        )
    return max(dates, key=dates.__getitem__)


def readme_summary(results: Results, folder: Path) -> str:
    """What stands in the README: ratios of every row, all threads, and the geometric means."""
    threads = max(case["threads"] for case in results["cases"])
    lines = ratio_lines(results, threads, "float32")
    place = folder.relative_to(README.parent) if folder.is_relative_to(README.parent) else folder
    lines += [
        "",
        f"All figures, with spreads, one thread, bf16 and memory: [{place}]({place}/report.md).",
    ]
    return "\n".join(lines)


def update_readme(folder: Path) -> None:
    """Puts the summary of a run between the README's markers."""
    results = json.loads((folder / "results.json").read_text())
    if not results.get("whole"):
        raise ValueError(f"{folder}: expected a run of all rows, got a part; the README shows all")
    text = README.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{README}: expected the markers {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    README.write_text(f"{before}{BEGIN}\n{readme_summary(results, folder)}\n{END}{after}")
