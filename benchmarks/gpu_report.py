"""`python -m benchmarks.gpu_report OUT/report.json [--name NAME]`: what tools/gpu_check.sh found.

    benchmarks/results/<name>/report.json   every figure, as it was found
                              report.md     made from it, to read

It imports nothing but Python's own library: the check writes its report by this file, too, where
fusedrnn may not even load.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.whole import write_whole

RESULTS = Path(__file__).parent / "results"
OURS, PEER = "fusedrnn", "torch.nn"
FINE = ("passed", "skipped")
MOST_FAILURES = 40  # that are shown of a stage

Content = dict[str, Any]
Stage = dict[str, Any]
Items = list[dict[str, Any]]


def main(arguments: list[str] | None = None) -> int:
    """Keeps a report among the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__)
    parser.add_argument("report", type=Path, help="a report.json that tools/gpu_check.sh wrote")
    parser.add_argument("--name", help="folder under benchmarks/results, by GPU and date if none")
    given = parser.parse_args(arguments)
    content = json.loads(given.report.read_text())
    if content["stand_in"]:
        parser.error(f"{given.report}: a run on a stand-in has no result to keep")
    machine = content["machine"]
    gpu = str(machine["gpu"]).lower().replace("nvidia", "").strip().replace(" ", "-")
    folder = RESULTS / (given.name or f"gpu-{machine['date'][:10]}-{gpu}")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "report.json", json.dumps(content, indent=1) + "\n")
    write_whole(folder / "report.md", markdown(content))
    print(folder / "report.md")
    return 0


def markdown(content: Content) -> str:
    """The whole report."""
    lines = ["# GPU check", ""]
    if content["stand_in"]:
        what = content["stand_in"]
        lines += [f"**This ran on a stand-in, {what}, and on no GPU: no figure in it says how fast "
                  "or how right anything is on one.**", ""]  # fmt: skip
    for name, value in content["machine"].items():
        lines.append(f"- {name}: {in_words(value)}")
    lines.append(f"- state {content['state']}, after {content['seconds']:.0f} s")
    for note in content["notes"]:
        lines += ["", f"**{note}**"]
    lines += ["", "| stage | result | seconds | of at most | items |", "|---|---|---|---|---|"]
    for name, stage in content["stages"].items():
        counts = Counter(item["status"] for item in stage["items"])
        items = ", ".join(f"{count} {status}" for status, count in counts.items())
        told = "" if stage["gate"] else " (told, not a gate)"
        lines.append(
            f"| {name} | {stage['status']}{told} | {stage['seconds']:.0f} | {stage['budget']:.0f} "
            f"| {items} |"
        )
    for name, stage in content["stages"].items():
        if stage["items"] or stage["found"]:
            lines += ["", f"## {name}", "", f"Measured by: {stage['measured_by']}", ""]
            lines += shown(name, stage["items"])
            lines += [f"- {key}: {in_words(value)}" for key, value in stage["found"].items()]
            lines += failures(stage["items"])
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def shown(stage: str, items: Items) -> list[str]:
    """The table of a stage. If it cannot be made, the check goes on, and report.json has it all."""
    try:
        return TABLES.get(stage, found_lines)(items)
    except Exception as error:
        return [f"- this table could not be made: {type(error).__name__}: {error}", ""]


def failures(items: Items) -> Iterator[str]:
    """What did not pass, with the first line of why, and as much more of it as is useful."""
    bad = [item for item in items if item["status"] not in FINE and item["status"] != "not run"]
    not_run = [item for item in items if item["status"] == "not run"]
    if bad:
        yield from ("", "Not passed:", "")
    for item in bad[:MOST_FAILURES]:
        first, *_ = (item.get("why") or "").splitlines() or [""]
        yield f"- {item['name']}: {item['status']} after {item['seconds']:.1f} s: {first[:300]}"
        for line in item.get("found", {}).get("last lines", []):
            yield f"    {line[:200]}"
    if len(bad) > MOST_FAILURES:
        yield f"- and {len(bad) - MOST_FAILURES} more, in report.json"
    for why, count in Counter(item.get("why", "") for item in not_run).items():
        names = [item["name"] for item in not_run if item.get("why", "") == why]
        shown = "; ".join(names[:MOST_FAILURES]) + ("; ..." if count > MOST_FAILURES else "")
        yield f"\nNot run, {why}: {shown}"


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """A table of Markdown; nothing if it has no rows."""
    body = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    columns = list(columns)
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *body, ""] if body else []


