"""Gates, states and gradients as matplotlib figures.

A gate is drawn as a picture of its units, one a row, by the steps. Values with any negative among
them get a scale of two colours with white at zero; others, such as sigmoid gates, go from 0 to 1.
Colour-blind readers can tell the colours apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from fusedrnn._engine.checks import kind_of
from fusedrnn.inspect.tracing import GradientFlow, Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IN_WORDS = {
    "i": "input gate", "f": "forget gate", "g": "candidate", "o": "output gate",
    "r": "reset gate", "z": "update gate", "n": "candidate",
    "h": "hidden state", "c": "cell state",
}  # fmt: skip
"""What the gates and states of the cells are called in books; others go by their names."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
"""Okabe and Ito's, "Color universal design", 2008."""

LINES = {"h": "-", "c": "--"}
MARKERS = (".", "x", "+", "s")
"""How curves are drawn: a colour for a layer, a line for a state, a marker once colours repeat."""


def title_of(name: str) -> str:
    """A gate or a state with its name in words: "forget gate f"."""
    return f"{IN_WORDS[name]} {name}" if name in IN_WORDS else name


def values_of(trace: Trace, part: str, sequence: int) -> dict[str, Tensor]:
    """The gates and states [T, H] of one sequence, without the steps after its end.

    Raises:
        KeyError: there is no such layer and direction.
        IndexError: there is no such sequence.
        ValueError: it has no steps.
        TypeError: `trace` is something else.
    """
    check_trace(trace)
    found = {}
    for name, values in trace[part].items():
        batch = 0 if trace.batch_first else 1
        count = values.size(batch) if values.dim() == 3 else 1
        if not 0 <= sequence < count:
            raise IndexError(f"sequence: expected one of {count}, from 0, got {sequence}")
        if values.dim() == 3:
            values = values.select(batch, sequence)
        if trace.lengths is not None:
            values = values[: int(trace.lengths[sequence])]
        if not len(values):
            raise ValueError(f"sequence: expected one that has steps, got {sequence}, which has 0")
        found[name] = values.detach()
    return found


def scale_of(values: Tensor) -> tuple[float, float]:
    """The least and the largest value of a colour scale: 0 to 1 or more, or as far below zero."""
    finite = values[values.isfinite()]
    largest = max(1.0, finite.abs().max().item()) if finite.numel() else 1.0
    return (-largest if bool((finite < 0).any()) else 0.0), largest


def check_trace(trace: Any) -> None:
    if not isinstance(trace, Trace):
        raise TypeError(f"trace: expected what fusedrnn.inspect.trace gives, got {kind_of(trace)}")


def check_steps(steps: Sequence[str] | None, count: int) -> None:
    if steps is not None and len(steps) != count:
        raise ValueError(f"steps: expected {count}, one for each step, got {len(steps)}")


