"""A worker process: `python -m tools.gpu_check.worker [--tests] ADDRESS NUMBER`.

Without --tests it serves the items of serve.py. With it, it collects the CUDA tests and runs those
that it is given, one at a time. After an item that failed it asks the device whether the context
still works; if not, it says so and ends, since all that followed would fail as well.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from typing import Any

from tools.gpu_check.channel import (
    FAILED,
    PASSED,
    SKIPPED,
    Message,
    Skip,
    connect,
    end_with_parent,
)
from tools.gpu_check.device import GPU, ROOT, Device

WHY_LENGTH = 4000  # characters of a traceback, the last ones
TEST_SECONDS = 30.0  # that a test may take
FIRST_TESTS = ("test_cuda.py", "test_parity.py")
LAST_TESTS = ("test_compile.py", "test_command_line.py")  # that take seconds without a GPU, too
STAND_IN_TESTS = ("test_functional.py",)  # that need neither a GPU nor seconds


def main(arguments: list[str] | None = None) -> int:
    """Serves until the other end closes."""
    parser = argparse.ArgumentParser(prog="tools.gpu_check.worker")
    parser.add_argument("--tests", action="store_true")
    parser.add_argument("address")
    parser.add_argument("number", type=int)
    given = parser.parse_args(arguments)
    end_with_parent()
    device = Device(os.environ.get("FUSEDRNN_CHECKED_DEVICE", GPU))
    if given.tests:
        return run_tests(given.address, given.number, device)
    from tools.gpu_check import serve

    serve.make_ready(device)
    channel = connect(given.address, given.number)
    for message in channel.messages():
        item = message["item"]
        answer = serve_one(serve.KINDS, item, device)
        channel.send({"end": item["name"], **answer})
        if answer.get("retire"):
            return 1
    return 0


def serve_one(kinds: dict[str, Any], item: Message, device: Device) -> Message:
    """Does one item, and returns what there is to say of it."""
    try:
        said: Message = kinds[item["kind"]](device, **item["arguments"]) or {}
    except Skip as reason:
        return {"status": SKIPPED, "why": str(reason)}
    except Exception as error:
        text = traceback.format_exc()[-WHY_LENGTH:]
        said = {"status": FAILED, "why": f"{type(error).__name__}: {error}\n{text}"}
    return examined(device, {"status": PASSED} | said)


def examined(device: Device, said: Message) -> Message:
    """What to say of an item; if it failed and has spoiled its context, the worker ends, too."""
    if said["status"] == FAILED:
        try:
            device.synchronize()
        except Exception as error:
            return said | {"retire": "worker", "why": f"{said['why']}\nspoiled: {error}"}
    return said


class Feeder:
    """A plugin of pytest in the place of its loop: runs the tests that it is given."""

    def __init__(self, address: str, number: int, device: Device) -> None:
        self._address, self._number, self._device = address, number, device
        self._reports: list[Any] = []
        self._not_collected: list[str] = []

    def pytest_runtestloop(self, session: Any) -> bool:
        """Serves until the other end closes."""
        channel = connect(self._address, self._number)
        for message in channel.messages():
            item = message["item"]
            answer = self._collected(session) if item["kind"] == "collect" else None
            if answer is None:
                answer = self._run(session, item["name"])
            channel.send({"end": item["name"], **answer})
            if answer.get("retire"):
                os._exit(1)  # what pytest does at its end would ask the device again
        return True

    def pytest_collectreport(self, report: Any) -> None:
        """Keeps what could not be collected, with its last line, which says why."""
        if report.failed:
            *_, why = str(report.longrepr).splitlines() or [""]
            self._not_collected.append(f"{report.nodeid}: {why}")

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keeps what became of the phases of a test."""
        self._reports.append(report)

    def _collected(self, session: Any) -> Message:
        names = sorted((item.nodeid for item in session.items), key=_turn)
        said: Message = {"status": PASSED, "found": {"tests": len(names)}}
        if missing := self._not_collected or ([] if names else ["no test was found"]):
            said |= {"status": FAILED, "why": "\n".join(missing)}
        # Tests of one function are likely to hang together.
        more = [{"name": name, "group": name.partition("[")[0]} for name in names]
        as_ = {"kind": "test", "seconds": 0.2, "limit": TEST_SECONDS}
        return said | {"more": [item | as_ for item in more]}

    def _run(self, session: Any, name: str) -> Message:
        test = next(item for item in session.items if item.nodeid == name)
        self._reports.clear()
        session.config.hook.pytest_runtest_protocol(item=test, nextitem=None)
        failed = [report for report in self._reports if report.failed]
        if failed:
            text = str(failed[0].longrepr)
            crash = getattr(failed[0].longrepr, "reprcrash", None)
            first = crash.message.splitlines()[0] if crash and crash.message else ""
            why = f"{first}\n{text[-WHY_LENGTH:]}"
            return examined(self._device, {"status": FAILED, "why": why})
        if any(report.skipped for report in self._reports):
            return {"status": SKIPPED}
        return {"status": PASSED}


def _turn(name: str) -> int:
    file = name.partition("::")[0].removeprefix("tests/")
    return 0 if file in FIRST_TESTS else 2 if file in LAST_TESTS else 1


def run_tests(address: str, number: int, device: Device) -> int:
    """Has pytest collect, and feeds it."""
    import pytest

    tests = ROOT / "tests"
    if device.stands_in:
        chosen = [str(tests / name) for name in STAND_IN_TESTS]
    else:  # importing all others takes seconds, and packages that may not be here
        chosen = ["-m", "cuda"]
        chosen += [str(f) for f in sorted(tests.glob("test_*.py")) if concerns_cuda(f.read_text())]
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    return int(pytest.main([*options, *chosen], plugins=[Feeder(address, number, device)]))


def concerns_cuda(text: str) -> bool:
    """Whether a file of tests has some that are marked `cuda`, itself or by `device`."""
    return "mark.cuda" in text or re.search(r"def test_\w+\([^)]*\bdevice\b", text) is not None


if __name__ == "__main__":
    sys.exit(main())
