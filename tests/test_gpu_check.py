"""tools/gpu_check.sh without a GPU: its machinery on items that take no time, hang or die, and the
whole of it on stand-ins.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cuda_emulation import backend as emulated

from benchmarks import complaints, gpu, gpu_report, probes, walks
from benchmarks.workloads import GPU_ROWS, ROWS, cases
from fusedrnn.testing import timing
from tools.gpu_check import __main__ as command
from tools.gpu_check import problems, serve, stages, worker
from tools.gpu_check.channel import Skip
from tools.gpu_check.device import Device
from tools.gpu_check.report import Report
from tools.gpu_check.scheduler import NUMBER, Item, Pool, Scheduler, Stage

ROOT = Path(__file__).resolve().parents[1]
needs_emulation = pytest.mark.skipif(bool(emulated.missing()), reason=emulated.missing())

# A worker that imports nothing but the channel.
SMALL_WORKER = """
import os, sys, time
from tools.gpu_check.channel import connect
channel = connect(sys.argv[1], int(sys.argv[2]))
for message in channel.messages():
    item = message["item"]
    given, kind = item["arguments"], item["kind"]
    said = {"status": "passed", "found": {"by": os.getpid()}}
    if kind == "sleep":
        time.sleep(given["seconds"])
    elif kind == "die":
        print("why it died", flush=True)
        os._exit(7)
    elif kind == "fail":
        said = {"status": "failed", "why": "one is not two"}
    elif kind == "build":
        said |= {"retire": "pool"}
    elif kind == "stranger":
        other = connect(sys.argv[1], 12345)
    elif kind == "collect":
        slow = {"kind": "sleep", "arguments": {"seconds": 0.3}}
        said |= {"more": [{"name": name, **slow} for name in given["names"]]}
    channel.send({"end": item["name"], **said})
