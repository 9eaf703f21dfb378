"""The results of a run as JSON, a Markdown table and a plot, and the summary in the README.

    benchmarks/results/<name>/results.json   every figure, and what it was measured on
                              report.md      made from it (tables.py), to read
                              ratios.png     made from it, to look at

`write` makes all three; `remake` makes the last two again from the first.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers import TORCH_NN
from benchmarks.tables import (
    NAMES,
    PASS_NAMES,
    Results,
    markdown,
    measured,
    ratio_lines,
    threads_in_words,
)
from benchmarks.workloads import CELLS, PASSES, ROWS

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


def write_whole(file: Path, text: str) -> None:
    """Writes a file that is whole at any time."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text)
    part.replace(file)


def remake(folder: Path) -> None:
    """Makes the Markdown and the plot from the JSON."""
    results = json.loads((folder / "results.json").read_text())
    (folder / "report.md").write_text(markdown(results))
    plot(results, folder / "ratios.png")


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


def plot(results: Results, path: Path) -> None:
    """Ratios per row in float32 with the most threads: a bar per cell, a panel per pass."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    threads = max(case["threads"] for case in results["cases"])
    found = list(measured(results, threads=threads, dtype="float32"))
    rows = [row.name for row in ROWS if any(case["row"] == row.name for case in found)]
    if not rows:
        return
    figure, panels = pyplot.subplots(
        len(PASSES), 1, figsize=(1.5 + 0.8 * len(rows), 7), sharex=True, layout="constrained"
    )
    for panel, mode in zip(panels, PASSES, strict=True):
        for i, cell in enumerate(CELLS):
            chosen = [c for c in found if c["cell"] == cell and c["mode"] == mode]
            at = [rows.index(c["row"]) + (i - 1) * 0.27 for c in chosen]
            spread = [c["ratios"][TORCH_NN.name] for c in chosen]
            medians = [s["median"] for s in spread]
            errors = [
                [s["median"] - s["low"] for s in spread],
                [s["high"] - s["median"] for s in spread],
            ]
            panel.bar(at, medians, 0.25, yerr=errors, label=NAMES[cell], error_kw={"lw": 0.8})
        panel.axhline(1, color="black", lw=1)
        panel.set_yscale("log")
        panel.set_yticks([1, 2, 4, 8, 16], ["1x", "2x", "4x", "8x", "16x"])
        panel.minorticks_off()
        panel.set_ylabel(PASS_NAMES[mode])
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(f"Times faster than torch.nn: float32, {threads_in_words(threads)}")
    panels[0].legend(ncols=3, frameon=False)
    panels[-1].set_xticks(range(len(rows)), rows)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
