"""The shape of a layer or a network as choices are kept for it, with the sizes of its class.

What was measured of one shape counts for all of about its size (csrc/cuda/size_class.h): T and I up
to a power of two, B up to a multiple of 8 and beyond 64 a power of two. The rest is exact.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fusedrnn import _C
from fusedrnn._engine.layer import Layer, Operands
from fusedrnn.cells import W_HH, W_IH
from fusedrnn.cells.facts import cell_of_spec

TEAMS: tuple[str, ...] = _C.TEAMS
PASSES = ("forward", "backward")


def name_of_cell(spec: str) -> str:
    """What a record calls a cell: its name, and of a written one a digest of its program."""
    cell = cell_of_spec(spec)
    digest = "" if cell.program is None else f"#{hashlib.sha256(spec.encode()).hexdigest()}"
    return cell.name + digest


@dataclass(frozen=True)
class LayerShape:
    """A layer's call.

    Attributes:
        cell: what a record calls it.
        T, B, I, H, P: the sizes.
        dtype: of all tensors.
        tf32: whether products may be rounded so.
        directions: 1 or 2.
        training: whether there will be a backward pass.
        ragged: whether sequences are not all T steps long.
    """

    cell: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    P: int
    dtype: str
    tf32: bool
    directions: int
    training: bool
    ragged: bool

    def of_class(self) -> LayerShape:
        """With the largest sizes of its class."""
        T, B, I = _C.size_class(self.T, self.B, self.I)  # noqa: E741
        return replace(self, T=T, B=B, I=I)

    def __str__(self) -> str:
        text = f"{self.cell} T{self.T} B{self.B} I{self.I} H{self.H}"
        text += f" P{self.P}" if self.P else ""
        text += " dirs2" if self.directions == 2 else ""
        text += " ragged" if self.ragged else ""
        return f"{text} {'tf32' if self.tf32 else self.dtype} {self.word}"

    @property
    def word(self) -> str:
        """For what is done with it."""
        return "training" if self.training else "inference"

    @property
    def passes(self) -> tuple[str, ...]:
        """Those that there are."""
        return PASSES[: 1 + self.training]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `LayerShape(**it)` undoes it."""
        return asdict(self)

    def teams(self, spec: str, gpu: Mapping[str, Any], step: str) -> list[str]:
        """The teams that a device has for it, by its plan."""
        return [team for team in TEAMS if self.plan(spec, gpu, [team])[step]["team"] == team]

    def plan(self, spec: str, gpu: Mapping[str, Any], teams: Sequence[str]) -> dict[str, Any]:
        """The plan of a call on a device, of these teams."""
        found: dict[str, Any] = _C.plan(
            device="cuda", cell=spec, time=self.T, batch=self.B, input_size=self.I,
            hidden_size=self.H, proj_size=self.P, directions=self.directions, dtype=self.dtype,
            threads=1, training=self.training, panels=False, gpu=dict(gpu), allow_tf32=self.tf32,
            forward_teams=[*teams], backward_teams=[*teams],
        )  # fmt: skip
        return found


class TeamChoice(ctypes.Structure):
    """As csrc/cuda/ways.h has it."""

    _fields_ = (
        ("cell", ctypes.c_char_p),
        *((name, ctypes.c_int64) for name in "TBIHP"),
        *(
            (name, ctypes.c_int32)
            for name in (
                "device", "dtype", "step", "directions", "allow_tf32", "training", "modified",
                "ragged", "team",
            )
        ),
    )  # fmt: skip


DTYPE_NUMBERS = {"float64": 0, "float32": 1, "bfloat16": 2, "float16": 3}
"""In the order of csrc/layer/dtype.h."""


def team_choice(
    shape: LayerShape, spec: str, device: int, step: str, team: str | None
) -> TeamChoice:
    """That calls of a shape take a team, or the plan's own if it is None."""
    return TeamChoice(
        spec.encode(), shape.T, shape.B, shape.I, shape.H, shape.P, device,
        DTYPE_NUMBERS[shape.dtype], PASSES.index(step), shape.directions, shape.tf32,
        shape.training, False, shape.ragged, -1 if team is None else TEAMS.index(team),
    )  # fmt: skip


def shapes_of_network(
    layer: Layer, num_layers: int, operands: Operands, training: bool
) -> list[LayerShape]:
    """The shapes of a network's layers, those that differ; the first layer's first."""
    input, batch_sizes, _, weights, _ = operands
    if batch_sizes is None:
        T, B = input.size(0), input.size(1)
        ragged = False
    else:
        T, B = len(batch_sizes), int(batch_sizes[0])
        ragged = input.size(0) != T * B
    width, hidden = weights[W_HH].size(1), weights[W_HH].size(0) // len(layer.cell.hidden)
    first = LayerShape(
        name_of_cell(layer.cell.spec), T, B, weights[W_IH].size(1), hidden,
        width if layer.projected else 0, str(input.dtype).removeprefix("torch."), layer.allow_tf32,
        layer.directions, training, ragged,
    )  # fmt: skip
    others = replace(first, I=layer.directions * width)
    return [first] if num_layers == 1 or others == first else [first, others]


def network_name(shape: LayerShape, num_layers: int, alone: bool) -> str:
    """What a record calls a network whose first layer has a shape; `alone`: torch cannot serve."""
    text = str(shape.of_class())
    text += f" layers{num_layers}" if num_layers > 1 else ""
    return text + (" alone" if alone else "")


def is_trained(operands: Operands) -> bool:
    """Whether a backward pass may follow a call."""
    return torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (operands.input, *operands.weights, *operands.hx)
    )