"""
SMALL = Pool([sys.executable, "-c", SMALL_WORKER])


def sleeps(name: str, seconds: float = 0.0, limit: float = 20.0, **more: Any) -> Item:
    return Item(name, "sleep", {"seconds": seconds}, seconds=0.0, limit=limit, **more)


def stage(name: str, *items: Item, seconds: float = 20.0, **more: Any) -> Stage:
    return Stage(name, seconds, lambda: list(items), "a clock", **more)


def run(
    out: Path, *chosen: Stage, total: float = 60.0, pool: Pool = SMALL
) -> tuple[bool, dict[str, Any]]:
    report = Report(out, about={"stand_in": "a test"})
    with Scheduler(report, {"device": pool}) as scheduler:
        passed = scheduler.run(chosen, time.monotonic() + total)
    content = json.loads((out / "report.json").read_text())
    assert (out / "report.md").read_text() == gpu_report.markdown(content)
    return passed, content


def statuses(content: dict[str, Any], name: str) -> dict[str, str]:
    return {item["name"]: item["status"] for item in content["stages"][name]["items"]}


# ---- What becomes of an item --------------------------------------------------------------------


def test_what_passes_and_what_fails(tmp_path: Path) -> None:
    one, two = stage("one", sleeps("a"), Item("b", "fail")), stage("two", sleeps("c"))
    passed, content = run(tmp_path, one, two)
    assert not passed
    assert statuses(content, "one") == {"a": "passed", "b": "failed"}
    assert [s["status"] for s in content["stages"].values()] == ["failed", "passed"]
    text = (tmp_path / "report.md").read_text()
    assert (
        "| one | failed |" in text and "one is not two" in text and "Measured by: a clock" in text
    )
    passed, _ = run(tmp_path, two, replace(one, gate=False))
    assert passed, "a stage that is told only does not count"


def test_a_hung_item_costs_its_limit_and_its_worker(tmp_path: Path) -> None:
    begin = time.monotonic()
    _, content = run(tmp_path, stage("s", sleeps("a"), sleeps("b", 60, limit=0.4), sleeps("c")))
    assert time.monotonic() - begin < 20
    assert statuses(content, "s") == {"a": "passed", "b": "hung", "c": "passed"}
    first, hung, last = content["stages"]["s"]["items"]
    assert hung["why"] == "ended after 0.4 s" and first["found"] != last["found"]
    with pytest.raises(ProcessLookupError):
        os.kill(first["found"]["by"], 0)


def test_a_worker_that_dies_is_told_with_its_last_lines(tmp_path: Path) -> None:
    _, content = run(tmp_path, stage("s", Item("a", "die"), sleeps("b")))
    assert statuses(content, "s") == {"a": "died", "b": "passed"}
    died = content["stages"]["s"]["items"][0]
    assert died["why"] == "its process ended with status 7"
    assert died["found"]["last lines"] == ["why it died"]
    assert "why it died" in (tmp_path / "report.md").read_text()


def test_three_lost_of_a_group_are_enough(tmp_path: Path) -> None:
    lost = [Item(f"lost {i}", "die", group="cluster") for i in range(5)]
    _, content = run(tmp_path, stage("s", *lost, sleeps("other", group="block")))
    assert [*statuses(content, "s").values()].count("died") == 3
    assert statuses(content, "s")["lost 4"] == "not run"
    assert statuses(content, "s")["other"] == "passed"


def test_a_worker_that_does_not_start(tmp_path: Path) -> None:
    for program in ("false", "no-such-program"):
        _, content = run(tmp_path, stage("s", sleeps("a")), pool=Pool([program]))
        assert statuses(content, "s") == {"a": "not run"}
        assert "does not start" in content["stages"]["s"]["items"][0]["why"]
    assert "no-such-program" in (tmp_path / "check.log").read_text()


def test_a_hello_from_a_worker_that_was_ended_is_not_heard(tmp_path: Path) -> None:
    passed, content = run(tmp_path, stage("s", Item("a", "stranger"), sleeps("b", 0.3)))
    assert passed, statuses(content, "s")


def test_workers_that_were_there_before_a_build_are_replaced(tmp_path: Path) -> None:
    pool = replace(SMALL, spare=True, kept=True)
    chosen = [
        stage("one", sleeps("a", 0.3), Item("b", "build"), sleeps("c")),
        stage("two", sleeps("d")),
    ]
    _, content = run(tmp_path, *chosen, pool=pool)
    a, b, c = (item["found"]["by"] for item in content["stages"]["one"]["items"])
    assert a == b != c
    assert content["stages"]["two"]["items"][0]["found"]["by"] == c, "kept for the next stage"


def test_items_that_an_item_finds_run_at_once_on_several_workers(tmp_path: Path) -> None:
    found = stage("s", Item("collecting", "collect", {"names": ["x", "y", "z"]}))
    _, content = run(tmp_path, found, pool=replace(SMALL, workers=3))
    assert statuses(content, "s") == dict.fromkeys(("collecting", "x", "y", "z"), "passed")
    assert len({item["found"]["by"] for item in content["stages"]["s"]["items"][1:]}) > 1


# ---- Time ---------------------------------------------------------------------------------------


def test_stages_share_the_time_that_is_left(tmp_path: Path) -> None:
    slow = [sleeps(f"{i}", 0.25) for i in range(20)]
    chosen = [stage("one", *slow, seconds=30), stage("two", *slow, seconds=60)]
    begin = time.monotonic()
    passed, content = run(tmp_path, *chosen, total=3.0)
    assert not passed and time.monotonic() - begin < 10
    assert [s["status"] for s in content["stages"].values()] == ["did not finish"] * 2
    assert 0.8 < content["stages"]["one"]["budget"] <= 1.0
    assert 1.0 < content["stages"]["two"]["budget"] <= 2.1
    for name in ("one", "two"):
        counts = Counter(statuses(content, name).values())
        assert counts["passed"] and counts["not run"] and sum(counts.values()) == 20
    assert "Not run, the time was over: " in (tmp_path / "report.md").read_text()


def test_nothing_runs_after_a_stage_that_all_depends_on(tmp_path: Path) -> None:
    first = stage("library", Item("a", "fail"), required=True)
    _, content = run(tmp_path, first, stage("ways", sleeps("b")))
    assert content["stages"]["ways"]["status"] == "not run"
    assert content["notes"] == ["library failed, nothing after it was run"]


def test_a_stage_that_cannot_be_made_does_not_end_the_others(tmp_path: Path) -> None:
    def broken() -> Any:
        raise ImportError("no module named peers")

    chosen = [Stage("one", 5, broken, "nothing"), stage("two", sleeps("a"), finish=broken)]
    passed, content = run(tmp_path, *chosen, stage("three", sleeps("b")))
    assert not passed
    assert [s["status"] for s in content["stages"].values()] == ["failed", "failed", "passed"]
    text = (tmp_path / "report.md").read_text()
    assert text.count("ImportError: no module named peers") == 2


@pytest.mark.parametrize("name", stages.NAMES)
def test_a_report_whatever_became_of_a_stage(name: str) -> None:
    def report(item: dict[str, Any]) -> str:
        told = {"status": "failed", "gate": True, "seconds": 1.0, "budget": 2.0,
                "measured_by": "a clock", "found": {}, "items": [item]}  # fmt: skip
        return gpu_report.markdown({
            "state": 1, "seconds": 1.0, "stand_in": None, "notes": [], "machine": {},
            "stages": {name: told},
        })  # fmt: skip

    not_made = {"name": "what there is to do", "status": "failed", "seconds": 0.0, "why": "it tore"}
    text = report(not_made)
    assert "it tore" in text and "could not be made" not in text
    odd = {"name": "a b c", "status": "passed", "seconds": 0.1, "found": {"sides": 7, "walks": 7}}
    assert f"| {name} | failed |" in report(odd)


# ---- Ends from outside --------------------------------------------------------------------------

TINY_CHECK = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from tools.gpu_check.__main__ import interrupted, signal
from tools.gpu_check.report import Report
from tools.gpu_check.scheduler import Item, Pool, Scheduler, Stage
signal.signal(signal.SIGTERM, interrupted)
pool = Pool([sys.executable, "-c", {SMALL_WORKER!r}], workers=2)
def stage(number):
    seconds = [float(sys.argv[2]) * (i % 3) for i in range(40)]
    items = [Item(f"{{number}}.{{i}}", "sleep", {{"seconds": s}}) for i, s in enumerate(seconds)]
    return Stage(f"stage {{number}}", 10, lambda: items, "a clock")
report = Report(Path(sys.argv[1]), every=0.05, about={{"stand_in": "a test"}})
try:
    with Scheduler(report, {{"device": pool}}) as scheduler:
        scheduler.run([stage(i) for i in range(20)], time.monotonic() + 60)
except KeyboardInterrupt:
    report.note("interrupted")
"""


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Waits for a condition; whether it came true."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def start_tiny_check(out: Path, seconds: float = 0.01) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", TINY_CHECK, str(out), str(seconds)], env=environment,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert until((out / "report.json").exists)
    return process


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_a_random_moment_it_keeps_what_it_had_found(tmp_path: Path, seed: int) -> None:
    process = start_tiny_check(tmp_path)
    log = tmp_path / "check.log"
    assert until(lambda: bool(re.search(r"written: state \d+, [1-9]", log.read_text())))
    time.sleep(random.Random(seed).uniform(0, 0.7))
    process.kill()
    process.wait()
    content = json.loads((tmp_path / "report.json").read_text())
    text = (tmp_path / "report.md").read_text()
    written = re.search(r"- state (\d+), ", text)
    assert written is not None
    # Killed between the two, the Markdown is one state ahead.
    assert int(written[1]) - content["state"] in (0, 1)
    if int(written[1]) == content["state"]:
        assert text == gpu_report.markdown(content)
    kept = {
        item["name"]: item["status"]
        for found in content["stages"].values()
        for item in found["items"]
    }
    # Everything that the log says had been found when this state, or the one before, was written.
    logged = log.read_text()
    marks = [*re.finditer(r"written: state (\d+), (\d+) items", logged)]
    assert content["state"] - int(marks[-1][1]) in (0, 1)
    before = logged[: marks[-1].start()]
    told = dict(re.findall(r"stage \d+: (\d+\.\d+): (\w+) in", before))
    assert len(told) >= int(marks[-1][2]) > 0
    assert told.items() <= kept.items()


