"""Small problems that together run every CUDA kernel, for a sanitizer to watch.

    compute-sanitizer --tool=memcheck python tools/gpu_problems.py

Every cell and dtype, in one direction and both, packed and padded, with a projection, with few
units and with enough for 16-byte accesses; forward and backward; stepwise and with every kind of
team. Prints how many ran; the tests check the numbers.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fusedrnn
from fusedrnn._engine import ops
from fusedrnn.cells import CELLS

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
SIZES = {  # T, B, I, H by the plan that is asked for
    "team=stepwise": ((4, 5, 7, 19), (2, 520, 8, 128)),  # one unit a thread, and 16 bytes of them
    "team=block": ((4, 5, 7, 19),),
    "team=cluster": ((4, 9, 7, 40),),
    "team=cluster,rows=72": ((3, 70, 7, 40),),  # bulk copies
}


def run(module: torch.nn.Module, x: Tensor, lengths: Tensor | None) -> None:
    """One forward and backward pass."""
    sequence = x if lengths is None else pack_padded_sequence(x, lengths)
    output, final = module(sequence)
    states = final if isinstance(final, tuple) else (final,)
    results = [output if lengths is None else output.data, *states]
    torch.autograd.backward(results, [torch.randn_like(result) for result in results])
    gradients = [x.grad, *(parameter.grad for parameter in module.parameters())]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients), module


def main() -> None:
    """Runs them all."""
    torch.manual_seed(0)
    count = 0
    kinds = [(cell.module, cell.options) for cell in CELLS]
    kinds += [(cell.module, cell.options | {"proj_size": 8}) for cell in CELLS if cell.projects]
    problems = [(plan, sizes) for plan, all_sizes in SIZES.items() for sizes in all_sizes]
    for dtype, (plan, (T, B, features, H)) in itertools.product(DTYPES, problems):
        ops.override_plan(plan)
        for (name, options), both, packed in itertools.product(kinds, (False, True), (False, True)):
            module = getattr(fusedrnn, name)(features, H, bidirectional=both, **options)
            x = torch.randn(T, B, features, device="cuda", dtype=dtype, requires_grad=True)
            lengths = (torch.arange(B, 0, -1) - 1) * T // B + 1 if packed else None
            run(module.to("cuda", dtype), x, lengths)
            count += 1
    torch.cuda.synchronize()
    print(f"{count} problems ran")


if __name__ == "__main__":
    main()
