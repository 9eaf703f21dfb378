"""What all tests share: the devices they run on, one thread count, hypothesis' profile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from cuda_emulation import backend as emulated
from hypothesis import settings

import fusedrnn
from fusedrnn.parity import float32_products

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

# Deterministic by default: a failure is a failure everywhere. FUSEDRNN_FUZZ=n looks further.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None, database=None)
settings.load_profile("search" if os.environ.get("FUSEDRNN_FUZZ") else "fixed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Emulates once what no team walks, and so is the same by every plan."""
    other_plans = [f"emulated-{plan}" for plan in PLANS if plan != "stepwise"]

    def is_repeated(item: pytest.Item) -> bool:
        name = item.nodeid
        return "gru_reset_before" in name and any(plan in name for plan in other_plans)

    repeated = [item for item in items if is_repeated(item)]
    items[:] = [item for item in items if not is_repeated(item)]
    config.hook.pytest_deselected(items=repeated)


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
