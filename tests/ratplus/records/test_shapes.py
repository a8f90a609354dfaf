"""What of a record, manifest or item is not as it should be: every part, one at a time, at the limits of each."""

import copy
import json

import pytest

from ratplus.records.manifest import read_manifest
from ratplus.records.note import MOST_CHARACTERS, NOTE_FILE, read_note, write_note
from ratplus.records.record import (
    RecordError,
    is_id,
    make_record,
    read_record,
    record_text,
    stage_id,
    unfit_metric,
    with_checksum,
)
from ratplus.records.samples import read_samples, write_samples

CONFIG = {"a": 1}
METRIC = {"value": 1.5, "stderr": 0.5, "count": 3}


def written(tmp_path, **changes) -> dict:
    """A whole record with some keys changed, and its checksum made anew; read back."""
    record = make_record(
        stage="adapt", config=CONFIG, parent="p", status="done", metrics={"loss": METRIC},
        timing={"seconds": 2.0}, provenance={"git": {"commit": "c"}, "tasks": {"t": {}}},
    )  # fmt: skip
    folder = tmp_path / stage_id("adapt", CONFIG, "p")
    folder.mkdir(exist_ok=True)
    (folder / "record.json").write_text(record_text(with_checksum({**record, **changes})))
    return read_record(folder)


ERROR = {"type": "T", "message": "m", "traceback": ["a"], "host": "h", "attempt": 2}
FINE = [
    {}, {"metrics": {}}, {"metrics": {"x": METRIC | {"stderr": None}}}, {"metrics": {"x": {"value": 1, "count": 0}}},
    {"metrics": {"x" * 500: METRIC}}, {"metrics": {f"m{i}": METRIC for i in range(10_000)}},
    {"metrics": {"x": METRIC | {"value": (1 << 63) - 1}}}, {"metrics": {"x": METRIC | {"value": float("inf")}}},
    {"timing": {}}, {"timing": {"seconds": 3}}, {"provenance": {}}, {"provenance": {"git": None, "tasks": None}},
    {"error": ERROR, "status": "failed"}, {"error": {}, "status": "failed"},
    {"error": {"type": "T", "message": "m", "traceback": None}},
]  # fmt: skip
ODD = [
    ({"metrics": []}, "metrics is a list"), ({"timing": None}, "timing is a NoneType"),
    ({"provenance": "x"}, "provenance is a str"), ({"error": "x"}, "error is a str"),
    ({"status": 1}, "status is a int"), ({"status": "running"}, "status 'running'"),
    ({"metrics": {f"m{i}": METRIC for i in range(10_001)}}, "it has 10,001 metrics"),
    ({"metrics": {"x" * 501: METRIC}}, "the name of a metric has 501 characters"),
    ({"metrics": {"x": 1.5}}, "the metric 'x' lacks a value or a count"),
    ({"metrics": {"x": {"value": 1.5}}}, "lacks a value or a count"),
    ({"metrics": {"x": {"count": 1}}}, "lacks a value or a count"),
    ({"metrics": {"x": METRIC | {"value": "1"}}}, "lacks a value or a count"),
    ({"metrics": {"x": METRIC | {"count": None}}}, "lacks a value or a count"),
    ({"metrics": {"x": METRIC | {"stderr": "1"}}}, "has a standard error that is no number"),
    ({"timing": {"seconds": "2"}}, "timing.seconds is no number"),
    ({"provenance": {"git": "c"}}, "provenance.git is no object with a commit"),
    ({"provenance": {"git": {"dirty": True}}}, "provenance.git is no object with a commit"),
    ({"provenance": {"git": {"commit": 1}}}, "provenance.git is no object with a commit"),
    ({"provenance": {"tasks": [1]}}, "provenance.tasks is no object of objects"),
    ({"provenance": {"tasks": {"t": 1}}}, "provenance.tasks is no object of objects"),
    ({"error": ERROR | {"traceback": "x"}}, "error.traceback is no list"),
    ({"error": ERROR | {"traceback": [1]}}, "error holds what is no text"),
    *(({"error": ERROR | {key: 1}}, "error holds what is no text") for key in ("type", "message", "host")),
    ({"error": ERROR | {"attempt": "2"}}, "error.attempt is no whole number"),
]  # fmt: skip


@pytest.mark.parametrize("changes", FINE, ids=range(len(FINE)))
def test_what_a_record_may_hold(tmp_path, changes):
    assert written(tmp_path, **changes)["checksum"]


@pytest.mark.parametrize(("changes", "line"), ODD, ids=range(len(ODD)))
def test_what_no_record_holds(tmp_path, changes, line):
    with pytest.raises(RecordError) as caught:
        written(tmp_path, **changes)
    assert f"not a record ({line}" in str(caught.value) or line in str(caught.value)


