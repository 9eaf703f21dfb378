"""Gates, states and gradients as one HTML file that needs nothing else.

The page is report.html; what is written into it is one JSON object:

    title, sequence, steps   what the steps are called, or null
    parts    for each layer and direction its name, T, H of each gate or state, its scale, and its
             values as base64 of float32, unit by unit
    curves   label, group, state and norms
"""

from __future__ import annotations

import html
import json
import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from fusedrnn.inspect.plots import COLORS, curves_of, scale_of, title_of, values_of
from fusedrnn.inspect.tracing import GradientFlow, Trace

LARGEST = 8_000_000
"""The values that a page may have: more make a browser slow, and nobody looks at them."""


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

    Where one points, with a mouse or a finger, the page shows the values of all gates and states of
    that unit and step. It loads nothing: the file can be sent and opened anywhere.

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
        ValueError: there are not as many `steps` as the sequence has, or more than 8 million
            values, which are 32 MB.

        >>> gru = fusedrnn.GRU(3, 4)
        >>> traced = fusedrnn.inspect.trace(gru, torch.randn(20, 2, 3))
        >>> fusedrnn.inspect.write_report("gates.html", traced, steps=[*"twenty steps of text"])
        PosixPath('gates.html')
    """
    parts = [_part(trace, name, sequence) for name in trace.layers]
    total = sum(part["T"] * shown["H"] for part in parts for shown in part["values"])
    if total > LARGEST:
        raise ValueError(
            f"trace: expected at most {LARGEST} values in a report, got {total}; trace fewer steps"
        )
    count = parts[0]["T"]
    if steps is not None and len(steps) != count:
        raise ValueError(f"steps: expected {count}, one for each step, got {len(steps)}")
    content = {
        "parts": parts,
        "curves": [curve._asdict() for curve in curves_of(flow or {})],
        "colors": COLORS,
        "steps": None if steps is None else [*map(str, steps)],
    }
    page = files("fusedrnn.inspect").joinpath("report.html").read_text(encoding="utf-8")
    data = json.dumps(content).replace("<", "\\u003c")  # so that no text ends the script
    page = page.replace("{{title}}", html.escape(title)).replace("{{data}}", data)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def _part(trace: Trace, name: str, sequence: int) -> dict[str, Any]:
    values = values_of(trace, name, sequence)
    shown = [_shown(key, value) for key, value in values.items()]
    return {"name": name, "T": len(next(iter(values.values()))), "values": shown}


def _shown(name: str, values: Tensor) -> dict[str, Any]:
    """One gate or state [T, H]."""
    return {
        "name": name,
        "title": title_of(name),
        "H": values.size(1),
        "scale": scale_of(values),
        "base64": b64encode(
            struct.pack(f"<{values.numel()}f", *values.T.flatten().tolist())
        ).decode(),
    }
