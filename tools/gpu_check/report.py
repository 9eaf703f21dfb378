"""What was found so far, as report.json and report.md, whole at any time.

    report.json   {"state": n, "machine": ..., "notes": [...], "stages": {name: {...}}}
    report.md     made from it by benchmarks/gpu_report.py; it tells its state, too
    check.log     what the workers print, and a line for each item and each time of writing

Both are written anew every `every` seconds and at the end of every stage, report.md first: so
whatever ends this program, report.md has the state of report.json or the one after it, and no more
is lost than was found within those seconds. The log's line "written: state n, m items" comes after
both files are.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_report import markdown
from benchmarks.whole import write_whole
from tools.gpu_check.channel import FAILED, NOT_RUN, PASSED, SKIPPED, UNFINISHED, Message

RUNNING = "running"
EVERY = 20.0  # seconds


def _of_all(statuses: set[str]) -> str:
    """What became of a stage, by what became of its items."""
    bad = statuses - {PASSED, SKIPPED}
    if bad:
        return UNFINISHED if bad <= {UNFINISHED, NOT_RUN} else FAILED
    return PASSED if PASSED in statuses else SKIPPED


class Report:
    """The report and the log, in a folder."""

    def __init__(self, out: Path, *, every: float = EVERY, about: dict[str, Any]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.log, self._every = out, out / "check.log", every
        self.content: dict[str, Any] = {
            "state": 0, "seconds": 0.0, **about, "machine": {}, "notes": [], "stages": {},
        }  # fmt: skip
        self._begin = self._written = time.monotonic()
        self.log.write_bytes(b"")

    def plan(self, stage: str, measured_by: str, gate: bool, seconds: float) -> None:
        """Names a stage that is to come."""
        self.content["stages"][stage] = {
            "status": NOT_RUN, "gate": gate, "seconds": 0.0, "budget": seconds,
            "measured_by": measured_by, "items": [], "found": {},
        }  # fmt: skip

    def begin(self, stage: str, seconds: float) -> None:
        """The stage runs now, for at most so many seconds."""
        self.content["stages"][stage] |= {"status": RUNNING, "budget": round(seconds, 1)}
        self._say(f"{stage}: begins, for at most {seconds:.0f} s")
        self._began = time.monotonic()
        self.write()

    def add(self, stage: str, item: str, status: str, seconds: float, said: Message) -> None:
        """What became of an item."""
        record: dict[str, Any] = {"name": item, "status": status, "seconds": round(seconds, 3)}
        record |= {key: said[key] for key in ("why", "found") if said.get(key)}
        self.content["stages"][stage]["items"].append(record)
        self.content["machine"] |= said.get("machine", {})
        why = f": {said['why'].splitlines()[0]}" if said.get("why") else ""
        self._say(f"{stage}: {item}: {status} in {seconds:.1f} s{why}")
        self.tick()

    def end(self, stage: str, found: dict[str, Any]) -> None:
        """The stage is over; what was found beside its items may have a status, too."""
        record = self.content["stages"][stage]
        statuses = {item["status"] for item in record["items"]}
        if "status" in found:
            statuses.add(found.pop("status"))
        record["status"] = _of_all(statuses)
        record["found"] = found
        record["seconds"] = round(time.monotonic() - self._began, 1)
        self._say(f"{stage}: {record['status']} in {record['seconds']:.0f} s")
        self.write()

    def note(self, text: str) -> None:
        """Something that a reader has to know first."""
        self.content["notes"].append(text)
        self._say(text)
        self.write()

    def all_passed(self) -> bool:
        """Whether every stage that counts has."""
        stages = self.content["stages"].values()
        return all(stage["status"] in (PASSED, SKIPPED) for stage in stages if stage["gate"])

    def tick(self) -> None:
        """Writes if it is time to."""
        if time.monotonic() - self._written >= self._every:
            self.write()

    def write(self) -> None:
        """Both files."""
        now = time.monotonic()
        self.content["state"] += 1
        self.content["seconds"] = round(now - self._begin, 1)
        write_whole(self.out / "report.md", markdown(self.content))
        write_whole(self.out / "report.json", json.dumps(self.content, indent=1) + "\n")
        count = sum(len(stage["items"]) for stage in self.content["stages"].values())
        self._say(f"written: state {self.content['state']}, {count} items", aloud=False)
        self._written = now

    def _say(self, line: str, *, aloud: bool = True) -> None:
        with open(self.log, "ab") as log:
            log.write(f"[{time.monotonic() - self._begin:.1f}] {line}\n".encode())
        if aloud:
            with contextlib.suppress(OSError):  # nobody listens any more: the log has it
                print(line, flush=True)
