"""`ratplus report`: one sweep, its gates, two sweeps, and what it says of mistakes."""

import json

import pytest
from cli_runs import run_here as ratplus

from ratplus.records.manifest import read_manifest
from ratplus.stages.cell import Cell
from ratplus.stages.run_stage import Surroundings
from ratplus.sweeps.define.compose import compose_cells
from ratplus.sweeps.define.manifest import add_cells, plan_cells

TINY = [
    "data=text", "data.path=text.txt", "logger=none", "train.context=64", "data.recall.length=32", "data.recall.keys=4",
    "data.recall.pairs=4", "eval.text_rows=8", "eval.recall_rows=8", "train.pretrain.steps=2", "train.adapt.steps=1",
    "train.pretrain.batch=4", "train.adapt.batch=4", "run.threads=1", "run.accelerator=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a sweep of both models under D4, finished, and one of RAT+ alone, not begun."""
    place = tmp_path_factory.mktemp("report")
    (place / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, models in (("both", "attention_nano,ratplus_nano"), ("one", "ratplus_nano")):
            cells = compose_cells([*TINY, f"model={models}", "pattern.dilation=4"])
            add_cells(place / name, name, plan_cells(cells))
            for cell in cells if name == "both" else []:
                Cell(cell.config, Surroundings(place / name)).run()
    return place


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    # Figures are drawn, but not rendered to files: other tests do, and it takes most of the time.
    monkeypatch.setattr("ratplus.analysis.draw.style.save", lambda figure, stem: [])


def test_gates_are_measured_once_and_reported(place, capsys):
    assert ratplus("report", "both", "--gates") == 0
    printed = capsys.readouterr().out.split()
    assert printed[-1] == "both/report/index.html"
    assert "both/report/recurrence.csv" in printed
    (path,) = place.glob("both/evaluate/*/gates.json")  # of RAT+; attention alone has none
    gates = json.loads(path.read_text())
    assert gates["context"] == 64
    assert gates["rows"] == 8
    written = path.stat().st_mtime_ns
    assert ratplus("report", "both", "--gates") == 0
    assert path.stat().st_mtime_ns == written


def test_a_cell_with_another_id_takes_the_place_of_the_old_one(place, capsys):
    """An id changes where a version counts something else as science; the two must not look like two seeds."""
    entries = plan_cells(compose_cells([*TINY, "model=ratplus_nano", "pattern.dilation=4,8"]))
    older = [entry | {"id": entry["id"][::-1]} for entry in entries]
    add_cells(place / "aged", "aged", older)
    add_cells(place / "aged", "aged", entries[:1])
    assert {cell["id"] for cell in read_manifest(place / "aged")["cells"]} == {entries[0]["id"], older[1]["id"]}
    assert "1 cells of this folder have other ids in this version" in capsys.readouterr().err
    add_cells(place / "aged", "aged", entries)
    add_cells(place / "aged", "aged", entries)
    assert [cell["axes"] for cell in read_manifest(place / "aged")["cells"]] == [{}, {}]
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_has_the_command_of_each_cell(place):
    assert ratplus("report", "both", "--reference", "paper") == 0
    page = (place / "both" / "report" / "index.html").read_text()
    for cell in read_manifest(place / "both")["cells"]:
        assert f"model={cell['model']}" in page
        assert f"output=outputs/again-{cell['id']}" in page


def test_a_sweep_against_itself_does_not_differ(place, capsys):
    assert ratplus("report", "both", "both") == 0
    assert "both/report/compare_both.csv" in capsys.readouterr().out
    table = (place / "both" / "report" / "compare_both.md").read_text()
    assert "paired bootstrap" in table  # evaluations store their samples
    assert "**" not in table


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["both", "--reference", "papers"], "--reference: got 'papers'; allowed: paper"),
        (["both", "one", "both"], "no result that all sweeps were asked alike"),
        (["both", "one", "--gates"], "of one sweep folder"),
        (["both", "one"], "no cell that both sweeps have is finished in both"),
        (["both", "."], ".: holds no sweep.json, so it is not the output folder of a sweep"),
        (["absent"], "absent: no such folder; give the output folder of a sweep"),
    ],
)
def test_mistakes_are_one_line(words, said, capsys):
    assert ratplus("report", *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