def is_running(pid: str) -> bool:
    try:
        state = Path("/proc", pid, "stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_killed_it_leaves_no_worker_running(tmp_path: Path) -> None:
    process = start_tiny_check(tmp_path, seconds=60)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    log = tmp_path / "check.log"
    assert until(lambda: "0.0: passed" in log.read_text())  # so both are at items of a minute
    workers = children.read_text().split()
    assert len(workers) == 2
    process.kill()
    process.wait()
    assert until(lambda: not any(map(is_running, workers)))


def test_a_check_that_fails_itself_keeps_what_it_had_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: Scheduler, *given: Any) -> bool:
        self.report.content["machine"] = {"gpu": "found before"}
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(Scheduler, "run", run)
    with pytest.raises(ValueError, match="a mistake"):
        command.main([str(tmp_path), "machine", "--stand-in=cpu"])
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["notes"] == ["the check itself failed: ValueError: a mistake of ours"]
    assert content["machine"] == {"gpu": "found before"}


def test_a_polite_end_leaves_a_note(tmp_path: Path) -> None:
    process = start_tiny_check(tmp_path)
    process.terminate()
    process.wait(30)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["notes"] == ["interrupted"]
    assert (tmp_path / "report.md").read_text() == gpu_report.markdown(content)


# ---- Workers ------------------------------------------------------------------------------------


