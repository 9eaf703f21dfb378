"""The activation functions of ONNX's LSTM, GRU and RNN, as the cells of the zoo take them.

A node has them as three attributes: names, one for each function of each direction, and the numbers
alpha and beta of those functions that have any, in the order of the names. Numbers may be left out
from the end on, or all.

Source: the ONNX operators' specification, https://onnx.ai/onnx/operators/, and, of how the numbers
are matched with the names, onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from fusedrnn.cells.zoo.activations import Activation


@dataclass(frozen=True)
class Family:
    """Functions that differ by their numbers.

    Attributes:
        make: the function for given alpha and beta.
        alpha, beta: their defaults; NEEDED if it has none, None if there is no such number.
    """

    make: Callable[[float, float], Activation]
    alpha: float | None = None
    beta: float | None = None


NEEDED = float("nan")

PLAIN = ("relu", "sigmoid", "softplus", "softsign", "tanh")
"""Functions without numbers, by their name in lower case, which is the zoo's as well."""

FAMILIES = {
    "affine": Family(lambda alpha, beta: lambda a: alpha * a + beta, NEEDED, NEEDED),
    "elu": Family(lambda alpha, _: lambda a: F.elu(a, alpha), 1.0),
    "hardsigmoid": Family(
        lambda alpha, beta: lambda a: torch.clamp(alpha * a + beta, 0, 1), 0.2, 0.5
    ),
    "leakyrelu": Family(lambda alpha, _: lambda a: F.leaky_relu(a, alpha), 0.01),
    "scaledtanh": Family(
        lambda alpha, beta: lambda a: alpha * torch.tanh(beta * a), NEEDED, NEEDED
    ),
    "thresholdedrelu": Family(lambda alpha, _: lambda a: torch.where(a >= alpha, a, 0.0), 1.0),
}
"""Functions with numbers, by their name in lower case."""


@dataclass(frozen=True)
class Function:
    """One function of a node: two are the same if name and numbers are."""

    name: str
    alpha: float | None = None
    beta: float | None = None

    def of_zoo(self, clip: float | None) -> str | Activation:
        """What a cell of the zoo takes, with its argument clipped to -clip ... clip first."""
        if self.name in PLAIN and clip is None:
            return self.name
        if self.name in PLAIN:
            from fusedrnn.cells.zoo import ACTIVATIONS

            function = ACTIVATIONS[self.name]
        else:
            function = FAMILIES[self.name].make(self.alpha or 0.0, self.beta or 0.0)
        return function if clip is None else lambda a: function(torch.clamp(a, -clip, clip))


def functions_of(
    names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]
) -> list[Function]:
    """The functions of a node's attributes.

    Raises:
        ValueError: one is unknown, or has not the numbers it needs, or there are more than needed.
    """
    left = {"activation_alpha": [*alphas], "activation_beta": [*betas]}
    functions = []
    for shown in names:
        name = shown.lower()  # as onnxruntime reads them
        if name not in PLAIN and name not in FAMILIES:
            known = ", ".join(sorted((*PLAIN, *FAMILIES)))
            raise ValueError(f"activations: expected ones of {known} in any case, got {shown!r}")
        family = FAMILIES.get(name)
        numbers: dict[str, float | None] = {}
        for option, numbers_left in left.items():
            which = option.removeprefix("activation_")
            default = getattr(family, which, None)
            numbers[which] = default
            if default is not None and numbers_left:
                numbers[which] = numbers_left.pop(0)
            elif default is NEEDED:
                raise ValueError(f"{option}: expected a number for {shown}, got none")
        functions.append(Function(name, **numbers))
    for option, more in left.items():
        if more:
            raise ValueError(
                f"{option}: expected a number for each function that has one, in the order of "
                f"activations {list(names)}, got {len(more)} more"
            )
    return functions
