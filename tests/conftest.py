"""Shared by all tests: the Triton interpreter where there is no GPU, and the golden arrays."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Read when a kernel is decorated, so it must be set before any kernel module is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure(config):
    """Figures are compared with their baseline images wherever pytest-mpl is installed, without being asked to."""
    if hasattr(config.option, "mpl"):
        config.option.mpl = True


@pytest.fixture(scope="session")
def golden():
    """`golden("scan")` -> {array name: tensor} of tests/golden/scan.npz; what they are: tests/golden/manifest.json."""

    def load(name: str) -> dict:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load
