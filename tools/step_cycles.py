"""How many cycles a step of a team's walk takes, from its machine code. No GPU is needed.

    python tools/step_cycles.py                              LSTM bf16, the teams of TEAMS
    python tools/step_cycles.py --cells gru --team 512x16    one team: H = 512 on 16 blocks
    python tools/step_cycles.py --team 64x4 --lines          by the lines of the walk
    python tools/step_cycles.py --write                      tests/cuda_cycles.txt, all of it

It compiles csrc/cuda/instance.cu, executes a block of the walk with the parameters that an ordinary
training call gives it (walk_parameters.cpp), all but the data, and works out when each instruction
is issued (tools/sass/). What machine code does not say is assumed: tools/sass/assumptions.py.

A step of a cluster is counted from its top, when what the other blocks sent has come, to the first
byte that the last of the sending warps sends. `sent` is until the last byte of all of them, `again`
until all warps wait for the next top: a step takes at least `again`, and at least as long as what
was sent last needs to arrive. A step of one block goes from one barrier that publishes to the next.

The cycles belong to parts of a step along its critical path: where a warp waits at a barrier, that
of the warp that came last. The part is known by the functions that an instruction is from (PARTS).
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.util
import os
import pickle
import re
import runpy
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from sass.assumptions import Assumptions
from sass.code import Instruction, Kernel, disassemble
from sass.machine import Launch, Machine
from sass.schedule import Timeline, cycles_by, schedule

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "cuda_cycles.txt"
BUILD = ROOT / "build" / "step_cycles"
ARCHITECTURE = "sm_90a"
TO_MACHINE_CODE = ("-cubin", f"-arch={ARCHITECTURE}", "-lineinfo")

ARITHMETICS = {"bf16": "Bf16", "fp16": "F16", "tf32": "Tf32", "fp32": "F32"}
PASSES = ("forward", "backward")
KERNELS = {pass_: f"walk_{pass_}" for pass_ in PASSES}
# What the committed table has: cells with arithmetics, teams as H and blocks.
TABLED = {"lstm": tuple(ARITHMETICS), "gru": ("bf16",), "rnn_tanh": ("bf16",)}
TEAMS = ((64, 4), (64, 1), (128, 8), (256, 16), (512, 16), (768, 16))
ROWS = 8  # sequences of a team
STEPS = 4  # executed; the one before the last but one is counted

# The first of these whose pattern is found in the innermost line of the walk that an instruction is
# from, else in the line that this is inlined at, and so on.
PARTS = {
    "wait": r"\bwait_for_\w+\(",
    "product": r"\bmultiply[<(]",
    "parts": r"\badd_parts\w*[<(]",
    "cell": r"\bupdate[<(]",
    "memory": r"\b(store|load_inputs|load_kept)[<(]",
    "publish": r"\b(publish|send|expect)[<(]",
}
# Instructions that are nowhere else: the compiler's lines are not of every one.
PARTS_OF_OPCODES = {
    "SYNCS.PHASECHK": "wait", "LDSM": "product", "HMMA": "product", "STAS": "publish",
    "UBLKCP": "publish",
}  # fmt: skip
BARRIER, REST = "barrier", "rest"  # of the whole block; loops, sizes, addresses
COLUMNS = (*PARTS, BARRIER, REST)
WALK_FILES = re.compile(r"/cuda/team/(walk_\w+|team)\.cuh$")


def part_of(instruction: Instruction) -> str:
    """The part of a step that an instruction belongs to."""
    for opcode, part in PARTS_OF_OPCODES.items():
        if instruction.opcode.startswith(opcode):
            return part
    for line in instruction.lines:
        if WALK_FILES.search(line.file):
            for part, pattern in PARTS.items():
                if re.search(pattern, line.text()):
                    is_barrier = instruction.name == "BAR" and part != "parts"
                    return BARRIER if is_barrier else part
    return BARRIER if instruction.name == "BAR" else REST


def line_of(instruction: Instruction) -> str:
    """The line of the walk's own function, the outermost but the kernel's, for --lines."""
    lines = instruction.lines
    if not lines:
        return "?"
    line = lines[-2] if len(lines) > 1 else lines[-1]
    return f"{Path(line.file).name}:{line.number}: {line.text().strip()}"


# ---- Compilers ----------------------------------------------------------------------------------


@lru_cache
def in_setup() -> SimpleNamespace:
    """What setup.py has, which knows how the kernels are compiled."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py")))


