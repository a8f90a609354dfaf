"""Stages by their id or how it begins: of one folder, of all sweeps below outputs/, of suites that were added."""

import json

import pytest

from ratplus.records.find_stage import NoSuchStage, find_stage
from ratplus.records.record import RecordError

ONE, TWO, ADDED = "0123456789ab", "0123ffffffff", "beef00000000"


def sweep(folder, *cells: dict):
    """A sweep folder whose cells have these stages."""
    folder.mkdir(parents=True)
    entries = [
        {
            "id": stages["evaluate"],
            "stages": stages,
            "added": added,
            "model": "m",
            "config": {},
            "label": "D1",
            "seed": 0,
        }
        for stages, added in cells
    ]
    (folder / "sweep.json").write_text(json.dumps({"format": 1, "name": folder.name, "cells": entries}))
    return folder


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "ratplus.records.find_stage.read_manifest", lambda path: json.loads((path / "sweep.json").read_text())
    )
    added = [{"id": ADDED, "suite": "ruler", "eval": {}}]
    sweep(tmp_path / "outputs" / "a", ({"pretrain": "aaaa00000000", "evaluate": ONE}, added))
    sweep(tmp_path / "outputs" / "b", ({"pretrain": "aaaa00000000", "evaluate": TWO}, []))
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "folder", "found"),
    [
        (ONE, None, ("outputs/a", "evaluate", ONE)), ("01234", None, ("outputs/a", "evaluate", ONE)),
        ("0123f", None, ("outputs/b", "evaluate", TWO)), ("0", "outputs/a", ("outputs/a", "evaluate", ONE)),
        ("aaaa", "outputs/b", ("outputs/b", "pretrain", "aaaa00000000")),
        ("be", None, ("outputs/a", "evaluate", ADDED)),
    ],
)  # fmt: skip
def test_the_one_stage_whose_id_begins_so(outputs, wanted, folder, found):
    place, stage, identity = find_stage(wanted, folder)
    assert (str(place), stage, identity) == found


@pytest.mark.parametrize(
    ("wanted", "folder", "line"),
    [
        ("", None, "show: got ''; give an id, or how it begins: `ratplus status FOLDER --json` lists them"),
        ("xyz", None, "show: got 'xyz'; give an id"), ("ABC", None, "show: got 'ABC'; give an id"),
        ("f", None, "show: no stage of outputs/ (give another folder as second word) has an id that begins with f"),
        ("be", "outputs/b", "show: no stage of outputs/b has an id that begins with be"),
        ("0123", None, f"show: 0123 is ambiguous: outputs/a/evaluate/{ONE}, outputs/b/evaluate/{TWO}; give more"),
        ("aaaa", None, "show: aaaa is ambiguous: outputs/a/pretrain/aaaa00000000, outputs/b/pretrain/aaaa00000000;"),
    ],
)  # fmt: skip
def test_none_or_several(outputs, wanted, folder, line):
    with pytest.raises(NoSuchStage) as caught:
        find_stage(wanted, folder)
    assert str(caught.value).startswith(line)


def test_words_of_another_verb(outputs):
    with pytest.raises(
        NoSuchStage, match=r"^search: no stage of outputs/ \(say sweep=\) has an id that begins with f$"
    ):
        find_stage("f", None, "search", "say sweep=")


def test_six_of_many_are_named(outputs):
    stages = [({"evaluate": f"77{n:010x}"}, []) for n in range(8)]
    sweep(outputs / "outputs" / "c", *stages)
    with pytest.raises(NoSuchStage) as caught:
        find_stage("77", None)
    assert [f"77{n:010x}" in str(caught.value) for n in range(8)] == [True] * 6 + [False] * 2


def test_no_sweep_folder(tmp_path):
    with pytest.raises(RecordError):
        find_stage("a", str(tmp_path))
