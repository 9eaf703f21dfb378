"""Gives the items of a stage to worker processes, in order, and ends what takes too long.

    stage's time over          what runs is ended, what is left was not run
    item's time over           its worker is killed with all that it started: "hung"
    worker gone                "died", with the last lines that it printed
    `MOST_LOST` of a group     hung or died: the rest of that group is not run

A worker is started before it is needed, since importing torch takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.gpu_check.channel import (
    DIED,
    FAILED,
    HUNG,
    NOT_RUN,
    PASSED,
    SKIPPED,
    UNFINISHED,
    Channel,
    Message,
    end_with_parent,
)
from tools.gpu_check.device import ROOT
from tools.gpu_check.report import Report

WORKER = (sys.executable, "-m", "tools.gpu_check.worker")
NUMBER = "{number}"
STARTING = 120.0  # seconds that a worker has until it says hello
CLOSING = 10.0  # and that it has to end by itself
KILLED = 5.0  # and to be gone when it was killed
TICK = 0.2
MOST_LOST = 3
MOST_LOST_IN_START = 2
TAIL = 12  # lines of a dead worker's output
TIME_OVER = "the time was over"


@dataclass(frozen=True)
class Item:
    """One thing to find out."""

    name: str
    kind: str  # a function of serve.py, or what a pool's own command knows
    arguments: dict[str, Any] = field(default_factory=dict)
    seconds: float = 1.0  # expected
    limit: float = 20.0
    group: str = ""  # of items that are likely to fail together


@dataclass(frozen=True)
class Pool:
    """Workers of one kind. `NUMBER` in their command stands for that of each."""

    command: Sequence[str] = WORKER
    workers: int = 1
    spare: bool = False  # one more is kept ready
    kept: bool = False  # for the stages that follow
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """Items, and their share of the time that is left.

    The items are asked for when the stage begins: until then, nothing that they are made of needs
    to load.
    """

    name: str
    seconds: float
    items: Callable[[], Sequence[Item]]
    measured_by: str
    pool: str = "device"
    ahead: Sequence[str] = ()  # pools of later stages whose workers start meanwhile
    gate: bool = True  # whether it counts for success
    required: bool = False  # whether all else depends on it
    most: float | None = None  # seconds that it may take whatever its share is
    finish: Callable[[], dict[str, Any]] = dict  # what was found beside the items


class Worker:
    """A process and its channel."""

    def __init__(self, number: int, pool: str, process: subprocess.Popen[bytes]) -> None:
        self.number, self.pool, self.process = number, pool, process
        self.since = time.monotonic()
        self.channel: Channel | None = None
        self.item: Item | None = None
        self.ends_by = 0.0
        self.log_at = 0
        self.served = 0

    @property
    def idle(self) -> bool:
        """Whether it waits for an item."""
        return self.channel is not None and self.item is None

    def kill(self) -> None:
        """Ends it and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.channel is not None:
            self.channel.socket.close()


class _Run:
    """A stage while it runs."""

    def __init__(self, stage: Stage, deadline: float, report: Report) -> None:
        self.deadline = deadline
        self.pool = stage.pool
        self.queue: deque[Item] = deque()
        self.lost: Counter[str] = Counter()  # by group
        self.statuses: Counter[str] = Counter()
        self._stage, self._report = stage.name, report
        try:
            self.queue.extend(stage.items())
        except Exception as error:  # the other stages stand without it
            why = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            self.done(Item("what there is to do", ""), FAILED, 0.0, {"why": why})

    def done(self, item: Item, status: str, seconds: float, said: Message) -> None:
        """What became of an item, and the items that it has found."""
        self.statuses[status] += 1
        self.lost[item.group] += status in (HUNG, DIED)
        self._report.add(self._stage, item.name, status, seconds, said)
        self.queue.extend(Item(**more) for more in said.get("more", ()))


