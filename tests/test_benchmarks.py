"""The parts of the benchmark runner that do not depend on a clock, and one short run of all."""

from __future__ import annotations

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch

import fusedrnn
from benchmarks import __main__ as command
from benchmarks import (
    cells,
    checkpoint,
    figures,
    first_call,
    machine,
    memory,
    modifiers,
    races,
    ratios,
    report,
    roofline,
    runner,
    tables,
    targets,
)
from benchmarks.peers import OURS, TORCH_NN, loops, peers_named
from benchmarks.peers.modules import step_of
from benchmarks.peers.peer import OptionalPeer, make_data
from benchmarks.workloads import CELLS, GPU_ROWS, ROWS, Case, Row, cases, flops, rows_named
from fusedrnn import _C
from fusedrnn.testing import timing
from fusedrnn.testing.parity import ParityError, check_parity


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
    assert rows_named(["D"])[0].title == "sentiment D"
    assert all(row.short for row in (*ROWS, *GPU_ROWS))
    with pytest.raises(ValueError, match="rows.*Z"):
        rows_named(["Z"])
    packed = rows_named(["P"])[0]
    assert packed.lengths == packed.lengths and 1 <= min(packed.lengths) <= max(packed.lengths)


def test_cases_of_a_selection() -> None:
    found = cases(rows_named(["A", "B", "Q"]), threads=[1], modes=["train"])
    assert {(c.row.name, c.cell, c.dtype) for c in found} == (
        {("A", cell, "float32") for cell in CELLS}
        | {("B", cell, dtype) for cell in CELLS for dtype in ("float32", "bfloat16")}
        | {("Q", "lstm", "float32")}
    )


def test_int8_is_inference_of_the_rows_that_stream() -> None:
    found = cases(ROWS, threads=[1], dtypes=["int8"])
    assert {(c.row.name, c.cell, c.mode) for c in found} == {
        (row, cell, "forward") for row in "ADGHK" for cell in CELLS
    }


def test_targets_are_of_rows_and_above_the_floor() -> None:
    assert set(targets.TIMES_FLOOR) <= {row.name for row in ROWS}
    assert all(1 < times for row in targets.TIMES_FLOOR.values() for times in row)


def test_a_target_is_the_same_on_every_chip() -> None:
    """Half as fast a chip, and half as fast a torch.nn: the same verdict."""
    verdicts = []
    for slowness in (1.0, 2.0):
        sides = {"fusedrnn": {"median": slowness * 1.3e-3, "peak_fraction": None}}
        record = record_of("D", {"torch.nn": 9.0}, sides=sides, floor={"total": slowness * 1e-3})
        verdicts.append(targets.judge(record))
    assert verdicts[0] == verdicts[1] == (pytest.approx(1.3), 1.2) and not verdicts[0].met


def test_what_is_judged() -> None:
    record = record_of("D", {"torch.nn": 2.0}, floor={"total": 0.8e-3})
    forward, train = targets.judge(record), targets.judge(record | {"mode": "train"})
    assert forward == (pytest.approx(1.25), 1.2) and not forward.met
    assert train == (pytest.approx(1.25), 1.35) and train.met
    without_floor = {key: value for key, value in record.items() if key != "floor"}
    for other in (record | {"threads": 1}, record | {"dtype": "bfloat16"}, without_floor,
                  record | {"row": "B-l3"}, record | {"row": "R"}):  # fmt: skip
        assert targets.judge(other) is None


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
    check_parity(right, right, dtype="float32", peer="torch.nn")
    for wrong in ({"output": torch.ones(3) * 1.1}, {"output": torch.ones(4)}, {},
                  {"output": torch.full((3,), float("nan"))}):  # fmt: skip
        with pytest.raises(ParityError):
            check_parity(wrong, right, dtype="float32", peer="torch.nn")


class Stand(OptionalPeer):
    """A peer that is torch.nn, with results changed by `change`."""

    packages = ("torch",)

    def __init__(self, name, change=lambda tensor: tensor):
        self.name, self._change = name, change

    def missing(self, case):
        return "has no rnn" if case.cell == "rnn" else None

    def build(self, case, data):
        step = TORCH_NN.build(case, data)
        results = {name: self._change(tensor) for name, tensor in step.results().items()}
        step.results = lambda: results
        return step


def refuse(tensor):
    raise ValueError("it would not")


