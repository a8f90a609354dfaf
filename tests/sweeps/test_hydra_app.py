"""`ratplus-hydra`: one cell as a job of Hydra, under its basic launcher and under the sweeper Optuna."""

import importlib
import importlib.util
import io
import json
import logging
import os
import shutil
import subprocess
import tomllib
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import yaml
from cli_runs import TINY, ratplus_here, records, stamps

from ratplus.records.manifest import read_manifest
from ratplus.records.record import read_record
from ratplus.sweeps import hydra_app

WORDS = [*TINY, "eval.cloze.items=0"]
# The folder hydra_plugins is there only where some plugin is.
HAS_OPTUNA = all(importlib.util.find_spec(name) for name in ("hydra_plugins", "hydra_plugins.hydra_optuna_sweeper"))
needs_optuna = pytest.mark.skipif(not HAS_OPTUNA, reason="needs Optuna's sweeper: pip install 'ratplus[optuna]'")


def hydra_here(place, *words) -> subprocess.CompletedProcess:
    """`ratplus-hydra` in this process; what Hydra sets for logging and in the environment ends with it."""
    said, complained = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with chdir(place), redirect_stdout(said), redirect_stderr(complained), mock.patch.dict(os.environ):
        try:
            hydra_app.main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            for handler in root.handlers:
                if handler not in handlers:
                    handler.close()
            root.handlers[:] = handlers
            root.setLevel(level)
    return subprocess.CompletedProcess(words, code, said.getvalue(), complained.getvalue())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """D1 and D16 of one model, each a job of Hydra's basic launcher, in the sweep folder `hydra`."""
    place = tmp_path_factory.mktemp("made")
    (place / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    done = hydra_here(place, "-m", *WORDS, "pattern=dense,dilated", "objective=loss", "output=hydra")
    assert done.returncode == 0, done.stderr
    (place / "said").write_text(done.stdout)
    (place / "hydra").rename(place / "kept")
    shutil.move(place / "multirun", place / "jobs")
    return place


@pytest.fixture
def place(made, monkeypatch):
    """The same folder for all tests, since a corpus is found by where its text lies, with the sweep as it was."""
    for name in ("hydra", "multirun", "outputs", "store", "other"):
        shutil.rmtree(made / name, ignore_errors=True)
    shutil.copytree(made / "kept", made / "hydra")
    # Of `ratplus`; what it would report is the same.
    monkeypatch.setattr("ratplus.sweeps.runner.cells.final_report", lambda folder, logger: None)
    return made


def values(folder: Path, name: str) -> dict[str, float]:
    """{pattern: a metric} of the finished cells of a sweep folder."""
    found = {}
    for cell in read_manifest(folder)["cells"]:
        record = read_record(folder / "evaluate" / cell["id"])
        assert record is not None
        found[cell["label"]] = record["metrics"][name]["value"]
    return found


def test_jobs_of_the_basic_launcher_are_the_cells_of_a_sweep(place):
    assert len(list((place / "kept" / "pretrain").iterdir())) == 1  # shared between the jobs
    said = (place / "said").read_text()
    for label, loss in values(place / "hydra", "loss").items():
        assert f"ratplus_nano {label} (hydra/evaluate/" in said
        assert f": loss {loss:.6g}\n" in said
    assert said.endswith("ratplus report hydra writes tables, figures and the page\n")
    # What Hydra keeps of its jobs lies where Hydra has it, and tells each job's words.
    jobs = sorted((place / "jobs").glob("*/*/*/.hydra/overrides.yaml"))
    assert [next(word for word in yaml.safe_load(job.read_text()) if word.startswith("pattern")) for job in jobs] == [
        "pattern=dense",
        "pattern=dilated",
    ]
    assert len(list((place / "jobs").glob("*/*/*/ratplus.log"))) == 2
    for record in (place / "kept").glob("*/*/record.json"):
        command = json.loads(record.read_text())["provenance"]["command"]
        assert command[1:] == ["-m", *WORDS, "pattern=dense,dilated", "objective=loss", "output=hydra"]


def test_either_command_finds_what_the_other_has_done(place):
    before = stamps(place / "hydra")
    done = ratplus_here(place, "evaluate", *WORDS, "pattern=dilated", "output=hydra")
    assert done.returncode == 0, done.stderr
    assert stamps(place / "hydra") == before
    again = hydra_here(place, *WORDS, "pattern=D16", "output=hydra", "objective=[recall_accuracy,kv_ratio]")
    assert again.returncode == 0, again.stderr
    assert stamps(place / "hydra") == before
    recall = values(place / "hydra", "recall_accuracy")["D16"]
    assert f"recall_accuracy {recall:.6g}, kv_ratio 0.0625\n" in again.stdout
    assert list((place / "outputs").glob("*/*/.hydra/config.yaml"))


def test_a_cell_is_bit_for_bit_that_of_ratplus(place):
    """Two cells in one process, one after the other, leave nothing to each other."""
    done = ratplus_here(place, "evaluate", *WORDS, "pattern=dilated", "output=other")
    assert done.returncode == 0, done.stderr
    alone = records(place / "other")
    assert len(alone) == 3
    assert {key: records(place / "hydra")[key] for key in alone} == alone


def test_axes_are_told_from_what_is_fixed(place):
    words = [*WORDS, "pattern=dilated", "output=hydra"]
    done = hydra_here(place, "-m", *words, "train.adapt.lr=1e-3,2e-3")
    assert done.returncode == 0, done.stderr
    cells = read_manifest(place / "hydra")["cells"]
    assert {cell["axes"]["train.adapt.lr"] for cell in cells} == {1e-3, 2e-3}
    refused = hydra_here(place, "-m", *words, "train.adapt.steps=3", "train.adapt.lr=1e-3,3e-3")
    assert refused.returncode == 2
    assert "ratplus: error: hydra: holds cells with train.adapt.steps=2, this call asks for" in refused.stderr
    assert len(read_manifest(place / "hydra")["cells"]) == len(cells)


def test_a_failed_cell_does_not_stop_the_others(place):
    words = [*WORDS, "pattern=dilated", "train.adapt.lr_min=0", "output=other"]
    done = hydra_here(place, "-m", *words, "train.adapt.lr=1e30,1e-3", "objective=loss")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("ratplus: ratplus_nano D16 (other/evaluate/")
    assert sorted(r["status"] for r in records(place / "other").values()) == ["done"] * 3 + ["failed"]


def test_stages_are_shared_with_other_sweeps(place):
    words = [*WORDS, "pattern=dilated", "run.store=store"]
    assert hydra_here(place, *words, "output=hydra").returncode == 0  # done already: nothing to put there
    assert hydra_here(place, *words, "output=other").returncode == 0
    shutil.rmtree(place / "other")
    done = hydra_here(place, *words, "output=other", "hydra.job.chdir=true")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("taken from the store") == 3
    assert (place / "other" / "sweep.json").is_file()  # paths are meant from where the command was given


def test_a_file_may_hold_the_search(place, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "tune.yaml").write_text(
        "# @package _global_\nobjective: loss\nhydra: {mode: MULTIRUN, sweeper: {params: {pattern.dilation: '1,16'}}}\n"
    )
    words = [*WORDS, "experiment=tune", "--config-dir", tmp_path, "output=hydra"]
    before = stamps(place / "hydra")
    done = hydra_here(place, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": loss ") == 2
    assert stamps(place / "hydra") == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["objective=los"], "objective: got 'los', which this cell has not; did you mean loss? allowed: loss, per"),
        (["objective=loss", "eval.text_rows=0"], "objective: got 'loss', which this cell has not; allowed: recall_"),
        (["objective=3"], "objective: got 3; it must be the name of a result such as loss, a list of different names,"),
        (["objective=loss,kv_ratio"], "objective: takes no values in turn; several at once are a list: objective=["),
        (["pattern.dilation=0"], "pattern.dilation: got 0; it must be a whole number"),
        (["pattern=dense,dilated"], "pattern=dense,dilated: several values; add -m to run them all"),
        (["-m", "run.threads=1,2"], "run.threads: cannot have several values; it says how cells run"),
        (["-m", "pattern=choice(D1,D16)"], "labels such as D16 are values of pattern.label"),
        (["-m", "dry_run=true", "pattern=dense,dilated"], "dry_run: shows one cell; `ratplus sweep -m"),
        (["hydra.sweeper.n_trials=3"], "hydra.sweeper.n_trials: no key of Hydra's, or not of the sweeper"),
        (["-m", "train.adapt.lr=interval(1,2)"], "lr=interval(1,2): an interval is for hydra/sweeper=optuna"),
        (["hydra/sweeper=optunaa"], "hydra/sweeper=optunaa: no such choice; available: basic"),
        (["launcher=slurm"], "launcher=slurm: of `ratplus` alone; here Hydra launches: hydra/launcher="),
        (["pattern=dilated", "pattern.only_layer=each"], "`each` makes several cells; use `ratplus sweep`"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["--config-path", "/tmp"], "--config-path: cells are composed of ratplus' own files"),
        (["--experimental-rerun", "x.pickle"], "--experimental-rerun: reads a pickle, which may run anything"),
        (["--multirum"], "--multirum: no such option; ratplus-hydra --hydra-help lists the options"),
        (["data.path=gone.txt"], "gone.txt"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(place, words, line):
    done = hydra_here(place, *WORDS, *words, "output=other")
    assert done.returncode == 2
    assert done.stderr.startswith("ratplus: error: ")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "other" / "sweep.json").exists()


