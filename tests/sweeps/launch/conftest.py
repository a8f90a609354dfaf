"""A folder to run sweeps in, beside stand-ins for SLURM's commands."""

import pytest
from pretended_slurm import SECRET, pretend_slurm


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    return tmp_path


@pytest.fixture
def cluster(place, monkeypatch):
    """The folder of what the stand-ins were asked; a key that must not be found in any file is in the environment."""
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    return pretend_slurm(place, monkeypatch)
