"""The parts of the benchmark runner that do not depend on a clock, and one short run of all."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import checkpoint, memory, report, runner, timing
from benchmarks.workloads import ROWS, Case, Row, cases, flops, rows_named


def test_flops_are_counted_by_hand() -> None:
    row = Row(name="X", source="", T=2, I=3, H=5, B=7)
    assert flops(row, "lstm", "forward") == 2 * 2 * 7 * 4 * 5 * (3 + 5)
    assert flops(row, "gru", "train") == 3 * 2 * 2 * 7 * 3 * 5 * (3 + 5)
    both = Row(name="X", source="", T=2, I=3, H=5, B=7, layers=2, directions=2)
    assert flops(both, "rnn", "forward") == 2 * 2 * 2 * 7 * 5 * ((3 + 5) + (10 + 5))


def test_rows() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert {row.letter for row in ROWS} == set("ABCDEFGHIJKPQR")
    assert [row.name for row in rows_named(["D", "B*"])] == ["B", "B-h150", "B-l3", "D"]
    with pytest.raises(ValueError, match="rows.*Z"):
        rows_named(["Z"])
    packed = rows_named(["P"])[0]
    assert packed.lengths == packed.lengths and 1 <= min(packed.lengths) <= max(packed.lengths)


def test_cases_of_a_selection() -> None:
    found = cases(rows_named(["A", "B", "Q"]), threads=[1], modes=["train"])
    assert {(c.row.name, c.cell, c.dtype) for c in found} == (
        {("A", cell, "float32") for cell in ("lstm", "gru", "rnn")}
        | {
            ("B", cell, dtype)
            for cell in ("lstm", "gru", "rnn")
            for dtype in ("float32", "bfloat16")
        }
        | {("Q", "lstm", "float32")}
    )


def test_statistics() -> None:
    assert timing.spread([3.0]).median == 3.0
    spread = timing.spread([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (spread.low, spread.median, spread.high) == (2.0, 3.0, 4.0)
    assert timing.ratio([1.0, 2.0, 4.0], [2.0, 4.0, 4.0]).median == 2.0
    assert timing.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="values"):
        timing.spread([])


def test_measure_takes_turns_on_a_clock_of_our_own() -> None:
    now, calls = [0.0], []

    def side(name: str, seconds: float):
        def repeat(count: int) -> None:
            calls.append(name)
            now[0] += count * seconds * random.Random(len(calls)).uniform(0.9, 1.1)

        return repeat

    samples = timing.measure(
        {"a": side("a", 0.01), "b": side("b", 0.03)}, budget=1.0, clock=lambda: now[0]
    )
    assert len(samples["a"]) == len(samples["b"]) >= 6
    assert timing.ratio(samples["a"], samples["b"]).median == pytest.approx(3, rel=0.15)


def test_parity_is_checked_before_timing() -> None:
    right = {"output": torch.ones(3)}
    runner.check_parity(right, right, dtype="float32", peer="torch.nn")
    for wrong in ({"output": torch.ones(3) * 1.1}, {"output": torch.ones(4)}, {},
                  {"output": torch.full((3,), float("nan"))}):  # fmt: skip
        with pytest.raises(runner.ParityError):
            runner.check_parity(wrong, right, dtype="float32", peer="torch.nn")


def test_a_row_that_needs_resets_says_so() -> None:
    case = Case(row=rows_named(["R"])[0], cell="gru", mode="train", threads=1)
    assert "reset" in (runner.skipped(case) or "")


def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    real, calls = runner.run, []

    def run(case, **options):
        calls.append(case)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(case, **options)

    monkeypatch.setattr(runner, "run", run)
    with pytest.raises(KeyboardInterrupt):
        command.main("--rows A --threads 1 --budget 0.05 --no-memory --name cut".split())
    kept = json.loads((tmp_path / "cut" / "results.json").read_text())
    assert len(kept["cases"]) == 2 and not kept.get("whole")


def test_peak_memory_is_the_median_of_processes(monkeypatch) -> None:
    answers = iter([9, 1, 5, 7, 7, 100])
    monkeypatch.setattr(memory, "ThreadPoolExecutor", InOrder)
    monkeypatch.setattr(
        memory, "_child", lambda *_: {"bytes": next(answers), "method": "a stand-in"}
    )
    record = memory.measure("A", "lstm", 1)
    assert record["peak_bytes"] == {"fusedrnn": 5, "torch.nn": 7}
    assert record["processes"]["torch.nn"] == [7, 7, 100]


def test_time_and_memory_of_checkpoints(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "RESULTS", tmp_path)
    monkeypatch.setattr(checkpoint, "QUICK_BUDGET", 0.05)
    monkeypatch.setattr(
        memory, "_child", lambda side, *_: {"bytes": len(side) << 20, "method": "a stand-in"}
    )
    assert checkpoint.main("--rows A --threads 1 --quick --name tried".split()) == 0
    results = json.loads((tmp_path / "tried" / "checkpoint.json").read_text())
    assert [curve["cell"] for curve in results["curves"]] == ["lstm", "gru"]
    for curve in results["curves"]:
        assert list(curve["sides"]) == [
            f"{peer}{k}" for k in ("", " checkpoint=4", " checkpoint=7")
            for peer in ("fusedrnn", "torch.nn")
        ]  # fmt: skip
        assert curve["sides"]["fusedrnn"]["ratio"]["median"] == 1
    text = (tmp_path / "tried" / "checkpoint.md").read_text()
    assert "| A | LSTM | none |" in text and "| A | GRU | 7 = T |" in text
    assert (tmp_path / "tried" / "checkpoint.png").stat().st_size > 5_000


class InOrder(ThreadPoolExecutor):
    """One thing after the other."""

    def __init__(self, *_: object) -> None:
        super().__init__(1)


def test_a_run_and_its_report(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(f"a\n{report.BEGIN}\nold\n{report.END}\nb\n")
    words = "--rows A,R --threads 1 --budget 0.05 --no-memory --name tried".split()
    assert command.main(words) == 0
    assert "takes no `reset`" in capsys.readouterr().out
    results = json.loads((tmp_path / "tried" / "results.json").read_text())
    assert len(results["cases"]) == 6 and len(results["skipped"]) == 6
    text = (tmp_path / "tried" / "report.md").read_text()
    assert "| A | T7 I5 H10 B32 | LSTM | forward |" in text and "Skipped" in text
    assert (tmp_path / "tried" / "ratios.png").stat().st_size > 5_000
    with pytest.raises(ValueError, match="expected a run of all rows"):
        command.main(["--readme", str(tmp_path / "tried")])
    with pytest.raises(FileNotFoundError, match="no run of all rows"):
        command.main(["--readme"])
    whole = results | {"whole": True}
    (tmp_path / "tried" / "results.json").write_text(json.dumps(whole))
    assert command.main(["--readme"]) == 0
    readme = (tmp_path / "README.md").read_text()
    assert "old" not in readme and "geometric mean" in readme and readme.endswith("\nb\n")
    with pytest.raises(SystemExit):
        command.main(["--rows", "nothing"])
