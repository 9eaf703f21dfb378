"""The results of a run as JSON, a Markdown table and a plot, and the summary in the README.

    benchmarks/results/<name>/results.json   every figure, and what it was measured on
                              report.md      made from it, to read
                              ratios.png     made from it, to look at

`write` makes all three; `remake` makes the last two again from the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.timing import geometric_mean
from benchmarks.workloads import CELLS, PASSES, ROWS

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
PEER = "torch.nn"
PASS_NAMES = {"forward": "forward", "train": "forward + backward"}
NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}

Results = dict[str, Any]


def write(folder: Path, results: Results) -> None:
    """Writes the JSON and all that is made from it."""
    keep(folder, results)
    remake(folder)


def keep(folder: Path, results: Results) -> None:
    """Writes the JSON, whole at any time: also of a run that is interrupted after this."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "results.json.part"
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(folder / "results.json")


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


def slower(results: Results) -> list[str]:
    """The cases in which ours is slower than a peer, in words."""
    return [
        f"{_label(case)}: {case['ratios'][PEER]['median']:.2f}"
        for case in _measured(results)
        if case["ratios"][PEER]["median"] < 1
    ]


def markdown(results: Results) -> str:
    """The whole report."""
    lines = [
        "# fusedrnn against torch.nn",
        "",
        *_machine_lines(results["machine"]),
        "",
        "Ratio: torch.nn's time over ours, measured in turns in one process; the median of the "
        "rounds' ratios, and its quartiles. Times are medians of a call. Peak: the part of the "
        "measured multiply-add rate (fp32) that ours / torch.nn's useful operations make up.",
    ]
    for threads, dtype in _groups(results):
        lines += [
            "",
            f"## {dtype}, {_threads(threads)}",
            "",
            *_means_table(results, threads, dtype),
        ]
        lines += [
            "",
            "| row | sizes | cell | pass | ours ms | torch.nn ms | ratio | quartiles | peak |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for case in _measured(results, threads=threads, dtype=dtype):
            lines.append(_case_line(case))
    if results.get("memory"):
        lines += [
            "",
            "## Peak memory of a training step",
            "",
            "float32, MB that the process grew by over three steps; the median of several "
            "processes for each side.",
            "",
            "| row | cell | ours | torch.nn | torch.nn / ours |",
            "|---|---|---|---|---|",
        ]
        for record in results["memory"]:
            lines.append(_memory_line(record))
    left_out = [f"- {label}: {why}" for label, why in results.get("skipped", {}).items()]
    failed = [f"- {_label(case)}: {case['error']}" for case in results["cases"] if "error" in case]
    for title, found in (("Skipped", left_out), ("Failed", failed)):
        if found:
            lines += ["", f"## {title}", "", *found]
    return "\n".join(lines) + "\n"


def readme_summary(results: Results, folder: Path) -> str:
    """What stands in the README: ratios of every row, all threads, and the geometric means."""
    threads = max(case["threads"] for case in results["cases"])
    columns = [(cell, mode) for cell in CELLS for mode in PASSES]
    machine = results["machine"]
    lines = [
        f"How many times faster than `torch.nn`, float32, {_threads(threads)} "
        f"({machine['cpu']}, torch {machine['versions'].get(PEER, '?')}, "
        f"{machine['date'][:10]}):",
        "",
        "| row | " + " | ".join(f"{NAMES[c]} {_short(m)}" for c, m in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    found = {
        (case["row"], case["cell"], case["mode"]): case["ratios"][PEER]["median"]
        for case in _measured(results, threads=threads, dtype="float32")
    }
    for row in ROWS:
        ratios = [found.get((row.name, cell, mode)) for cell, mode in columns]
        if any(ratios):
            shown = " | ".join("-" if r is None else f"{r:.2f}" for r in ratios)
            lines.append(f"| {row.name} {row.sizes} | {shown} |")
    means = [
        [r for (_, cell, mode), r in found.items() if (cell, mode) == column] for column in columns
    ]
    shown = " | ".join(f"**{geometric_mean(m):.2f}**" if m else "-" for m in means)
    lines.append(f"| **geometric mean** | {shown} |")
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
    measured = list(_measured(results, threads=threads, dtype="float32"))
    rows = [row.name for row in ROWS if any(case["row"] == row.name for case in measured)]
    if not rows:
        return
    figure, panels = pyplot.subplots(
        len(PASSES), 1, figsize=(1.5 + 0.8 * len(rows), 7), sharex=True, layout="constrained"
    )
    for panel, mode in zip(panels, PASSES, strict=True):
        for i, cell in enumerate(CELLS):
            chosen = [c for c in measured if c["cell"] == cell and c["mode"] == mode]
            at = [rows.index(c["row"]) + (i - 1) * 0.27 for c in chosen]
            spread = [c["ratios"][PEER] for c in chosen]
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
    panels[0].set_title(f"Times faster than torch.nn: float32, {_threads(threads)}")
    panels[0].legend(ncols=3, frameon=False)
    panels[-1].set_xticks(range(len(rows)), rows)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _measured(
    results: Results, *, threads: int | None = None, dtype: str | None = None
) -> Iterable[dict[str, Any]]:
    for case in results["cases"]:
        if "ratios" not in case or PEER not in case["ratios"]:
            continue
        if threads in (None, case["threads"]) and dtype in (None, case["dtype"]):
            yield case


def _groups(results: Results) -> list[tuple[int, str]]:
    found = {(case["threads"], case["dtype"]) for case in _measured(results)}
    return sorted(found, key=lambda group: (group[1] != "float32", -group[0]))


def _means_table(results: Results, threads: int, dtype: str) -> list[str]:
    lines = ["| geometric mean of ratios | " + " | ".join(PASS_NAMES[m] for m in PASSES) + " |"]
    lines.append("|---|" + "---|" * len(PASSES))
    for cell in CELLS:
        shown = []
        for mode in PASSES:
            ratios = [
                case["ratios"][PEER]["median"]
                for case in _measured(results, threads=threads, dtype=dtype)
                if case["cell"] == cell and case["mode"] == mode
            ]
            shown.append(f"{geometric_mean(ratios):.2f}" if ratios else "-")
        lines.append(f"| {NAMES[cell]} | {' | '.join(shown)} |")
    return lines


def _case_line(case: dict[str, Any]) -> str:
    row = next(row for row in ROWS if row.name == case["row"])
    ours, theirs = case["sides"]["fusedrnn"], case["sides"][PEER]
    ratio = case["ratios"][PEER]
    peaks = [side["peak_fraction"] for side in (ours, theirs)]
    shown = "-" if None in peaks else " / ".join(f"{100 * peak:.0f} %" for peak in peaks)
    return (
        f"| {row.name} | {row.sizes} | {NAMES[case['cell']]} | {PASS_NAMES[case['mode']]} "
        f"| {_milliseconds(ours['median'])} | {_milliseconds(theirs['median'])} "
        f"| {ratio['median']:.2f} | {ratio['low']:.2f} to {ratio['high']:.2f} | {shown} |"
    )


def _memory_line(record: dict[str, Any]) -> str:
    name = f"| {record['row']} | {NAMES[record['cell']]} "
    if "error" in record:
        return f"{name}| {record['error']} | | |"
    ours, theirs = (record["peak_bytes"][side] for side in ("fusedrnn", PEER))
    ratio = f"{theirs / ours:.2f}" if ours else "-"
    return f"{name}| {ours / 2**20:.1f} | {theirs / 2**20:.1f} | {ratio} |"


def _machine_lines(machine: dict[str, Any]) -> list[str]:
    peaks = ", ".join(
        f"{_threads(int(threads))} {rate / 1e9:.0f} GFLOP/s"
        for threads, rate in machine["fma_peak"].items()
        if rate
    )
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [
        f"- machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}",
        f"- measured multiply-add peak (fp32): {peaks or 'not measured'}",
        f"- {versions}; Python {machine['python']}; instruction sets: fusedrnn "
        f"{machine['capability']['fusedrnn']}, torch {machine['capability']['torch']}",
        f"- date: {machine['date']}; commit: {machine['commit']}",
    ]


def _label(case: dict[str, Any]) -> str:
    return (
        f"{case['row']} {case['cell']} {case['mode']}, {_threads(case['threads'])}, {case['dtype']}"
    )


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count != 1 else "")


def _short(mode: str) -> str:
    return "fwd" if mode == "forward" else "fwd+bwd"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"