def test_what_a_worker_says_of_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(device: Device, how: str) -> Any:
        if how == "found":  # what a benchmark keeps of its own failures
            return {"status": "failed", "why": "it tore", "found": {"row": "g1"}}
        if how == "skip":
            raise Skip("there is none here")
        assert how != "fail", "one is not two"
        return {"found": {"answer": 42}}

    def serve_one(how: str) -> Any:
        item = {"name": "a", "kind": "k", "arguments": {"how": how}}
        return worker.serve_one({"k": kind}, item, Device("cpu"))

    assert serve_one("pass") == {"status": "passed", "found": {"answer": 42}}
    assert serve_one("skip") == {"status": "skipped", "why": "there is none here"}
    failed = serve_one("fail")
    assert failed["status"] == "failed" and "retire" not in failed
    assert failed["why"].startswith("AssertionError: one is not two")

    def synchronize(self: Device) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(Device, "synchronize", synchronize)
    failed = serve_one("fail")
    assert failed["retire"] == "worker"
    assert failed["why"].endswith("spoiled: an illegal memory access was encountered")
    failed = serve_one("found")
    assert failed["retire"] == "worker" and failed["found"] == {"row": "g1"}
    assert serve_one("pass")["status"] == "passed"  # asks nothing of the device


FEEDER = f"""
import sys
import pytest
sys.path.insert(0, {str(ROOT)!r})
from tools.gpu_check.device import Device
from tools.gpu_check.worker import Feeder
spoiled = Device("cpu")
def synchronize(self):
    import test_some
    if test_some.SPOILED:
        raise RuntimeError("spoiled")
Device.synchronize = synchronize
feeder = Feeder(sys.argv[1], int(sys.argv[2]), spoiled)
options = ["-q", "-p", "no:cacheprovider", "test_broken.py", "test_some.py"]
raise SystemExit(pytest.main(options, plugins=[feeder]))
"""


