"""What all tests share: the cells and the devices they run on, one thread count, hypothesis'
profile, and which of them `make test` runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

# Teams of more threads than this machine has processors are tested, too.
os.environ.setdefault("FUSEDRNN_PROCESSORS", "8")
# No compiler runs beside the tests: those of compiled cells (test_compiling.py) ask for it.
os.environ.setdefault("FUSEDRNN_CELL_COMPILE", "0")
# Two processes run tests, and each has two threads: one that waits for work gives its core away.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
import written_cells
from cuda_emulation import backend as emulated
from hypothesis import settings

import fusedrnn
from fusedrnn import cells
from fusedrnn._engine import tuning
from fusedrnn.cells import cell_named
from fusedrnn.testing import oracles
from fusedrnn.testing.parity import Case, float32_products

# On a GPU torch.nn's path might be faster than ours, which the tests are of (test_tuning.py has
# tuners of its own).
tuning.TUNERS.clear()

# Cells by name and layers by class, all from the table that the kernels are compiled from: a new
# one is tested wherever these lists are, which is everywhere.
COMPILED = [cell.name for cell in cells.CELLS]
CELLS = [*COMPILED, *written_cells.register()]
TORCH_CELLS = oracles.TORCH_CELLS
MODULE_FACTS = {cell.module: cell for cell in reversed(cells.CELLS)}  # the first cell of each class
MODULES = list(MODULE_FACTS)
TORCH_MODULES = [name for name in MODULES if name in oracles.TORCH_MODULES]
STATES = list(dict.fromkeys(state for cell in cells.CELLS for state in cell.states))


def kinds() -> list[str]:
    """One of all cells that have the same facts, and differ in their functions only."""
    names = ("name", "options", "spec")
    facts = [f.name for f in fields(cells.Cell) if f.name not in names]
    found: dict[tuple[object, ...], str] = {}
    for cell in cells.CELLS:
        found.setdefault(tuple(getattr(cell, name) for name in facts), cell.name)
    return list(found.values())


KINDS = kinds()
UNMODIFIED = (None,) * 5  # of the ops that take modifiers
GATED = [name for name in KINDS if len(cell_named(name).gates) > 1]
WALKED = [cell.name for cell in cells.CELLS if cell.stages == 1]  # by the teams of CUDA
WRITTEN_WALKED = [written.name for written in (written_cells.mgu, written_cells.wide)]  # likewise


def cases_of(cells: Iterable[str], shapes: Iterable[Case]) -> list[Case]:
    """Every shape of every cell that may have it."""
    shapes = list(shapes)
    return [shape.of(cell) for cell in cells for shape in shapes if shape.suits(cell)]


# A test that takes a `device` runs on all of these. "emulated" are tensors of the CPU whose layers
# the CUDA kernels compute, in the emulation, each in another random order of threads: as planned,
# by the blocks of a cluster where they can, and step by step.
PLANS = {"planned": "", "cluster": "team=cluster", "stepwise": "team=stepwise"}
DEVICES = [pytest.param("cpu")]
DEVICES += [
    pytest.param(f"emulated-{plan}", marks=pytest.mark.skipif(bool(why), reason=why))
    for why in [emulated.missing()]
    for plan in PLANS
]
if torch.cuda.is_available() and fusedrnn.build_info()["cuda"]:
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.cuda))

# Tests of these files share what takes seconds to make or to import: one process runs them all.
TOGETHER = {
    "test_benchmark_peers": "TensorFlow",  # first: it sets the number of threads, once
    "test_compile": "compilers",
    "test_cuda_compile": "nvcc",  # first: it leaves the next one's machine code
    "test_cuda_emulation": "emulation's own tests",
    "test_distributed": "processes",
    "test_docs": "site",
    "test_keras": "TensorFlow",
    "test_tensorflow1": "TensorFlow",
    "test_onnx": "ONNX",
    "test_step_cycles": "nvcc",
    "test_wheel": "wheel",
}

# Emulation takes seconds for a case with more hidden values than this. The kernels' ways through
# large sizes are taken one by one in test_walk.py and test_stepwise.py.
LARGE = 20_000


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true",
        help="everything, also what `make test` leaves to `make test-all`",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """The same examples each time, so that failures repeat. FUSEDRNN_FUZZ=n draws n new ones."""
    settings.register_profile("quick", derandomize=True, deadline=None, database=None,
                              max_examples=50)  # fmt: skip
    settings.register_profile("thorough", settings.get_profile("quick"), max_examples=200)
    settings.register_profile("search", derandomize=False, deadline=None, database=None,
                              max_examples=int(os.environ.get("FUSEDRNN_FUZZ", 200)))  # fmt: skip
    chosen = "thorough" if config.getoption("--thorough") else "quick"
    settings.load_profile("search" if os.environ.get("FUSEDRNN_FUZZ") else chosen)


def cell_in(given: dict[str, Any]) -> str | None:
    case = given.get("case")
    return case.cell if isinstance(case, Case) else given.get("cell")


def is_repeated(item: pytest.Item, given: dict[str, Any]) -> bool:
    """On an emulated device: what every plan runs in the same way."""
    device = given.get("device", "")
    case = given.get("case")
    cell = cell_in(given)
    if device not in ("emulated-planned", "emulated-cluster"):
        return False
    return (
        given.get("dtype") is torch.float64
        or item.get_closest_marker("float64") is not None
        or (cell in CELLS and cell not in (*WALKED, *WRITTEN_WALKED))
        or (isinstance(case, Case) and case.P > 0)
    )


def is_slow(item: pytest.Item, given: dict[str, Any]) -> bool:
    case = given.get("case")
    if item.get_closest_marker("thorough"):
        return True
    if "emulated" not in given.get("device", ""):
        return False
    if (cell := cell_in(given)) in CELLS and cell not in COMPILED:
        return True  # g++ compiles each program for each dtype; test_written_cuda.py has some
    if not isinstance(case, Case):
        return False
    return case.T * case.B * case.H * case.layers * (1 + case.bidirectional) > LARGE


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(Path(nodeid.partition("::")[0]).stem, nodeid)

    return Together(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left: list[pytest.Item] = []
    out: list[pytest.Item] = []
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        slow = is_slow(item, given) and not config.getoption("--thorough")
        (out if slow or is_repeated(item, given) else left).append(item)
    items[:] = left
    config.hook.pytest_deselected(items=out)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    kind, _, plan = request.param.partition("-")
    if kind == "emulated":
        seed = 1 + list(PLANS).index(plan)
        with emulated.installed(seed=seed, plan=PLANS[plan]):
            yield torch.device("cpu")
    else:
        if kind == "cuda":
            request.getfixturevalue("ieee")
        yield torch.device(kind)


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether everything is asked for, however long it takes."""
    return bool(request.config.getoption("--thorough"))


@pytest.fixture
def ieee() -> Iterator[None]:
    """float32 products without tf32, whatever a test leaves behind; tf32 has a test of its own."""
    with float32_products("ieee"):
        yield


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Every test starts with two threads and leaves the count as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# Imported when the first test asks for them, not before: it takes seconds.


@pytest.fixture(scope="session")
def keras() -> ModuleType:
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("keras")


@pytest.fixture(scope="session")
def tf(keras: ModuleType) -> ModuleType:
    return pytest.importorskip("tensorflow")
