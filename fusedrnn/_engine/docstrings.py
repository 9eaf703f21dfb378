"""Docstrings that say everything, of classes and functions whose source says what is their own.

`help(fusedrnn.LSTM)` is to show every argument; most of them are those of `RNN`, and are described
there. A docstring is sections: what it begins with, `Args:`, `**Heading.**`, `Returns:`, `Raises:`,
and an example at its end. The sections that a class or function does not have are taken over from
its model, and so are the entries of `Args:` that describe other arguments of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import cleandoc, signature
from typing import Any, TypeVar

Documented = TypeVar("Documented", bound=Callable[..., Any])


def completed_from(model: Callable[..., Any]) -> Callable[[Documented], Documented]:
    """A decorator: completes the docstring of a class or function by that of `model`."""

    def complete(own: Documented) -> Documented:
        if own.__doc__ is not None and model.__doc__ is not None:  # python -OO has none
            own.__doc__ = _complete(own.__doc__, model.__doc__, [*signature(own).parameters])
        return own

    return complete


def _complete(own: str, model: str, arguments: list[str]) -> str:
    sections, of_model = _sections(own), _sections(model)
    described = [sections.get("Args:", ""), of_model["Args:"]]
    beginning, example = sections.pop(""), sections.pop(">>>", "")
    taken = {heading: text for heading, text in of_model.items() if heading not in ("", ">>>")}
    sections = taken | sections | {"Args:": _arguments(arguments, *described)}
    return "\n\n".join(filter(None, [beginning, *sections.values(), example])) + "\n"


def _sections(docstring: str) -> dict[str, str]:
    """The sections by what they begin with; "" is the first."""
    sections, heading = {"": ""}, ""
    for paragraph in cleandoc(docstring).split("\n\n"):
        found = re.match(r"Args:|Returns:|Raises:|\*\*.*?\*\*|\s*(>>>)", paragraph)
        heading = (found[1] or found[0]) if found else heading
        sections[heading] = f"{sections.get(heading, '')}\n\n{paragraph}".strip("\n")
    return sections


def _arguments(names: list[str], *described: str) -> str:
    """The `Args:` of these names, each entry from the first that describes it."""
    entries: dict[str, str] = {}
    for paragraph in described:
        for entry in re.split(r"\n(?=    \w)", paragraph)[1:]:
            for name in entry.split(":")[0].split(","):
                entries.setdefault(name.strip(), entry)
    return "\n".join(["Args:", *dict.fromkeys(entries[n] for n in names if n in entries)])
