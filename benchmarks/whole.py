"""Files that are whole at any time: who is ended while writing leaves the file as it was before."""

from __future__ import annotations

from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Writes a file by way of another one, which then takes its name."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text)
    part.replace(file)
