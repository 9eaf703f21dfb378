"""Ways are checked before they are used: planted faults of all kinds, and records of all kinds.

The devices are emulated (cuda_emulation). Most children are scripts of what a child would say.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import written_cells
from cuda_emulation import backend as emulated
from emulated_gpu import KIND, EmulatedGpu, Said, Script, agreeing, busy, but, checked_by
from emulated_ways import override_of
from processes import in_a_process

import fusedrnn
from fusedrnn._engine import ops, record, ways
from fusedrnn._engine.cache import Unusable
from fusedrnn._engine.layer_shapes import LayerShape
from fusedrnn._engine.record import Kind, Record
from fusedrnn._engine.ways import Ended, Unavailable, Verdict, Way, Ways
from fusedrnn.cells import CELLS
from fusedrnn.command_line import main, verify
from fusedrnn.testing import ways as child

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=emulated.missing())

BLOCK = Way("lstm", "block", "float32", "forward")
STEPWISE = Way("lstm", "stepwise", "float32", "forward")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; nothing was said."""
    monkeypatch.setenv("FUSEDRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FUSEDRNN_CHECK", raising=False)
    monkeypatch.setattr(record, "_said", [])
    return tmp_path / "cache"


STEPS = 30  # stepwise, each is a launch at least; a walk is one


def call(cell: str = "LSTM", dtype: torch.dtype = torch.float32, time: int = STEPS) -> None:
    module = getattr(fusedrnn, cell)(3, 20).to(dtype)
    with torch.no_grad():
        module(torch.randn(time, 2, 3, dtype=dtype))


def launches_of_a_call(
    cell: str = "LSTM", dtype: torch.dtype = torch.float32, time: int = STEPS
) -> int:
    before = emulated.load().fusedrnn_emulation_launches()
    call(cell, dtype, time)
    after: int = emulated.load().fusedrnn_emulation_launches()
    return after - before


