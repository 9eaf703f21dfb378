"""The GRU with its reset gate before the recurrent product, which torch.nn has not: the oracle.

torch.nn's modules with another `forward`, a loop over the steps, so that parameters, names and
initialisation are torch's. All sequences walk all steps; where one has ended, or not yet begun in
the reverse direction, its state stays. So nothing here is shared with fusedrnn/reference.py, to
which test_reference.py holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence


def step(x: Tensor, h: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """h' from x [B, I] and h [B, H]; weights as torch keeps them, with or without biases."""
    of_x = torch.mm(x, weights[0].t())
    w_r, w_z, w_n = weights[1].split(h.size(1))
    of_r, of_z, of_n = torch.mm(h, w_r.t()), torch.mm(h, w_z.t()), None
    if len(weights) == 4:
        of_x = of_x + weights[2]
        b_r, b_z, of_n = weights[3].split(h.size(1))
        of_r, of_z = of_r + b_r, of_z + b_z
    x_r, x_z, x_n = of_x.split(h.size(1), dim=1)
    r, z = (x_r + of_r).sigmoid(), (x_z + of_z).sigmoid()
    x_n = x_n + torch.mm(r * h, w_n.t())
    n = (x_n if of_n is None else x_n + of_n).tanh()
    return z * (h - n) + n


class ResetBeforeGRUCell(nn.GRUCell):
    """`torch.nn.GRUCell` with that gate before the product."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        h = input.new_zeros(*input.shape[:-1], self.hidden_size) if hx is None else hx
        if input.dim() == 1:
            return step(input[None], h[None], list(self.parameters()))[0]
        return step(input, h, list(self.parameters()))


class ResetBeforeGRU(nn.GRU):
    """`torch.nn.GRU` with that gate before the product; without dropout between the layers."""

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        if isinstance(input, PackedSequence):
            padded, lengths = pad_packed_sequence(input)
            output, hn = self.walk(padded, hx, lengths.to(padded.device))
            if input.sorted_indices is not None:
                output = output[:, input.sorted_indices]
            alive = [output[t, :n] for t, n in enumerate(input.batch_sizes.tolist())]
            return input._replace(data=torch.cat(alive)), hn
        if input.dim() == 2:
            output, hn = self.walk(input.unsqueeze(1), None if hx is None else hx.unsqueeze(1))
            return output.squeeze(1), hn.squeeze(1)
        if self.batch_first:
            output, hn = self.walk(input.transpose(0, 1), hx)
            return output.transpose(0, 1), hn
        return self.walk(input, hx)

    def walk(
        self, x: Tensor, hx: Tensor | None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Output [T, B, D*H] and final states of `x` [T, B, I]."""
        final: list[Tensor] = []
        for _ in range(self.num_layers):
            outputs = []
            for direction in range(2 if self.bidirectional else 1):
                weights = self.all_weights[len(final)]
                h = x.new_zeros(x.size(1), self.hidden_size) if hx is None else hx[len(final)]
                states = [h] * x.size(0)
                for t in range(x.size(0))[:: -1 if direction else 1]:
                    new = step(x[t], h, weights)
                    h = new if lengths is None else torch.where((t < lengths)[:, None], new, h)
                    states[t] = h
                outputs.append(torch.stack(states))
                final.append(h)
            x = torch.cat(outputs, dim=-1)
        return x, torch.stack(final)
