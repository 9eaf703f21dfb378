"""The documentation is true: what it shows runs, and what it links to is there.

- Every Python block of the README, of CONTRIBUTING.md and of docs/**/*.md runs, a page's blocks one
  after the other in one namespace, and prints what the page shows as `output`.
  `<!-- not run: why -->` before a block excuses it, `<!-- needs torch 2.11 -->` where torch is
  older.
- Every message of docs/troubleshooting.md comes up: the block after it raises it. Where that needs
  what is not here, the comment before it says so and names the file that has the message.
- docs/cells.md tells what cells are refused with, and has every cell of the zoo.
- Every `>>>` example of the docstrings gives what it shows.
- The site builds without a warning, so without dead links, has every public name, can be searched
  from the disk, and loads nothing from elsewhere.
"""

from __future__ import annotations

import doctest
import importlib
import json
import math
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import fusedrnn
from fusedrnn.cells import CellError, WrittenCell
from fusedrnn.cells.zoo import ZOO

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
TROUBLES = ROOT / "docs/troubleshooting.md"
CELLS = ROOT / "docs/cells.md"
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    # The README's model is whatever its reader has.
    "README.md": lambda: {"model": torch.nn.Sequential(torch.nn.GRU(3, 4))}
}
"""What the reader of a page has before its first block."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: the file.
        language: as after the fence.
        text: what is in it.
        line: where that begins, from 1.
        excuse: why it is not run, if a comment before it says so.
    """

    page: Path
    language: str
    text: str
    line: int
    excuse: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def run(self, namespace: dict[str, Any]) -> None:
        """Runs Python; tracebacks, and whoever asks for the source, find the lines in the page."""
        code = "\n" * (self.line - 1) + self.text
        exec(compile(code, str(self.page), "exec"), namespace)


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = re.fullmatch(r"```(\w*).*", lines[at])
        at += 1
        if fence is None:
            assert not lines[at - 1].lstrip().startswith("```"), (
                f"{page.relative_to(ROOT)}:{at}: a fence that is not at the margin"
            )
            continue
        end = lines.index("```", at)
        text = "\n".join(lines[at:end]) + "\n"
        yield Block(page, fence[1], text, at + 1, excuse_in(" ".join(lines[: at - 1])))
        at = end + 1


def excuse_in(text_before: str) -> str | None:
    """Why a block is not run, by the comment that ends the text before it."""
    comment = text_before.rpartition("<!--")[2].strip()
    if said := re.fullmatch(r"not run: (.+) -->", comment):
        return said[1]
    if needed := re.fullmatch(r"needs torch (\d+)\.(\d+) -->", comment):
        have = tuple(int(part) for part in torch.__version__.split(".")[:2])
        if have < (int(needed[1]), int(needed[2])):
            return f"torch {torch.__version__} is older than {needed[1]}.{needed[2]}"
    return None


