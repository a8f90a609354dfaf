"""Training whose loss is not finite any more stops as a failed stage, and is never taken for done."""

import math
from dataclasses import replace

import pytest
import torch

from ratplus.config.cell import Config
from ratplus.config.data import DataSection, RecallSection
from ratplus.config.eval import EvalSection
from ratplus.config.model import ModelSection
from ratplus.config.run import RunSection
from ratplus.config.train import RecipeSection, TrainSection
from ratplus.records.curve import curve_rows
from ratplus.records.record import read_record, write_record
from ratplus.records.status import stage_state
from ratplus.stages.cell import Cell
from ratplus.stages.run_stage import Surroundings
from ratplus.stages.stage_ids import plan
from ratplus.training.divergence import DivergenceWatch
from ratplus.training.errors import Diverged

RECIPE = RecipeSection(steps=40, batch=2, lr=1e30)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    return Config(
        model=ModelSection("nano", layers=1, d_model=16, d_head=8),
        data=DataSection(
            source="text", path=str(tmp_path / "text.txt"), root=str(tmp_path / "data"),
            recall=RecallSection(length=16, keys=4, values=4, pairs=4),
        ),
        train=TrainSection(context=32, pretrain=RECIPE, adapt=RecipeSection(steps=2, batch=2, order="random")),
        eval=EvalSection(text_rows=8, recall_rows=8, batch=4),
        run=RunSection(accelerator="cpu", checkpoint_seconds=0.0, log_every=1),
    )  # fmt: skip


def report(loss: float, norm: float = 1.0, prefix: str = "") -> dict:
    first = {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(1.0)}
    return (
        {"lr": 0.5, "labels": 3}
        | first
        | {f"{prefix}loss": torch.tensor(loss), f"{prefix}grad_norm": torch.tensor(norm)}
    )


@pytest.mark.parametrize(
    "bad", [(math.nan, 1.0, ""), (math.inf, 1.0, ""), (1.0, math.inf, ""), (1.0, math.nan, "arl_")]
)
def test_so_many_bad_steps_in_a_row_stop_the_run(bad):
    watch = DivergenceWatch(RECIPE, "adapt", 3, 10, "bf16")
    for done, numbers in enumerate([(2.5, 1.0), bad, bad, (2.25, 1.0), bad, bad], start=1):
        watch.step(done, report(*numbers))
    assert watch.bad
    with pytest.raises(Diverged) as ended:
        watch.step(7, report(*bad))
    told = str(ended.value)
    assert "not finite since step 5 (seen at step 7 of 40, learning rate 0.5, last finite loss " in told
    assert "try a lower train.adapt.lr than 1e+30, or a longer train.adapt.warmup than" in told
    assert "train.precision=float32" in told
    assert "\n" not in told


def test_a_bad_last_step_is_a_failure_whatever_the_limit():
    watch = DivergenceWatch(replace(RECIPE, steps=2), "pretrain", 3, 10, "float32")
    watch.step(1, report(2.5))
    with pytest.raises(Diverged, match=r"since step 2 .seen at step 2 of 2, .* last finite loss 2\.5"):
        watch.step(2, report(math.nan))
    watch = DivergenceWatch(replace(RECIPE, steps=1), "pretrain", 3, 10, "float32")
    with pytest.raises(Diverged, match="no step had a finite loss"):
        watch.step(1, report(math.nan))


def test_a_diverged_stage_fails_and_keeps_no_bad_state(config, tmp_path):
    said = []
    around = Surroundings(tmp_path / "sweep", print_line=said.append)
    cell = Cell(config, around)
    folder = cell.plan.pretrain.folder(around.root)
    for attempt in (1, 2):
        with pytest.raises(Diverged):
            cell.run("adapt")
        record = read_record(folder)
        assert (record["status"], record["error"]["type"], record["error"]["attempt"]) == (
            "failed",
            "Diverged",
            attempt,
        )
        assert "try a lower train.pretrain.lr than 1e+30" in record["error"]["message"]
    assert len(curve_rows(folder / "curve.csv")) < 10
    assert not (folder / "model.safetensors").exists()
    for path in folder.glob("training-*.pt"):
        assert all(w.isfinite().all() for w in torch.load(path, weights_only=True)["model"].values())
    # The limit changes no result, so it is in no id.
    other = replace(config, run=replace(config.run, nonfinite_steps=7))
    assert [s.id for s in plan(other, cell.corpus.identity, cell.corpus.vocab_size)] == [s.id for s in cell.plan]


def test_an_older_record_of_a_nan_counts_as_failed(config, tmp_path):
    config = replace(config, train=replace(config.train, pretrain=replace(RECIPE, lr=1e-3, steps=2)))
    said = []
    cell = Cell(config, Surroundings(tmp_path / "sweep", print_line=said.append))
    record = cell.run("pretrain")
    folder = cell.plan.pretrain.folder(tmp_path / "sweep")
    assert stage_state(folder).status == "done"
    parts = {key: record[key] for key in ("stage", "config", "parent", "status", "timing", "provenance")}
    metrics = record["metrics"] | {"train_loss": {"value": math.nan, "stderr": None, "count": 64}}
    write_record(folder, **parts, metrics=metrics)
    state = stage_state(folder)
    assert (state.status, state.stage) == ("failed", "pretrain")
    assert state.error == "train_loss=nan: training had diverged; running it again says at which step"
    assert cell.run("pretrain")["metrics"] == record["metrics"]
    assert "the record is of training that diverged (train_loss=nan)" in said[0]
    # A loss over nothing, as where a suite has no rows, is no such loss.
    metrics = record["metrics"] | {"train_loss": {"value": math.nan, "stderr": None, "count": 0}}
    write_record(folder, **parts, metrics=metrics)
    assert stage_state(folder).status == "done"


def test_a_bad_training_state_of_an_earlier_version_is_not_continued(config, tmp_path, monkeypatch):
    config = replace(config, train=replace(config.train, pretrain=replace(RECIPE, steps=8)))
    with monkeypatch.context() as before:
        before.setattr(DivergenceWatch, "bad", False)
        before.setattr(DivergenceWatch, "step", lambda self, done, report: 1 / (6 - done))
        cell = Cell(config, Surroundings(tmp_path / "sweep", print_line=lambda _line: None))
        with pytest.raises(ZeroDivisionError):
            cell.run("pretrain")
    said = []
    with pytest.raises(Diverged, match="since step 2"):
        Cell(config, Surroundings(tmp_path / "sweep", print_line=said.append)).run("pretrain")
    assert "its training state has a loss that is not finite; starting again" in said[0]