class Scheduler:
    """Runs stages one after the other, and keeps the report."""

    def __init__(self, report: Report, pools: dict[str, Pool]) -> None:
        self.report, self.pools = report, pools
        self._folder = tempfile.TemporaryDirectory(prefix="gpu-check-")
        self.address = str(Path(self._folder.name, "socket"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(64)
        self._strangers: list[Channel] = []  # connected, without a hello
        self._workers: list[Worker] = []
        self._started = 0
        self._lost_in_start: Counter[str] = Counter()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *exception: object) -> None:
        self._drop(*self._workers)
        self._listener.close()
        self._folder.cleanup()

    def run(self, stages: Sequence[Stage], deadline: float) -> bool:
        """Runs stages until the deadline, each for its share of the time left; True if all passed.

        A stage that takes less than its share leaves more to all that follow.
        """
        for stage in stages:
            self.report.plan(stage.name, stage.measured_by, stage.gate, stage.seconds)
        for at, stage in enumerate(stages):
            left = max(0.0, deadline - time.monotonic())
            share = left * stage.seconds / sum(s.seconds for s in stages[at:])
            passed = self._run_stage(stage, min(left, max(share, stage.most or 0.0)))
            later = {s.pool for s in stages[at + 1 :]}
            self._close([w for w in self._workers if not self._is_kept(w, later)])
            try:
                found = stage.finish()
            except Exception as error:
                found = {"status": FAILED, "not read": f"{type(error).__name__}: {error}"}
            self.report.end(stage.name, found)
            if stage.required and not passed:
                self.report.note(f"{stage.name} failed, nothing after it was run")
                break
        return self.report.all_passed()

    def _run_stage(self, stage: Stage, seconds: float) -> bool:
        self.report.begin(stage.name, seconds)
        run = _Run(stage, time.monotonic() + seconds, self.report)
        self._lost_in_start.clear()
        for pool in stage.ahead:
            self._staff(pool)
        while run.queue or any(w.item for w in self._workers):
            now = time.monotonic()
            if now >= run.deadline:
                busy = [w for w in self._workers if w.item]
                for worker in busy:
                    assert worker.item
                    run.done(worker.item, UNFINISHED, now - worker.since, {"why": TIME_OVER})
                self._drop(*busy)
                for item in run.queue:
                    run.done(item, NOT_RUN, 0.0, {"why": TIME_OVER})
                break
            if run.queue:
                self._staff(run.pool)
                self._assign(run)
            self._listen(min(TICK, max(0.0, run.deadline - now)), run)
            self._watch(run)
            self.report.tick()
        return set(run.statuses) <= {PASSED, SKIPPED}

    def _staff(self, name: str) -> None:
        pool = self.pools[name]
        there = sum(w.pool == name for w in self._workers)
        if self._lost_in_start[name] < MOST_LOST_IN_START:
            for _ in range(pool.workers + pool.spare - there):
                self._start(name)

    def _start(self, name: str) -> None:
        pool = self.pools[name]
        self._started += 1
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path} | pool.environment
        words = [word.replace(NUMBER, str(self._started)) for word in pool.command]
        command = [*words, self.address, str(self._started)]
        with open(self.report.log, "ab") as log:
            try:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log, start_new_session=True, preexec_fn=end_with_parent,
                )  # fmt: skip
            except OSError as error:
                log.write(f"{command[0]}: {error}\n".encode())
                self._lost_in_start[name] += 1
                return
        self._workers.append(Worker(self._started, name, process))

    def _assign(self, run: _Run) -> None:
        """Gives as many items away as there are workers for."""
        while run.queue:
            item, now = run.queue[0], time.monotonic()
            of_pool = [w for w in self._workers if w.pool == run.pool]
            idle = [w for w in of_pool if w.idle]
            busy = sum(w.item is not None for w in of_pool)
            if why := self._not_to_run(item, run, now):
                run.done(run.queue.popleft(), NOT_RUN, 0.0, {"why": why})
                continue
            if not idle or busy >= self.pools[run.pool].workers:
                return
            run.queue.popleft()
            worker = max(idle, key=lambda w: w.served)  # what it has made ready is there
            assert worker.channel
            worker.item, worker.since, worker.ends_by = item, now, now + item.limit
            worker.log_at = self.report.log.stat().st_size
            worker.served += 1
            message = {"name": item.name, "kind": item.kind, "arguments": item.arguments}
            try:
                worker.channel.send({"item": message})
            except OSError:  # it has ended, which `_listen` sees
                pass

    def _not_to_run(self, item: Item, run: _Run, now: float) -> str | None:
        if item.group and run.lost[item.group] >= MOST_LOST:
            return f"{MOST_LOST} of {item.group} hung or died before it"
        if self._lost_in_start[run.pool] >= MOST_LOST_IN_START:
            return "its worker process does not start, see the log"
        return TIME_OVER if now + item.seconds > run.deadline else None

    def _listen(self, seconds: float, run: _Run) -> None:
        """Waits for messages, and hears them."""
        channels = [w.channel for w in self._workers if w.channel] + self._strangers
        by_socket = {channel.socket: channel for channel in channels}
        ready, _, _ = select.select([self._listener, *by_socket], [], [], seconds)
        for end in ready:
            if end is self._listener:
                self._strangers.append(Channel(self._listener.accept()[0]))
                continue
            if end.fileno() < 0:  # its worker was ended after another's message
                continue
            channel = by_socket[end]
            worker = next((w for w in self._workers if w.channel is channel), None)
            try:
                messages = channel.receive()
            except EOFError:
                if worker is None:
                    self._strangers.remove(channel)
                else:
                    self._gone(worker, run)
                continue
            for message in messages:
                if worker is None:
                    self._strangers.remove(channel)
                    numbers = {w.number: w for w in self._workers}
                    worker = numbers.get(message["hello"])
                    if worker is None:  # it was ended before it was heard
                        end.close()
                        break
                    worker.channel = channel
                elif worker.item and message.get("end") == worker.item.name:
                    item, worker.item = worker.item, None
                    run.done(item, message["status"], time.monotonic() - worker.since, message)
                    self._retire(worker, message.get("retire"))

    def _retire(self, worker: Worker, which: str | None) -> None:
        """Ends the worker that has asked for it, or all of its pool."""
        if which == "pool":
            self._drop(*(w for w in self._workers if w.pool == worker.pool))
        elif which == "worker":
            self._drop(worker)

    def _watch(self, run: _Run) -> None:
        """Ends what takes too long, and sees who is gone."""
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.item and now >= worker.ends_by:
                why = f"ended after {worker.item.limit:g} s"
                run.done(worker.item, HUNG, now - worker.since, {"why": why})
                self._drop(worker)
            elif worker.channel is None and (
                worker.process.poll() is not None or now - worker.since > STARTING
            ):
                self._lost_in_start[worker.pool] += 1
                self._drop(worker)
            elif worker.channel and worker.process.poll() is not None and not worker.item:
                self._drop(worker)

    def _gone(self, worker: Worker, run: _Run) -> None:
        """A worker closed its channel."""
        if worker.item is not None:
            try:
                code: int | str = worker.process.wait(2)
            except subprocess.TimeoutExpired:
                code = "none"
            with open(self.report.log, "rb") as log:
                log.seek(worker.log_at)
                lines = log.read()[-20_000:].decode(errors="replace").splitlines()[-TAIL:]
            why = f"its process ended with status {code}"
            took = time.monotonic() - worker.since
            run.done(worker.item, DIED, took, {"why": why, "found": {"last lines": lines}})
        self._drop(worker)

    def _drop(self, *workers: Worker) -> None:
        """Ends workers, all at once: one that the driver holds may take long to be gone."""
        for worker in workers:
            worker.kill()
        self._workers = [w for w in self._workers if w not in workers]
        gone_by = time.monotonic() + KILLED
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, gone_by - time.monotonic()))

    def _is_kept(self, worker: Worker, later: set[str]) -> bool:
        return worker.pool in later and (self.pools[worker.pool].kept or not worker.served)

    def _close(self, closing: Sequence[Worker]) -> None:
        """Lets workers end by themselves: a sanitizer says what it found when they do."""
        for worker in closing:
            if worker.channel is not None:
                worker.channel.socket.shutdown(socket.SHUT_RDWR)
            else:
                worker.kill()
        ends_by = time.monotonic() + CLOSING
        for worker in closing:
            while worker.process.poll() is None and time.monotonic() < ends_by:
                self.report.tick()
                time.sleep(0.02)
        self._drop(*closing)