def test_peers_that_cannot_or_fail_are_left_out_and_the_rest_is_timed() -> None:
    absent = Stand("absent")
    absent.packages = ("a_package_that_is_not_there",)
    peers = [
        TORCH_NN, Stand("good"), Stand("wrong", lambda t: t + 1), Stand("broken", refuse), absent,
    ]  # fmt: skip
    case = Case(row=rows_named(["C"])[0], cell="gru", mode="forward", threads=1)
    record = runner.run(case, budget=0.01, peak=None, peers=peers)
    assert record["ratios"].keys() == {"torch.nn", "good"}
    assert record["left_out"].keys() == {"wrong", "broken", "absent"}
    assert "ParityError: output" in record["left_out"]["wrong"]
    assert record["left_out"]["broken"] == "failed: ValueError: it would not"
    assert record["left_out"]["absent"] == "is not installed"
    assert tables.best_other(record["ratios"])[0] == "good"
    other = runner.run(
        Case(row=case.row, cell="rnn", mode="train", threads=1), budget=0.01, peak=None, peers=peers
    )
    assert other["left_out"]["good"] == "has no rnn" and other["ratios"].keys() == {"torch.nn"}


def test_peers_are_chosen_by_name() -> None:
    assert [peer.name for peer in peers_named(["onnxruntime"])] == ["torch.nn", "onnxruntime"]
    every = peers_named(["all"])
    assert every[0] is TORCH_NN and all(peer.available() for peer in every)
    with pytest.raises(ValueError, match="peers.*cuDNN"):
        peers_named(["torch.nn", "cuDNN"])


class Stream:
    """Stands for `fusedrnn.Streaming`; int8 is off by a little, as it is."""

    def __init__(self, module, batch_size, weights):
        self._module, self._off = module.eval(), 1e-3 if weights == "int8" else 0.0
        self.state = None

    def reset(self):
        self.state = None

    def __call__(self, chunk):
        with torch.no_grad():
            output, self.state = self._module(chunk, self.state)
        return output + self._off


@pytest.fixture
def streaming(monkeypatch):
    monkeypatch.setattr(fusedrnn, "Streaming", Stream, raising=False)


def test_streams_are_measured_beside_the_module(streaming) -> None:
    row = rows_named(["H"])[0]
    case = Case(row=row, cell="lstm", mode="forward", threads=1)
    record = runner.run(case, budget=0.01, peak=None)
    assert record["kept"].keys() == {"torch.nn", "fusedrnn"} and record["lead"] == "fusedrnn"
    assert "fusedrnn Streaming" in record["ratios"] and tables.best_other(record["ratios"]) is None
    rounded = Case(row=row, cell="lstm", mode="forward", threads=1, dtype="int8")
    assert runner.skipped(rounded) is None
    record = runner.run(rounded, budget=0.01, peak=None)
    assert record["lead"] == "fusedrnn Streaming int8" and "kept" not in record
    assert record["accuracy"]["fusedrnn Streaming int8"]["max"] == pytest.approx(1e-3, rel=1e-2)
    train = Case(row=row, cell="lstm", mode="train", threads=1)
    assert "kept" not in runner.run(train, budget=0.01, peak=None)


def test_without_streaming_int8_is_skipped(monkeypatch) -> None:
    monkeypatch.delattr(fusedrnn, "Streaming", raising=False)
    case = Case(row=rows_named(["H"])[0], cell="lstm", mode="forward", threads=1, dtype="int8")
    assert "no fusedrnn.Streaming" in (runner.skipped(case) or "")


LIMITS = {
    "peak": {"float32": 1e9, "bfloat16": 2e9, "int8": 0.0},
    "levels": [
        {"name": "L1", "bytes": 1000, "bandwidth": 1e9},
        {"name": "memory", "bytes": 0, "bandwidth": 1e8},
    ],
    "barrier": 1e-6,
    "call": {"forward": 1e-5, "train": 1e-4},
}


def test_the_floor_is_counted_by_hand() -> None:
    row = Row(name="X", source="", T=2, I=3, H=5, B=7)
    case = Case(row=row, cell="lstm", mode="forward", threads=2)
    recurrent, once = 4 * 20 * 5, 4 * (20 * 3 + 2 * 20) + 4 * 14 * 3 + 4 * 14 * 5
    assert roofline.traffic(case, 0) == (recurrent, once)
    found = roofline.floor(case, LIMITS)
    assert found["compute"] == pytest.approx(case.flops / 1e9)
    beyond = (recurrent + once - 1000) / 1e8  # what does not fit L1
    assert found["memory"] == pytest.approx(2 * recurrent / 1e9 + 600 / 1e9 + beyond)
    assert found["barriers"] == 0 and found["call"] == 1e-5
    parts = max(found["compute"], found["memory"]) + found["call"]
    assert found["total"] == pytest.approx(parts)


