"""Written cells among the compiled ones: what a layer can do, it does with them, too.

Each is known to the tests by its name, as the compiled cells are, and its layers are a class of the
package while the tests run: so the tests that take a `cell` take these.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import fusedrnn
from fusedrnn.cells import WrittenCell, cell_of_written, facts


@fusedrnn.cell(gates="f n")
def mgu(x, u, h):  # type: ignore[no-untyped-def]
    """One state, which backward reads; a product apart from its input."""
    f = torch.sigmoid(x.f + u.f)
    n = torch.tanh(x.n + f * u.n)
    return (1 - f) * h + f * n


@fusedrnn.cell(gates="i k m o v", states="h c n", weights="p q", init="uniform 0.5")
def wide(x, u, w, h, c, n):  # type: ignore[no-untyped-def]
    """Five gates of all kinds, more than a tile sums; three states, unit weights."""
    i = torch.sigmoid(x.i + u.i + w.p * c)
    m = torch.tanh(x.m) * u.m
    c = i * c + (1 - i) * m
    n = torch.maximum(torch.tanh(u.k + n), torch.sin(x.v + c))
    return torch.nn.functional.softsign(x.o + u.o + w.q * n) + 0.5 * torch.tanh(c), c, n


@fusedrnn.cell(gates="r z n")
def reset_before(x, u, h):  # type: ignore[no-untyped-def]
    """Two products in a step; the first stage hands a value on."""
    r, z = torch.sigmoid(x.r + u.r), torch.sigmoid(x.z + u.z)
    n = torch.nn.functional.elu(x.n * r + u.n(r * h))
    return z * h + (1 - z) * torch.tanh(n)


WRITTEN = (mgu, wide, reset_before)


def register() -> list[str]:
    """Makes the cells known, and a class of each; returns their names."""
    return [_register(written) for written in WRITTEN]


def _register(written: WrittenCell) -> str:
    module = written.name.title().replace("_", "")

    def make(self: Any, *sizes: Any, **options: Any) -> None:
        fusedrnn.Recurrent.__init__(self, written, *sizes, **options)

    kind = type(module, (fusedrnn.Recurrent,), {"__init__": make, "__module__": "fusedrnn"})
    setattr(fusedrnn, module, kind)
    cell = replace(cell_of_written(written), module=module)
    facts._BY_SPEC[cell.spec] = facts._BY_NAME[cell.name] = cell
    return cell.name
