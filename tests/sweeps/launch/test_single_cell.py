"""A single cell, which runs in the command's own process: whatever goes wrong is told as any command tells it."""

import tempfile

import pytest
import torch
from cli_runs import TINY, ratplus_here

from ratplus.data.corpus import CorpusError


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    return tmp_path


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyError("odd"), 1, "evaluate ID: KeyError: 'odd'; `ratplus show ID out` has the trace"),
        (ValueError("two\nlines"), 1, "evaluate ID: two lines"),
        (OSError(28, "No space left on device", "out/x"), 1, "evaluate ID: out/x: No space left on device"),
        (CorpusError("data/train.bin: odd"), 2, "evaluate ID: data/train.bin: odd"),
        (
            torch.OutOfMemoryError("out of GPU memory"),
            1,
            "evaluate ID: out of GPU memory; to use less memory, try eval.batch=",
        ),
    ],
)
def test_a_stage_that_fails_in_the_command_s_own_process_is_one_line(place, monkeypatch, raised, code, said):
    def evaluate(*_, **__):
        raise raised

    monkeypatch.setattr("ratplus.stages.cell.Cell._evaluate", evaluate)
    done = ratplus_here(place, "evaluate", *TINY, "output=out")
    assert done.returncode == code
    (stage,) = place.glob("out/evaluate/*/record.json")
    *before, line = done.stderr.splitlines()
    assert line.startswith(f"ratplus: error: {said.replace('ID', stage.parent.name)}")
    assert "Traceback" not in "".join(before)
    shown = ratplus_here(place, "show", stage.parent.name, "out").stdout
    assert "raise raised" in shown


def test_what_fails_before_any_stage_leaves_by_the_way_of_all_commands(place, monkeypatch, tmp_path):
    def check(*_):
        raise KeyError("odd")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("ratplus.stages.cell.check_suites", check)
    done = ratplus_here(place, "evaluate", *TINY, "output=out")
    assert done.returncode == 70
    assert "a fault of ratplus" in done.stderr.splitlines()[-1]
