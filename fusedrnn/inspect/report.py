"""Gates, states and gradients as one HTML file that needs nothing else.

The page is report.html; what is written into it is one JSON object:

    sequence, steps   which one of the batch, and what its steps are called, or null
    parts    for each layer and direction its name, T, H of each gate or state, its scale, and its
             values as base64 of float32, unit by unit
    curves   label, group, state and norms, those that aren't finite as strings
    colors   of the groups
"""

from __future__ import annotations

import html
import json
import math
import re
import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from fusedrnn.inspect.plots import (
    COLORS,
    Curve,
    check_steps,
    check_trace,
    curves_of,
    scale_of,
    title_of,
    values_of,
)
from fusedrnn.inspect.tracing import GradientFlow, Trace

LONGEST = 32767
"""The most steps that a picture can have in a browser."""

LARGEST = 8_000_000
"""The values that a page may have: more make a browser slow, and nobody reads that many."""


def write_report(
    path: str | PathLike[str],
    trace: Trace,
    flow: GradientFlow | Mapping[str, GradientFlow] | None = None,
    *,
    sequence: int = 0,
    steps: Sequence[str] | None = None,
    title: str = "Inside a recurrent network",
) -> Path:
    """Writes one HTML file with all gates and states of a sequence, and with gradients.

    When you point at a value, with a mouse or a finger, the page shows those of all gates and
    states of that unit and step. It loads nothing: the file can be sent and opened anywhere.

    Args:
        path: of the file; its folder is made if it isn't there.
        trace: what `fusedrnn.inspect.trace` gave.
        flow: what `fusedrnn.inspect.gradient_flow` gave, or several by what they are called.
        sequence: which sequence of the batch.
        steps: what the steps are, such as the characters of a text.
        title: of the page.

    Returns:
        The path.

    Raises:
        IndexError: there is no such sequence.
        ValueError: the sequence has no steps, not as many as `steps`, or more than 32,767; or there
            are more than 8 million values, which would be a file of 43 MB.
        TypeError: `trace` or `flow` is something else.

        >>> gru = fusedrnn.GRU(3, 4)
        >>> traced = fusedrnn.inspect.trace(gru, torch.randn(20, 2, 3))
        >>> fusedrnn.inspect.write_report("gates.html", traced, steps=[*"twenty steps of text"])
        PosixPath('gates.html')
    """
    check_trace(trace)
    values = {name: values_of(trace, name, sequence) for name in trace.layers}
    shown = [value for by_name in values.values() for value in by_name.values()]
    count, total = len(shown[0]), sum(value.numel() for value in shown)
    if count > LONGEST or total > LARGEST:
        raise ValueError(
            f"trace: expected at most {LONGEST} steps and {LARGEST} values in a report, got "
            f"{count} and {total}; trace fewer steps"
        )
    check_steps(steps, count)
    content = {
        "sequence": sequence,
        "steps": None if steps is None else [*map(str, steps)],
        "parts": [
            {"name": name, "T": count, "values": [_shown(*each) for each in by_name.items()]}
            for name, by_name in values.items()
        ],
        "curves": [_readable(curve) for curve in curves_of(flow if flow is not None else {})],
        "colors": COLORS,
    }
    data = json.dumps(content, allow_nan=False)
    parts = {"title": html.escape(title), "data": data.replace("<", "\\u003c")}  # ends no script
    page = files("fusedrnn.inspect").joinpath("report.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def _readable(curve: Curve) -> dict[str, Any]:
    """JSON has no infinity, and nothing that is not a number."""
    norms = [norm if math.isfinite(norm) else str(norm) for norm in curve.norms]
    return curve._asdict() | {"norms": norms}


def _shown(name: str, values: Tensor) -> dict[str, Any]:
    """One gate or state [T, H]."""
    values = values.float().cpu()
    return {
        "name": name,
        "title": title_of(name),
        "H": values.size(1),
        "scale": scale_of(values),
        "base64": b64encode(
            struct.pack(f"<{values.numel()}f", *values.T.flatten().tolist())
        ).decode(),
    }
