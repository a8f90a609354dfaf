"""A cell with fine-tuning from the command line: its stages in every view of a sweep, and what is refused."""

import json
import shlex
from pathlib import Path

import pytest
from cli_runs import TINY
from cli_runs import run_here as ratplus

from ratplus.records.manifest import read_manifest
from ratplus.records.record import read_record
from ratplus.stages.cell import Cell
from ratplus.stages.run_stage import Surroundings
from ratplus.sweeps.define.manifest import cell_config
from ratplus.sweeps.define.typed import typed
from ratplus.sweeps.mirror.runs import sweep_runs

SFT = ["train.sft.steps=3", "train.sft.tasks=[niah_single_1]", "train.sft.template=short", "train.sft.digits=1",
       "train.sft.batch=2", "train.sft.items=4", "train.sft.lr=1e-3"]  # fmt: skip
ASKED = ["eval=ruler", "eval.niah.tasks=[niah_single_1]", "eval.niah.template=short", "eval.niah.digits=1",
         "eval.niah.samples=4", "eval.cloze.items=0"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished cell with fine-tuning in outputs/out, which the verb `sft` began."""
    place = tmp_path_factory.mktemp("sft")
    (place / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert ratplus("sft", *TINY, *SFT, *ASKED, "output=outputs/out") == 0
        assert not (place / "outputs" / "out" / "evaluate").exists()
        (entry,) = read_manifest("outputs/out")["cells"]
        Cell(typed(cell_config(entry)), Surroundings(place / "outputs" / "out")).run()
    return place


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


def cell() -> dict:
    (only,) = read_manifest("outputs/out")["cells"]
    return only


def test_four_records_in_a_chain(place):
    stages = cell()["stages"]
    assert list(stages) == ["pretrain", "adapt", "sft", "evaluate"]
    parent = None
    for stage, stage_id in stages.items():
        record = read_record(place / "outputs" / "out" / stage / stage_id)
        assert (record["status"], record["parent"]) == ("done", parent)
        parent = stage_id
    assert "niah_single_1_overlap" in record["metrics"]


def test_status_and_dry_run(capsys):
    assert ratplus("status", "outputs/out") == 0
    assert "1 done" in capsys.readouterr().out
    # A cell without fine-tuning beside it shares the adaptation.
    words = [*TINY, *SFT, *ASKED, "output=outputs/out", "train.sft.steps=0,3", "dry_run=true"]
    assert ratplus("sweep", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[5:9] == ["pretrain", "adapt", "sft", "evaluate"]
    assert lines[1].split()[5:9] == ["done", "done", "–", "missing"]
    assert lines[2].split()[5:9] == ["done"] * 4
    assert "4 of 5 stages done" in lines[-1]


def test_show_names_the_parent_and_a_command_that_makes_it_again(capsys):
    from ratplus.sweeps.define.compose import compose_one
    from ratplus.sweeps.define.manifest import plan_cells

    stages = cell()["stages"]
    assert ratplus("show", stages["sft"]) == 0
    out = capsys.readouterr().out
    assert f"parent  adapt {stages['adapt']}" in out
    assert "train_loss" in out
    (line,) = (line for line in out.splitlines() if line.strip().startswith("ratplus sft"))
    (again,) = plan_cells([compose_one(shlex.split(line)[2:])])
    assert again["stages"]["sft"] == stages["sft"]
    assert ratplus("show", stages["evaluate"]) == 0
    assert f"parent  sft {stages['sft']}" in capsys.readouterr().out


def test_wandb_gets_a_run_of_its_own(capsys):
    runs, problems = sweep_runs("outputs/out")
    assert not problems
    assert [run.job_type for run in runs] == ["pretrain", "adapt", "sft", "evaluate"]
    fine = runs[2]
    assert fine.config["recipe"]["tasks"] == ["niah_single_1"]
    assert [row["step"] for row in fine.rows] == [1, 3]
    assert all("sft_loss" in row for row in fine.rows)
    # A stage's config says nothing of the stages behind it.
    assert [sorted(run.config["train"]) for run in runs] == [
        ["context", "precision", "pretrain"], ["adapt", "context", "precision", "pretrain"],
        *[["adapt", "context", "precision", "pretrain", "sft"]] * 2,
    ]  # fmt: skip
    assert ratplus("sync", "outputs/out", "--dry-run") == 0
    assert f"sft       {cell()['stages']['sft']}" in capsys.readouterr().out


def test_plan_counts_its_tokens(capsys):
    assert ratplus("plan", *TINY, *SFT, "pattern.dilation=1,4", "train.sft.length=48") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("sft"))
    assert line.split()[1:5] == ["2", "3", "2", f"{2 * 3 * 2 * 48}"]
    assert ratplus("plan", *TINY) == 0
    assert "sft" not in capsys.readouterr().out


def test_the_page_has_its_curve(capsys, monkeypatch):
    monkeypatch.setattr("ratplus.analysis.draw.style.save", lambda figure, stem: [])
    assert ratplus("report", "outputs/out") == 0
    page = capsys.readouterr().out.splitlines()[-1]
    text = Path(page).read_text()
    assert json.dumps(cell()["stages"]["sft"]) in text.partition('"curves":')[2]
    assert "Needles by depth (NIAH)" in text


def test_gates_and_text_are_of_the_fine_tuned_model(capsys, place):
    assert ratplus("generate", f"model={cell()['id']}", "sweep=outputs/out", "prompt=a", "max_new_tokens=2") == 0
    from ratplus.sweeps.verbs.report import measure_sweep_gates

    assert measure_sweep_gates(place / "outputs" / "out")
    # Taken away, they are missed.
    folder = place / "outputs" / "out" / "sft" / cell()["stages"]["sft"]
    folder.rename(place / "away")
    capsys.readouterr()
    assert ratplus("generate", f"model={cell()['id']}", "sweep=outputs/out", "prompt=a", "max_new_tokens=2") == 2
    assert f"sft/{cell()['stages']['sft']} has no trained model yet" in capsys.readouterr().err
    (place / "away").rename(folder)


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("sft", [], "train.sft.steps: got 0, so there is no stage `sft`"),
        ("sweep", ["train.sft.steps=2"], "train.sft.tasks: got []; train.sft.steps=2 needs some to train on"),
        ("sweep", [*SFT, "train.sft.tasks=[niah]"], "train.sft.tasks: got 'niah'; allowed: niah_single_1"),
        ("sweep", [*SFT, "train.sft.length=40"], "train.sft.length: got 40, but niah_single_1 needs"),
        ("sweep", [*SFT, "train.sft.length=65"], "train.sft.length: got 65; it must be ≤ train.context=64"),
        ("sweep", [*ASKED, "eval.niah.length=65"], "eval.niah.length: got 65; it must be ≤ train.context=64"),
        ("sweep", [*SFT, "train.sft.epochs=4"], "train.sft.epochs"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(capsys, place, verb, words, message):
    assert ratplus(verb, *TINY, *words, "output=outputs/never") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (place / "outputs" / "never").exists()