def matches(quoted: str, found: str) -> bool:
    """Whether a message is in a text, whatever the line breaks; an ellipsis stands for anything."""
    parts = [re.escape(" ".join(part.split())) for part in quoted.split("…")]
    return re.search(".*?".join(parts), " ".join(found.split())) is not None


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, and nothing left of what a page sets."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.filterwarnings("ignore")  # torch's, of what is deprecated, and of other libraries
def test_python_blocks(page: Path, somewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace = {"__name__": "__main__"} | GIVEN.get(page.name, dict)()
    raising = {block for _, block in troubles()} if page == TROUBLES else set()
    printed = ""
    for block in blocks_of(page):
        if block.excuse is not None or block in raising:
            continue
        if block.language == "python":
            block.run(namespace)
            printed += capsys.readouterr().out
        elif block.language == "output":
            assert matches(block.text, printed), f"{block}: {printed}"


# Troubleshooting.


def troubles() -> list[tuple[Block, Block | None]]:
    """Every message and what raises it, None for those that are excused."""
    pairs: list[tuple[Block, Block | None]] = []
    for block in blocks_of(TROUBLES):
        if block.language == "text":
            assert not pairs or pairs[-1][1] or pairs[-1][0].excuse, f"{pairs[-1][0]}: not raised"
            pairs.append((block, None))
        elif pairs and pairs[-1][1] is None and pairs[-1][0].excuse is None:
            pairs[-1] = (pairs[-1][0], block)
    return pairs


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run shell commands in, with a copy of the source in which nothing was built.

    `python` is the one of the tests; `pip install .` runs only the build, in such a copy.
    """
    folder = tmp_path_factory.mktemp("commands")
    source = folder / "a-copy-of-the-source"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("fusedrnn", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f'cd {source} && exec "{sys.executable}" setup.py -q build_ext --build-lib built'
    for name, line in (("python", f'exec "{sys.executable}" "$@"'), ("pip", build)):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder


def output_of(command: str, folder: Path) -> str:
    """What a shell command that has to fail prints."""
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    python_path = os.pathsep.join([str(ROOT)] * ("a-copy" not in command))
    environment = os.environ | {"PATH": path, "PYTHONPATH": python_path}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


@pytest.mark.parametrize("message, cause", troubles(), ids=str)
@pytest.mark.filterwarnings("ignore")
def test_troubles(message: Block, cause: Block | None, request: pytest.FixtureRequest) -> None:
    if cause is None:
        assert message.excuse is not None, f"{message}: nothing raises it"
        why, _, file = message.excuse.rpartition("; from ")
        assert why, f"{message}: expected 'not run: why; from file'"
        source = (ROOT / file).read_text(encoding="utf-8")
        found = re.sub(r'"\s*f?"', "", source)  # adjacent literals are one
        quoted = message.text.removeprefix("fusedrnn: cannot build: ").removeprefix("ImportError: ")
        for part in quoted.split("…"):
            assert " ".join(part.split()) in " ".join(found.split()), (part, file)
        return
    if cause.excuse is not None:
        pytest.skip(cause.excuse)
    if cause.language == "console":
        command = cause.text.removeprefix("$ ")
        found = output_of(command, request.getfixturevalue("commands"))
    else:
        namespace = {"__name__": "__main__"}
        next(block for block in blocks_of(TROUBLES) if block.language == "python").run(namespace)
        with pytest.raises(Exception) as error:
            cause.run(namespace)
        found = f"{error.type.__name__}: {error.value}"
    assert matches(message.text, found), f"{message}: {found}"


# Cells of one's own.


def refusals() -> list[tuple[str, str]]:
    """What a cell with one gate a would return, and what it is told."""
    _, _, section = CELLS.read_text(encoding="utf-8").partition("\n## What is refused")
    rows: list[tuple[str, str]] = re.findall(
        r"^\| `(.+?)` \| `(.+?)`", section.partition("\n## ")[0], re.MULTILINE
    )
    assert rows
    return rows


@pytest.mark.parametrize("returned, told", refusals())
def test_refused_cells(returned: str, told: str) -> None:
    given = {"torch": torch, "F": torch.nn.functional, "nn": torch.nn, "math": math}
    function = eval(f"lambda x, u, h: {returned}", given)
    with pytest.raises(CellError) as error:
        fusedrnn.cell(gates="a")(function)
    assert matches(told, str(error.value)), error.value


def test_every_cell_of_the_zoo_is_described() -> None:
    page = CELLS.read_text(encoding="utf-8")
    _, _, section = page.partition("\n## The zoo\n")
    rows = re.findall(r"^\| `(\w+)(.*?)` \| (.+?) \| (.+?) \|(.*?)\| \S", section, re.MULTILINE)
    found = [(*row[:4], row[4].strip()) for row in rows]
    assert found == [
        (
            name,
            "" if isinstance(getattr(fusedrnn.cells, name), WrittenCell) else "()",
            " ".join(made.states),
            " ".join(made.gates),
            " ".join(made.weights),
        )
        for name, made in ZOO.items()
    ]
    for text in (page, (ROOT / "README.md").read_text(encoding="utf-8")):
        assert f"{len(ZOO)} published cells" in " ".join(text.split())


# Docstrings.


MODULES = [fusedrnn] + [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(fusedrnn.__path__, "fusedrnn.")
    if found.name not in ("fusedrnn._C", "fusedrnn.__main__")
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: Any, somewhere: Path) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    given = {"torch": torch, "fusedrnn": fusedrnn}
    for test in doctest.DocTestFinder().find(module, extraglobs=given):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [t.name for module in MODULES for t in finder.find(module) if t.examples]
    assert {"fusedrnn.modules.LSTM", "fusedrnn.streaming.Streaming"} <= set(found)


# The site.


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "benchmarks/results").exists():
        pytest.skip("a source distribution has no reports, to which pages link")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_public_names_are_in_the_api(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    modules = {
        m.__name__: m.__all__
        for m in (
            fusedrnn,
            fusedrnn.functional,
            fusedrnn.inspect,
            fusedrnn.memory_pool,
            fusedrnn.onnx,
        )
    }
    names = [f"{module}.{name}" for module, all_of in modules.items() for name in all_of]
    anchors = set(re.findall(r'id="([\w.]+)"', page))
    missing = [name for name in names if name not in anchors and name not in modules]
    assert not missing, f"public, and not in docs/api.md: {missing}"


def test_build_info_is_described(site: Path) -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8").partition("build_info")[2]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [*fusedrnn.build_info()]


def test_figures_come_from_the_readme(site: Path) -> None:
    page = (site / "numbers.html").read_text(encoding="utf-8")
    row = re.search(r"^\| K [^|]*\| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert row is not None and all(f">{ratio}<" in page for ratio in row[1].split(" | "))


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loading = r'<(?:script|img|link|iframe)[^>]*(?:src|href)="?(https?:[^" >]+)'
        loaded = re.findall(loading, text)
        assert not loaded, (page.name, loaded)


def test_the_site_can_be_searched_from_the_disk(site: Path) -> None:
    """There a page can load scripts, but fetches no JSON and starts no Worker."""
    index = (site / "search/search_index.js").read_text(encoding="utf-8")
    found = json.loads(index.removeprefix("var __index = "))["docs"]
    places = {page["location"] for page in found}
    assert {"install.html", "troubleshooting.html", "learn/gru.html", "ko/learn/gru.html"} <= places
    assert "ko/install.html" not in places  # the English page once more
    for page in ("index.html", "install.html", "benchmarks/results/walks-predicted/walks.html"):
        scripts = re.findall(r'<script src="([^"]+)"', (site / page).read_text(encoding="utf-8"))
        assert [Path(script).name for script in scripts][0] == "iframe-worker.js", scripts
        assert all((site / page).parent.joinpath(script).exists() for script in scripts)


def test_the_gallery_has_every_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    names = importlib.import_module("gallery").EXAMPLES
    page = (ROOT / "docs/gallery.md").read_text(encoding="utf-8")
    sources = {path.stem: path.read_text(encoding="utf-8") for path in ROOT.glob("examples/*.py")}
    assert {*names} == {name for name, text in sources.items() if "training.run(main)" in text}
    for name in names:
        assert f"`examples/{name}.py`" in page and f"](gallery/{name}.png)" in page
        assert (ROOT / f"docs/gallery/{name}.png").stat().st_size < 200_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_examples(page: Path) -> None:
    """Examples that a page runs are there, and have the options that it gives them."""
    shared = (ROOT / "examples/training.py").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    for name, words in re.findall(r"^python examples/(\w+)\.py([^#\n]*)", text, re.MULTILINE):
        source = (ROOT / f"examples/{name}.py").read_text(encoding="utf-8")
        for option in re.findall(r"--[\w-]+", words):
            assert f'"{option}"' in source + shared, f"{name}.py has no {option}"


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_of_other_pages(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / link).exists()] == []