def find_nvdisasm() -> str | None:
    """The disassembler: of CUDA_HOME, on PATH, or of the package nvidia-cuda-nvdisasm."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvdisasm", path=f"{home}/bin" if home else None)
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    packaged = [str(path) for folder in folders for path in Path(folder).glob("cu*/bin/nvdisasm")]
    return found or next(iter(packaged), None) or shutil.which("nvdisasm")


def release_of(nvcc: str) -> str:
    """nvcc's version, such as 13.0."""
    return str(re.findall(r"release ([\d.]+)", run(nvcc, "--version"))[0])


def place_of(name: str, suffix: str, release: str, flags: Sequence[str]) -> Path:
    """Where what is compiled from our sources is kept, as long as none of them changes."""
    digest = hashlib.sha256(repr((str(ROOT), release, *flags)).encode())
    for file in sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file()):
        digest.update(file.read_bytes())
    return BUILD / f"{name}-{digest.hexdigest()[:20]}{suffix}"


def keep(made: Path, place: Path) -> None:
    """Puts what was compiled there, in the place of what older sources gave."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as beside:
        shutil.copy(made, beside.name)
    Path(beside.name).replace(place)
    name = place.name.rpartition("-")[0]
    for other in place.parent.iterdir():
        if other != place and other.name.rpartition("-")[0] == name:
            other.unlink(missing_ok=True)


def cubin_place(flags: Sequence[str], release: str) -> Path:
    """Where the machine code of a compilation of instance.cu is kept, by its flags."""
    name = "instance-" + "-".join(flag.rpartition("=")[2] for flag in flags)
    return place_of(name, ".cubin", release, (ARCHITECTURE, *flags))


def run(*command: object) -> str:
    """What a command prints; a failure is an error with what it said."""
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-4000:]}")
    return done.stdout


@dataclass
class Tools:
    """The compiler and the disassembler."""

    nvcc: str
    nvdisasm: str

    @staticmethod
    def find() -> Tools:
        nvcc, nvdisasm = in_setup().Nvcc.find(), find_nvdisasm()
        if nvcc is None:
            raise SystemExit("nvcc was not found: put it on PATH or set CUDA_HOME")
        if nvdisasm is None:
            raise SystemExit("nvdisasm was not found: pip install nvidia-cuda-nvdisasm")
        return Tools(nvcc.path, nvdisasm)

    @cached_property
    def release(self) -> str:
        """nvcc's."""
        return release_of(self.nvcc)

    def compile(self, source: str | Path, place: Path, *flags: str) -> Path:
        """Compiles a file of the repository, unless that was done before."""
        if not place.exists():
            with tempfile.TemporaryDirectory() as folder:
                made = Path(folder, "made")
                options = ("-std=c++17", "-O3", "-DNDEBUG", f"-I{ROOT / 'csrc'}", *flags)
                run(self.nvcc, *options, ROOT / source, "-o", made)
                keep(made, place)
        return place

    def walks(self, cell_at: int, arithmetic: str) -> Path:
        """The machine code of a cell's kernels in an arithmetic."""
        flags = in_setup().cuda_instances()[f"{cell_at} {ARITHMETICS[arithmetic]}"]
        options = (*TO_MACHINE_CODE, *flags)
        place = cubin_place(flags, self.release)
        return self.compile("csrc/cuda/instance.cu", place, *options)

    @cached_property
    def parameters(self) -> Path:
        """The program that says what a walk is launched with."""
        source = "tools/walk_parameters.cpp"
        text = (ROOT / source).read_text()
        place = place_of("walk_parameters", "", self.release, (text,))
        return self.compile(source, place, "-x", "cu")


@dataclass(frozen=True)
class Walk:
    """A walk of a team."""

    cell: str
    arithmetic: str
    pass_: str
    H: int
    blocks: int
    rows: int = ROWS
    kernel: str = "planned"

    def launched(self, program: Path) -> Launched:
        """What it is launched with."""
        words = (self.cell, self.arithmetic, self.pass_, self.H, self.blocks, self.rows, STEPS)
        place, kernel, warps, shared, most, parameters = run(program, *words, self.kernel).split()
        block = 32 * int(warps), int(shared)
        launch = Launch(bytes.fromhex(parameters), *block, cluster_blocks=self.blocks)
        return Launched(int(place), kernel, launch if int(shared) <= int(most) else None)


class Launched(NamedTuple):
    """How a walk is launched.

    Attributes:
        cell_at: the cell's place in the list of cells.
        kernel: "fixed", the one that is compiled for the team, or "told", the one for all.
        launch: what a block is told; None if a device has too little shared memory.
    """

    cell_at: int
    kernel: str
    launch: Launch | None