def in_words(value: object) -> str:
    """Something of JSON, to read."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {in_words(v)}" for name, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def found_lines(items: Items) -> list[str]:
    """Whatever was found, item by item; of those that found nothing, nothing."""
    return [f"- {i['name']}: {in_words(i['found'])}" for i in items if finding(i)]


def finding(item: dict[str, Any]) -> Any:
    """What an item that passed has found."""
    return item.get("found") if item["status"] == "passed" else None


def clusters(items: Items) -> list[str]:
    """How many clusters of each size are resident at once."""
    lines = []
    for item in items:
        by_size = (finding(item) or {}).get("clusters at once")
        if by_size:
            lines += table(["blocks", *by_size], [["clusters at once", *by_size.values()]])
    return lines


def ways(items: Items) -> list[str]:
    """The part of the allowed error that each way used, or what became of it."""
    cells: dict[str, dict[str, str]] = {}
    for item in items:
        words = item["name"].split()
        if len(words) != 3:  # no way: the list of them could not be made
            continue
        cell, arithmetic, team = words
        used = (finding(item) or {}).get("part of the allowed error")
        text = item["status"] if used is None else f"{used:.2f}"
        cells.setdefault(f"{cell} {arithmetic}", {})[team] = text
    teams = list(dict.fromkeys(team for row in cells.values() for team in row))
    rows = [[name, *(row.get(team, "-") for team in teams)] for name, row in cells.items()]
    return table(["part of the allowed error", *teams], rows)


def probed(items: Items) -> list[str]:
    """A line for each microbenchmark."""
    found = [(item["name"], finding(item)) for item in items if finding(item)]
    columns = list(dict.fromkeys(key for _, values in found for key in values))
    rows = [[n, *(in_words(v[c]) if c in v else "" for c in columns)] for n, v in found]
    return table(["", *columns], rows)


def ratios(items: Items) -> list[str]:
    """Cases against torch.nn, and the geometric means of their ratios."""
    measured = [f for item in items if (f := finding(item))]
    rows, by_dtype = [], {}
    for case in measured:
        ours, theirs = (case["sides"][side]["median"] for side in (OURS, PEER))
        ratio = case["ratios"][PEER]
        by_dtype.setdefault(case["dtype"], []).append(ratio["median"])
        rows.append([
            case["row"], case["sizes"], case["cell"], case["mode"], case["dtype"],
            f"{ours * 1e3:.3g}", f"{theirs * 1e3:.3g}", f"{ratio['median']:.2f}",
            f"{ratio['low']:.2f} to {ratio['high']:.2f}", f"{case['flops'] / ours / 1e12:.2f}",
        ])  # fmt: skip
    columns = ("row", "sizes", "cell", "pass", "dtype", "ours ms", "torch.nn ms", "ratio",
               "quartiles", "TFLOP/s")  # fmt: skip
    lines = table(columns, rows)
    for dtype, found in by_dtype.items():
        mean = statistics.geometric_mean(found)
        lines.append(f"- geometric mean, {dtype}: {mean:.2f} of {len(found)}")
    behind = [
        f"{case['row']} {case['cell']} {case['dtype']} {case['ratios'][PEER]['median']:.2f}"
        for case in measured
        if case["ratios"][PEER]["median"] < 1
    ]
    lines += [f"- behind {PEER}: {'; '.join(behind)}"] if behind else []
    return lines


def kernels(items: Items) -> list[str]:
    """The kernels of one forward call, those that took longest first."""
    return [
        f"- {item['name']}, {side}: {'; '.join(names)}"
        for item in items
        for side, names in (finding(item) or {}).items()
    ]


def teams(items: Items) -> list[str]:
    """A step of the walks of several teams, the plan's own first."""
    return walks([walk for i in items for walk in (finding(i) or {}).get("walks", [])])


def walks(found: Iterable[dict[str, Any]]) -> list[str]:
    """What benchmarks/walks.py says of walks: the nanoseconds of a step, predicted and measured."""
    columns = ("row", "sizes", "cell", "dtype", "pass", "team", "blocks", "units", "rows", "teams",
               "at once", "predicted ns", "measured ns", "asked for")  # fmt: skip
    return table(columns, [
        [*(walk[k] for k in ("row", "sizes", "cell", "dtype", "pass", "team")),
         *(walk[k] or "" for k in ("blocks", "units", "rows", "teams", "at_once")),
         f"{walk['step_ns']:.0f}",
         f"{walk['measured_ns']:.0f}" if "measured_ns" in walk else walk.get("error", ""),
         walk["asked"]]
        for walk in found
    ])  # fmt: skip


def complaints(items: Items) -> list[str]:
    """What each side took, or why it cannot."""
    rows = []
    for item in items:
        found = finding(item) or {"sides": {}}
        for side, values in found["sides"].items():
            if "error" in values:
                took = [f"cannot: {values['error'][:160]}", ""]
            else:
                took = [f"{values['median'] * 1e3:.3g}", f"{values['ratio']:.2f}"]
            rows.append([item["name"], found["sizes"], found["dtype"], side, *took])
    return table(["", "sizes", "dtype", "side", "ms", "its time over ours"], rows)


def tests(items: Items) -> list[str]:
    """No line for each of thousands."""
    return []


TABLES: dict[str, Callable[[Items], list[str]]] = {
    "occupancy": clusters, "ways": ways, "probes": probed, "forward": ratios, "training": ratios,
    "complaints": complaints, "kernels": kernels, "teams": teams, "tests": tests,
    "memcheck": tests, "racecheck": tests,
}  # fmt: skip
"""How each stage of tools/gpu_check/stages.py is shown; the others by `found_lines`."""


if __name__ == "__main__":
    raise SystemExit(main())