def test_tests_are_fed_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_some.py").write_text(
        "import time, pytest\n"
        "SPOILED = False\n"
        "def test_good(): assert True\n"
        "def test_bad(): assert 1 == 2, 'one is not two'\n"
        "@pytest.mark.skip(reason='no')\n"
        "def test_left_out(): pass\n"
        "def test_spoils():\n"
        "    global SPOILED\n"
        "    SPOILED = True\n"
        "    assert False, 'an illegal memory access'\n"
        "def test_after(): assert not SPOILED\n"
    )
    (tests / "test_broken.py").write_text("import no_such_module\n")
    command = ["env", "-C", str(tests), sys.executable, "-c", FEEDER]
    collect = stage("tests", Item("collecting", "collect"))
    plain = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    _, content = run(tmp_path / "out", collect, pool=Pool(command, environment=plain))
    found = {name.partition("::")[2]: s for name, s in statuses(content, "tests").items()}
    assert found.pop("") == "failed"  # the collecting
    why = content["stages"]["tests"]["items"][0]["why"]
    assert "test_broken.py" in why and "no_such_module" in why.splitlines()[0]
    assert found == {
        "test_good": "passed", "test_bad": "failed", "test_left_out": "skipped",
        "test_spoils": "failed", "test_after": "passed",
    }  # fmt: skip
    text = (tmp_path / "out" / "report.md").read_text()
    assert "one is not two" in text and "test_good" not in text


def test_tests_of_a_function_are_a_group() -> None:
    names = ["tests/test_a.py::f[1]", "tests/test_a.py::f[2]", "tests/test_cuda.py::g"]
    session = SimpleNamespace(items=[SimpleNamespace(nodeid=name) for name in names])
    said = worker.Feeder("", 1, Device("cpu"))._collected(session)
    groups = {item["name"]: Item(**item).group for item in said["more"]}
    assert list(groups.items()) == [
        (names[2], names[2]), (names[0], "tests/test_a.py::f"), (names[1], "tests/test_a.py::f"),
    ]  # fmt: skip


def test_what_a_sanitizer_found() -> None:
    clean = stages.sanitizer_findings("========= ERROR SUMMARY: 0 errors\n")
    assert clean == {"summary": ["0 errors"]}
    clean = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    assert "status" not in stages.sanitizer_findings(clean)
    found = stages.sanitizer_findings(
        "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 1 error\n"
    )
    assert found["status"] == "failed" and "Invalid" in found["first reports"][0]
    assert stages.sanitizer_findings("cut short")["status"] == "did not finish"


def test_what_a_sanitizer_found_of_all_its_workers(tmp_path: Path) -> None:
    """The first was ended at an item that hung; what it had found counts."""
    device = Device("cuda")
    (word,) = (w for w in stages.sanitizer("memcheck", tmp_path, {}).command if "--log" in w)
    first, second = (Path(word.partition("=")[2].replace(NUMBER, n)) for n in ("9", "10"))
    first.write_text("========= Misaligned address\n")
    second.write_text("========= ERROR SUMMARY: 0 errors\n")
    (tmp_path / "check.log").write_text("before\n")
    found = stages.finish(device, tmp_path, "memcheck")()
    assert found["status"] == "failed" and found["summary"] == ["0 errors"]
    assert [path.name for path in tmp_path.iterdir()] == ["check.log"]
    assert "Misaligned" in (tmp_path / "check.log").read_text()
    assert stages.finish(device, tmp_path, "memcheck")()["status"] == "did not finish"


def test_a_stage_is_as_bad_as_the_worst_of_it(tmp_path: Path) -> None:
    def found() -> dict[str, Any]:
        return {"status": "did not finish", "by": "a sanitizer"}

    chosen = [
        stage("failed", Item("a", "fail"), finish=found),
        stage("did not finish", sleeps("a"), finish=found),
    ]
    _, content = run(tmp_path, *chosen)
    assert {name: s["status"] for name, s in content["stages"].items()} == {
        "failed": "failed", "did not finish": "did not finish",
    }  # fmt: skip


# ---- What is checked ----------------------------------------------------------------------------


def test_gpu_rows() -> None:
    names = [row.name for row in GPU_ROWS]
    assert len(set(names)) == len(names) and not set(names) & {row.name for row in ROWS}
    assert {row.letter for row in GPU_ROWS} == {f"g{i}" for i in range(1, 22)}
    assert all(row.device == "cuda" for row in GPU_ROWS)
    chosen = cases(GPU_ROWS, threads=[1])
    assert {case.dtype for case in chosen} == {"float32", "tf32", "bfloat16", "float16"}
    assert {case.row.name for case in chosen if case.mode == "replay"} == {"g17"}
    assert not [c for c in chosen if c.mode == "train" and c.row.name in ("g12", "g17")]


