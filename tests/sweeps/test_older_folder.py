"""A sweep folder that an earlier version made is reported, resumed and extended by this one.

tests/data/sweep_before_folders was made by commit 95e0b11, when every module of `ratplus` stood in one folder: one
model, the patterns D1 and D16, finished. Left out of it are the report, the logs and the adapted weights; host and
environment are blanked.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
from cli_runs import records, run_here, stamps

OLD = Path(__file__).parents[1] / "data" / "sweep_before_folders"
COMMAND = [
    "data=text", "data.path=text.txt", "model=ratplus_nano", "model.layers=1", "logger=none", "train.context=64",
    "data.recall.length=32", "data.recall.keys=4", "data.recall.pairs=4", "eval.text_rows=8", "eval.recall_rows=8",
    "eval.cloze.items=4", "train.pretrain.steps=4", "train.adapt.steps=2", "train.pretrain.batch=4",
    "train.adapt.batch=4", "run.threads=1", "run.accelerator=cpu", "sweep.name=before", "output=sweep",
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A writable copy, as the working folder."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ratplus.analysis.draw.style.save", lambda figure, stem: [])
    return tmp_path


def losses(sweep: Path) -> dict[str, float]:
    return {
        record["config"]["pattern"]["dilation"]: record["metrics"]["loss"]["value"]
        for record in records(sweep).values()
        if "loss" in record["metrics"]
    }


def test_an_older_folder_is_reported(place, capsys):
    assert run_here("status", "sweep", "--json") == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(cell["label"], cell["status"]) for cell in cells] == [("D1", "done"), ("D16", "done")]
    assert run_here("report", "sweep") == 0
    with (place / "sweep" / "report" / "accuracy_vs_dilation.csv").open() as file:
        rows = list(csv.DictReader(file))
    known = losses(OLD / "sweep")
    assert {int(row["dilation"]): float(row["loss"]) for row in rows} == pytest.approx(known)
    assert (place / "sweep" / "report" / "index.html").exists()


def test_an_older_folder_is_resumed_and_extended(place, capsys):
    """The same command does nothing again; a further pattern is adapted from the weights that were pretrained then."""
    sweep = place / "sweep"
    before, found = stamps(sweep), records(sweep)
    assert run_here("sweep", "-m", "pattern=dense,dilated,streaming", *COMMAND) == 0
    now = stamps(sweep)
    assert {path: now[path] for path in before} == before
    assert {name: record for name, record in records(sweep).items() if name in found} == found
    new = [json.loads(path.read_text()) for path in sweep.glob("*/*/record.json") if path not in before]
    assert sorted((record["stage"], record["status"]) for record in new) == [("adapt", "done"), ("evaluate", "done")]
    (pretrained,) = (path.name for path in (sweep / "pretrain").iterdir())
    assert next(record for record in new if record["stage"] == "adapt")["parent"] == pretrained
    cells = json.loads((sweep / "sweep.json").read_text())["cells"]
    assert [cell["label"] for cell in cells] == ["D1", "D16", "stream-W64-I4"]
    assert set(losses(sweep)) == {1, 16, None}
