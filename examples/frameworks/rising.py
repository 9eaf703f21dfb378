"""The task and the network that the framework examples share: does a noisy sequence rise or fall?

A sequence is noise with a slope so small that no single step gives it away.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fusedrnn

REQUIRED_ACCURACY = 0.9


def sequences(count: int, seed: int, steps: int = 30) -> tuple[Tensor, Tensor]:
    """Sequences [N, steps, 1] and labels [N], 1 where they rise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    slope = (2.0 * labels - 1)[:, None] * torch.linspace(-0.8, 0.8, steps)
    noise = torch.randn(count, steps, generator=generator)
    return (slope + noise)[:, :, None], labels


class Classifier(nn.Module):
    """[B, T, 1] -> LSTM -> last state -> a score for each of two classes."""

    def __init__(self, hidden_size: int = 32) -> None:
        super().__init__()
        self.lstm = fusedrnn.LSTM(1, hidden_size, batch_first=True)
        self.answer = nn.Linear(hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.lstm(x)[1][0][-1])


def verdict(accuracy: float) -> int:
    """Prints the accuracy; returns the exit status."""
    print(f"accuracy on held-out sequences: {accuracy:.1%}")
    if accuracy > REQUIRED_ACCURACY:
        return 0
    print(f"FAILED: accuracy is not above {REQUIRED_ACCURACY:.0%}")
    return 1