def test_the_order_of_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["unused", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not Path("unused").exists()
    names = re.findall(r"^ +[\d.]+  (\w+), at most", shown, re.MULTILINE)
    assert names == [*stages.NAMES]
    forward = shown[shown.index("  forward, ") : shown.index("  training, ")]
    letters = [*dict.fromkeys(re.findall(r" (g\d+)[ -]", forward))]
    assert letters == gpu.ORDER and len(letters) == 21
    seconds = re.findall(r"^ +([\d.]+)  \w+, at most (\d+) s", shown, re.MULTILINE)
    assert sum(float(expected) for expected, _ in seconds) < command.TOTAL
    assert abs(sum(int(most) for _, most in seconds) - command.TOTAL) < 10
    with pytest.raises(SystemExit):
        command.main(["unused", "walks", "--dry-run"])
    assert "expected some of machine, library" in capsys.readouterr().err


def test_the_ways_and_the_watched_problems() -> None:
    ways = problems.ways()
    names = {(way["team"], way["cell"], way["arithmetic"]) for way in ways}
    assert len(names) == len(ways)
    assert ways[0] == {"team": "cluster", "cell": "lstm", "arithmetic": "bf16"}
    assert {("block", "gru", "tf32"), ("stepwise", "gru_reset_before", "fp64")} <= names
    assert ("cluster", "gru_reset_before", "bf16") not in names  # two stages: no team walks it
    watched = problems.watched()
    assert len(watched) == 40
    for key in ("plan", "dtype", "cell", "both", "packed"):
        assert len({problem[key] for problem in watched}) > 1, key
    assert any(problem["proj_size"] for problem in watched)


def test_the_walks_of_the_gpu_rows(tmp_path: Path) -> None:
    """Predictions without a GPU; with one, the same code measures."""
    rows = [row for row in GPU_ROWS if row.name in ("g5", "g10", "g17")]
    results = walks.run(rows, tmp_path, budget=0.0, every=False)
    assert json.loads((tmp_path / "walks.json").read_text()) == results
    found = {(w["row"], w["cell"], w["dtype"], w["pass"]): w for w in results["walks"]}
    assert len(found) == len(results["walks"]) == 2 * (4 + 2) + 2  # g17 has no backward
    speech = found["g5", "lstm", "bfloat16", "forward"]
    assert speech["team"] == "cluster" and speech["blocks"] * speech["units"] == 512
    assert found["g10", "lstm", "tf32", "backward"]["team"] == "stepwise"
    text = (tmp_path / "walks.md").read_text()
    assert f"| forward | cluster | {speech['blocks']} | {speech['units']} |" in text
    assert f"| {speech['step_ns']:.0f} |" in text


@pytest.mark.parametrize(
    ("teams", "steps"),
    [
        (("cluster", "cluster"), (3, 4)),
        (("cluster", "stepwise"), (3, 4 + 5)),
        (("stepwise", "stepwise"), (6, 6)),
    ],
)
def test_a_step_is_of_a_walks_kernels_or_of_all_others(
    monkeypatch: pytest.MonkeyPatch, teams: tuple[str, str], steps: tuple[float, float]
) -> None:
    case = next(c for c in cases(GPU_ROWS, threads=[1]) if c.row.name == "g5")
    a_step = walks.CALLS * case.row.T * case.row.layers * 1e-9
    seconds = {"fusedrnn::walk_forward<A>": 3, "walk_backward<A>": 4, "gemm": 5}
    events = {name: gpu.Event(1, s * a_step) for name, s in seconds.items()}
    monkeypatch.setattr(gpu, "traced", lambda *given, **more: events)
    monkeypatch.setattr(walks, "make_data", lambda case: None)
    monkeypatch.setattr(walks, "OURS", SimpleNamespace(build=lambda *given: None))
    found = [{"pass": p, "team": team} for p, team in zip(walks.KERNELS, teams, strict=True)]
    walks.measure(case, found)
    assert [walk["measured_ns"] for walk in found] == pytest.approx(steps)


def test_the_other_teams_of_a_row() -> None:
    by_row = {case.row.name: case for case in cases(GPU_ROWS, threads=[1])}
    asked = list(walks.alternatives(by_row["g5"]))
    assert asked[:2] == ["team=stepwise", "team=block"] and "team=cluster,blocks=16" in asked
    assert len(set(asked)) == len(asked)
    small = list(walks.alternatives(by_row["g3"]))  # 64 units, and 16 in a block at least
    assert small[2:] == [f"team=cluster,blocks={n}" for n in (2, 4)]


# ---- On stand-ins -------------------------------------------------------------------------------


def test_all_of_it_on_a_stand_in(tmp_path: Path) -> None:
    """From start to end, on the CPU's own kernels; the tests' own worker is left out."""
    chosen = [name for name in stages.NAMES if name != "tests"]
    given = [str(tmp_path), *chosen, "--stand-in=cpu", "--items=1"]
    code = command.main(given)
    content = json.loads((tmp_path / "report.json").read_text())
    text = (tmp_path / "report.md").read_text()
    assert text == gpu_report.markdown(content)
    assert "ran on a stand-in, the CPU's own kernels" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "check.log", "report.json", "report.md",
    ]  # fmt: skip
    found = {name: stage_["status"] for name, stage_ in content["stages"].items()}
    skipped = ("occupancy", "ceilings", "probes")
    assert found == {n: "skipped" if n in skipped else "passed" for n in chosen}, text
    assert code == 0
    assert re.search(r"\| g7 \| T3 I8 H24 B4 \| lstm \| forward \| float16 \| [\d.]+ \|", text)
    with pytest.raises(SystemExit):
        gpu_report.main([str(tmp_path / "report.json")])


