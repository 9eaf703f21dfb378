"""`replace`: torch.nn's recurrent modules in a model become ours, where they are.

A module keeps its identity and all that it holds; only its class changes. Our classes have the same
base and the same attributes as torch's, so nothing else is needed, and whatever refers to a module
or its parameters stays right: optimizers, hooks and their handles, modules that are registered more
than once, tied and frozen weights, wrappers for parallel training.

    before   nn.Module <- nn.RNNBase <- nn.LSTM           ^ class of the module
                                     <- fusedrnn.LSTM     v after
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fusedrnn import modules
from fusedrnn._engine.ops import DTYPES

OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: modules.RNN,
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.RNNCell: modules.RNNCell,
    nn.LSTMCell: modules.LSTMCell,
    nn.GRUCell: modules.GRUCell,
}
"""Our class for each of torch.nn's."""


@dataclass(frozen=True)
class Replacement:
    """What `replace` did.

    Attributes:
        model: the model, the same object that was given.
        replaced: the names of the modules that are now ours, as `named_modules` gives them: every
            name of a module that is registered more than once; "" is the model itself.
        skipped: the recurrent modules that were left as they are, and why.
    """

    model: nn.Module
    replaced: list[str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}, skipped {len(self.skipped)}"]
        for name in self.replaced:
            lines.append(f"  {_shown(name)}: {self.model.get_submodule(name)}")
        for name, reason in self.skipped.items():
            lines.append(f"  {_shown(name)}: skipped, {reason}")
        return "\n".join(lines)


def replace(model: nn.Module) -> Replacement:
    """Turns every torch.nn recurrent module of `model` into ours, in place.

    RNN, LSTM, GRU and their cells, wherever they are in the model, and the model itself if it is
    one. Parametrized ones too (`torch.nn.utils.parametrize`, weight_norm, pruning). Classes that
    derive from them are left alone, since their own code may rely on torch's; so is a module whose
    `forward` was replaced on the instance. Ours are not `isinstance` of torch's `nn.LSTM`.

    Args:
        model: any module.

    Returns:
        The model, the names of what was replaced, and what was skipped and why.

        >>> encoder = torch.nn.LSTM(80, 512, num_layers=2, bidirectional=True)
        >>> model = torch.nn.ModuleDict({"encoder": encoder, "head": torch.nn.Linear(1024, 10)})
        >>> print(fusedrnn.replace(model))
        replaced 1, skipped 0
          encoder: LSTM(80, 512, num_layers=2, bidirectional=True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    replaced: list[str] = []
    skipped: dict[str, str] = {}
    turned: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, tuple(OURS)) and id(module) not in turned:
            continue
        if id(module) in turned:
            replaced.append(name)
        elif reason := _why_not(module):
            skipped[name] = reason
        else:
            module.__class__ = _our_class(type(module))
            turned.add(id(module))
            replaced.append(name)
    return Replacement(model, replaced, skipped)


def _why_not(module: nn.Module) -> str | None:
    """Why a recurrent module of torch.nn, or of a class derived from one, is left as it is."""
    kind = type(module)
    if kind not in OURS and not (is_parametrized(module) and kind.__bases__[0] in OURS):
        base = next(cls.__name__ for cls in kind.__mro__ if cls in OURS)
        return f"{kind.__module__}.{kind.__qualname__} is derived from torch.nn.{base}"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if not dtypes <= set(DTYPES):
        return f"there are no kernels for {', '.join(sorted(map(str, dtypes - set(DTYPES))))}"
    return None


def _our_class(kind: type[nn.Module]) -> type[nn.Module]:
    if kind in OURS:
        return OURS[kind]
    # torch.nn.utils.parametrize gives a module a class of its own, with one property for each
    # parametrized tensor. The same over our class; made anew, for copies of a module share theirs.
    body = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    return type(kind.__name__, (OURS[kind.__bases__[0]],), body)


def _shown(name: str) -> str:
    return name or "(the model itself)"