def test_the_floor_of_training_bf16_and_of_few_sequences() -> None:
    row = Row(name="X", source="", T=4, I=3, H=5, B=1, layers=2)
    case = Case(row=row, cell="gru", mode="train", threads=2, dtype="bfloat16")
    recurrent, once = roofline.traffic(case, 1)
    from_input, passing, reserve = 2 * (15 * 5 + 30), 2 * (4 * 5 + 4 * 5), 2 * 4 * 4 * 5
    assert recurrent == 2 * 15 * 5
    assert once == 2 * (from_input + passing + reserve) + from_input + recurrent + passing
    found = roofline.floor(case, LIMITS)
    assert found["compute"] == pytest.approx(case.flops / 2e9)
    assert found["barriers"] == pytest.approx(2 * 4 * 2 * 1e-6)
    assert found["call"] == pytest.approx(2e-4)
    int8 = Case(row=row, cell="gru", mode="forward", threads=1, dtype="int8")
    assert roofline.floor(int8, LIMITS)["compute"] == pytest.approx(int8.flops / 1e9)
    assert roofline.traffic(int8, 1)[0] == 15 * 5


def test_cache_sizes_of_a_team(tmp_path) -> None:
    levels = [("Data", 1, "48K", "0"), ("Instruction", 1, "32K", "0"), ("Unified", 2, "1M", "0,4"),
              ("Unified", 3, "32M", "0-7")]  # fmt: skip
    for i, (kind, level, size, shared) in enumerate(levels):
        index = tmp_path / f"index{i}"
        index.mkdir()
        named = {"type": kind, "level": level, "size": size, "shared_cpu_list": shared}
        for name, value in named.items():
            (index / name).write_text(f"{value}\n")
    found = roofline.cache_sizes(3, tmp_path)
    assert found == [("L1", 3 * 48 * 2**10), ("L2", 2 * 2**20), ("L3", 32 * 2**20)]
    assert roofline.cache_sizes(3, tmp_path / "nothing") == []


def test_limits_are_measured(monkeypatch) -> None:
    monkeypatch.setattr(roofline, "SECONDS", 0.002)
    limits = roofline.measure(1, 1e9)
    assert limits is not None and limits["barrier"] == 0
    assert all(level["bandwidth"] > 0 for level in limits["levels"])
    assert limits["call"]["forward"] > 0 and limits["call"]["train"] > 0
    assert limits["levels"][-1]["name"] == "memory" and limits["peak"]["float32"] == 1e9
    assert 0 < _C.barrier_seconds(2, 0.002) < float("inf")
    assert roofline.measure(1, None) is None
    for call in (
        lambda: _C.fma_peak(0, 0.1),
        lambda: _C.barrier_seconds(1, 0.0),
        lambda: _C.read_bandwidth(0, 1, 0.1),
    ):
        with pytest.raises(ValueError, match="positive"):
            call()


def record_of(row: str, ratios: dict[str, float], **more) -> dict:
    spread = {name: {"median": r, "low": r, "high": r} for name, r in ratios.items()}
    sides = {name: {"median": r * 1e-3, "peak_fraction": None} for name, r in ratios.items()}
    sides["fusedrnn"] = {"median": 1e-3, "peak_fraction": None}
    case = {"row": row, "cell": "lstm", "mode": "forward", "threads": 2, "dtype": "float32"}
    return case | {"sides": sides, "ratios": spread, "lead": "fusedrnn"} | more


def results_of(*records: dict) -> dict:
    machine = dict.fromkeys(("cpu", "cores", "memory_gib", "system", "python", "date", "commit"))
    machine |= {"fma_peak": {}, "versions": {}, "capability": {"fusedrnn": "", "torch": ""}}
    return {"machine": machine, "cases": list(records), "memory": [], "skipped": {}}


