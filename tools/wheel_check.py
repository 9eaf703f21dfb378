"""Run where a wheel was installed: the wheel is imported, there is no compiler, numbers are right.

Prints what it found, or ends with an AssertionError. `make wheel-check` runs it with several
versions of Python and torch, and tests/test_wheel.py with those that are there.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import fusedrnn
from fusedrnn.testing.oracles import TORCH_MODULES

COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc", "ninja")
SIZES = dict(input_size=7, hidden_size=19, num_layers=2, bidirectional=True)


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, final h, and the gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    output, state = module(x)
    h = state[0] if isinstance(state, tuple) else state
    (output.square().sum() + h.sum()).backward()
    found = [output, h, x.grad, *(parameter.grad for parameter in module.parameters())]
    return [tensor for tensor in found if tensor is not None]


def main() -> None:
    place = Path(fusedrnn.__file__)
    assert Path(sys.prefix) in place.parents, f"{place} is not of this environment, {sys.prefix}"
    present = [name for name in COMPILERS if shutil.which(name)]
    assert not present, f"on PATH: {present}"
    assert importlib.metadata.version("fusedrnn") == fusedrnn.__version__
    x = torch.randn(11, 3, SIZES["input_size"], generator=torch.Generator().manual_seed(0))
    for name in TORCH_MODULES:
        expected, ours = getattr(nn, name)(**SIZES), getattr(fusedrnn, name)(**SIZES)
        ours.load_state_dict(expected.state_dict())
        pairs = list(zip(gradients(ours, x), gradients(expected, x), strict=True))
        assert len(pairs) == 3 + 16, len(pairs)
        for found, wanted in pairs:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    info = fusedrnn.build_info()
    cuda = "CUDA tensors, too" if info["cuda"] else info["without_cuda"]
    print(f"ok    fusedrnn {info['version']}, built with torch {info['torch']}; "
          f"Python {platform.python_version()}, torch {torch.__version__}: {cuda}")  # fmt: skip


if __name__ == "__main__":
    main()
