"""The W&B run of each stage as plain data: what it is called, depends on, is plotted against, and how it ended."""

import json
import os

import pytest

from ratplus import Pattern, PatternMap
from ratplus.records.record import read_record, stage_id, write_record
from ratplus.sweeps.mirror import runs, sync
from ratplus.sweeps.mirror.runs import RunSpec, add_result, row_of, stage_head
from ratplus.sweeps.mirror.sync import _compare, _ending

MODEL = {"name": "m", "recurrence": True, "layers": 2, "d_model": 16, "d_head": 8, "vocab_size": 9}
CELL = {
    "model": MODEL, "seed": 3, "train": {
        "context": 64, "precision": "fp32", "pretrain": {"lr": 1.0}, "adapt": {"lr": 2.0}, "sft": {"steps": 5},
    },
}  # fmt: skip
CONFIG = {"pattern": PatternMap.uniform(Pattern(4, 8), 2, 2).to_dict(), "context": 64}


def head(stage: str, cell: dict = CELL, tags=()) -> RunSpec:
    return stage_head(stage, "i" * 12, {} if stage == "pretrain" else CONFIG, "p" * 12, cell, "sweep", tags)


@pytest.mark.parametrize(
    ("stage", "recipes"),
    [
        ("pretrain", {"pretrain"}), ("adapt", {"pretrain", "adapt"}), ("sft", {"pretrain", "adapt", "sft"}),
        ("evaluate", {"pretrain", "adapt", "sft"}),
    ],
)  # fmt: skip
def test_a_run_has_the_recipes_that_its_stage_depends_on(stage, recipes):
    config = head(stage).config
    assert config["train"].keys() == {"context", "precision"} | recipes
    assert (config["seed"], config["parent"], config["stage"], config["sweep"]) == (3, "p" * 12, stage, "sweep")
    assert config["model"].keys() == MODEL.keys() - {"name", "vocab_size"}
    assert config["model_name"] == "m"
    without = head(stage, CELL | {"train": CELL["train"] | {"sft": {"steps": 0}}}).config["train"]
    assert "sft" not in without, "the cell has no such stage"


def test_a_run_is_named_by_model_pattern_and_stage_and_pretraining_by_no_pattern():
    found = head("adapt", tags=("m", "mine", "x" * 64, "x" * 65, ""))
    assert (found.name, found.tags) == ("m D4-W8 adapt", ["m", "adapt", "D4-W8", "mine", "x" * 64])
    assert (found.config["dilation"], found.config["window"]) == (4, 8)
    shared = head("pretrain")
    assert (shared.name, shared.tags, "dilation" in shared.config) == ("m pretrain", ["m", "pretrain"], False)


@pytest.mark.parametrize("status", ["done", "failed", None])
@pytest.mark.parametrize("stage", ["adapt", "evaluate"])
def test_what_results_are_plotted_against_stands_with_evaluations_alone(tmp_path, stage, status):
    identity = stage_id(stage, CONFIG, "p" * 12)
    place, record = tmp_path / stage / identity, None
    place.mkdir(parents=True)
    (place / "curve.csv").write_text("step,tokens,loss\n1,10,3.5\n2,20,2.5\n")
    for name in ("model.safetensors", "config.json"):
        (place / name).write_text("{}")
    if status is not None:
        write_record(
            place, stage=stage, config=CONFIG, parent="p" * 12, status=status, timing={"seconds": 7.0},
            metrics={name: {"value": value, "stderr": error, "count": 3}
                     for name, value, error in (("loss", 2.0, 0.5), ("n", 1.0, None))},
            provenance={"host": "h"}, error={"type": "E", "message": "m"} if status == "failed" else None,
        )  # fmt: skip
        record = read_record(place)
    run = add_result(head(stage), place, record, checkpoints=True)
    facts = {"dilation", "window", "sinks", "kv_entries", "kv_read", "kv_bytes", "kv_ratio", "attention_flops_ratio"}
    assert facts & run.summary.keys() == (facts if stage == "evaluate" else set())
    assert run.exit_code == {"done": 0, "failed": 1, None: 255}[status]
    assert run.summary["status"] == (status or "interrupted")
    assert [row[f"{stage}_loss"] for row in run.rows] == [3.5, 2.5]
    of_record = {"loss": 2.0, "loss_stderr": 0.5, "n": 1.0, "timing/seconds": 7.0}
    assert of_record.items() <= run.summary.items() if status else not of_record.keys() & run.summary.keys()
    assert "n_stderr" not in run.summary
    assert run.summary.get("error") == ("E: m" if status == "failed" else None)
    weights = stage == "adapt" and status == "done"
    assert [path.name for path in run.files] == (["model.safetensors", "config.json"] if weights else [])
    assert add_result(head(stage), place, record).files == []


def test_a_row_without_a_loss_is_left_as_it_is():
    assert row_of("adapt", {"step": 1, "lr": 0.1}) == {"step": 1, "lr": 0.1}
    assert row_of("sft", {"step": 1, "loss": 2.0}) == {"step": 1, "loss": 2.0, "sft_loss": 2.0}


def test_what_a_place_lacks():
    made = [
        RunSpec(f"{i}", f"n{i}", "g", "adapt", [], {"i": i}, exit_code=code) for i, code in enumerate((0, 1, 255, 0))
    ]
    at_work = RunSpec("w", "w", "g", "adapt", [], {}, exit_code=None)
    known = {"0": made[0].checksum(), "1": "another", "w": at_work.checksum(), "gone": "x"}
    found = _compare([*made, at_work], known)
    assert [(run.id, why) for run, why in found.send] == [("1", "changed"), ("2", "new"), ("3", "new")]
    assert (found.same, found.running) == (1, 1)
    assert found.rest == "; 1 up to date; 1 still running, left for later"
    assert [_ending(run) for run in made[:3]] == ["done", "failed", "interrupted"]


@pytest.mark.parametrize(("page", "written"), [(None, True), (1.0, True), (2.0, True), (3.0, False), (4.0, False)])
def test_a_report_is_written_again_if_any_record_is_newer(tmp_path, monkeypatch, page, written):
    """Records of the times 1, 3 and 2."""
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "name": "x", "cells": []}))
    made = []
    monkeypatch.setattr("ratplus.analysis.report.report", lambda folder, reproduce: made.append(folder))
    sync._fresh_report(tmp_path)
    assert made == [], "a sweep without any record"
    files = {f"evaluate/{i}/record.json": t for i, t in enumerate((1.0, 3.0, 2.0))}
    for name, at in (files | ({} if page is None else {"report/index.html": page})).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    sync._fresh_report(tmp_path)
    assert made == [tmp_path] * written


def test_files_that_are_links_or_too_large_are_not_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_MOST_MEDIA_BYTES", 3)
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "name": "x", "cells": [{"id": "a" * 12}]}))
    monkeypatch.setattr(runs, "read_manifest", lambda folder: {"name": "x", "cells": [{"id": "a" * 12}]})
    report = tmp_path / "report"
    report.mkdir()
    for name, text in (("b.png", "123"), ("a.csv", "12"), ("large.csv", "1234"), ("x.md", "1")):
        (report / name).write_text(text)
    (report / "link.png").symlink_to(report / "b.png")
    found = runs.report_run(
        tmp_path, [RunSpec("a" * 12, "n", "g", "evaluate", [], {"pattern_label": "x", "dilation": 1})]
    )
    assert [path.name for path in found.files] == ["a.csv", "b.png"]
    assert found.summary == {"cells": 1, "cells_done": 1}
