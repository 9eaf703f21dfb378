"""The report of a run in Markdown.

Results come first: the ratios to torch.nn, which the README shows as well, and the means against
every peer. Then come what they were measured on and a table for each dtype and number of threads,
with every case; last, which targets were missed and what was not run.

A table leaves out columns that have nothing to say (no other peer ran, no floor was measured, no
target is set); so results of earlier versions of the runner make a report, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks import targets
from benchmarks.peers import OURS, STREAMING, STREAMING_INT8, TORCH_NN
from benchmarks.targets import lead, times_floor
from benchmarks.workloads import CELLS, FACTS, PASSES, ROWS
from fusedrnn.testing.timing import geometric_mean

PASS_NAMES = {"forward": "forward", "train": "forward + backward"}
SHORT = {"forward": "fwd", "train": "fwd+bwd"}
NAMES = {name: cell.module for name, cell in FACTS.items()}
OF_OURS = (OURS.name, STREAMING.name, STREAMING_INT8.name)
SIZES = {row.name: row.sizes for row in ROWS}
TITLES = {row.name: row.title for row in ROWS}
PICTURE = "ratios.png"  # beside the report

Results = dict[str, Any]
Record = dict[str, Any]  # a case's
Column = tuple[str, Callable[[Record], str]]

LEGEND = (
    "Ratio: torch.nn's time over ours, measured in turns in one process; the median of the rounds' "
    "ratios, and its quartiles. Times are medians of a call. Peak: the part of the measured "
    "multiply-add rate (fp32) that ours / torch.nn's useful operations make up. x floor: our time "
    "over the least that this machine allows by benchmarks/roofline.py, and the most that it is "
    "meant to be. Best other peer: the fastest beside torch.nn, and its time over ours. Error: of "
    "the output, against torch.nn's in float32."
)


def markdown(results: Results) -> str:
    """The whole report."""
    lines = ["# fusedrnn against torch.nn", ""]
    if groups := _groups(results):
        lines += [*ratio_lines(results, *groups[0]), "", *_means_lines(results), ""]
        lines += [f"![times faster than each peer, row by row]({PICTURE})", ""]
    lines += ["## What was measured on what", "", *_machine_lines(results["machine"]), "", LEGEND]
    for threads, dtype in groups:
        cases = list(measured(results, threads=threads, dtype=dtype))
        lines += ["", f"## {_group_in_words(threads, dtype)}", "", *_table(_CASE_COLUMNS, cases)]
        if kept := [case for case in cases if "kept" in case]:
            lines += ["", f"### {STREAMING.name}: weights and state kept", ""]
            lines += _table(_KEPT_COLUMNS, kept)
    if results.get("memory"):
        lines += ["", *_memory_lines(results)]
    if found := _targets_lines(results):
        lines += ["", "## Targets", "", *found]
    skipped = [f"- {label}: {why}" for label, why in results.get("skipped", {}).items()]
    failed = [f"- {_label(case)}: {case['error']}" for case in results["cases"] if "error" in case]
    sections = (("Skipped", skipped), ("Failed", failed), ("Peers left out", _left_out(results)))
    for title, found in sections:
        if found:
            lines += ["", f"## {title}", "", *found]
    return "\n".join(lines) + "\n"


def ratio_lines(results: Results, threads: int, dtype: str) -> list[str]:
    """Ratios to torch.nn, a line per row and a column per cell and pass, with geometric means."""
    machine = results["machine"]
    cases = list(measured(results, threads=threads, dtype=dtype))
    columns = _columns(cases)
    return [
        f"How many times faster than `torch.nn`, {_group_in_words(threads, dtype)} "
        f"({machine['cpu']}, torch {machine['versions'].get(TORCH_NN.name, '?')}, "
        f"{str(machine['date'])[:10]}):",
        "",
        *_grid(cases, columns, _ratio),
        _line("**geometric mean**", *(f"**{m}**" for m in _means(cases, TORCH_NN.name, columns))),
    ]


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
    return [
        f"{_label(case)}: {ratio:.2f} of {name}"
        for case in measured(results)
        for name, ratio in _faster_peers(case).items()
    ]


def _faster_peers(case: Record) -> dict[str, float]:
    """The peers that are faster than ours, and their time over ours."""
    return {
        name: ratio["median"]
        for name, ratio in case["ratios"].items()
        if name not in OF_OURS and ratio["median"] < 1
    }


def best_other(ratios: dict[str, dict[str, float]]) -> tuple[str, float] | None:
    """The fastest peer beside torch.nn: its name, and its time over ours."""
    others = {
        name: ratio["median"]
        for name, ratio in ratios.items()
        if name not in (*OF_OURS, TORCH_NN.name)
    }
    return min(others.items(), key=lambda other: other[1]) if others else None


def threads_in_words(count: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count} thread" + ("s" if count != 1 else "")


def machine_in_short(results: Results) -> list[str]:
    """Two lines on what was measured on what, with how many threads and by which clock."""
    m, threads = results["machine"], results["threads"]
    clock = "time of the thread" if threads == 1 else "wall time"
    return [
        f"- {m['cpu']}, {m['cores']} cores, {threads_in_words(threads)}, {clock}; load average "
        f"before: {m['load_average_before']}",
        f"- torch {m['versions'][TORCH_NN.name]}, fusedrnn {m['versions'][OURS.name]}, commit "
        f"{m['commit']}, {m['date']}",
    ]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*titles: str) -> list[str]:
    return [_line(*titles), "|---" * len(titles) + "|"]


def _table(columns: Iterable[Column], cases: list[Record]) -> list[str]:
    """A line per case; columns with nothing but `-` are left out."""
    filled = [(title, [show(case) for case in cases]) for title, show in columns]
    filled = [(title, cells) for title, cells in filled if set(cells) != {"-"}]
    lines = zip(*(cells for _, cells in filled), strict=True)
    return [*_head(*(title for title, _ in filled)), *(_line(*line) for line in lines)]


def _grid(
    cases: list[Record], columns: list[tuple[str, str]], show: Callable[[Record], str]
) -> list[str]:
    """A line per row and a column per cell and pass."""
    found = {(case["row"], case["cell"], case["mode"]): show(case) for case in cases}
    lines = _head("row", *(f"{NAMES[cell]} {SHORT[mode]}" for cell, mode in columns))
    for row in ROWS:
        cells = [found.get((row.name, *column), "-") for column in columns]
        if set(cells) != {"-"}:
            lines.append(_line(f"{row.name} {row.sizes}", *cells))
    return lines


def _columns(cases: list[Record]) -> list[tuple[str, str]]:
    """Cell and pass of the columns that have something to say."""
    found = {(case["cell"], case["mode"]) for case in cases}
    return [(cell, mode) for cell in CELLS for mode in PASSES if (cell, mode) in found]


def _time(case: Record, side: str) -> str:
    return _milliseconds(case["sides"][side]["median"])


def _peaks(case: Record) -> str:
    parts = [case["sides"][side]["peak_fraction"] for side in (lead(case), TORCH_NN.name)]
    return "-" if None in parts else " / ".join(f"{100 * part:.0f} %" for part in parts)


def _ratio(case: Record) -> str:
    return f"{case['ratios'][TORCH_NN.name]['median']:.2f}"


def _quartiles(case: Record) -> str:
    ratio = case["ratios"][TORCH_NN.name]
    return f"{ratio['low']:.2f} to {ratio['high']:.2f}"


def _floor(case: Record, side: str) -> str:
    return f"{times_floor(case, side):.2f}" if "floor" in case else "-"


def _other(ratios: dict[str, dict[str, float]]) -> str:
    found = best_other(ratios)
    return f"{found[0]} {found[1]:.2f}" if found else "-"


def _target(case: Record) -> str:
    found = targets.judge(case)
    return "-" if found is None else f"{found.meant:g} " + ("met" if found.met else "missed")


def _accuracy(case: Record) -> str:
    found = case.get("accuracy", {})
    words = [f"{side} {a['max']:.1e} / {a['rms']:.1e}" for side, a in found.items()]
    return "; ".join(word for word in words) or "-"


_WHICH: tuple[Column, ...] = (
    ("row", lambda case: TITLES[case["row"]]),
    ("sizes", lambda case: SIZES[case["row"]]),
    ("cell", lambda case: NAMES[case["cell"]]),
)
_CASE_COLUMNS: tuple[Column, ...] = (
    *_WHICH,
    ("pass", lambda case: PASS_NAMES[case["mode"]]),
    ("ours ms", lambda case: _time(case, lead(case))),
    ("torch.nn ms", lambda case: _time(case, TORCH_NN.name)),
    ("ratio", _ratio),
    ("quartiles", _quartiles),
    ("best other peer", lambda case: _other(case["ratios"])),
    ("peak", _peaks),
    ("x floor", lambda case: _floor(case, lead(case))),
    ("target", _target),
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
    cases = list(measured(results))
    if not cases:
        return []
    behind = [case for case in cases if _faster_peers(case)]
    lines = [
        "There are two kinds (benchmarks/targets.py), and neither depends on how fast the chip is.",
        "",
        f"**No peer is faster**: true of {len(cases) - len(behind)} of {len(cases)} cases.",
    ]
    if behind:
        lines += ["", "Slower than a peer:", "", *(f"- {line}" for line in slower(results))]
    judged = [(case, found) for case in cases if (found := targets.judge(case))]
    if judged:
        met = sum(found.met for _, found in judged)
        chosen = [case for case, _ in judged]
        lines += [
            "",
            f"**Close to the floor** ({_group_in_words(targets.THREADS, targets.DTYPE)}): "
            f"{met} of {len(judged)}. Times the floor, and the target where it is missed:",
            "",
            *_grid(chosen, _columns(chosen), _against_floor),
        ]
    return lines


def _against_floor(case: Record) -> str:
    found = targets.judge(case)
    assert found is not None, case
    return f"{found.reached:.2f}" + ("" if found.met else f" of {found.meant:g}")


def _groups(results: Results) -> list[tuple[int, str]]:
    found = {(case["threads"], case["dtype"]) for case in measured(results)}
    return sorted(found, key=lambda group: (group[1] != "float32", group[1], -group[0]))


def _means_lines(results: Results) -> list[str]:
    """Geometric means over the rows, against each peer, and the least ratio."""
    columns = _columns(list(measured(results)))
    titles = (f"{NAMES[cell]} {SHORT[mode]}" for cell, mode in columns)
    lines = ["Geometric means of all that was measured, and the least ratio:", ""]
    lines += _head("", "against", *titles, "least")
    for threads, dtype in _groups(results):
        cases = list(measured(results, threads=threads, dtype=dtype))
        for peer in dict.fromkeys(name for case in cases for name in case["ratios"]):
            if peer not in OF_OURS:
                words = (_group_in_words(threads, dtype), peer)
                lines.append(_line(*words, *_means(cases, peer, columns), _least(cases, peer)))
    return lines


def _means(cases: list[Record], peer: str, columns: list[tuple[str, str]]) -> Iterable[str]:
    for column in columns:
        ratios = [
            case["ratios"][peer]["median"]
            for case in cases
            if (case["cell"], case["mode"]) == column and peer in case["ratios"]
        ]
        yield f"{geometric_mean(ratios):.2f}" if ratios else "-"


def _least(cases: list[Record], peer: str) -> str:
    case = min(
        (case for case in cases if peer in case["ratios"]),
        key=lambda case: case["ratios"][peer]["median"],
    )
    where = f"{case['row']} {NAMES[case['cell']]} {SHORT[case['mode']]}"
    return f"{case['ratios'][peer]['median']:.2f} ({where})"


def _memory_lines(results: Results) -> list[str]:
    return [
        "## Peak memory of a training step",
        "",
        "float32, MB that the process grew by over three steps; the median of several processes "
        "for each side.",
        "",
        *_head("row", "cell", "ours", "torch.nn", "torch.nn / ours"),
        *(_memory_line(record) for record in results["memory"]),
    ]


def _memory_line(record: Record) -> str:
    name = f"| {TITLES[record['row']]} | {NAMES[record['cell']]} "
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
    """A line for each peer and reason, with its cases."""
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


def _group_in_words(threads: int, dtype: str) -> str:
    return f"{dtype}, {threads_in_words(threads)}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"