def test_the_report_judges_targets_and_names_the_best_peer() -> None:
    floor, left_out = {"total": 0.5e-3}, {"JAX scan": "is not installed"}
    text = tables.markdown(
        results_of(
            record_of("A", {"torch.nn": 4.5, "OpenVINO": 3, "onnxruntime": 2}, floor=floor),
            record_of("D", {"torch.nn": 1.2, "onnxruntime": 0.9}, left_out=left_out, floor=floor),
            record_of("E", {"torch.nn": 2.0}, left_out=left_out),
        )
    )
    assert "**No peer is faster**: true of 2 of 3 cases." in text
    assert "- D lstm forward, 2 threads, float32: 0.90 of onnxruntime" in text
    assert "**Close to the floor** (float32, 2 threads): 1 of 2." in text
    assert "| A T7 I5 H10 B32 | 2.00 |" in text
    assert "| D T256 I100 H128 B32 | 2.00 of 1.2 |" in text
    assert "| onnxruntime 2.00 | 2.00 | 4 met |" in text and "| 2.00 | 1.2 missed |" in text
    assert "- JAX scan is not installed: D lstm forward, 2 threads, float32 and 1 more" in text
    bare = tables.markdown(results_of(record_of("F-1x1", {"torch.nn": 2.0})))
    for column in ("| target |", "| best other peer |", "| x floor |"):
        assert column in text and column not in bare
    assert "Close to the floor" not in bare and "Slower than a peer" not in bare


def test_the_report_begins_with_results() -> None:
    text = tables.markdown(
        results_of(
            record_of("A", {"torch.nn": 4.0, "onnxruntime": 2.0}, floor={"total": 1e-4}),
            record_of("D", {"torch.nn": 1.0, "onnxruntime": 0.5}, mode="train"),
            record_of("D", {"torch.nn": 3.0}, threads=1, cell="gru"),
        )
    )
    assert text.splitlines()[:10] == [
        "# fusedrnn against torch.nn",
        "",
        "How many times faster than `torch.nn`, float32, 2 threads (None, torch ?, None):",
        "",
        "| row | LSTM fwd | LSTM fwd+bwd |",
        "|---|---|---|",
        "| A T7 I5 H10 B32 | 4.00 | - |",
        "| D T256 I100 H128 B32 | - | 1.00 |",
        "| **geometric mean** | **4.00** | **1.00** |",
        "",
    ]
    assert "| float32, 2 threads | onnxruntime | 2.00 | 0.50 | - | 0.50 (D LSTM fwd+bwd) |" in text
    assert "| float32, 1 thread | torch.nn | - | - | 3.00 | 3.00 (D GRU fwd) |" in text
    order = ["How many times", "Geometric means", "## What was measured", "## float32, 2 threads",
             "## float32, 1 thread", "## Targets", "Slower than a peer"]  # fmt: skip
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_a_run_without_results_has_a_report() -> None:
    failed = record_of("A", {}) | {"error": "it broke"}
    text = tables.markdown(results_of({k: v for k, v in failed.items() if k != "ratios"}))
    assert "- A lstm forward, 2 threads, float32: it broke" in text and "## Targets" not in text


committed = pytest.mark.skipif(
    not report.RESULTS.exists(), reason="a source distribution has no results"
)


@committed
def test_committed_reports_are_what_their_results_give() -> None:
    found = list(report.RESULTS.glob("*/results.json"))
    assert found
    for path in found:
        text = tables.markdown(json.loads(path.read_text()))
        assert path.with_name("report.md").read_text() == text, path
    newest = report.newest()
    summary = report.readme_summary(json.loads((newest / "results.json").read_text()), newest)
    assert f"{report.BEGIN}\n{summary}\n{report.END}" in report.README.read_text()


def series_of_panels(picture) -> dict[str, set[str]]:
    """By the title of each of a picture's panels, the series that it has points of."""
    return {
        panel.get_title(): {
            line.get_label()
            for line in panel.lines
            if len(line.get_xdata()) and not line.get_label().startswith("_")
        }
        for panel in picture.axes
    }


def legend_of(picture) -> list[str]:
    return [text.get_text() for text in picture.legends[0].texts]