@pytest.mark.parametrize(
    ("metrics", "status", "said"),
    [
        ({"train_loss": METRIC | {"value": float("nan")}}, "done", "train_loss=nan"),
        ({"a": METRIC, "arl_loss": METRIC | {"value": float("inf")}}, "done", "arl_loss=inf"),
        ({"loss": METRIC | {"value": float("nan"), "count": 0}}, "done", ""),
        ({"accuracy": METRIC | {"value": float("nan")}}, "done", ""), ({"loss": METRIC}, "done", ""),
        ({"loss": METRIC | {"value": float("nan")}}, "failed", ""),
    ],
)  # fmt: skip
def test_a_loss_that_is_not_finite_is_unfit(metrics, status, said):
    assert unfit_metric({"status": status, "metrics": metrics}) == said


def test_what_an_id_is():
    assert is_id("0123456789ab")
    for other in (
        "0123456789a",
        "0123456789abc",
        "0123456789aB",
        "0123456789ag",
        "../456789abc",
        "0123456789ab\n",
        1,
        None,
    ):
        assert not is_id(other), other


# ---- sweep.json ------------------------------------------------------------------------------------------------

CELL = {
    "id": "a" * 12, "model": "m", "pattern": {}, "label": "D1", "seed": 0,
    "stages": {"pretrain": "b" * 12, "adapt": "c" * 12, "evaluate": "a" * 12}, "axes": {}, "swept": [],
    "config": {"model": {"layers": 2, "d_model": 64, "d_head": 16}, "train": {"context": 64}}, "corpus": {}, "run": {},
}  # fmt: skip
SUITE = {"suite": "ruler", "id": "d" * 12, "eval": {}}


def manifest(tmp_path, cell=None, **changes):
    whole = {"format": 1, "name": "x", "cells": [CELL | (cell or {})]} | changes
    (tmp_path / "sweep.json").write_text(json.dumps(whole))
    return read_manifest(tmp_path)


def deep(key: str, value) -> dict:
    """A change of CELL below a section: deep("config.model.layers", 0)."""
    cell = copy.deepcopy(CELL)
    *sections, name = key.split(".")
    place = cell
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = value
    return cell


@pytest.mark.parametrize(
    "cell",
    [
        {}, {"pattern_name": "wide"}, {"model": "m" * 200000}, {"axes": {f"a{i}": i for i in range(1000)}},
        {"axes": {"a": 1}}, {"swept": ["a"]}, {"seed": (1 << 63) - 1},
        {"added": []}, {"added": [SUITE]}, {"added": [SUITE] * 100}, {"added": [SUITE | {"suite": "x" * 100}]},
        {"stages": {"pretrain": "b" * 12, "evaluate": "a" * 12}}, deep("run.logger.tags", ["a"]),
        deep("config.model.name", "x"), deep("config.train.context", 1 << 24), deep("config.model.layers", 10_000),
    ],
)  # fmt: skip
def test_what_a_cell_may_hold(tmp_path, cell):
    assert manifest(tmp_path, cell)["cells"][0] == CELL | cell


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        *(({key: 1.5}, f"{key} is a float") for key in ("model", "pattern", "label", "seed", "stages", "axes", "swept",
                                                        "config", "corpus", "run")),
        ({"pattern_name": 1}, "pattern_name is no text"), ({"model": "a\nb"}, "model holds control characters"),
        ({"label": "\x1b[0m"}, "label holds control characters"),
        ({"pattern_name": "\t"}, "pattern_name holds control"),
        ({"model": "m" * 200001}, "model has 200,001 characters, of which at most 200,000 are read"),
        ({"axes": {f"a{i}": i for i in range(1001)}}, "it has 1,001 axes"),
        ({"axes": {"a": "b\n"}}, "axes.1 holds control characters"),
        ({"stages": CELL["stages"] | {"train": "b" * 12}}, "stage 'train'"),
        ({"stages": {"evaluate": "a" * 12}}, "it has no stage pretrain"),
        ({"stages": {"pretrain": "a" * 12}}, "it has no stage evaluate"),
        ({"id": "../x"}, "id is '../x', not an id of 12 hex digits"),
        ({"stages": CELL["stages"] | {"adapt": "x"}}, "stages.adapt is 'x', not an id"),
        (deep("config.model", 1), "config.model is a int"), (deep("config.train", 1), "config.train is a int"),
        (deep("run.logger", 1), "run.logger is a int"), (deep("config.model.name", 1), "config.model.name is a int"),
        (deep("run.logger.tags", "a"), "run.logger.tags is a str"),
        (deep("run.logger.tags", [1]), "tags hold what is no"),
        ({"swept": [1]}, "swept holds what is no text"), ({"added": {}}, "added is no list of at most 100 suites"),
        ({"added": [SUITE] * 101}, "added is no list of at most 100 suites"),
        ({"added": [1]}, "added holds what is no"),
        ({"added": [SUITE | {"id": "x"}]}, "added holds what is no suite"),
        ({"added": [SUITE | {"eval": []}]}, "added holds what is no suite"),
        ({"added": [SUITE | {"suite": "x" * 101}]}, "the name of an added suite is no text"),
        ({"added": [SUITE | {"suite": "a\n"}]}, "the name of an added suite is no text"),
        ({"seed": -1}, "seed is -1"), (deep("config.train.context", 0), "train.context: got 0"),
        (deep("config.train.context", (1 << 24) + 1), "train.context: got 16777217"),
        (deep("config.model.layers", 10_001), "model.layers: got 10001"),
        (deep("config.model.d_head", 0), "d_head: got 0"),
    ],
)  # fmt: skip
def test_what_no_cell_holds(tmp_path, cell, line):
    with pytest.raises(RecordError) as caught:
        manifest(tmp_path, cell)
    assert f"cell number 1 is not understood ({line}" in str(caught.value) or line in str(caught.value)


