"""What takes the place of fusedrnn's options, and of a cell of one's own, in programs of torch's.

For `reset=`, `lengths=` and `return_states=`:

    StepByStep       a cell of torch.nn, called once for each step, on states times (1 - reset)
    SplitAtResets    a layer, called for each stretch of steps in which no sequence begins anew:

                     step        0 1 2 3 4 5 6 7
                     sequence 0  . . . x . . . .
                     sequence 1  . . . . . x . .      stretches 0-2, 3-4, 5-7
    Padded           a layer on the packed input, whose output is padded again

The first two are what programs of reinforcement learning do; the more sequences there are, the
shorter the stretches. `With` is the option itself, so that both sides are called in one way.

For a cell of one's own, here the minimal gated unit: `MGU`, pointwise functions in a loop.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.peers.modules import Around, states_of
from fusedrnn._engine.checks import as_given


class With(Around):
    """A network with options of its call."""

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__(network)
        self._options = options

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return self._network(input, hx, **self._options)


class StepByStep(Around):
    """The cell of one of torch.nn's layers, called once for each step.

    States begin anew where `reset`, [T, B], is true. With `return_states` it also returns the
    states after every step, as fusedrnn's layers do.
    """

    def __init__(
        self, layer: nn.Module, *, reset: Tensor | None = None, return_states: bool = False
    ) -> None:
        cell = getattr(nn, f"{type(layer).__name__}Cell")
        super().__init__(cell(layer.input_size, layer.hidden_size))
        self._reset = reset
        self._return_states = return_states

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Any, ...]:
        if hx is not None:
            hx = as_given([state[0] for state in states_of(hx)])
        keep = None if self._reset is None else _kept(self._reset, input)
        every = []
        for t, x in enumerate(input):
            if hx is not None and keep is not None:
                hx = as_given([state * keep[t] for state in states_of(hx)])
            hx = self._network(x, hx)
            every.append(states_of(hx))
        output = torch.stack([h for h, *_ in every])
        final = as_given([state[None] for state in states_of(hx)])
        if not self._return_states:
            return output, final
        states = [torch.stack(steps)[None] for steps in zip(*every, strict=True)]
        return output, final, as_given(states)

    def load_state_dict(self, weights: dict[str, Tensor], *arguments: Any, **options: Any) -> Any:
        of_layer = {name.removesuffix("_l0"): weight for name, weight in weights.items()}
        return super().load_state_dict(of_layer, *arguments, **options)

    def named_parameters(self, *arguments: Any, **options: Any) -> Any:
        for name, parameter in super().named_parameters(*arguments, **options):
            yield f"{name}_l0", parameter


class SplitAtResets(Around):
    """A layer, called for each stretch of steps in which no sequence begins anew."""

    def __init__(self, network: nn.Module, reset: Tensor) -> None:
        super().__init__(network)
        self._reset = reset

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        keep = _kept(self._reset, input)
        begins = (self._reset[1:].any(1).nonzero().flatten() + 1).tolist()
        outputs = []
        for begin, end in pairwise([0, *begins, len(input)]):
            if hx is not None:
                hx = as_given([state * keep[begin] for state in states_of(hx)])
            output, hx = self._network(input[begin:end], hx)
            outputs.append(output)
        return torch.cat(outputs), hx


class Padded(Around):
    """A layer on sequences of `lengths`, [B], that it takes only packed."""

    def __init__(self, network: nn.Module, lengths: Tensor) -> None:
        super().__init__(network)
        self._lengths = lengths

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        packed = pack_padded_sequence(input, self._lengths, enforce_sorted=False)
        output, hn = self._network(packed, hx)
        return pad_packed_sequence(output, total_length=len(input))[0], hn


class MGU(nn.Module):
    """A layer of `fusedrnn.cells.mgu` as one writes it in PyTorch, as well as one can.

    The inputs of all steps are projected at once, and cut by gate and step before the loop. A step
    is seven calls; without `addcmul` and `lerp` it would be ten, and slower.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.empty(2 * hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(2 * hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(2 * hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.empty(2 * hidden_size))

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = input.new_zeros(input.shape[1], self.weight_hh_l0.shape[1]) if hx is None else hx[0]
        x = F.linear(input, self.weight_ih_l0, self.bias_ih_l0)
        output = []
        for x_f, x_n in zip(*(gate.unbind() for gate in x.chunk(2, -1)), strict=True):
            u_f, u_n = F.linear(h, self.weight_hh_l0, self.bias_hh_l0).chunk(2, -1)
            f = torch.sigmoid(x_f + u_f)
            n = torch.tanh(torch.addcmul(x_n, f, u_n))
            h = torch.lerp(h, n, f)
            output.append(h)
        return torch.stack(output), h[None]


def _kept(reset: Tensor, like: Tensor) -> Tensor:
    """What states are multiplied by before each step, [T, B, 1]."""
    return 1 - reset.to(like)[..., None]