@pytest.mark.parametrize(
    ("records", "panels"),
    [
        (
            [record_of("D", {"torch.nn": 2.0, "fusedrnn Streaming": 0.5}),
             record_of("D", {"torch.nn": 2.0}, cell="gru", mode="train"),
             record_of("A", {"torch.nn": 9.0}, threads=1, cell="rnn")],
            {"forward, float32": {"LSTM"}, "forward + backward, float32": {"GRU"}},
        ),
        (
            [record_of("D", {"torch.nn": 2.0, "OpenVINO": 1.2}),
             record_of("H", {"torch.nn": 2.0, "onnxruntime int8": 0.9}, cell="gru", dtype="int8",
                       lead="fusedrnn Streaming int8")],
            {"LSTM, forward, float32": {"torch.nn", "OpenVINO"},
             "GRU, forward, fusedrnn Streaming int8": {"torch.nn", "onnxruntime int8"}},
        ),
    ],
    ids=["torch.nn only", "several peers"],
)  # fmt: skip
def test_a_panel_for_each_that_has_ratios_and_no_other(records, panels) -> None:
    picture = ratios.figure(results_of(*records))
    assert series_of_panels(picture) == panels
    series = dict.fromkeys(name for found in panels.values() for name in found)
    assert sorted(legend_of(picture)) == sorted([*series, "quartiles"])
    assert "sentiment D" in [text.get_text() for text in picture.axes[0].get_yticklabels()]


@committed
def test_pictures_show_every_peer_and_have_no_empty_panel() -> None:
    for path in report.RESULTS.glob("*/results.json"):
        results = json.loads(path.read_text())
        picture = ratios.figure(results)
        peers = {name for case in tables.measured(results) for name in case["ratios"]}
        peers -= {*tables.OF_OURS}
        series = series_of_panels(picture)
        shown = peers if len(peers) > 1 else {"LSTM", "GRU", "RNN"}
        assert set().union(*series.values()) == {*legend_of(picture)} - {"quartiles"} == shown, path
        assert all(series.values()) and all(panel.get_xlabel() for panel in picture.axes), path


@committed
def test_labels_of_checkpoints_lie_on_nothing() -> None:
    for path in report.RESULTS.glob("*/checkpoint.json"):
        results = json.loads(path.read_text())
        picture = checkpoint.figure(results)
        assert len(picture.axes) == len(results["curves"])
        for panel, curve in zip(picture.axes, results["curves"], strict=True):
            boxes = [note.get_window_extent() for note in panel.texts]
            assert len(boxes) == len(curve["sides"]) - 2  # all but those without checkpoints
            where = panel.get_title()
            assert not any(one.overlaps(other) for one, other in combinations(boxes, 2)), where
            for line in panel.lines:
                for x, y in panel.transData.transform(line.get_xydata()):
                    assert not any(box.contains(x, y) for box in boxes), where
            edges = panel.get_window_extent()
            assert all(edges.contains(*box.min) and edges.contains(*box.max) for box in boxes), (
                where
            )


def test_series_are_told_apart_without_colour() -> None:
    for attribute in ("marker", "colour"):
        assert len({getattr(look, attribute) for look in figures.LOOKS}) == len(figures.LOOKS)
    assert figures.looks_of(["a", "b"]) == dict(zip("ab", figures.LOOKS, strict=False))
    with pytest.raises(ValueError, match="series.*9"):
        figures.looks_of("123456789")


def test_reports_are_remade_from_their_figures(tmp_path, monkeypatch) -> None:
    one, other, neither = (tmp_path / name for name in ("one", "other", "neither"))
    for folder in (one, other, neither):
        folder.mkdir()
    results = results_of(record_of("A", {"torch.nn": 2.0}))
    figures_of_one = json.dumps(results)
    (one / "results.json").write_text(figures_of_one)
    sides = {"fusedrnn": 1, "torch.nn": 2, "fusedrnn checkpoint=4": 3, "torch.nn checkpoint=4": 3}
    spread = {"median": 1.0}
    curve = {"row": "A", "cell": "lstm", "sizes": "", "T": 7, "rounds": 3, "sides": {
        name: {"seconds": spread, "ratio": spread, "bytes": size << 20}
        for name, size in sides.items()
    }}  # fmt: skip
    machine = results["machine"] | {"versions": {"torch.nn": "", "fusedrnn": ""}}
    machine["load_average_before"] = 0.0
    kept = {"machine": machine, "threads": 1, "quick": True, "curves": [curve]}
    (other / "checkpoint.json").write_text(json.dumps(kept))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert command.main(["--report"]) == 0
    assert {path.name for path in tmp_path.glob("*/*")} == {
        "results.json", "report.md", "ratios.png", "checkpoint.json", "checkpoint.md",
        "checkpoint.png",
    }  # fmt: skip
    assert "](ratios.png)" in (one / "report.md").read_text()
    assert (one / "results.json").read_text() == figures_of_one
    (one / "report.md").unlink()
    (other / "checkpoint.md").unlink()
    assert command.main(["--report", str(one)]) == 0
    assert (one / "report.md").exists() and not (other / "checkpoint.md").exists()