def test_a_mistake_in_one_job_is_told_without_a_trace(place):
    done = hydra_here(place, "-m", *WORDS, "pattern=dilated", "pattern.dilation=16,0", "output=hydra")
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    first, last = done.stderr.splitlines()[-2:]
    assert first.startswith("Error executing job with overrides:")  # Hydra's own line says which job
    assert "pattern.dilation=0" in first
    assert last.startswith("ratplus: error: pattern.dilation: got 0; it must be a whole number")


def test_a_result_that_only_the_records_know_is_told_with_those_that_there_are(place):
    words = [*WORDS, "pattern=dilated", "eval.positions.width=32", "output=other"]
    done = hydra_here(place, *words, "objective=loss_at_0_31")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ratplus: error: objective: got 'loss_at_0_31', which this cell has not; did you mean ")
    assert ", timing:evaluate_seconds" in last
    again = hydra_here(place, *words, "objective=[loss_at_0_32,timing:evaluate_seconds]")
    assert again.returncode == 0, again.stderr
    assert f"loss_at_0_32 {values(place / 'other', 'loss_at_0_32')['D16']:.6g}, timing:evaluate_seconds" in again.stdout


def test_ratplus_itself_has_no_objective(place):
    done = ratplus_here(place, "evaluate", *WORDS, "objective=loss", "output=other")
    assert done.returncode == 2
    assert done.stderr.startswith("ratplus: error: objective=loss: objective is what ratplus-hydra tells a sweeper")


