"""Shared by all tests: the guard, the Triton interpreter where there is no GPU, and the golden arrays."""

import os
from pathlib import Path

from guard import Guard

# Before any import that looks at the environment or at the home folder.
GUARD = Guard()

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from cpu_times import (  # noqa: E402, F401
    pytest_addoption,
    pytest_runtest_makereport,
    pytest_runtest_protocol,
    pytest_terminal_summary,
)

if not torch.cuda.is_available():
    # Read when a kernel is decorated, so it must be set before any kernel module is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure(config):
    """Figures are compared with their baseline images wherever pytest-mpl is installed, without being asked to."""
    if hasattr(config.option, "mpl"):
        config.option.mpl = True


@pytest.fixture(autouse=True)
def guard():
    """What keeps tests from the machine's batch system; a test that calls that all the same fails."""
    yield GUARD
    tried = GUARD.tried()
    assert not tried, f"the test called the batch system ({tried[0]}); give it a stand-in on PATH (tests/guard.py)"


@pytest.fixture(scope="session")
def outside():
    """The environment of a process that may download (`Guard.outside`): of slow tests alone."""
    return GUARD.outside()


@pytest.fixture(scope="session")
def golden():
    """`golden("scan")` -> {array name: tensor} of tests/golden/scan.npz; what they are: tests/golden/manifest.json."""

    def load(name: str) -> dict:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load
