"""What all tests share: the devices they run on, one thread count, hypothesis' profile."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

import fusedrnn

DEVICES = [pytest.param("cpu")]
if torch.cuda.is_available() and fusedrnn.build_info()["cuda"]:
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.cuda))

# Deterministic by default: a failure is a failure everywhere. FUSEDRNN_FUZZ=n looks further.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None, database=None)
settings.load_profile("search" if os.environ.get("FUSEDRNN_FUZZ") else "fixed")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def two_threads():
    """Every test starts with two threads and leaves the count as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