@pytest.mark.parametrize("key", sorted(CELL))
def test_no_key_of_a_cell_may_lack(tmp_path, key):
    cells = [CELL, {k: v for k, v in CELL.items() if k != key}]
    with pytest.raises(RecordError, match=f"cell number 2 lacks the key '{key}'; run the sweep again"):
        manifest(tmp_path, cells=cells)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"format": 2}, "format 2; this version reads format 1"), ({"cells": {}}, "damaged (no list of cells)"),
        ({"cells": [1]}, "cell number 1 is not understood (not a JSON object)"), ({"name": 1}, "its name is no text"),
        ({"name": "a\n"}, "its name is no text"), ({"name": "x" * 200001}, "its name is no text"),
    ],
)  # fmt: skip
def test_what_no_manifest_is(tmp_path, changes, line):
    with pytest.raises(RecordError) as caught:
        manifest(tmp_path, **changes)
    assert line in str(caught.value)
    assert manifest(tmp_path, name="x" * 200000)["name"] == "x" * 200000


# ---- samples and notes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""), ({"count": 2}, ""), ({"count": 1.5, "filter": "x"}, ""), ({"filter": None}, ""),
        ({"id": "1"}, "an item's id is no whole number"), ({"id": True}, "an item's id is no whole number"),
        ({"id": 1.0}, "an item's id is no whole number"), ({"count": "2"}, "an item's count is no number"),
        ({"filter": 1}, "or its filter no text"),
    ],
)  # fmt: skip
def test_items_are_read_alike_all_at_once_and_line_by_line(tmp_path, slow, change, problem):
    """A list among the values makes the reader take the items one by one."""
    more = {"depths": [0.5]} if slow else {}
    samples = [{"task": "t", "id": 0, "accuracy": 1.0}, {"task": "t", "id": 1, "accuracy": 0.0} | change | more]
    path = write_samples(tmp_path, samples)
    if problem:
        with pytest.raises(ValueError, match=problem):
            read_samples(tmp_path)
    else:
        assert read_samples(tmp_path) == samples
    path.write_text(path.read_text() + "[1]\n")
    with pytest.raises(ValueError, match=problem or "an item is a list"):
        read_samples(tmp_path)


def test_numbers_that_json_has_not_become_null(tmp_path):
    write_samples(
        tmp_path, [{"task": "t", "id": 0, "a": float("nan"), "b": [float("-inf"), 1.0], "c": {"d": float("inf")}}]
    )
    assert read_samples(tmp_path) == [{"task": "t", "id": 0, "a": None, "b": [None, 1.0], "c": {"d": None}}]


def test_items_that_are_a_link_are_not_followed(tmp_path):
    write_samples(tmp_path, [{"task": "t", "id": 0}])
    (tmp_path / "other").mkdir()
    (tmp_path / "other/samples.jsonl").symlink_to(tmp_path / "samples.jsonl")
    with pytest.raises(ValueError, match="is a link"):
        read_samples(tmp_path / "other")


@pytest.mark.parametrize("more", [{}, {"depths": [0.5]}])
def test_a_file_of_too_many_items_is_refused(tmp_path, monkeypatch, more):
    monkeypatch.setattr("ratplus.records.samples.MOST_ITEMS", 3)
    items = [{"task": "t", "id": i, "accuracy": 1.0} | more for i in range(4)]
    write_samples(tmp_path, items[:3])
    assert read_samples(tmp_path) == items[:3]
    write_samples(tmp_path, items)
    with pytest.raises(ValueError, match="more than 3 items"):
        read_samples(tmp_path)


def test_a_note_has_a_largest_length(tmp_path):
    most = "a" * MOST_CHARACTERS
    assert write_note(tmp_path, f" {most}\n") == read_note(tmp_path) == most
    with pytest.raises(ValueError, match=r"a note has at most 2,000 characters; this one has 2,001"):
        write_note(tmp_path, most + "b")
    assert read_note(tmp_path) == most
    (tmp_path / NOTE_FILE).write_text(f"two\n lines {most}")  # a stranger's
    assert read_note(tmp_path) == f"two lines {most}"[:MOST_CHARACTERS]
    (tmp_path / NOTE_FILE).write_text("a" * (8 * MOST_CHARACTERS + 1))
    assert read_note(tmp_path) == ""


def test_a_note_is_one_line_and_goes_where_it_is_empty(tmp_path):
    folder = tmp_path
    assert read_note(folder) == ""
    assert write_note(folder, "look here") == read_note(folder) == "look here"
    assert write_note(folder, "") == read_note(folder) == ""
    assert list(folder.iterdir()) == []
