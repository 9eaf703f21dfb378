"""`python -m benchmarks`: measures the rows of workloads.py and writes the report.

python -m benchmarks                                  everything, about half an hour
python -m benchmarks --quick                          the same, less certain, in ten minutes
python -m benchmarks --rows D,J --cells lstm --passes forward --threads all --dry
python -m benchmarks --peers all                      beside torch.nn, what else is installed
python -m benchmarks --report                         makes all Markdown and pictures again
python -m benchmarks --report benchmarks/results/cpu  those of one folder
python -m benchmarks --readme                         puts the newest whole run into the README
python -m benchmarks.modifiers                        resets, lengths, dropouts, see modifiers.py
python -m benchmarks.cells                            cells written in Python, see cells.py
tools/gpu_check.sh OUT                                the rows of a GPU, and all else of one
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import checkpoint, machine, memory, report, roofline, runner, tables
from benchmarks.peers import OTHERS, OURS, PEERS, TORCH_NN, Peer, peers_named
from benchmarks.workloads import CELLS, DTYPES, PASSES, ROWS, Case, cases, rows_named, several

BUDGET, QUICK_BUDGET = 2.0, 0.5  # seconds a case
BUSY = 0.7  # load average of a machine that does something else


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    budget = given.budget or (QUICK_BUDGET if given.quick else BUDGET)
    if given.report is not None:
        _remake(given.report or sorted(report.RESULTS.iterdir()))
        return 0
    if given.readme is not None:
        folder = report.newest() if given.readme is True else Path(given.readme)
        report.update_readme(folder.resolve())
        print(f"README.md: summary of {folder}")
        return 0
    try:
        rows = rows_named(given.rows)
        peers = peers_named(given.peers)
        counts = _thread_counts(given.threads)
    except ValueError as error:
        parser.error(str(error))
    chosen = cases(rows, cells=given.cells, modes=given.passes, threads=counts, dtypes=given.dtypes)
    folder = None
    if not given.dry:
        date = datetime.date.today().isoformat()
        folder = report.RESULTS / (given.name or f"cpu-{date}")
    processes = (1 if given.quick else memory.PROCESSES) if given.memory else 0
    results = _run(chosen, counts, folder, budget=budget, peers=peers, processes=processes)
    _show(results)
    if folder:
        results["whole"] = _is_whole(chosen, given.memory)
        report.write(folder, results)
        print(f"wrote {folder}")
    return 1 if any("error" in r for r in [*results["cases"], *results["memory"]]) else 0


def _remake(folders: Sequence[Path]) -> None:
    """Makes Markdown and pictures from the figures that folders have, and changes no figure."""
    for folder in folders:
        for figures, remake in (("results", report.remake), ("checkpoint", checkpoint.remake)):
            if (folder / f"{figures}.json").exists():
                remake(folder)
                print(f"remade from {folder / figures}.json")


def _is_whole(chosen: list[Case], with_memory: bool) -> bool:
    """Whether a run has all that the README's summary shows."""
    every = cases(ROWS, threads=[torch.get_num_threads()])
    return with_memory and set(every) <= set(chosen)


def _run(
    chosen: list[Case],
    counts: list[int],
    folder: Path | None,
    *,
    budget: float,
    peers: Sequence[Peer],
    processes: int,
) -> dict[str, Any]:
    """Measures, and keeps each figure in `folder` as it comes; memory with `processes` a side."""
    versions = {peer.name: peer.version() for peer in (OURS, *peers) if peer.available()}
    results: dict[str, Any] = {
        "machine": machine.describe(counts, versions), "cases": [], "memory": [], "skipped": {},
    }  # fmt: skip
    load = results["machine"]["load_average_before"]
    if load is not None and load > BUSY:
        print(f"This machine is busy (load average {load:.1f}): expect uncertain figures.")
    peaks = results["machine"]["fma_peak"]
    limits = {threads: roofline.measure(int(threads), peak) for threads, peak in peaks.items()}
    results["machine"]["limits"] = limits
    for peer in peers:
        if not peer.available():
            print(f"{peer.name} is left out: it is not installed.")
    bar = tqdm(chosen, unit="case", disable=None)
    for case in bar:
        bar.set_description(case.label)
        if why := runner.skipped(case):
            results["skipped"][case.label] = why
            continue
        record = runner.run(case, budget=budget, peak=peaks[str(case.threads)], peers=peers)
        if best := limits[str(case.threads)]:
            record["floor"] = roofline.floor(case, best)
        results["cases"].append(record)
        if folder:
            report.keep(folder, results)
        if "error" in record:
            tqdm.write(f"failed: {case.label}: {record['error']}")
    if processes:
        pairs = dict.fromkeys(
            (c.row.name, c.cell)
            for c in chosen
            if c.dtype == "float32" and runner.skipped(c) is None
        )
        for row, cell in tqdm(pairs, desc="peak memory", unit="row", disable=None):
            results["memory"].append(memory.measure(row, cell, max(counts), processes=processes))
            if folder:
                report.keep(folder, results)
    return results