def entries(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("gpu-*.json")
    found: dict[str, Any] = json.loads(file.read_text())["ways"]
    return found


# ---- What a check is ----------------------------------------------------------------------------


@pytest.mark.thorough  # of some, the tests below see it
@pytest.mark.parametrize("cell", [cell.name for cell in CELLS])
def test_every_way_agrees(cell: str) -> None:
    with emulated.installed() as emulation:
        for way in ways.ways_of([cell]):
            verdict = child.judge(way, "cpu", override_of(emulation))
            assert verdict == Verdict("agreed"), way


def test_the_ways_of_a_cell() -> None:
    of_lstm, of_other = ways.ways_of(["lstm"]), ways.ways_of(["gru_reset_before"])
    assert {(w.team, w.arithmetic, w.step) for w in of_lstm} == {
        (team, arithmetic, step)
        for team in ("stepwise", "block", "cluster")
        for arithmetic in ("float32", "tf32", "bfloat16", "float16", "float64")
        for step in ("forward", "backward")
        if team == "stepwise" or arithmetic != "float64"
    }
    assert {w.team for w in of_other} == {"stepwise"}
    assert len({w.key for w in [*of_lstm, *of_other]}) == len(of_lstm) + len(of_other)


@pytest.mark.parametrize("step", ["forward", "backward", "reserve"])
def test_a_wrong_walk_disagrees(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: what blocks compute is off by a hundredth; others are right."""
    team = [""]
    forward, backward = ops.forward, ops.backward

    def wrong_forward(*given: Any, **options: Any) -> Any:
        output, states, reserve = forward(*given, **options)
        if team[0] == "team=block" and step == "forward":
            output[0, 0] *= 1.01
        if team[0] == "team=block" and step == "reserve":
            reserve[0, 0] *= 1.01
        return output, states, reserve

    def wrong_backward(*given: Any) -> Any:
        found = backward(*given)
        if team[0] == "team=block" and step == "backward":
            found[2][1].mul_(1.01)
        return found

    monkeypatch.setattr(ops, "forward", wrong_forward)
    monkeypatch.setattr(ops, "backward", wrong_backward)
    with emulated.installed() as emulation:
        override = override_of(emulation)

        def told(text: str) -> None:
            override(text)
            team[0] = text

        found = {
            (way.team, way.step): child.judge(way, "cpu", told).result
            for way in ways.ways_of(["lstm"])
            if way.arithmetic == "float32"
        }
    wrong = ("block", "backward" if step == "backward" else "forward")
    assert found == dict.fromkeys(found, "agreed") | {wrong: "disagreed"}


def test_a_number_that_is_none_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*given: Any) -> dict[str, torch.Tensor]:
        return {"output": torch.full((6, 9, 40), float("nan"))}

    monkeypatch.setattr(child, "numbers_by", nothing)
    verdict = child.judge(BLOCK, "cpu", lambda text: None, child.PROBLEMS[:1])
    assert verdict.result == "disagreed" and "output: error nan" in verdict.detail


def test_a_team_that_the_device_does_not_have_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "current_gpu", lambda: fusedrnn.Gpu((8, 0), 108, 166912))
    assert child.judge(BLOCK._replace(team="cluster"), "cpu").result == "absent"
    monkeypatch.setattr(child, "current_gpu", lambda: fusedrnn.Gpu((7, 5), 40, 65536))
    assert child.judge(BLOCK._replace(arithmetic="tf32"), "cpu").result == "absent"


def test_what_a_child_says(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Here its device cannot be computed on, which says nothing about any way."""
    request = tmp_path / "request"
    request.write_text(json.dumps({"device": "cuda:99", "ways": [BLOCK]}))
    child.main([str(request)])
    (line,) = capsys.readouterr().out.splitlines()
    assert list(json.loads(line)) == ["unavailable"]


def test_what_is_raised_is_a_fault_unless_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Said] = []
    errors = iter(("an illegal memory access", "CUDA: out of memory: 5 bytes"))

    def fail(*given: Any) -> Verdict:
        raise RuntimeError(next(errors))

    monkeypatch.setattr(child, "judge", fail)
    for _ in range(2):
        child.check_all([STEPWISE, BLOCK], "cpu", said.append)
    assert said == [
        {"begin": 0},
        {"result": "faulted", "detail": "RuntimeError: an illegal memory access"},
        {"begin": 0},
        {"unavailable": "CUDA: out of memory: 5 bytes"},
    ]


# ---- When it is made ----------------------------------------------------------------------------


def test_the_first_call_checks_all_compiled_cells_and_later_processes_read(folder: Path) -> None:
    gpu = EmulatedGpu()
    with checked_by(gpu):
        assert gpu.asked == []  # nothing before a call
        call()
        call("GRU")
        assert gpu.asked == [ways.ways_of([cell.name for cell in CELLS])]
    assert set(entries(folder)) == {way.key for way in gpu.asked[0]}
    again = EmulatedGpu()
    with checked_by(again):
        call()
    assert again.asked == []


def test_a_backward_pass_alone_asks() -> None:
    gpu = EmulatedGpu()
    with emulated.installed() as emulation:
        module = fusedrnn.LSTM(3, 40)
        output, _ = module(torch.randn(9, 4, 3))
        of = Ways(emulation, gpu)
        output.sum().backward()
        of.detach()
    assert len(gpu.asked) == 1


def test_a_written_cell_is_checked_at_its_first_call(folder: Path) -> None:
    gpu = EmulatedGpu()
    program = written_cells.mgu.program
    with checked_by(gpu) as of:
        of.check(0)
        of.check(0, program)
    assert gpu.asked[1] == ways.ways_of([program])
    assert any(key.startswith("mgu#") for key in entries(folder))


def test_nothing_is_asked_under_an_override() -> None:
    gpu = EmulatedGpu()
    with checked_by(gpu, plan="team=block"):
        call()
    assert gpu.asked == []


def test_nothing_is_asked_if_ways_are_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = EmulatedGpu()
    monkeypatch.setenv("FUSEDRNN_CHECK", "0")
    with checked_by(gpu):
        call()
    assert gpu.asked == [] and not folder.exists()


def test_a_variable_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CHECK", "no")
    with (
        checked_by(EmulatedGpu()),
        pytest.raises(RuntimeError, match="FUSEDRNN_CHECK: expected 0"),
    ):
        call()


def test_a_check_launches_nothing_in_this_process() -> None:
    """As in the capture of a graph, where the child may compute and this process may not."""
    with checked_by(EmulatedGpu(), options="capturing=1") as of:
        before = of.library.fusedrnn_emulation_launches()
        of.check(0)
        assert of.library.fusedrnn_emulation_launches() == before
        call()


def test_eight_ranks_check_once() -> None:
    gpu = EmulatedGpu()
    with emulated.installed() as emulation:
        ranks = [Ways(emulation, gpu) for _ in range(8)]  # each with a record of its own
        threads = [threading.Thread(target=rank.check, args=(0,)) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ranks[-1].detach()
    assert len(gpu.asked) == 1
    assert all(len(rank.record(0).entries["ways"]) == len(gpu.asked[0]) for rank in ranks)


def test_nothing_happens_in_a_process_that_makes_no_call(folder: Path) -> None:
    code = """
        import fusedrnn, torch
        fusedrnn.LSTM(3, 4)(torch.zeros(2, 1, 3))
        from fusedrnn._engine import ways
        print([of.records for of in ways.WAYS.values()] in ([], [{}]))
    """
    assert in_a_process(code, FUSEDRNN_CACHE=str(folder)) == "True\n"
    assert not folder.exists()


# ---- What is struck off -------------------------------------------------------------------------


def test_a_way_that_disagrees_is_not_taken_and_told_once() -> None:
    with checked_by(EmulatedGpu()):
        assert launches_of_a_call() < STEPS  # the model's plan is a walk
    Record(KIND).file.unlink()
    detail = "output: error 1.0e-02, allowed 1.0e-06"
    walks = {BLOCK: detail, BLOCK._replace(team="cluster"): "no result"}

    def script(of: Sequence[Way]) -> Iterator[Said | None]:
        yield {"ready": KIND.gpu}
        for i, way in enumerate(of):
            yield {"begin": i}
            result = "disagreed" if way in walks else "agreed"
            yield {"result": result, "detail": walks.get(way, "")}
        yield {"end": len(of)}

    with checked_by(EmulatedGpu(script)):
        with pytest.warns(RuntimeWarning) as said:
            assert launches_of_a_call() >= STEPS
        (warning,) = said
        for words in (
            f"block of lstm in float32, forward disagreed ({detail})", "emulated GPU, driver 1.2",
            "Others that agreed run instead", "`fusedrnn verify --json`",
        ):  # fmt: skip
            assert words in str(warning.message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert launches_of_a_call() >= STEPS
    with checked_by(EmulatedGpu()), pytest.warns(RuntimeWarning, match="block of lstm in float32"):
        assert launches_of_a_call() >= STEPS  # in the next process


def test_only_the_way_that_was_struck_off_is_not_taken() -> None:
    with checked_by(EmulatedGpu()) as of:
        of.check(0)
        for team in ("block", "cluster"):
            of._strike_off(0, BLOCK._replace(team=team))
        assert launches_of_a_call() >= STEPS
        assert launches_of_a_call("GRU") < STEPS
        assert launches_of_a_call(dtype=torch.bfloat16) < STEPS


def test_a_chosen_team_is_taken_by_calls_of_its_class() -> None:
    shape = LayerShape("lstm", 32, 8, 4, 20, 0, "float32", False, 1, False, False)
    with checked_by(EmulatedGpu()) as of:
        of.check(0)
        assert launches_of_a_call() < STEPS
        of.choose(0, "lstm", shape, "forward", "stepwise")
        assert launches_of_a_call() >= STEPS and launches_of_a_call(time=17) >= 17
        assert launches_of_a_call("GRU") < STEPS and launches_of_a_call(time=33) < 33
        assert launches_of_a_call(dtype=torch.bfloat16) < STEPS
        for other in (
            replace(shape, training=True), replace(shape, ragged=True), replace(shape, tf32=True)
        ):  # fmt: skip
            of.choose(0, "lstm", other, "forward", "block")
        of.choose(0, "lstm", shape, "backward", "block")
        assert launches_of_a_call() >= STEPS
        of._strike_off(0, STEPWISE)
        assert launches_of_a_call() < STEPS  # what was struck off is taken no more
        of.choose(0, "lstm", shape, "forward", None)
        assert launches_of_a_call() < STEPS


def test_without_any_way_the_call_that_wants_it_fails() -> None:
    teams = {team: BLOCK._replace(team=team) for team in ("block", "cluster", "stepwise")}
    with checked_by(EmulatedGpu()) as of:
        of.check(0)
        of._strike_off(0, teams["stepwise"])
        call()  # by a team
        of._strike_off(0, teams["block"])
        of._strike_off(0, teams["cluster"])
        with pytest.raises(RuntimeError, match="stepwise kernels of lstm, forward, did not agree"):
            call()
        call("GRU")
        call(dtype=torch.float64)


def test_a_way_that_hangs_and_one_that_faults() -> None:
    """The ways after it are checked by another child; both are struck off for later processes."""
    of_lstm = ways.ways_of(["lstm"])
    scripts = [
        but(of_lstm[3], None),
        but(of_lstm[5], Ended("exit status -6: Aborted")),
        but(of_lstm[7], {"result": "faulted", "detail": "RuntimeError: misaligned"}),
        agreeing,
    ]
    asked: list[Sequence[Way]] = []

    def start(some: Sequence[Way]) -> Any:
        asked.append(some)
        return EmulatedGpu(scripts[len(asked) - 1]).child(0, some)

    found = ways.checked(start, of_lstm, KIND.gpu)
    assert [len(some) for some in asked] == [len(of_lstm) - n for n in (0, 4, 6, 8)]
    assert {way: verdict for way, verdict in found.items() if verdict.result != "agreed"} == {
        of_lstm[3]: Verdict("hung", "no result after 20 s"),
        of_lstm[5]: Verdict("faulted", "its process ended: exit status -6: Aborted"),
        of_lstm[7]: Verdict("faulted", "RuntimeError: misaligned"),
    }


def test_a_check_that_takes_too_long_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a child's work: what it has found stays, and the rest waits for others."""
    clock = iter(range(0, 10**6, 30))  # half a minute passes whenever somebody looks
    gpu = EmulatedGpu()
    with checked_by(gpu) as of:
        with (
            monkeypatch.context() as patch,
            pytest.warns(RuntimeWarning, match="the others took more than 300 seconds"),
        ):
            patch.setattr(ways, "time", SimpleNamespace(monotonic=lambda: next(clock)))
            found = of.check(0)
        agreed = [way for way, verdict in found.items() if verdict.result == "agreed"]
        assert agreed == gpu.asked[0][: len(agreed)] and 0 < len(agreed) < len(gpu.asked[0])
        assert set(entries(folder)) == {way.key for way in agreed}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert launches_of_a_call("GRU") >= STEPS
        assert len(gpu.asked) == 1  # this process does not try again
        struck = of.struck_off(0, "gru", "float32")
    assert {way.team for way in struck} == {"block", "cluster"}
    later = EmulatedGpu()
    with checked_by(later) as of:
        assert len(of.check(0)) == len(found)
    assert len(later.asked[0]) == len(found) - len(agreed)


def test_what_was_found_before_the_device_was_lost_is_kept(folder: Path) -> None:
    """Otherwise each process would wait for the same way to hang."""
    scripts = [but(STEPWISE, None), busy]
    gpu = EmulatedGpu(lambda of: scripts.pop(0)(of))
    with checked_by(gpu) as of, pytest.warns(RuntimeWarning) as said:
        found = of.check(0)
    assert found[STEPWISE].result == "hung" and found[BLOCK].result == "unchecked"
    assert [str(w.message).count("busy or unavailable") for w in said] == [1, 0]
    assert entries(folder)[STEPWISE.key]["result"] == "hung"


def test_a_check_that_is_interrupted_is_none() -> None:
    """What is raised in a call from C would be lost, and all ways would count as fit."""
    gpu = EmulatedGpu(but(BLOCK, KeyboardInterrupt()))
    with checked_by(gpu):
        with pytest.raises(RuntimeError, match="did not end: KeyboardInterrupt"):
            call()
        gpu.script = agreeing
        call()
    assert len(gpu.asked) == 2


PRETENDED = """
import json, os, sys, time
ways = json.load(open(sys.argv[1]))["ways"]
def say(**what): print(json.dumps(what), flush=True)
print("not for anyone")
say(ready="pretended")
for i, (cell, team, arithmetic, step) in enumerate(ways):
    say(begin=i)
    if (team, step) == ("block", "forward"): time.sleep(100)
    if (team, step) == ("block", "backward"): print("what it was", file=sys.stderr); os._exit(7)
    say(result="agreed", detail="")
say(end=len(ways))
"""


def test_children_that_hang_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes: they are killed and replaced, and leave nothing behind."""
    monkeypatch.setattr(ways, "WAY_SECONDS", 0.3)
    command = [sys.executable, "-S", "-c", PRETENDED]
    of_lstm = [way for way in ways.ways_of(["lstm"]) if way.arithmetic == "float32"]
    found = ways.checked(lambda some: ways.child_of(command, "cuda:0", some), of_lstm, "pretended")
    assert found == dict.fromkeys(of_lstm, Verdict("agreed")) | {
        BLOCK: Verdict("hung", "no result after 0 s"),
        BLOCK._replace(step="backward"): Verdict(
            "faulted", "its process ended: exit status 7: what it was"
        ),
    }


def test_a_child_checks_emulated_kernels() -> None:
    """A whole check in a process of its own, as on a GPU."""
    script = str(Path(__file__).with_name("emulated_ways.py"))
    of_lstm = [way for way in ways.ways_of(["lstm"]) if way.arithmetic == "bfloat16"]
    path = os.pathsep.join(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        found = ways.checked(
            lambda some: ways.child_of([sys.executable, script], "cpu", some), of_lstm, "emulated"
        )
    assert found == dict.fromkeys(of_lstm, Verdict("agreed"))


# ---- What cannot be checked ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (busy, "busy or unavailable"),
        (lambda of: iter([None]), "said nothing for 180 s"),
        (lambda of: iter([{"ready": KIND.gpu}, {"end": 0}]), "it checked nothing"),
        (lambda of: iter([{"ready": "a T4"}]), "has another GPU, a T4"),
    ],
    ids=["busy", "silent", "empty", "elsewhere"],
)
def test_teams_are_not_used_where_ways_cannot_be_checked(
    script: Script, why: str, folder: Path
) -> None:
    gpu = EmulatedGpu(script)
    with checked_by(gpu) as of:
        with pytest.warns(RuntimeWarning) as said:
            of.check(0)
        (warning,) = said
        assert why in str(warning.message)
        assert "`fusedrnn verify`, run before this program, checks ahead" in str(warning.message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert launches_of_a_call() >= STEPS  # and no child for another try
            of.check(0, written_cells.mgu.program)
        assert len(gpu.asked) == 1
    assert not [*folder.glob("gpu-*.json")]  # the next process tries again


@pytest.mark.parametrize("executable", ["", "/no/such/python"])
def test_no_child_can_be_started(executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(Unavailable, match="could be started"):
        ways.checked(lambda some: ways.Cuda().child(0, some), [BLOCK], "")


def test_a_program_that_is_no_python_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(Unavailable, match="not run by a Python that could be started again"):
        ways.Cuda().child(0, [BLOCK])


def test_a_warning_that_is_an_error_reaches_the_call() -> None:
    with checked_by(EmulatedGpu(busy)), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="could not be checked on this GPU"):
            call()
        call()


# ---- Records ------------------------------------------------------------------------------------


def kept(folder: Path) -> Path:
    """The file of a record in which block is struck off."""
    Record(KIND).add("ways", {BLOCK.key: {"result": "hung", "detail": "", "when": "2026-01-01"}})
    (file,) = folder.glob("*")
    return file


def test_a_record_is_private_and_readable(folder: Path) -> None:
    file = kept(folder)
    assert file.stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    assert json.loads(file.read_text())["kind"]["gpu"] == "emulated GPU"
    assert Record(KIND).entries["ways"][BLOCK.key]["result"] == "hung"


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b[:-20], lambda b: b"", lambda b: b.replace(b"hung", b"agreed"),
        lambda b: b"\xff" + b, lambda b: b"[1]", lambda b: b"[" * 100_000, lambda b: b"{}",
    ],
    ids=["cut off", "empty", "changed", "no text", "a list", "deep", "nothing"],
)  # fmt: skip
def test_a_corrupt_record_counts_as_none(folder: Path, change: Callable[[bytes], bytes]) -> None:
    file = kept(folder)
    file.write_bytes(change(file.read_bytes()))
    gpu = EmulatedGpu()
    with checked_by(gpu) as of:
        with pytest.warns(RuntimeWarning, match="record of this GPU was not read: .*corrupt"):
            of.check(0)
        assert len(gpu.asked) == 1 and BLOCK in gpu.asked[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Record(KIND).entries["ways"]) == len(gpu.asked[0])  # it was replaced


@pytest.mark.parametrize("of", ["folder", "file", "owner"])
def test_a_record_that_others_could_have_written_counts_as_none(
    folder: Path, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kept(folder)
    if of == "owner":
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    else:
        (folder if of == "folder" else file).chmod(0o777)
    with pytest.warns(RuntimeWarning, match="was not read: ") as said:
        found = Record(KIND)
        found.add("ways", {STEPWISE.key: {"result": "agreed"}})
    assert list(found.entries["ways"]) == [STEPWISE.key]
    assert len(said) == 1  # whatever else happens


@pytest.mark.parametrize("entry", [{}, {"result": "fine"}, {"result": ["agreed"]}])
def test_an_entry_that_makes_no_sense_counts_as_none(entry: dict[str, Any]) -> None:
    Record(KIND).add("ways", {BLOCK.key: entry})
    gpu = EmulatedGpu()
    with checked_by(gpu) as of:
        of.check(0)
    assert BLOCK in gpu.asked[0]


def test_a_process_that_holds_the_record_is_not_waited_for_forever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was stopped."""
    monkeypatch.setattr(ways, "ALL_SECONDS", 0.05)
    monkeypatch.setattr(record, "WRITE_SECONDS", 0.1)
    gpu = EmulatedGpu()
    other = Record(KIND)
    with other.alone("check", 1.0), other.alone("write", 1.0), checked_by(gpu) as of:
        with pytest.warns(RuntimeWarning, match="was not kept: another process has had .*lock"):
            found = of.check(0)
        assert {verdict.result for verdict in found.values()} == {"agreed"}
    assert list(folder.iterdir()) == []


def test_a_record_of_another_version_or_kind_counts_as_none(folder: Path) -> None:
    file = kept(folder)
    other = Kind(**{**KIND.__dict__, "fusedrnn": "0.0.1"})
    assert Record(other).entries["ways"] == {} and Record(other).file != file
    assert record.entries_of(file.read_bytes(), other) == {}
    content = json.loads(file.read_text())
    content.pop("digest")
    content["format"] = 99
    content["digest"] = record._digest(content)
    assert record.entries_of(json.dumps(content).encode(), KIND) == {}


def test_a_record_that_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CACHE", "/proc/no/such")
    gpu = EmulatedGpu(but(BLOCK, {"result": "disagreed", "detail": ""}))
    with checked_by(gpu) as of:
        with pytest.warns(RuntimeWarning) as said:
            found = of.check(0)
        kinds = sorted(str(warning.message)[:60] for warning in said)
        assert len(kinds) == 2 and "record of this GPU was not kept" in kinds[1]
        assert found[BLOCK].result == "disagreed"
        of.check(0)
    assert len(gpu.asked) == 1


def test_two_processes_add_to_each_other_s_record(folder: Path) -> None:
    one, other = Record(KIND), Record(KIND)
    threads = [
        threading.Thread(target=of.add, args=("ways", {f"{name}{i}": {"result": "agreed"}}))
        for i in range(10)
        for name, of in (("one", one), ("other", other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Record(KIND).entries["ways"]) == 20
    assert [file.suffix for file in folder.iterdir()] == [".json"]


def test_what_was_found_first_stays(folder: Path) -> None:
    one, other = Record(KIND), Record(KIND)
    one.add("ways", {BLOCK.key: {"result": "hung"}})
    other.add("ways", {BLOCK.key: {"result": "agreed"}})
    assert other.entries["ways"][BLOCK.key] == {"result": "hung"}


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise Unusable("no cache: no home")

    monkeypatch.setattr(record.cache, "cache_folder", none)
    with pytest.warns(RuntimeWarning, match="no home"):
        assert Record(KIND).entries["ways"] == {}


# ---- What is shown ------------------------------------------------------------------------------


def test_a_plan_for_this_machine_s_gpu_knows_what_was_struck_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: dict[str, Any] = dict(time=100, batch=16, input_size=64, hidden_size=512)
    sizes |= dict(device="cuda", dtype=torch.bfloat16)
    before = fusedrnn.plan("lstm", **sizes)
    assert before.forward.team == before.backward.team == "cluster" and before.struck_off is None
    cluster = Way("lstm", "cluster", "bfloat16", "backward")
    with checked_by(EmulatedGpu(but(cluster, {"result": "hung", "detail": ""}))) as of:
        monkeypatch.setitem(ways.WAYS, "cuda", of)
        assert fusedrnn.plan("lstm", **sizes) == before  # nothing is known, nothing is asked
        with pytest.warns(RuntimeWarning, match="hung"):
            of.check(0)
        plan = fusedrnn.plan("lstm", **sizes)
        assert (plan.forward.team, plan.backward.team) == ("cluster", "stepwise")
        assert plan.struck_off == "cluster backward"
        assert fusedrnn.plan("lstm", **sizes, gpu=fusedrnn.Gpu()) == before
        assert fusedrnn.plan("gru", **sizes).backward.team == "cluster"


def test_verify_shows_the_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    gpu = EmulatedGpu(but(BLOCK, {"result": "disagreed", "detail": "output: error 1"}))
    few = ["--cell", "lstm", "--dtype", "float64", "--device", "cpu", "--quick"]
    with checked_by(gpu) as of:
        monkeypatch.setattr(verify, "WAYS", {"cpu": of})
        with pytest.warns(RuntimeWarning, match="disagreed"):
            assert main(["verify", *few, "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert main(["verify", *few]) == 1
        text = capsys.readouterr().out
    assert not found["passed"] and all(row["passed"] for row in found["rows"])
    (of_device,) = found["ways"]
    assert of_device["kind"]["gpu"] == "emulated GPU" and of_device["file"].startswith(str(folder))
    (way,) = (way for way in of_device["ways"] if way["result"] != "agreed")
    assert way | {"when": ""} == {
        "cell": "lstm", "team": "block", "arithmetic": "float32", "pass": "forward",
        "result": "disagreed", "detail": "output: error 1", "when": "",
    }  # fmt: skip
    assert "Ways checked on cpu: emulated GPU, driver 1.2" in text
    assert "FAIL lstm block float32 forward: disagreed: output: error 1" in text


def test_verify_says_what_could_not_be_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--cell", "lstm", "--dtype", "float64", "--device", "cpu", "--quick", "--json"]
    with checked_by(EmulatedGpu(busy)) as of, pytest.warns(RuntimeWarning, match="busy"):
        monkeypatch.setattr(verify, "WAYS", {"cpu": of})
        assert main(["verify", *few]) == 0
    (why,) = json.loads(capsys.readouterr().out)["skipped"].items()
    assert why[0] == "ways of computing on cpu" and "busy or unavailable" in why[1]


def test_verify_of_the_cpu_alone_has_no_ways(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--cell", "gru", "--dtype", "float64", "--device", "cpu", "--quick", "--json"]
    assert main(["verify", *few]) == 0
    assert json.loads(capsys.readouterr().out)["ways"] == []