def test_weights_kept_have_a_table_of_their_own() -> None:
    kept = {name: {"median": r, "low": r, "high": r} for name, r in
            {"torch.nn": 8.0, "fusedrnn": 2.0}.items()}  # fmt: skip
    record = record_of("H", {"torch.nn": 4.0, "fusedrnn Streaming": 0.5}, kept=kept)
    text = tables.markdown(results_of(record))
    assert "### fusedrnn Streaming: weights and state kept" in text
    assert "| streaming H | T1 I256 H256 B1 | LSTM | 0.5 | 8.00 | 2.00 |" in text


def test_slower_names_the_peer() -> None:
    record = record_of("D", {"torch.nn": 1.2, "onnxruntime": 0.9, "fusedrnn Streaming": 0.5})
    assert tables.slower(results_of(record)) == [
        "D lstm forward, 2 threads, float32: 0.90 of onnxruntime"
    ]


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
    assert [curve["cell"] for curve in results["curves"]] == [*checkpoint.CELLS]
    for curve in results["curves"]:
        assert list(curve["sides"]) == [
            f"{peer}{k}" for k in ("", " checkpoint=4", " checkpoint=7")
            for peer in ("fusedrnn", "torch.nn")
        ]  # fmt: skip
        assert curve["sides"]["fusedrnn"]["ratio"]["median"] == 1
    text = (tmp_path / "tried" / "checkpoint.md").read_text()
    assert "| stock A | LSTM | none |" in text and "| stock A | GRU | 7 = T |" in text
    assert (tmp_path / "tried" / "checkpoint.png").stat().st_size > 5_000


RESETS = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize("given_state", [False, True], ids=["zeros", "a state"])
@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("cell", CELLS)
def test_loops_do_what_the_option_does(cell, mode, given_state) -> None:
    row = Row(name="X", source="", T=5, I=4, H=6, B=3, given_state=given_state)
    case = Case(row=row, cell=cell, mode=mode, threads=1)
    data = make_data(case)
    sides = [
        loops.With(OURS.module(case), reset=RESETS),
        loops.StepByStep(TORCH_NN.module(case), reset=RESETS),
        *(loops.SplitAtResets(peer.module(case), RESETS) for peer in (TORCH_NN, OURS)),
    ]
    expected, *found = (step_of(case, side, data).results() for side in sides)
    for results in found:
        assert results.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (results[name] - tensor).abs().max() < 1e-5, name


@pytest.fixture
def briefly(tmp_path, monkeypatch):
    """What runs modifiers.py or cells.py on rows of a few steps, measured as briefly as can be."""
    monkeypatch.setattr(races, "RESULTS", tmp_path)
    monkeypatch.setattr(timing, "SAMPLE", 1e-4)
    monkeypatch.setattr(timing, "LEAD_IN", 0.0)
    monkeypatch.setattr(machine, "PEAK_SECONDS", 0.001)
    monkeypatch.setattr("gc.collect", lambda: 0)  # takes longer than all that is measured

    def run(module, words: str) -> tuple[int, dict, str]:
        rows = tuple(replace(row, T=6, I=8, H=8, B=5) for row in module.MEASURED)
        monkeypatch.setattr(module, "MEASURED", rows)
        status = module.main(f"--threads 1 --budget 0.001 --name tried {words}".split())
        file = tmp_path / "tried" / module.REPORT.name
        results = json.loads(file.with_suffix(".json").read_text())
        return status, results, file.with_suffix(".md").read_text()

    return run


@pytest.fixture
def tiny(briefly, monkeypatch):
    """modifiers.py, run so, with some resets."""
    monkeypatch.setattr(modifiers, "RESETS", (0.3, 0.1))
    return partial(briefly, modifiers)


