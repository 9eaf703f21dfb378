"""The pointwise functions that the cells of the zoo take by name: Keras' names, Keras' defaults.

Any other one is given as a function of a tensor, with its numbers in it:
`lstm(recurrent_activation=lambda a: torch.clamp(0.2 * a + 0.5, 0, 1))` has the hard_sigmoid of
Keras 2 and of ONNX.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "celu": F.celu,
    "elu": F.elu,
    "exponential": torch.exp,
    "gelu": F.gelu,
    "hard_sigmoid": F.hardsigmoid,
    "hard_silu": F.hardswish,
    "hard_swish": F.hardswish,
    "hard_tanh": F.hardtanh,
    "leaky_relu": lambda a: F.leaky_relu(a, 0.2),
    "linear": lambda a: a,
    "log_sigmoid": F.logsigmoid,
    "mish": F.mish,
    "relu": torch.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "swish": F.silu,
    "tanh": torch.tanh,
    "tanh_shrink": F.tanhshrink,
}
"""The functions by their names."""


def function_of(given: str | Activation) -> Activation:
    """The function of a name; a function is itself.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(given, str):
        return given
    if given not in ACTIVATIONS:
        raise ValueError(
            f"activation: expected one of {', '.join(ACTIVATIONS)}, or a function, got {given!r}"
        )
    return ACTIVATIONS[given]