@lru_cache
def kernels_of(cubin: Path, nvdisasm: str) -> list[Kernel]:
    """Disassembled once for all shapes, and kept like the machine code: it takes seconds."""
    reader = ROOT / "tools" / "sass" / "code.py"
    digest = hashlib.sha256(cubin.read_bytes() + reader.read_bytes()).hexdigest()[:20]
    place = BUILD / f"read-{cubin.stem.rpartition('-')[0]}-{digest}.pickle"
    if place.exists():
        kept: list[Kernel] = pickle.loads(place.read_bytes())
        return kept
    kernels = disassemble(cubin, nvdisasm)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made")
        made.write_bytes(pickle.dumps(kernels))
        keep(made, place)
    return kernels


def kernel_of(kernels: Sequence[Kernel], walk: Walk, kernel: str) -> Kernel:
    """The "fixed" or the "told" kernel of a walk, by the names of its template arguments."""
    units = walk.H // walk.blocks
    sizes = {"fixed": f"FixedILi{walk.blocks}ELi{units}ELi{walk.rows}EE", "told": "4Told"}[kernel]
    words = (KERNELS[walk.pass_], "ClusterTeam" if walk.blocks > 1 else "BlockTeam", sizes)
    found = [kernel for kernel in kernels if all(word in kernel.name for word in words)]
    if len(found) != 1:
        raise SystemExit(f"{walk}: expected one kernel, found {[k.name for k in found]}")
    return found[0]


# ---- A step --------------------------------------------------------------------------------------


@dataclass
class Step:
    """The cycles of a step."""

    parts: Counter[str]
    lines: Counter[str]
    sent: int
    again: int
    warps: int

    @property
    def total(self) -> int:
        """From the top to the first byte sent, or to the next barrier that publishes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Window:
    """A step in a timeline: from a cycle to the issue of an event of the slowest warp."""

    start: int
    warp: int
    index: int
    sent: int
    again: int


def windows(machine: Machine, line: Timeline) -> Iterator[Window]:
    """The steps that end with something sent."""
    if not machine.phases:
        yield from block_windows(line)
        return
    tops: list[int] = []
    sent = sorted(
        issued.cycle
        for trace, times in zip(line.traces, line.issued, strict=True)
        for event, issued in zip(trace, times, strict=True)
        if event.sends
    )
    for over in sorted({line.over[phase] for phase in machine.phases.values()}):
        if not tops or any(tops[-1] <= cycle < over for cycle in sent):  # else of the same step
            tops.append(over)
    for start, end in zip(tops, tops[1:], strict=False):
        first: dict[int, int] = {}  # that each warp sends
        last = start
        for warp, trace in enumerate(line.traces):
            for index, event in enumerate(trace):
                cycle = line.issued[warp][index].cycle
                if event.sends and start <= cycle < end:
                    first.setdefault(warp, index)
                    last = max(last, cycle)
        if first:
            slowest = max(first, key=lambda warp: line.issued[warp][first[warp]].cycle)
            yield Window(start, slowest, first[slowest], last - start, end - start)


def block_windows(line: Timeline) -> Iterator[Window]:
    """Those of a single block: from barrier to barrier, of the one that publishes."""
    turns: dict[int, list[tuple[int, int, int]]] = {}
    for meeting, (warp, index) in line.last.items():
        if meeting.warps == len(line.traces):
            event = line.traces[warp][index]
            turns.setdefault(event.at, []).append((line.over[meeting], warp, index))
    repeated = {at: sorted(found) for at, found in turns.items() if len(found) > 1}
    publishing = [at for at in repeated if publishes(line.kernel.instructions[at])]
    if not publishing:
        return
    found = repeated[publishing[0]]
    for (start, *_), (end, warp, index) in zip(found, found[1:], strict=False):
        yield Window(start, warp, index, end - start, end - start)


def publishes(barrier: Instruction) -> bool:
    """Whether a barrier is a block's way of publishing, or of waiting for what is published."""
    patterns = f"{PARTS['wait']}|{PARTS['publish']}"
    return any(re.search(patterns, line.text()) for line in barrier.lines)


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Without looking for garbage among what is kept: a third of the time, beside torch."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def measure(kernel: Kernel, launch: Launch, assumptions: Assumptions) -> Step:
    """Executes some steps of a walk, and counts one that is like those before and after it."""
    machine = Machine(kernel, launch)
    with nothing_collected():
        line = schedule(kernel, machine.run(), assumptions)
    found = list(windows(machine, line))
    if len(found) < 2:
        raise SystemExit(f"{kernel.name}: {len(found)} steps in which something is published")
    step = found[-2]
    path = list(line.path(step.warp, step.index, step.start))
    parts, lines = cycles_by(path, part_of), cycles_by(path, line_of)
    return Step(parts, lines, step.sent, step.again, len(machine.warps))