def test_what_options_cost_and_what_loops_do(tiny, tmp_path) -> None:
    status, results, text = tiny("--rows D,R --cells lstm,rnn")
    assert status == 0 and results["failed"] == [] and "## Failed" not in text
    of_d = {"forward": 1, "train": 1 + len(modifiers.DROPOUTS) + 1}
    for cell in ("lstm", "rnn"):
        for mode, count in of_d.items():
            lines = [x for x in results["lines"] if (x["cell"], x["mode"]) == (cell, mode)]
            assert len([line for line in lines if line["row"] == "D"]) == count
            assert len([line for line in lines if line["row"] == "R"]) == 2 * 4
    for line in (
        "| R | LSTM | forward | reset, 0.3 | without |",
        "| R | RNN | forward + backward | reset, 0.1 | torch.nn.RNNCell for each step |",
        "| R | LSTM | forward | reset, 0.3 | torch.nn.LSTM, split at resets |",
        "| D | LSTM | forward + backward | input_dropout=0.25, dropout_mask='step' | without |",
        "| D | RNN | forward + backward | return_states | without |",
    ):
        assert line in text
    assert "| at most 1.05 |" in text and "| at least 5 |" in text
    words = "--rows R --cells gru --passes forward --threads 1 --budget 0.001 --name no --dry"
    assert modifiers.main(words.split()) == 0 and not (tmp_path / "no").exists()
    for wrong in (["--rows", "A"], ["--cells", "mgu"], ["--passes", "backward"]):
        with pytest.raises(SystemExit):
            modifiers.main(wrong)


def test_a_ratio_is_held_to_its_target() -> None:
    cost, worth = races.Target(at_most=1.15), races.Target(at_least=2)
    assert cost.ratio([3.0], [2.0]).median == 1.5 and worth.ratio([3.0], [6.0]).median == 2
    assert cost.met(1.15) and not cost.met(1.16) and worth.met(2) and not worth.met(1.9)
    assert races.Target().met(1.0) is None and str(races.Target()) == "-"


def test_a_loop_that_computes_something_else_is_not_timed(tiny, monkeypatch) -> None:
    """One that forgets the states' mask where only some sequences begin anew."""
    monkeypatch.setattr(loops, "_kept", lambda reset, like: torch.ones(*reset.shape, 1))
    status, results, text = tiny("--rows D,R --cells gru --passes forward")
    assert status == 1 and [line["row"] for line in results["lines"]] == ["D"]
    (failure,) = results["failed"]
    assert "R gru forward" in failure and "ParityError: output" in failure
    assert "torch.nn.GRUCell for each step" in failure and failure in text


class AllOfOneLength(loops.Padded):
    def __init__(self, network, lengths):
        super().__init__(network, torch.full_like(lengths, 6))


class StatesOneStepLate(loops.StepByStep):
    def forward(self, input, hx=None):
        output, hn, (hs, cs) = super().forward(input, hx)
        return output, hn, (hs, cs.roll(1, 1))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("Padded", AllOfOneLength, "lengths: ParityError: output"),
        ("StepByStep", StatesOneStepLate, "states: ParityError: cs"),
    ],
)
def test_lengths_and_states_are_checked(tiny, monkeypatch, name, wrong, message) -> None:
    monkeypatch.setattr(modifiers, name, wrong)
    status, results, _ = tiny("--rows I --cells lstm --passes train")
    assert status == 1 and len(results["failed"]) == 1 and message in results["failed"][0]
    assert len(results["lines"]) == len(modifiers.DROPOUTS) + 1


def test_a_dropout_that_draws_nothing_is_not_timed(tiny, monkeypatch) -> None:
    monkeypatch.setattr(modifiers, "DROPOUTS", ({"zoneout": 0.0},))
    status, results, _ = tiny("--rows J --cells rnn --passes train")
    assert status == 1 and len(results["lines"]) == 2
    assert "got the same twice" in results["failed"][0]


@pytest.fixture
def written(briefly, monkeypatch):
    """cells.py, run so, its first calls in this process."""
    monkeypatch.setattr(cells, "FIRST", Row(name="B", T=6, I=8, H=8, B=5))
    monkeypatch.setattr(
        first_call, "_child", lambda mode, *sizes, cache: first_call.parts(mode, *map(int, sizes))
    )
    programs = {name: cells.ZOO[name].program for name in cells.ROWS_OF}
    both = {name: dict.fromkeys(cells.OF_BUILT_IN, program) for name, program in programs.items()}
    monkeypatch.setattr(cells, "ways", both.get)
    return partial(briefly, cells)


