"""The report of a run in Markdown: one table for each dtype and number of threads.

Columns that have nothing to say in a table (no other peer ran, no floor was measured, no target is
set) are left out of it; so results of earlier versions of the runner make a report, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.peers import OURS, STREAMING, STREAMING_INT8, TORCH_NN
from benchmarks.workloads import CELLS, PASSES, ROWS, TARGET_THREADS, target
from fusedrnn.timing import geometric_mean

PASS_NAMES = {"forward": "forward", "train": "forward + backward"}
NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
OF_OURS = (OURS.name, STREAMING.name, STREAMING_INT8.name)
SIZES = {row.name: row.sizes for row in ROWS}

Results = dict[str, Any]
Record = dict[str, Any]  # a case's
Column = tuple[str, Callable[[Record], str]]

LEGEND = (
    "Ratio: torch.nn's time over ours, measured in turns in one process; the median of the rounds' "
    "ratios, and its quartiles. Times are medians of a call. Peak: the part of the measured "
    "multiply-add rate (fp32) that ours / torch.nn's useful operations make up. x floor: our time "
    "over the least that benchmarks/roofline.py allows. Best other peer: the fastest beside "
    "torch.nn, and its time over ours. Error: of the output, against torch.nn's in float32."
)


def markdown(results: Results) -> str:
    """The whole report."""
    lines = ["# fusedrnn against torch.nn", "", *_machine_lines(results["machine"]), "", LEGEND]
    if found := _targets_lines(results):
        lines += ["", *found]
    for threads, dtype in _groups(results):
        cases = list(measured(results, threads=threads, dtype=dtype))
        lines += ["", f"## {dtype}, {threads_in_words(threads)}", "", *_means_table(cases), ""]
        lines += _table(_CASE_COLUMNS, cases)
        if kept := [case for case in cases if "kept" in case]:
            lines += ["", f"### {STREAMING.name}: weights and state kept", ""]
            lines += _table(_KEPT_COLUMNS, kept)
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
    skipped = [f"- {label}: {why}" for label, why in results.get("skipped", {}).items()]
    failed = [f"- {_label(case)}: {case['error']}" for case in results["cases"] if "error" in case]
    sections = (("Skipped", skipped), ("Failed", failed), ("Peers left out", _left_out(results)))
    for title, found in sections:
        if found:
            lines += ["", f"## {title}", "", *found]
    return "\n".join(lines) + "\n"


def measured(
    results: Results, *, threads: int | None = None, dtype: str | None = None
) -> Iterable[Record]:
    """The cases of a run that have a ratio to torch.nn, within a selection."""
    for case in results["cases"]:
        if TORCH_NN.name not in case.get("ratios", {}):
            continue
        if threads in (None, case["threads"]) and dtype in (None, case["dtype"]):
            yield case


def slower(results: Results) -> list[str]:
    """The cases in which ours is slower than a peer, in words."""
    found = []
    for case in measured(results):
        for name, ratio in case["ratios"].items():
            if name not in OF_OURS and ratio["median"] < 1:
                found.append(f"{_label(case)}: {ratio['median']:.2f} of {name}")
    return found


def best_other(ratios: dict[str, dict[str, float]]) -> tuple[str, float] | None:
    """The fastest peer beside torch.nn: its name, and its time over ours."""
    others = {
        name: ratio["median"]
        for name, ratio in ratios.items()
        if name not in (*OF_OURS, TORCH_NN.name)
    }
    return min(others.items(), key=lambda other: other[1]) if others else None


def against_target(case: Record) -> tuple[float, float] | None:
    """What a case reached and was meant to reach, where a target is set.

    Row H is meant with weights kept: its forward counts as `fusedrnn.Streaming` runs it, if it did.
    """
    if (case["threads"], case["dtype"]) != (TARGET_THREADS, "float32"):
        return None
    meant = target(case["row"], case["cell"], case["mode"])
    if meant is None:
        return None
    ratios = case["kept"] if case["row"] == "H" and "kept" in case else case["ratios"]
    return ratios[TORCH_NN.name]["median"], meant


def threads_in_words(count: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count} thread" + ("s" if count != 1 else "")


def _table(columns: Iterable[Column], cases: list[Record]) -> list[str]:
    """A line per case; columns with nothing but `-` are left out."""
    filled = [(title, [show(case) for case in cases]) for title, show in columns]
    filled = [(title, cells) for title, cells in filled if set(cells) != {"-"}]
    lines = ["| " + " | ".join(title for title, _ in filled) + " |", "|---" * len(filled) + "|"]
    for line in zip(*(cells for _, cells in filled), strict=True):
        lines.append("| " + " | ".join(line) + " |")
    return lines


def _lead(case: Record) -> str:
    return case.get("lead", OURS.name)


def _time(case: Record, side: str) -> str:
    return _milliseconds(case["sides"][side]["median"])


def _peaks(case: Record) -> str:
    parts = [case["sides"][side]["peak_fraction"] for side in (_lead(case), TORCH_NN.name)]
    return "-" if None in parts else " / ".join(f"{100 * part:.0f} %" for part in parts)


def _quartiles(case: Record) -> str:
    ratio = case["ratios"][TORCH_NN.name]
    return f"{ratio['low']:.2f} to {ratio['high']:.2f}"


def _floor(case: Record, side: str) -> str:
    if "floor" not in case:
        return "-"
    return f"{case['sides'][side]['median'] / case['floor']['total']:.2f}"


def _other(ratios: dict[str, dict[str, float]]) -> str:
    found = best_other(ratios)
    return f"{found[0]} {found[1]:.2f}" if found else "-"


def _target(case: Record) -> str:
    found = against_target(case)
    if found is None:
        return "-"
    return f"{found[1]:g} " + ("met" if found[0] >= found[1] else "missed")


def _accuracy(case: Record) -> str:
    found = case.get("accuracy", {})
    words = [f"{side} {a['max']:.1e} / {a['rms']:.1e}" for side, a in found.items()]
    return "; ".join(word for word in words) or "-"


_WHICH: tuple[Column, ...] = (
    ("row", lambda case: case["row"]),
    ("sizes", lambda case: SIZES[case["row"]]),
    ("cell", lambda case: NAMES[case["cell"]]),
)
_CASE_COLUMNS: tuple[Column, ...] = (
    *_WHICH,
    ("pass", lambda case: PASS_NAMES[case["mode"]]),
    ("ours ms", lambda case: _time(case, _lead(case))),
    ("torch.nn ms", lambda case: _time(case, TORCH_NN.name)),
    ("ratio", lambda case: f"{case['ratios'][TORCH_NN.name]['median']:.2f}"),
    ("quartiles", _quartiles),
    ("target", _target),
    ("best other peer", lambda case: _other(case["ratios"])),
    ("peak", _peaks),
    ("x floor", lambda case: _floor(case, _lead(case))),
    ("error, max / rms", _accuracy),
)
_KEPT_COLUMNS: tuple[Column, ...] = (
    *_WHICH,
    ("ours ms", lambda case: _time(case, STREAMING.name)),
    ("against torch.nn", lambda case: f"{case['kept'][TORCH_NN.name]['median']:.2f}"),
    ("against fusedrnn", lambda case: f"{case['kept'][OURS.name]['median']:.2f}"),
    ("best other peer", lambda case: _other(case["kept"])),
    ("x floor", lambda case: _floor(case, STREAMING.name)),
)


def _targets_lines(results: Results) -> list[str]:
    """How many of the targets were met, and which were not."""
    found = [(case, against_target(case)) for case in measured(results)]
    judged = [(case, *pair) for case, pair in found if pair is not None]
    if not judged:
        return []
    missed = [
        f"- {case['row']} {NAMES[case['cell']]} {PASS_NAMES[case['mode']]}: "
        f"{reached:.2f} of {meant:g}"
        for case, reached, meant in judged
        if reached < meant
    ]
    met = f"{len(judged) - len(missed)} of {len(judged)}"
    kept = "" if any("kept" in case for case, *_ in judged if case["row"] == "H") else (
        " Row H's is meant with weights kept from call to call, which was not measured: its "
        "figures are those of the module."
    )  # fmt: skip
    title = f"Targets met (float32, {threads_in_words(TARGET_THREADS)}): {met}.{kept}"
    return [title, *(["", "Missed:", "", *missed] if missed else [])]


def _groups(results: Results) -> list[tuple[int, str]]:
    found = {(case["threads"], case["dtype"]) for case in measured(results)}
    return sorted(found, key=lambda group: (group[1] != "float32", group[1], -group[0]))


def _means_table(cases: list[Record]) -> list[str]:
    lines = ["| geometric mean of ratios | " + " | ".join(PASS_NAMES[m] for m in PASSES) + " |"]
    lines.append("|---|" + "---|" * len(PASSES))
    for cell in CELLS:
        shown = []
        for mode in PASSES:
            ratios = [
                case["ratios"][TORCH_NN.name]["median"]
                for case in cases
                if case["cell"] == cell and case["mode"] == mode
            ]
            shown.append(f"{geometric_mean(ratios):.2f}" if ratios else "-")
        lines.append(f"| {NAMES[cell]} | {' | '.join(shown)} |")
    return lines


def _memory_line(record: Record) -> str:
    name = f"| {record['row']} | {NAMES[record['cell']]} "
    if "error" in record:
        return f"{name}| {record['error']} | | |"
    ours, theirs = (record["peak_bytes"][side] for side in (OURS.name, TORCH_NN.name))
    ratio = f"{theirs / ours:.2f}" if ours else "-"
    return f"{name}| {ours / 2**20:.1f} | {theirs / 2**20:.1f} | {ratio} |"


def _machine_lines(machine: dict[str, Any]) -> list[str]:
    peaks = ", ".join(
        f"{threads_in_words(int(threads))} {rate / 1e9:.0f} GFLOP/s"
        for threads, rate in machine["fma_peak"].items()
        if rate
    )
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"- machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}",
        f"- measured multiply-add peak (fp32): {peaks or 'not measured'}",
    ]
    for threads, limits in machine.get("limits", {}).items():
        if limits:
            lines.append(f"- measured, {threads_in_words(int(threads))}: {_limits(limits)}")
    return [
        *lines,
        f"- {versions}; Python {machine['python']}; instruction sets: fusedrnn "
        f"{machine['capability']['fusedrnn']}, torch {machine['capability']['torch']}",
        f"- date: {machine['date']}; commit: {machine['commit']}",
    ]


def _limits(limits: dict[str, Any]) -> str:
    reads = ", ".join(f"{x['name']} {x['bandwidth'] / 1e9:.0f}" for x in limits["levels"])
    dots = ", ".join(
        f"{dtype} {limits['peak'][dtype] / 1e9:.0f} Gop/s"
        for dtype in ("bfloat16", "int8")
        if limits["peak"].get(dtype)
    )
    call = limits["call"]
    return (
        f"reads {reads} GB/s; dot products {dots or 'none'}; barrier "
        f"{limits['barrier'] * 1e9:.0f} ns; a call of an op {call['forward'] * 1e6:.1f} us, with "
        f"backward {call['train'] * 1e6:.1f} us"
    )


def _left_out(results: Results) -> list[str]:
    """A line for each peer and reason, with the cases behind it."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in results["cases"]:
        for peer, why in case.get("left_out", {}).items():
            reasons.setdefault((peer, why), []).append(_label(case))
    return [
        f"- {peer} {why}: {labels[0]}" + (f" and {len(labels) - 1} more" if labels[1:] else "")
        for (peer, why), labels in reasons.items()
    ]


def _label(case: Record) -> str:
    threads = threads_in_words(case["threads"])
    return f"{case['row']} {case['cell']} {case['mode']}, {threads}, {case['dtype']}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"