# ---- The table ----------------------------------------------------------------------------------


def header(release: str, rows: int = ROWS) -> str:
    """The first lines of the table."""
    columns = "".join(f"{name:>8}" for name in ("cycles", *COLUMNS, "sent", "again"))
    return (
        f"# nvcc {release}, {ARCHITECTURE}, {rows} sequences; cycles of a step, as"
        " tools/step_cycles.py defines them\n"
        f"{'# cell':14}{'pass':9}{'H':>4} {'blocks':>6}{'warps':>6}{columns}\n"
    )


def row(walk: Walk, step: Step | None) -> str:
    """A line of the table."""
    what = f"{walk.cell:9}{walk.arithmetic:5}{walk.pass_:9}{walk.H:4} {walk.blocks:6}"
    if step is None:
        return f"{what}     - more shared memory than a block may have\n"
    numbers = (step.total, *(step.parts[part] for part in COLUMNS), step.sent, step.again)
    return f"{what}{step.warps:6}{''.join(f'{number:8}' for number in numbers)}\n"


def measured(walk: Walk, tools: Tools, assumptions: Assumptions) -> Step | None:
    """A walk's step; nothing if it needs more shared memory than there is."""
    cell_at, kernel, launch = walk.launched(tools.parameters)
    if launch is None:
        return None
    kernels = kernels_of(tools.walks(cell_at, walk.arithmetic), tools.nvdisasm)
    return measure(kernel_of(kernels, walk, kernel), launch, assumptions)


def tabled(cells: Mapping[str, Sequence[str]], teams: Sequence[tuple[int, int]]) -> list[Walk]:
    """All walks of these cells, each with its arithmetics, by these teams."""
    return [
        Walk(cell, arithmetic, pass_, H, blocks)
        for cell, arithmetics in cells.items()
        for arithmetic in arithmetics
        for pass_ in PASSES
        for H, blocks in teams
    ]


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", nargs="+", default=["lstm"], metavar="CELL")
    parser.add_argument("--arithmetics", nargs="+", default=["bf16"], choices=ARITHMETICS)
    parser.add_argument("--pass", dest="passes", nargs="+", default=PASSES, choices=PASSES)
    parser.add_argument("--team", nargs="+", metavar="HxBLOCKS")
    parser.add_argument("--rows", type=int, default=ROWS, help="sequences, a multiple of 8")
    parser.add_argument(
        "--told",
        dest="kernel",
        action="store_const",
        const="told",
        default="planned",
        help="kernels that are told their sizes, for all teams",
    )
    parser.add_argument("--lines", action="store_true", help="by lines of the walk, too")
    parser.add_argument("--alone", action="store_true", help="warps do not compete")
    parser.add_argument("--assume", nargs="+", default=[], metavar="NAME=CYCLES", help="a latency")
    parser.add_argument("--write", action="store_true", help=f"{TABLE.name} anew")
    given = parser.parse_args(words)
    assumptions = Assumptions(contention=not given.alone)
    for name, _, cycles in (word.partition("=") for word in given.assume):
        assumptions = replace(assumptions, latencies={**assumptions.latencies, name: int(cycles)})
    tools = Tools.find()
    if given.write:
        TABLE.write_text(table(tools))
        return
    teams = [tuple(map(int, team.split("x"))) for team in given.team or ()] or TEAMS
    print(header(tools.release, given.rows), end="")
    for walk in tabled(dict.fromkeys(given.cells, given.arithmetics), teams):
        if walk.pass_ not in given.passes:
            continue
        walk = replace(walk, rows=given.rows, kernel=given.kernel)
        step = measured(walk, tools, assumptions)
        print(row(walk, step), end="", flush=True)
        if given.lines and step is not None:
            for line, cycles in step.lines.most_common():
                print(f"    {cycles:6}  {line}")


def table(tools: Tools) -> str:
    """The committed table."""
    walks = tabled(TABLED, TEAMS)
    rows = [row(walk, measured(walk, tools, Assumptions())) for walk in walks]
    return header(tools.release) + "".join(rows)


if __name__ == "__main__":
    main()
