"""Multiplicative integration: how a gate sees the input and h, for all cells that have it.

Wu et al. (2016) have alpha * Wx * Uh + beta_1 * Uh + beta_2 * Wx + b. With two matrices of its own
the gate needs no beta: they are factors of the rows of U and W, and b is the bias of Wx.
"""

from __future__ import annotations

from torch import Tensor


def integrated(alpha: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """alpha * x * u + x + u, in two operations."""
    return (alpha * x + 1) * u + x