def test_a_stand_in_replays_no_graphs() -> None:
    with pytest.raises(Skip, match="no CUDA graphs"):
        serve.timed(
            Device("cpu"), seconds=0.1, row="g17", cell="lstm", mode="replay", dtype="float32"
        )


def test_a_gpu_is_needed_where_none_stands_in(tmp_path: Path) -> None:
    if serve.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="no NVIDIA GPU found"):
        serve.machine(Device("cuda"))


@needs_emulation
def test_the_emulation_stands_in() -> None:
    device = Device("emulation")
    clusters = serve.occupancy(device)["found"]["clusters at once"]
    assert list(clusters) == [str(n) for n in range(2, 17)] and clusters["16"] == 8
    with emulated.installed():  # puts the CPU's kernels back
        for team in ("cluster", "stepwise"):
            found = serve.way(device, team=team, cell="gru", arithmetic="bf16")["found"]
            assert found["part of the allowed error"] <= 1
        with pytest.raises(AssertionError, match="asked for team=cluster"):
            serve.way(device, team="cluster", cell="gru", arithmetic="fp64")
        serve.problem(device, **problems.watched()[3])


@needs_emulation
@pytest.mark.parametrize("probe", probes.all_probes(emulated=True), ids=lambda probe: probe["name"])
def test_probes_run_to_their_end(probe: dict[str, Any]) -> None:
    """What they move and compute is checked by themselves; their figures mean nothing here."""
    found = probes.run(probe, emulated=True)
    assert all(value > 0 for value in found.values())


def test_probes_compile_for_hopper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    monkeypatch.setattr(probes, "LIBRARY", tmp_path / "libprobes.so")
    assert probes.digest().encode() in probes.build().read_bytes()


