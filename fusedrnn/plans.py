"""`fusedrnn.plan`: how a call would be run, as the native plans decide it.

A plan is a pure function of the sizes, so it can be printed and tested anywhere: the CPU's comes
from csrc/cpu/plan.cpp, CUDA's from csrc/cuda/plan.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fusedrnn import _C
from fusedrnn._engine import ops, ways
from fusedrnn._engine.layer_shapes import LayerShape, name_of_cell, network_name
from fusedrnn._engine.tuning import OURS, arithmetic_of, team_name
from fusedrnn.cells import cell_named

__all__ = ["CudaPlan", "CudaWalk", "Gpu", "Plan", "build_info", "plan"]


@dataclass(frozen=True)
class Plan:
    """How one layer's call is shared among the CPU's threads, as csrc/cpu/plan.cpp decides it.

    Attributes:
        backend: "cpu".
        capability: the instruction set that the kernels use: "avx512_bf16", "avx512_vnni",
            "avx512", "avx2_vnni", "avx2" or "portable".
        team: the kind of team that walks the steps, "ThreadTeam" on the CPU.
        threads: the threads of one team.
        direction_teams: 2 if both directions walk at the same time.
        split: what the team shares out: the "batch" (no barrier), the "units" (a barrier at every
            step), or "none".
        weights_in_place: whether the recurrent weights are read where they are, with no panels made
            of them first.
        fuse_input: whether the input is projected inside the walk, tile by tile.
        forward_steps: for how many steps the input projection is computed at once.
        backward_steps: for how many steps the weights' gradients are computed at once.
    """

    backend: str
    capability: str
    team: str
    threads: int
    direction_teams: int
    split: str
    weights_in_place: bool
    fuse_input: bool
    forward_steps: int
    backward_steps: int


@dataclass(frozen=True)
class Gpu:
    """What a plan asks of a CUDA device; the defaults are an H200's.

    Attributes:
        capability: the compute capability.
        multiprocessors: how many there are.
        shared_bytes: of shared memory, as much as one block may ask for.
    """

    capability: tuple[int, int] = (9, 0)
    multiprocessors: int = 132
    shared_bytes: int = 232448


@dataclass(frozen=True)
class CudaWalk:
    """How the steps of one pass are walked on a CUDA device (docs/kernels.md).

    Attributes:
        team: "block" or "cluster": blocks that keep their part of the recurrent weights on the
            chip for all steps; "stepwise": no team, for each step one matrix product and one
            fused kernel.
        step_ns: the predicted time of a step in nanoseconds, by a model that was not measured on
            a GPU yet.
        arithmetic: how a team multiplies, "bfloat16", "float16", "tf32" or "float32"; sums are
            float32. None without a team, as are the rest.
        blocks: blocks of a team.
        units: hidden units of a block, those of no use (beyond hidden_size) counted.
        rows: sequences of a team.
        fixed: whether the kernel was compiled for a team of these sizes; others are told theirs.
        warps: of a block.
        shared_bytes: of a block.
        teams: teams of a call, over its sequences and directions.
        at_once: how many of them the device has room for at the same time.
    """

    team: str
    step_ns: float
    arithmetic: str | None = None
    blocks: int | None = None
    units: int | None = None
    rows: int | None = None
    fixed: bool | None = None
    warps: int | None = None
    shared_bytes: int | None = None
    teams: int | None = None
    at_once: int | None = None


@dataclass(frozen=True)
class CudaPlan:
    """How one layer's call runs on a CUDA device, as csrc/cuda/plan.cpp decides it.

    Attributes:
        backend: "cuda".
        forward: how forward's steps are walked.
        backward: the same of backward, which may have another team.
        units_per_thread: of the stepwise kernels; more than one where it pays to move 16 bytes at
            once.
        forward_steps: for how many steps the input projection is computed at once.
        struck_off: the teams that are not taken since they did not agree with the reference on this
            machine's GPU, or could not be checked by this process, and the pass ("cluster
            backward, ..."); None if all may be.
        runs: "fusedrnn", or "torch.nn" if its own path was faster when such a layer was timed on
            this machine's GPU.
        measured: the seconds of a call that were found then, by team or way, in training with the
            backward pass; None if it was not timed. The teams of `forward` and `backward` are the
            fastest of these.
    """

    backend: str
    forward: CudaWalk
    backward: CudaWalk
    units_per_thread: int
    forward_steps: int
    struck_off: str | None = None
    runs: str = "fusedrnn"
    measured: Mapping[str, float] | None = None


def build_info() -> dict[str, Any]:
    """What this build was made with and for.

    Returns:
        version: of fusedrnn.
        compiler: the C++ compiler.
        torch: the version whose headers were used; any later one serves as well as that.
        cpu_targets: the instruction sets that there are CPU kernels for, the best first; those of
            the machine that built it if it was built in place.
        cuda_targets: what the CUDA kernels were compiled for ("sm_90a"); empty without them.
        cuda: whether CUDA tensors can be computed here, given a GPU: there are kernels, a CUDA
            build of torch, and nothing is wrong with the library.
        without_cuda: why not; None if `cuda`.
    """
    info: dict[str, Any] = _C.build_info()
    return info | {"cuda": ops.WITHOUT_CUDA is None, "without_cuda": ops.WITHOUT_CUDA}


def plan(
    cell: str,
    *,
    device: torch.device | str = "cpu",
    time: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    proj_size: int = 0,
    bidirectional: bool = False,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    training: bool = False,
    panels: bool = False,
    gpu: Gpu | None = None,
    allow_tf32: bool | None = None,
) -> Plan | CudaPlan:
    """The plan for one layer of these sizes; computes nothing, and needs no such device.

    The environment variable FUSEDRNN_PLAN, read when fusedrnn is loaded, overrides what the sizes
    would choose, for measuring: "key=value,key=value" with the names of a plan's fields. `threads`,
    `direction_teams`, `forward_steps`, `backward_steps` and `units_per_thread` take a number, which
    is lowered to what the call can use, `fuse_input`, `weights_in_place` and `fixed` 0 or 1 (it
    stays 0 where there is no kernel for the team), `split` and `team` one of their names. With a
    `team`, `blocks` and `rows` take a number; where no such team fits the device, the call runs
    stepwise.
    No result depends on them beyond rounding.

    Args:
        cell: the name of a cell, "rnn_tanh", "rnn_relu", "lstm", "gru" or "gru_reset_before".
        device: the kind of device, "cpu" or "cuda".
        time: steps.
        batch: sequences.
        input_size: features of the input.
        hidden_size: features of the state.
        proj_size: features of h in a projected LSTM, 0 without projection.
        bidirectional: whether the layer has both directions.
        dtype: of input and weights.
        threads: how many threads the CPU has; if None torch.get_num_threads(), but no more than
            there are processors.
        training: whether gradients will be needed.
        panels: whether the weights come as panels made ahead, as `Streaming` keeps them on the CPU.
        gpu: the CUDA device; if None the current one, with what its record says of ways that were
            struck off or measured, or an H200 where there is none. The number of clusters that fit
            is guessed.
        allow_tf32: whether float32 products may be rounded to tf32 on a CUDA device; if None what
            torch.backends.cudnn.rnn.fp32_precision says.

    Raises:
        ValueError: an argument is not one of those above, or not positive, or FUSEDRNN_PLAN is
            not as described.
    """
    kind = torch.device(device).type
    spec = cell_named(cell).spec
    tf32 = ops.tf32_is_allowed() if allow_tf32 is None else allow_tf32
    name = str(dtype).removeprefix("torch.")
    shape = LayerShape(
        name_of_cell(spec), time, batch, input_size, hidden_size, proj_size, name,
        tf32 and name == "float32", 2 if bidirectional else 1, training, False,
    )  # fmt: skip
    known = _Known(spec, shape) if kind == "cuda" and gpu is None else _Known(spec)
    found: dict[str, Any] = _C.plan(
        device=kind,
        cell=spec,
        time=time,
        batch=batch,
        input_size=input_size,
        hidden_size=hidden_size,
        proj_size=proj_size,
        directions=shape.directions,
        dtype=name,
        threads=threads_of_a_call() if threads is None else threads,
        training=training,
        panels=panels,
        gpu=asdict(gpu or (current_gpu() if kind == "cuda" else Gpu())),
        allow_tf32=tf32,
        forward_teams=known.teams("forward"),
        backward_teams=known.teams("backward"),
    )
    if kind == "cpu":
        return Plan(**found)
    return CudaPlan(
        forward=CudaWalk(**found.pop("forward")),
        backward=CudaWalk(**found.pop("backward")),
        struck_off=known.struck_off,
        runs=known.network.get("way", OURS),
        measured=known.network.get("seconds"),
        **found,
    )


class _Known:
    """What is known of a layer's call on the current GPU, by the record of its kind."""

    def __init__(self, cell: str, shape: LayerShape | None = None) -> None:
        self.struck: list[ways.Way] = []
        self.chosen: Mapping[str, Any] = {}
        self.network: Mapping[str, Any] = {}
        of_gpu = ways.WAYS.get("cuda")
        index = None if of_gpu is None else of_gpu.gpu.current()
        if shape is None or of_gpu is None or index is None or of_gpu.is_overridden():
            return
        if min(shape.T, shape.B, shape.I, shape.H) < 1:  # the plan says what is wrong
            return
        arithmetic = arithmetic_of(shape, of_gpu.gpu.facts(index))
        self.struck = of_gpu.struck_off(index, cell, arithmetic)
        entries = of_gpu.record(index).entries
        self.chosen = {
            step: entries["teams"].get(team_name(shape, step), {}).get("team")
            for step in shape.passes
        }
        self.network = entries["networks"].get(network_name(shape, 1, False), {})

    @property
    def struck_off(self) -> str | None:
        return ", ".join(f"{way.team} {way.step}" for way in self.struck) or None

    def teams(self, step: str) -> list[str]:
        """Those that a call may take."""
        unfit = {way.team for way in self.struck if way.step == step}
        fit = [team for team in _C.TEAMS if team not in unfit]
        chosen = self.chosen.get(step)
        return [chosen] if chosen in fit else fit


def threads_of_a_call() -> int:
    """How many of torch's threads the CPU kernels use at most: there is a processor for each."""
    return min(torch.get_num_threads(), _C.usable_processors())


def current_gpu() -> Gpu:
    """The current CUDA device, or an H200 where there is none."""
    if not torch.cuda.is_available():
        return Gpu()
    return Gpu(**ways.Cuda().facts(torch.cuda.current_device()))
