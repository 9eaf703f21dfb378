"""Why a function cannot be part of a cell, in words that say what to do instead."""

from __future__ import annotations

from fusedrnn.cells.functions import FUNCTIONS

__all__ = [
    "Refused",
    "is_known",
    "no_shape",
    "no_values",
    "outside",
    "random",
    "unstable",
    "unusable",
    "with_own_gradient",
]


class Refused(Exception):
    """A definition is refused, while the function runs.

    Not a TypeError, as the error is that users see in the end: Tensor's operators take one for "not
    implemented", and Python would raise its own.
    """


def outside(shape: tuple[int, ...], is_learned: bool) -> str:
    """Words for a tensor that is none of the arguments, nor made of them."""
    what = "a parameter" if is_learned else f"a tensor of shape {shape}"
    return (
        f"{what} from outside cannot be part of a cell. Values for each unit are declared with "
        'weights="name" and used as w.name; values for each step are features of the input. '
        "Numbers from outside are fine: Python's, or tensors without dimensions that need no "
        "gradient."
    )


def no_values(called: str) -> str:
    """Words for a function that asks for a tensor's values."""
    if _short(called) in ("bool", "equal", "allclose", "is_nonzero"):
        return f"{called}: a branch on a tensor's values. {_BRANCH}"
    return (
        f"{called} needs a tensor's values, and there are none when a cell is defined. Use "
        "PyTorch's functions, not those of math or numpy, and torch.where in place of branches."
    )


def no_shape(called: str) -> str:
    """Words for a function that asks for a tensor's shape."""
    return (
        f"{called}: a cell sees one unit of one sequence at a time, and does not know how many "
        "there are. Zeros are torch.zeros_like(h); other numbers can come from outside."
    )


def random(called: str) -> str:
    """Words for a function that draws random numbers."""
    return (
        f"{called} is random, and forward and backward would draw different numbers. Draw them "
        "outside, as features of the input; layers have dropouts of their own, zoneout among them."
    )


def unusable(called: str, is_pointwise: bool) -> str:
    """Words for a function that cells don't have."""
    name = _short(called)
    instead = next((words for words, names in _INSTEAD.items() if _is_among(name, names)), "")
    if is_pointwise or instead in _POINTWISE:
        usable = [name for name in FUNCTIONS if name not in ("cast", "full", "rsub")]
        instead = instead or f"There are {', '.join(usable)}."
        return f"{called} is not a function that a cell can use. {instead}"
    instead = instead or "Other units are reached only by the products u."
    return (
        f"{called} is not pointwise, and a cell sees one unit of one sequence at a time. {instead}"
    )


def unstable() -> str:
    """Words for a cell's function that is another one each time."""
    return (
        "it computes something else when it runs again. It is read once: it can depend on nothing "
        "that changes, such as random numbers, counters or the training mode"
    )


def with_own_gradient(name: str) -> str:
    """Words for a torch.autograd.Function."""
    return (
        f"{name} is a torch.autograd.Function, whose gradient cannot be read. A value f with the "
        "gradient of another, g, is g + (f - g).detach()"
    )


def is_known(called: str) -> bool:
    """Whether there are words for why cells don't have a function."""
    return any(_is_among(_short(called), names) for names in _INSTEAD.values())


_BRANCH = "Every unit computes the same: use torch.where(condition, a, b)."
_INSTEAD = {
    _BRANCH: "all any index_put masked_scatter setitem",
    "Declare a gate for each part: every gate has an x and a u of its own.": "cat chunk concat "
    "gather getitem glu index select slice split stack take unbind unflatten",
    "All that a cell sees has the same shape already.": "T as_strided broadcast expand flatten mT "
    "movedim permute repeat reshape squeeze swapaxes t tile transpose unsqueeze view",
    "Products with weights are x.<gate>, u.<gate>, and u.<gate>(v) with v in place of h: declare a "
    "gate for each.": "addbmm addmm addmv baddbmm bilinear bmm conv dot einsum inner linear matmul "
    "mm mv outer",
    "Reduce or normalise outside of the layer, its input or its output.": "amax amin argmax argmin "
    "batch_norm cummax cummin cumprod cumsum group_norm instance_norm layer_norm log_softmax "
    "logsumexp max mean median min norm normalize prod rms_norm softmax softmin std sum var",
    "It is flat, so that no gradient comes through it.": "ceil floor floor_divide floordiv fmod "
    "frac mod remainder round trunc",
    "Use torch.maximum, torch.minimum.": "fmax fmin",
    "Have no NaN arise: torch.clamp or torch.where on the operand.": "nan_to_num",
    'A slope for each unit is weights="slope", torch.where(y > 0, y, w.slope * y).': "prelu",
    "Use 1 - torch.erf(y).": "erfc",
    "Use torch.sin(y) / torch.cos(y).": "tan",
}
_POINTWISE = [*_INSTEAD][5:]


def _short(called: str) -> str:
    """The name of a function without its module: getitem of Tensor.__getitem__."""
    return called.rpartition(".")[2].strip("_")


def _is_among(name: str, names: str) -> bool:
    return any(name == word or name.startswith(f"{word}_") for word in names.split())