def test_help_names_the_command(place):
    done = hydra_here(place, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("ratplus-hydra runs one cell of a sweep as a job of Hydra")


def test_the_console_script_is_this_command():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["ratplus-hydra"].partition(":")
    assert getattr(importlib.import_module(module), name) is hydra_app.main


# ---- Optuna ---------------------------------------------------------------------------------------------------------


def optuna_here(place, *words) -> tuple[subprocess.CompletedProcess, dict]:
    """The command with three trials, one at a time; and what Optuna found."""
    words = ["-m", *WORDS, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", *words]
    done = hydra_here(place, *words, "hydra.sweep.dir=multirun", "output=hydra")
    found = place / "multirun" / "optimization_results.yaml"
    return done, yaml.safe_load(found.read_text()) if found.exists() else {}


@needs_optuna
@pytest.mark.parametrize(("metric", "best"), [("loss", min), ("recall_accuracy", max)])
def test_optuna_chooses_by_the_objective_in_its_direction(place, metric, best):
    before = stamps(place / "hydra")
    words = ["pattern.dilation=choice(1,16)", "hydra/sweeper/sampler=grid", f"objective={metric}"]
    done, found = optuna_here(place, *words)
    assert done.returncode == 0, done.stderr
    known = values(place / "hydra", metric)
    assert found["best_value"] == best(known.values())
    assert known[f"D{found['best_params']['pattern.dilation']}"] == found["best_value"]
    assert f"hydra.sweeper.direction={best.__name__}imize, as is better of {metric}" in done.stderr
    assert stamps(place / "hydra") == before  # trials of cells that are done read them


@needs_optuna
def test_optuna_takes_several_objectives_and_new_axes(place):
    words = ["pattern=dilated", "train.adapt.lr=interval(1e-3,2e-3)", "objective=[loss,kv_ratio]"]
    done, found = optuna_here(place, *words)
    assert done.returncode == 0, done.stderr
    assert "hydra.sweeper.direction=[minimize,minimize], as is better of loss, kv_ratio" in done.stderr
    cells = read_manifest(place / "hydra")["cells"]
    assert len(cells) == 2 + 3
    assert len(list((place / "hydra" / "pretrain").iterdir())) == 1
    by_lr = {cell["config"]["train"]["adapt"]["lr"]: cell["id"] for cell in cells}
    for solution in found["solutions"]:
        record = json.loads(
            (place / "hydra" / "evaluate" / by_lr[solution["params"]["train.adapt.lr"]] / "record.json").read_text()
        )
        assert solution["values"] == [record["metrics"]["loss"]["value"], 0.0625]


@needs_optuna
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "objective: must be given, since the sweeper decides by it: objective=loss"),
        (["objective=my_task/odd"], "objective: whether less or more of 'my_task/odd' is better is not known; add"),
        (["objective=[loss,kv_ratio]", "hydra.sweeper.direction=minimize"],
         "hydra.sweeper.direction: has 1 directions for 2 objectives; give one for each"),
        (["objective=loss", "hydra.sweeper.n_trails=3"], "hydra.sweeper.n_trails: no key of Hydra's, or not of the"),
    ],
)  # fmt: skip
def test_what_optuna_cannot_decide_by_is_told_before_a_trial(place, words, line):
    done, _ = optuna_here(place, "pattern.dilation=choice(1,16)", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("ratplus: error: ")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "multirun").exists()