def _show(results: dict[str, Any]) -> None:
    for case in results["cases"]:
        if "error" in case:
            continue
        ours, theirs = (case["sides"][side]["median"] for side in (case["lead"], TORCH_NN.name))
        ratio, peak = case["ratios"][TORCH_NN.name], case["sides"][case["lead"]]["peak_fraction"]
        kept, other = case.get("kept"), tables.best_other(case["ratios"])
        print(
            f"{case['row']:7} {case['cell']:5} {case['mode']:8} {case['threads']}t "
            f"{case['dtype']:9} {ours * 1e3:9.3f} ms, torch.nn {theirs * 1e3:9.3f} ms: "
            f"{ratio['median']:6.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
            + (f", {100 * peak:.0f} % of peak" if peak else "")
            + (f", {ours / case['floor']['total']:.2f} x floor" if "floor" in case else "")
            + (f", weights kept {kept[TORCH_NN.name]['median']:.2f}x" if kept else "")
            + (f"; {other[0]} {other[1]:.2f}x" if other else "")
        )
    for record in results["memory"]:
        if "error" not in record:
            ours, theirs = (
                record["peak_bytes"][side] / 2**20 for side in (OURS.name, TORCH_NN.name)
            )
            print(f"{record['row']:7} {record['cell']:5} peak memory {ours:8.1f} MB, "
                  f"torch.nn {theirs:8.1f} MB")  # fmt: skip
    for label, why in results["skipped"].items():
        print(f"skipped {label}: {why}")
    print("slower than a peer: " + ("; ".join(tables.slower(results)) or "none"))


def _thread_counts(words: list[str]) -> list[int]:
    every = torch.get_num_threads()
    counts = []
    for word in words:
        if word != "all" and not (word.isdecimal() and int(word) > 0):
            raise ValueError(f"threads: expected `all` or numbers above 0, got {word!r}")
        counts.append(every if word == "all" else int(word))
    return list(dict.fromkeys(counts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip

    add = parser.add_argument
    add("--rows", type=lambda t: t.split(","), default=["*"], help="names or patterns: A,B*")
    add("--cells", type=several(CELLS), default=list(CELLS), help=f"some of {','.join(CELLS)}")
    add("--passes", type=several(PASSES), default=list(PASSES), help="some of forward,train")
    add("--dtypes", type=several(DTYPES), default=list(DTYPES), help="some of " + ",".join(DTYPES))
    names = ", ".join(peer.name for peer in (*PEERS, *OTHERS))
    add(
        "--peers",
        type=lambda t: t.split(","),
        default=[TORCH_NN.name],
        help=f"`all` that are installed, or some of {names}; torch.nn always",
    )
    add("--threads", type=lambda t: t.split(","), default=["all", "1"], help="all,1")
    add("--budget", type=float, default=None, help=f"seconds a case, {BUDGET} if not given")
    add(
        "--quick",
        action="store_true",
        help=f"{QUICK_BUDGET} seconds a case, one process for memory",
    )
    add("--memory", action=argparse.BooleanOptionalAction, default=True, help="peak memory too")
    add("--name", help="folder under benchmarks/results, cpu-<date> if not given")
    add("--dry", action="store_true", help="print only, write nothing")
    add(
        "--report",
        nargs="*",
        type=Path,
        metavar="DIR",
        help="make Markdown and pictures again (of all results without a folder), measure nothing",
    )
    add("--readme", nargs="?", const=True, metavar="DIR", help="update README.md, measure nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