def test_what_written_cells_reach(written, tmp_path, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(loops.MGU, "compile", lambda loop, **_: compiled.append(loop))
    status, results, text = written("--rows A,B,C,J --compile")
    assert status == 0 and results["failed"] == [] and "## Failed" not in text
    loop, compiler = "a loop over the steps", "the loop, torch.compile (0 s to compile)"
    races = [
        *((row, "lstm", "fusedrnn.LSTM") for row in "ABJ"),
        *((row, "gru", "fusedrnn.GRU") for row in "ABJ"),
        ("A", "mgu", loop), ("B", "mgu", loop), ("B", "mgu", compiler), ("C", "mgu", loop),
    ]  # fmt: skip
    sides = [
        (row, f"{cell}, {way}", other)
        for row, cell, other in races
        for way in ("interpreted", "compiled")
    ]
    for mode in ("forward", "train"):
        lines = [line for line in results["lines"] if line["mode"] == mode]
        assert [(line["row"], line["option"], line["other"]) for line in lines] == sides
    assert len(compiled) == 2
    for found, mode in zip(results["first_calls"], ("forward", "train"), strict=True):
        assert (found["mode"], found["processes"]) == (mode, first_call.PROCESSES)
        assert [*found["seconds"]] == [*first_call.PARTS, "cached"]
        assert min(found["seconds"].values()) > 0
    for line in (
        "| J | GRU | forward + backward | gru, interpreted | fusedrnn.GRU |",
        "| A | MGU | forward | mgu, compiled | a loop over the steps |",
        "## Defining a cell (the MGU) and calling it, row B: T6 I8 H8 B5",
    ):
        assert line in text
    for target in ("| at least 0.95 |", "| at least 0.98 |", "| at least 8 |", "| at most 1 and"):
        assert target in text
    words = "--rows K --passes forward --threads 1 --budget 0.001 --name no --dry"
    assert cells.main(words.split()) == 0 and not (tmp_path / "no").exists()
    for wrong in (["--rows", "R"], ["--cells", "rnn"], ["--passes", "backward"]):
        with pytest.raises(SystemExit):
            cells.main(wrong)


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("cell", cells.ROWS_OF)
def test_written_cells_and_what_they_race_against_agree(cell, mode, monkeypatch) -> None:
    found = {}
    monkeypatch.setattr(cells, "check_same", lambda ours, others: found.update(ours=ours, **others))
    row = Row(name="A", T=5, I=4, H=6, B=3)
    case = Case(row=row, cell=cell, mode=mode, threads=1)
    (race,) = [*cells.against_built_in(case), *cells.against_loop(case)]
    ours, other = (step.results() for step in found.values())
    ways = ["interpreted"] if os.environ["FUSEDRNN_CELL_COMPILE"] == "0" else [*cells.OF_BUILT_IN]
    assert [*race.sides][:-1] == [f"{cell}, {way}" for way in ways]
    assert ours.keys() == other.keys()
    for name, tensor in other.items():
        assert (ours[name] - tensor).abs().max() < 1e-5, name


class TwiceItsOutput(loops.MGU):
    def forward(self, input, hx=None):
        output, h = super().forward(input, hx)
        return 2 * output, h


def refuse_to_start(*arguments, **options):
    raise RuntimeError("it would not")


def test_a_written_cell_is_not_timed_against_something_else(written, monkeypatch) -> None:
    monkeypatch.setattr(cells, "MGU", TwiceItsOutput)
    monkeypatch.setattr(first_call, "_child", refuse_to_start)
    status, results, text = written("--rows A --cells mgu,gru --passes forward")
    assert status == 1 and {line["cell"] for line in results["lines"]} == {"gru"}
    first, loop = results["failed"]
    assert first == "first call, forward: RuntimeError: it would not" and first in text
    assert "A mgu forward" in loop and "ParityError: output" in loop and loop in text
    assert "a loop over the steps" in loop


class InOrder(ThreadPoolExecutor):
    """One thing after the other."""

    def __init__(self, *_: object) -> None:
        super().__init__(1)


def test_a_run_and_its_report(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(f"a\n{report.BEGIN}\nold\n{report.END}\nb\n")
    words = "--rows A,R --threads 1 --dtypes float32 --budget 0.05 --no-memory --name tried".split()
    assert command.main(words) == 0
    assert "takes no `reset`" in capsys.readouterr().out
    results = json.loads((tmp_path / "tried" / "results.json").read_text())
    assert len(results["cases"]) == 6 and len(results["skipped"]) == 6
    text = (tmp_path / "tried" / "report.md").read_text()
    assert "| stock A | T7 I5 H10 B32 | LSTM | forward |" in text and "Skipped" in text
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
    for wrong in (["--rows", "nothing"], ["--peers", "nobody"], ["--dtypes", "int4"]):
        with pytest.raises(SystemExit):
            command.main(wrong)
