"""Variables and files of other programs that libraries would hear, and that decide nothing for us."""

import os
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest

from ratplus.config.run import RunSection
from ratplus.training.foreign_settings import without_variables

_IMPORT = """
from ratplus.training.foreign_settings import shut_out
shut_out(); shut_out()
import matplotlib, os
print(matplotlib.get_backend(), os.path.exists("matplotlibrc"))
"""


@pytest.mark.parametrize("kind", ["bytes that are no text", "a pipe that nobody writes to", "a backend that is none"])
def test_a_matplotlibrc_of_the_working_folder_is_not_read(tmp_path, kind):
    path = tmp_path / "matplotlibrc"
    if "pipe" in kind:
        os.mkfifo(path)
    else:
        path.write_bytes(b"\xff\xfe\x00broken" if "bytes" in kind else b"backend: module://evil\n")
    (tmp_path / "evil.py").write_text("raise SystemExit('the stranger code ran')\n")
    own = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _IMPORT], cwd=tmp_path, env=own, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.split()) == (0, ["agg", "True"]), done.stderr
    assert done.stderr == ""


def test_variables_are_hidden_within_and_come_back(monkeypatch):
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "1")
    monkeypatch.setenv("PL_TRAINERS", "kept")
    with suppress(ZeroDivisionError), without_variables("PL_TRAINER_"):
        assert "PL_TRAINER_MAX_STEPS" not in os.environ
        assert os.environ["PL_TRAINERS"] == "kept"
        _ = 1 / 0
    assert os.environ["PL_TRAINER_MAX_STEPS"] == "1"


def test_lightning_s_variables_shorten_no_training(monkeypatch):
    """PL_TRAINER_LIMIT_TRAIN_BATCHES=2 would end every stage after two steps, as done."""
    from ratplus.training.run import make_trainer

    for name, value in {"LIMIT_TRAIN_BATCHES": "2", "FAST_DEV_RUN": "True", "MAX_STEPS": "1"}.items():
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)
    trainer = make_trainer(RunSection(accelerator="cpu"), "float32", [])
    assert (trainer.limit_train_batches, trainer.max_steps, trainer.fast_dev_run) == (1.0, -1, False)


def test_wandb_does_not_hear_of_another_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from ratplus.sweeps.mirror import write
    from ratplus.sweeps.mirror.runs import RunSpec

    heard = []
    fake = SimpleNamespace(define_metric=lambda *_, **__: None)
    monkeypatch.setattr(wandb, "init", lambda **_: heard.append(dict(os.environ)) or fake)
    for name in ("RUN_ID", "RESUME", "RESUME_FROM", "FORK_FROM", "SWEEP_ID", "MODE", "TAGS", "BASE_URL"):
        monkeypatch.setenv(f"WANDB_{name}", "http://localhost")
    spec = RunSpec("0123456789ab", "name", "group", "pretrain", [], {})
    write.start_run(spec, "offline", tmp_path, "ratplus", None)
    assert {name for name in heard[0] if name.startswith("WANDB_") and heard[0][name] == "http://localhost"} == {
        "WANDB_BASE_URL"
    }
    assert os.environ["WANDB_RUN_ID"] == "http://localhost"


def test_a_setting_that_wandb_refuses_is_named(tmp_path, monkeypatch, capsys):
    from ratplus.sweeps.mirror import live

    monkeypatch.setattr(live, "_failed", False)
    live._give_up(ValueError("1 validation error for Settings\nx_timeout\n  Input should be a number"), tmp_path)
    assert "(1 validation error for Settings x_timeout Input should be a number)" in capsys.readouterr().err
