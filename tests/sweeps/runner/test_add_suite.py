"""`ratplus evaluate --add`: one more suite for the cells of a finished sweep, in their folder."""

import json
import shutil

import pytest
from cli_runs import TINY, ratplus_here, stamps

from ratplus.analysis.frame.load import load_sweep
from ratplus.analysis.report import headline
from ratplus.records.manifest import RecordError, evaluations, read_manifest
from ratplus.records.record import read_record
from ratplus.stages.cell import Cell
from ratplus.stages.run_stage import Surroundings
from ratplus.sweeps.define.compose import compose_cells
from ratplus.sweeps.define.manifest import add_cells, plan_cells

ADD = ["evaluate", "--add", "positions", "sweep", "eval.positions.width=32", "logger=none", "run.threads=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of D1 and D4, finished."""
    place = tmp_path_factory.mktemp("finished")
    (place / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        cells = compose_cells([*TINY, "pattern.dilation=1,4"])
        add_cells(place / "sweep", "sweep", plan_cells(cells))
        for cell in cells:
            Cell(cell.config, Surroundings(place / "sweep")).run()
    (place / "sweep").rename(place / "kept")
    return place


@pytest.fixture
def place(finished, monkeypatch):
    """The same folder for all tests, since corpora are found by where their text lies, with the sweep as it was."""
    shutil.rmtree(finished / "sweep", ignore_errors=True)
    shutil.copytree(finished / "kept", finished / "sweep")
    monkeypatch.chdir(finished)
    # Each added cell runs in this process, and no figure is drawn.
    monkeypatch.setattr("ratplus.analysis.draw.style.save", lambda figure, stem: [])
    monkeypatch.setattr("ratplus.sweeps.launch.launch.launch", run_here)
    return finished


def run_here(entries, folder, last, config):
    from ratplus.sweeps.launch.cell import run_cell
    from ratplus.sweeps.launch.launch import Ended, cell_config

    codes = [
        run_cell(cell_config(entry), entry["stages"], folder, last, lambda *_: None, print) for entry in entries
    ]  # fmt: skip
    return Ended(max(codes))


def test_a_suite_joins_the_rows_and_changes_nothing_else(place):
    sweep = place / "sweep"
    before, cells = stamps(sweep), read_manifest(sweep)["cells"]
    old = load_sweep(sweep)
    done = ratplus_here(place, *ADD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("positions: 2 of 2 cells are asked\n")
    assert before.items() <= stamps(sweep).items()
    after = read_manifest(sweep)["cells"]
    assert [{k: v for k, v in cell.items() if k != "added"} for cell in after] == cells
    (first, second), (own, _) = (cell["added"] for cell in after), evaluations(after)[:2]
    assert (own["id"], first[0]["suite"]) == (cells[0]["id"], "positions")
    asked = read_record(sweep / "evaluate" / first[0]["id"])["config"]["eval"]
    assert asked["positions"]["width"] == 32
    assert asked == {"text_rows": 8, "recall_rows": 8, "positions": asked["positions"]}
    frame = load_sweep(sweep)
    new = [name for name in frame.attrs["metrics"] if name not in old.attrs["metrics"]]
    assert new
    assert {"loss_at_0_32", "loss_at_32_64"} <= set(new)
    assert frame[new].notna().all(axis=None)
    assert frame["loss"].equals(old["loss"])
    assert frame.attrs["evaluations"] == {cells[0]["id"]: [first[0]["id"]], cells[1]["id"]: [second[0]["id"]]}
    # `show` finds the evaluation, and its command makes it again.
    shown = ratplus_here(place, "show", first[0]["id"], "sweep")
    assert "eval.positions.width=32" in shown.stdout
    assert "added positions: 2 done\n" in ratplus_here(place, "status", "sweep").stdout
    assert first[0]["id"] in ratplus_here(place, "sync", "sweep", "--dry-run").stdout
    # Again: nothing is left to ask, and the same ids stand there.
    stood = stamps(sweep)
    again = ratplus_here(place, *ADD, "--json")
    assert json.loads(again.stdout) == {
        "format": 1, "folder": "sweep", "suite": "positions", "untrained": 0,
        "cells": [{"cell": cell["id"], "id": cell["added"][0]["id"], "status": "done"} for cell in after],
    }  # fmt: skip
    assert "positions: 0 of 2 cells are asked" in again.stderr
    assert stamps(sweep) == stood
    # The sweep itself, called again, keeps it.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        add_cells(sweep, "sweep", plan_cells(compose_cells([*TINY, "pattern.dilation=4,8"])))
    assert [len(cell.get("added", [])) for cell in read_manifest(sweep)["cells"]] == [1, 1, 0]


def test_one_that_was_interrupted_is_told_and_goes_on(place):
    sweep = place / "sweep"
    assert ratplus_here(place, *ADD).returncode == 0
    (first,) = read_manifest(sweep)["cells"][0]["added"]
    shutil.rmtree(sweep / "evaluate" / first["id"])
    frame = load_sweep(sweep)
    assert frame.attrs["added"] == {"positions": {"missing": 1, "done": 1}}
    assert headline(frame).endswith("The added suite positions: 1 of 2 done (1 missing).")
    view = json.loads(ratplus_here(place, "status", "sweep", "--json").stdout)
    assert view["cells"][0]["added"] == [
        {"suite": "positions", "id": first["id"], "status": "missing", "error": ""}
    ]  # fmt: skip
    done = ratplus_here(place, *ADD)
    assert done.stdout.startswith("positions: 1 of 2 cells are asked\n")
    assert load_sweep(sweep).attrs["added"] == {"positions": {"done": 2}}


def test_a_cell_without_a_trained_model_is_left_out_and_said_so(place):
    cell = read_manifest(place / "sweep")["cells"][1]
    (place / "sweep" / "adapt" / cell["stages"]["adapt"] / "record.json").unlink()
    done = ratplus_here(place, *ADD)
    assert done.returncode == 1
    assert "1 of 2 cells are asked; 1 are not trained yet: run the sweep first, then this again" in done.stdout
    assert ["added" in cell for cell in read_manifest(place / "sweep")["cells"]] == [True, False]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["default", "sweep"], "it asks nothing beyond eval=default; add a key, such as eval.tasks=[piqa]"),
        (["position", "sweep"], "eval=position"),
        (["positions", "."], ".: holds no sweep.json"),
        (["positions"], "--add: give one suite and one sweep folder"),
        (
            ["positions", "sweep", "pattern=dense"],
            "got pattern=dense; allowed beside it: eval.KEY=...",
        ),
        (["positions", "sweep", "eval.positions.width=1000"], "eval.positions.width: got 1000"),
        (["default", "sweep", "eval.text_rows=4"], "has been asked eval.text_rows with other settings (8)"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(place, words, line):
    before = (place / "sweep" / "sweep.json").read_text()
    done = ratplus_here(place, "evaluate", "--add", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert line in done.stderr
    assert (place / "sweep" / "sweep.json").read_text() == before


def test_a_folder_of_a_stranger_says_neither_what_text_is_read_nor_how_anything_runs(place):
    path = place / "sweep" / "sweep.json"
    manifest = json.loads(path.read_text())
    for cell in manifest["cells"]:
        cell["run"]["launcher"] = {"kind": "slurm", "setup": ["touch evil"], "workers": None}
        cell["config"]["data"]["path"] = "elsewhere.txt"
    path.write_text(json.dumps(manifest))
    (place / "elsewhere.txt").write_text("mine " * 5000)
    done = ratplus_here(place, *ADD)
    assert done.returncode == 2
    assert "no corpus here; make it with `ratplus prepare`" in done.stderr


@pytest.mark.parametrize(
    ("added", "line"),
    [
        ([{"id": "../../x", "suite": "a", "eval": {}}], "added holds what is no suite with an id"),
        ([{"id": "0123456789ab", "suite": "a\x1b", "eval": {}}], "the name of an added suite is no text"),
        ({}, "added is no list"),
        ([{"id": "0123456789ab", "suite": "a", "eval": {}}] * 101, "added is no list of at most 100 suites"),
    ],
)
def test_odd_suites_of_a_folder_are_refused(place, added, line):
    path = place / "sweep" / "sweep.json"
    manifest = json.loads(path.read_text())
    manifest["cells"][0]["added"] = added
    path.write_text(json.dumps(manifest))
    with pytest.raises(RecordError, match=line):
        read_manifest(place / "sweep")
