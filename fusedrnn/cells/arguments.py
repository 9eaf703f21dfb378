"""What the function of a cell is called with when it is read: x, u, w and e."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from torch import Tensor

from fusedrnn._engine.torch_private import unwrapped_subclass
from fusedrnn.cells.definition import CellError
from fusedrnn.cells.refusals import Refused

__all__ = ["NoSuchName", "Product", "Space"]


class NoSuchName(CellError, AttributeError):
    """An attribute is asked for that the cell does not declare."""


class Space:
    """x, u, w or e: an attribute for each declared name."""

    def __init__(self, space: str, what: str, values: Mapping[str, Tensor]) -> None:
        self.__dict__.update(values)
        self.__dict__["_told"] = (space, what, ", ".join(values))

    def __getattr__(self, name: str) -> NoReturn:
        space, what, declared = self.__dict__["_told"]
        raise NoSuchName(f"{space}.{name}: no {what} is called {name}; declared: {declared}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        space, *_ = self.__dict__["_told"]
        raise Refused(f"{space}.{name} = ...: arguments stay as they are; use a variable")


class Product(Tensor):
    """u.<gate>: the recurrent product with h as it is; called, that with something else."""

    __torch_function__ = unwrapped_subclass  # type: ignore[assignment]
    of: Callable[[Any], Tensor]

    def __call__(self, operand: Any) -> Tensor:
        return self.of(operand)

    @classmethod
    def made_of(cls, tensor: Tensor, of: Callable[[Any], Tensor]) -> Product:
        """A tensor as a product, and what it is when it is called."""
        product = tensor.as_subclass(cls)
        product.of = of
        return product
