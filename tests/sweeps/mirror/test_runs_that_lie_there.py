"""Offline runs that lie in a sweep folder, damaged ones among them; the run of a report; panels of a result's lines."""

import json
import shutil
from pathlib import Path

import pytest

from ratplus import Pattern, PatternMap
from ratplus.sweeps.mirror.runs import RunSpec, report_run, stage_head
from ratplus.sweeps.mirror.write import MARKER_FILE, _value, offline_checksums, remove_offline


@pytest.mark.parametrize("damage", ["{", "[1]", "7", "{}", '{"id": "x"}', '{"id": ["x"], "checksum": "y"}', None])
def test_a_damaged_marker_hides_no_other_run(tmp_path, damage):
    for number, content in enumerate((damage, json.dumps({"id": "whole", "checksum": "abc"}))):
        path = tmp_path / "wandb" / f"offline-run-{number}-x" / MARKER_FILE
        path.parent.mkdir(parents=True)
        if content is None:
            path.mkdir()
        else:
            path.write_text(content)
    assert offline_checksums(tmp_path) == {"whole": "abc"}
    assert offline_checksums(tmp_path / "elsewhere") == {}


def test_a_marker_that_is_a_link_is_not_followed(tmp_path):
    path = tmp_path / "wandb" / "offline-run-1-x" / MARKER_FILE
    path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere.json").write_text('{"id": "x", "checksum": "y"}')
    path.symlink_to(tmp_path / "elsewhere.json")
    assert offline_checksums(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("3", 3),
        ("-1.5e3", -1500.0),
        ("True", True),
        ("False", False),
        ("D1-W64", "D1-W64"),
        ("true", "true"),
    ],
)
def test_fields_of_a_table_are_numbers_where_they_can_be(text, value):
    found = _value(text)
    assert found == value
    assert type(found) is type(value)


def test_runs_of_another_id_stay(tmp_path):
    for name in ("offline-run-1-abc", "offline-run-2-abc", "offline-run-1-abcd", "run-1-abc"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    remove_offline(tmp_path, "abc")
    assert sorted(path.name for path in (tmp_path / "wandb").iterdir()) == ["offline-run-1-abcd", "run-1-abc"]


def test_the_run_of_a_report_stays_the_same_when_cells_are_added(tmp_path):
    shutil.copytree(Path(__file__).parents[2] / "data" / "sweep_before_folders", tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "sweep"
    manifest = json.loads((folder / "sweep.json").read_text())
    assert report_run(folder, []) is None
    (folder / "report").mkdir()
    (folder / "report" / "table.csv").write_text("a\n1\n")

    def run_of(**changes) -> RunSpec:
        (folder / "sweep.json").write_text(json.dumps(manifest | changes))
        return report_run(folder, [])

    (first, *_), one = manifest["cells"], run_of()
    other = first | {"id": "f" * 12, "stages": first["stages"] | {"evaluate": "f" * 12}}
    more = run_of(cells=[*manifest["cells"], other])
    assert (more.id, more.summary["cells"]) == (one.id, one.summary["cells"] + 1)
    # Another sweep's is another run, though it may be sent to the same project.
    assert len({one.id, run_of(name="other").id, run_of(cells=[other, *manifest["cells"]]).id}) == 3


def test_a_line_over_dilations_has_nothing_but_dilation(tmp_path):
    """Neither a window nor sinks nor selected blocks, which keep a model from the losses that dilation alone gives."""
    shutil.copytree(Path(__file__).parents[2] / "data" / "sweep_before_folders", tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "sweep"
    manifest = json.loads((folder / "sweep.json").read_text())
    first, labels = manifest["cells"][0], ("D1", "D4", "D4", "D4-W8", "D4-I2", "D4-top3x4", "top3x4", "stream-W8-I2")
    shape = {"name": "m", "recurrence": True, "layers": 2, "d_model": 16, "d_head": 8, "vocab_size": 9}
    cells, runs = [], []
    for number, label in enumerate(labels):
        item = f"{number:012x}"
        cells.append(first | {"id": item, "stages": first["stages"] | {"evaluate": item}})
        config = {"pattern": PatternMap.uniform(Pattern.from_label(label), 2, 2).to_dict(), "context": 64}
        run = stage_head("evaluate", item, config, None, {"model": shape, "train": {}, "seed": 0}, "x")
        run.summary |= {name: run.config[name] for name in ("dilation", "window", "sinks")} | {"loss": 2.0**number}
        runs.append(run)
    (folder / "sweep.json").write_text(json.dumps(manifest | {"cells": cells}))
    (folder / "report").mkdir()
    (folder / "report" / "table.csv").write_text("a\n1\n")
    rows = report_run(folder, runs).rows
    assert [row["by_dilation/dilation"] for row in rows] == [1, 4]
    losses = [value for row in rows for name, value in row.items() if "/loss/" in name]
    assert losses == [1.0, 3.0]  # the mean of both D4


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces.*")
def test_a_panel_holds_the_lines_of_its_own_result():
    pytest.importorskip("wandb_workspaces")
    from ratplus.sweeps.mirror.workspace import _by_dilation

    rows = [
        {"step": 0, "by_dilation/dilation": 1, "by_dilation/loss/a": 1.7, "by_dilation/loss/b": 1.8},
        {"step": 1, "by_dilation/dilation": 4, "by_dilation/recall_accuracy/b": 0.5, "by_dilation/loss/a": 1.9},
    ]
    panels = _by_dilation(RunSpec("x", "x", "x", "report", [], {}, rows))
    assert {panel.title: (panel.y, panel.line_titles) for panel in panels} == {
        "Held-out loss (nats) by dilation": (
            ["by_dilation/loss/a", "by_dilation/loss/b"], {"by_dilation/loss/a": "a", "by_dilation/loss/b": "b"},
        ),
        "Recall accuracy by dilation": (["by_dilation/recall_accuracy/b"], {"by_dilation/recall_accuracy/b": "b"}),
    }  # fmt: skip
    assert _by_dilation(None) == []