@pytest.mark.parametrize("name", ["evaluation mode, backward", "resets"])
def test_complaints_hold_for_others_and_not_for_ours(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "SAMPLE", 1e-3)  # figures of which nothing is asked
    monkeypatch.setattr(timing, "LEAD_IN", 0.0)
    found = complaints.run(name, "cpu", small=True)
    assert found["sides"]["fusedrnn"]["median"] > 0
    others = [side for side in found["sides"] if side != "fusedrnn"]
    assert others and all(found["sides"][side].keys() & {"error", "ratio"} for side in others)


# ---- The report that is kept --------------------------------------------------------------------


def test_a_report_is_kept_among_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = {"median": 2e-3, "low": 1e-3, "high": 3e-3}
    ratio = {"torch.nn": {"median": 2.5, "low": 2.0, "high": 3.0}}
    case = {
        "row": "g8", "sizes": "T1024 I768 H768 B16", "cell": "lstm", "mode": "train",
        "dtype": "bfloat16", "flops": 10**9, "sides": {"fusedrnn": side, "torch.nn": side},
        "ratios": ratio,
    }  # fmt: skip
    training = {
        "status": "failed", "gate": True, "seconds": 3.0, "budget": 9.0, "measured_by": "a clock",
        "found": {}, "items": [
            {"name": "g8 lstm train, bfloat16", "status": "passed", "seconds": 1, "found": case},
            {"name": "g9 lstm train, bfloat16", "status": "failed", "seconds": 1, "why": "it tore"},
            {"name": "g21 rnn train", "status": "not run", "seconds": 0, "why": "time was over"},
        ],
    }  # fmt: skip
    content = {
        "state": 3, "seconds": 8.0, "stand_in": None, "notes": [], "stages": {"training": training},
        "machine": {"gpu": "NVIDIA H200", "date": "2026-12-01T10:00:00"},
    }  # fmt: skip
    given = tmp_path / "report.json"
    given.write_text(json.dumps(content))
    monkeypatch.setattr(gpu_report, "RESULTS", tmp_path / "results")
    assert gpu_report.main([str(given)]) == 0
    folder = tmp_path / "results" / "gpu-2026-12-01-h200"
    assert json.loads((folder / "report.json").read_text()) == content
    text = (folder / "report.md").read_text()
    assert "| g8 | T1024 I768 H768 B16 | lstm | train | bfloat16 | 2 | 2 | 2.50 | 2.00 to" in text
    assert "behind torch.nn" not in text
    for words in ("it tore", "Not run, time was over: g21 rnn train", "2.50 of 1", "NVIDIA H200"):
        assert words in text


def test_a_library_built_elsewhere_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built, here = tmp_path / "built", tmp_path / "here"
    (built / "lib").mkdir(parents=True)
    (here / "fusedrnn").mkdir(parents=True)
    monkeypatch.setattr(command, "ROOT", here)
    with pytest.raises(SystemExit):
        command.main(["unused", "--dry-run", "--library", str(built)])
    assert "--library: expected _C*.so and lib/libfusedrnn.so in" in capsys.readouterr().err
    for name in ("_C.cpython-312-x86_64-linux-gnu.so", "lib/libfusedrnn.so"):
        (built / name).write_text(name)
    command.take_library(built)
    command.take_library(here / "fusedrnn")  # it is there already
    for name in ("_C.cpython-312-x86_64-linux-gnu.so", "lib/libfusedrnn.so"):
        assert (here / "fusedrnn" / name).read_text() == name


def test_it_begins_where_fusedrnn_does_not_load() -> None:
    modules = "__main__", "serve", "stages", "worker"
    # A torch of nothing: what begins may import it, and it takes seconds.
    code = "import sys, types\nsys.modules['torch'] = types.ModuleType('torch')\n"
    code += "import benchmarks.machine\n"
    code += "\n".join(f"import tools.gpu_check.{name}" for name in modules)
    code += "\nassert 'fusedrnn' not in sys.modules, sorted(sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_the_command_says_what_it_takes_from_the_folder_where_it_is_called(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        [str(ROOT / "tools" / "gpu_check.sh"), "out", "--library=built"], capture_output=True,
        text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and "--stand-in" in done.stderr
    assert f"libfusedrnn.so in {tmp_path / 'built'}" in done.stderr
