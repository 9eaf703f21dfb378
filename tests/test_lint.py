"""`make lint` looks at every C++ file, with tools whose versions are pinned; so do git's hooks."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def variable(name: str) -> str:
    """What a line of the Makefile sets."""
    found = re.search(rf"^{name} := (.+)$", MAKEFILE, re.MULTILINE)
    assert found is not None, name
    return found[1]


def test_hooks_run_what_lint_runs() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    commands = re.findall(r"^ +entry: (.+)$", hooks, re.MULTILINE)
    assert commands == [f"make -s {target}" for target in variable("LINT").split()]


def test_tools_are_pinned() -> None:
    tools = runpy.run_path(str(ROOT / "tools/extras.py"))["requirements"]("lint")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert [tool for tool in tools if not re.search(rf"^{tool}==", pins, re.MULTILINE)] == []
    assert {"clang-format", "mypy", "ruff"} <= set(tools)


def test_all_cpp_files_are_looked_at() -> None:
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    wanted = {
        name
        for name in git.stdout.split("\0")
        if Path(name).suffix in (".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".inc")
        and (ROOT / name).is_file()
    }
    find = subprocess.run(
        f"find {variable('CPP_FILES')}", shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert wanted <= set(find.stdout.splitlines()), find.stderr