def plot_gates(
    trace: Trace,
    layer: str = "l0",
    sequence: int = 0,
    *,
    names: Sequence[str] | None = None,
    steps: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draws the gates and states of a layer: a picture for each, its units by the steps.

    Args:
        trace: what `fusedrnn.inspect.trace` gave.
        layer: one of `trace.layers`.
        sequence: which sequence of the batch.
        names: which gates and states; all if None.
        steps: what the steps are, such as the characters of a text, to stand under the pictures.
        title: of the figure.

    Returns:
        A figure of matplotlib, for `figure.savefig("gates.png")`; in a notebook, after
        `%matplotlib inline`, it is shown.

    Raises:
        KeyError: there is no such layer, gate or state.
        IndexError: there is no such sequence.
        ValueError: the sequence has no steps, or not as many as `steps`; or `names` is empty.
        TypeError: `trace` is something else.
        ImportError: matplotlib isn't installed.

        >>> lstm = fusedrnn.LSTM(3, 4)
        >>> traced = fusedrnn.inspect.trace(lstm, torch.randn(20, 2, 3))
        >>> figure = fusedrnn.inspect.plot_gates(traced, names=["f", "c"])
        >>> [axis.get_title() for axis in figure.axes[:2]]
        ['forget gate f', 'cell state c']
    """
    values = values_of(trace, layer, sequence)
    chosen = [*values] if names is None else [*names]
    if not chosen:
        raise ValueError(f"names: expected some of {', '.join(values)}, got none")
    for name in chosen:
        if name not in values:
            raise KeyError(f"names: expected some of {', '.join(values)}, got {name!r}")
    count = len(values[chosen[0]])
    check_steps(steps, count)
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    width = 5.2 if steps is None else max(5.2, 0.13 * count)
    figure = _figure((width * columns, 0.6 + 2.1 * rows))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axis in axes[len(chosen) :]:
        axis.set_axis_off()
    for at, (axis, name) in enumerate(zip(axes, chosen, strict=False)):
        _draw_values(figure, axis, values[name], title_of(name))
        if steps is None:
            _count_in_whole_steps(axis)
        if at % columns == 0:
            axis.set_ylabel("unit")
        if at + columns >= len(chosen):
            axis.set_xlabel("step")
            axis.tick_params(labelbottom=True)
            if steps is not None:
                axis.set_xticks(range(count), steps, fontsize=7, parse_math=False)
    figure.suptitle(title or f"layer {layer}, sequence {sequence}", fontweight="bold")
    return figure


def plot_gradient_flow(
    flow: GradientFlow | Mapping[str, GradientFlow], *, title: str | None = None
) -> Figure:
    """Draws the norms of dL/dh_t and dL/dc_t over the steps, on a logarithmic scale.

    Args:
        flow: what `fusedrnn.inspect.gradient_flow` gave, or several by what they are called, to be
            compared.
        title: of the figure.

    Returns:
        A figure of matplotlib.

    Raises:
        TypeError: `flow` is something else.
        ValueError: there is no flow.
        ImportError: matplotlib isn't installed.

        >>> rnn = fusedrnn.RNN(3, 4, num_layers=2)
        >>> flow = fusedrnn.inspect.gradient_flow(
        ...     rnn, torch.randn(20, 2, 3), lambda output, hn: output[-1].sum()
        ... )
        >>> figure = fusedrnn.inspect.plot_gradient_flow(flow)
        >>> figure.axes[0].get_xlabel()
        'step t'
    """
    curves = curves_of(flow)
    if not curves:
        raise ValueError("flow: expected at least one, got none")
    figure = _figure((8, 4.5))
    axis = figure.subplots()
    lines = []
    for _, group, state, norms in curves:
        shown = [norm if norm > 0 else float("nan") for norm in norms]  # zeros have no logarithm
        again, color = divmod(group, len(COLORS))
        style: Any = {"linestyle": LINES.get(state, ":"), "marker": MARKERS[again % len(MARKERS)]}
        lines += axis.plot(shown, color=COLORS[color], markersize=3, **style)
    axis.set_yscale("log")
    axis.set_xlabel("step t")
    axis.set_ylabel("norm of the gradient")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    _count_in_whole_steps(axis)
    for text in axis.legend(lines, [curve.label for curve in curves], frameon=False).get_texts():
        text.set_parse_math(False)
    figure.suptitle(title or "how much of the loss reaches each step", fontweight="bold")
    return figure


class Curve(NamedTuple):
    """The norms of a state's gradient over the steps. Curves of one layer have one `group`."""

    label: str
    group: int
    state: str
    norms: list[float]


def curves_of(flow: GradientFlow | Mapping[str, GradientFlow]) -> list[Curve]:
    """A curve for each state of each layer and direction of each flow."""
    for one in [flow] if isinstance(flow, (GradientFlow, Trace)) else flow.values():
        if not isinstance(one, GradientFlow):
            raise TypeError(
                f"flow: expected what fusedrnn.inspect.gradient_flow gives, got {kind_of(one)}"
            )
    several: Mapping[str, GradientFlow] = {"": flow} if isinstance(flow, GradientFlow) else flow
    parts = [(name, part, one[part]) for name, one in several.items() for part in one]
    return [
        Curve(f"{name} {part}: dL/d{state}_t".strip(), group, state, norms.tolist())
        for group, (name, part, states) in enumerate(parts)
        for state, norms in states.items()
    ]


def _figure(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "fusedrnn.inspect: the plots need matplotlib, which isn't installed: pip install "
            "matplotlib; fusedrnn.inspect.write_report needs nothing"
        ) from error
    return Figure(figsize=size, layout="constrained")


def _count_in_whole_steps(axis: Any) -> None:
    axis.xaxis.get_major_locator().set_params(integer=True)


def _draw_values(figure: Figure, axis: Any, values: Tensor, title: str) -> None:
    least, largest = scale_of(values)
    T, H = values.shape
    image = axis.imshow(
        values.T.float().cpu().numpy(), aspect="auto", interpolation="nearest", vmin=least,
        vmax=largest, cmap="PuOr" if least < 0 else "cividis",
        extent=(-0.5, T - 0.5, H - 0.5, -0.5),
    )  # fmt: skip
    axis.set_title(title)
    axis.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=axis, pad=0.02)
