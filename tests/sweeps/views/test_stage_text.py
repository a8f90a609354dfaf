"""The text of `ratplus show` of stages that were written by hand."""

import json

import pytest

from ratplus.records.record import STAGES, stage_id, write_record
from ratplus.sweeps.views import stage_text
from ratplus.sweeps.views.stage_text import print_stage


@pytest.fixture
def folder(tmp_path):
    """Makes a sweep of so many cells with one pretraining, and with fine-tuning if `sft`; the first cell is done."""

    def make(cells: int, sft: bool = False, provenance: dict | None = None, error: dict | None = None):
        entries = []
        for number in range(cells):
            stages, parent = {}, None
            for stage in STAGES:
                if stage == "sft" and not sft:
                    continue
                config = {"model": 0} if stage == "pretrain" else {"cell": number}
                stages[stage] = stage_id(stage, config, parent)
                if number == 0:
                    last = stage == "evaluate"
                    write_record(
                        tmp_path / stage / stages[stage], stage=stage, config=config, parent=parent,
                        status="failed" if error and last else "done", timing={"seconds": 1.23456789},
                        metrics={"loss": {"value": 1.5, "stderr": None, "count": 7}} if last else {},
                        provenance=provenance or {}, error=error if last else None,
                    )  # fmt: skip
                parent = stages[stage]
            entries.append({
                "id": parent, "model": f"m{number}", "pattern": {}, "label": f"D{number}", "seed": number,
                "stages": stages, "axes": {"lr": number}, "swept": [], "config": {}, "corpus": {}, "run": {},
            })  # fmt: skip
        (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "name": "x", "cells": entries}))
        return entries

    return make


def shown(capsys, wanted, folder) -> list[str]:
    print_stage(wanted, str(folder))
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("cells", "more"), [(1, None), (5, None), (6, 1), (9, 4)])
def test_five_cells_of_a_shared_stage_are_named_and_the_others_counted(folder, tmp_path, capsys, cells, more):
    entries = folder(cells)
    lines = shown(capsys, entries[0]["stages"]["pretrain"], tmp_path)
    assert lines[0] == f"pretrain {entries[0]['stages']['pretrain']}: done"
    own = [line for line in lines if line.startswith("  cell ")]
    assert own == [f"  cell    {e['id']}  {e['model']} {e['label']} seed={e['seed']} lr={e['axes']['lr']}"
                   for e in entries[:5]]  # fmt: skip
    assert [line.strip() for line in lines if "more" in line] == ([f"and {more} more"] if more else [])
    assert not any(line.startswith("  parent") for line in lines)


@pytest.mark.parametrize(("sft", "before"), [(False, "adapt"), (True, "sft")])
def test_the_parent_is_the_stage_right_before(folder, tmp_path, capsys, sft, before):
    (entry,) = folder(1, sft)
    lines = shown(capsys, entry["id"], tmp_path)
    assert f"  parent  {before} {entry['stages'][before]}" in lines
    lines = shown(capsys, entry["stages"]["adapt"], tmp_path)
    assert f"  parent  pretrain {entry['stages']['pretrain']}" in lines


def test_a_stage_without_a_record_is_missing(folder, tmp_path, capsys):
    entry = folder(2)[1]
    assert shown(capsys, entry["id"], tmp_path)[0] == f"evaluate {entry['id']}: missing"


def test_what_the_record_says(folder, tmp_path, capsys):
    git = {"commit": "c" * 40, "dirty": True, "diff_sha256": "d" * 8}
    facts = {"git": git, "host": "here", "device": None, "command": ["ratplus", "sweep"], "peak": 1234567.5}
    error = {"type": "Bad", "message": "luck", "traceback": ["a", "b"], "host": "there", "attempt": 2}
    (entry,) = folder(1, provenance=facts, error=error)
    lines = shown(capsys, entry["id"], tmp_path)
    assert lines[0] == f"evaluate {entry['id']}: failed"
    place = lines.index("error (host there, attempt 2)")
    assert lines[place + 1 : place + 4] == ["  Bad: luck", "  | a", "  | b"]
    words = [line.split() for line in lines]
    assert ["loss", "1.5", "7"] in words
    assert ["seconds", "1.23457"] in words
    assert ["peak", "1.23457e+06"] in words
    assert ["command", "ratplus", "sweep"] in words
    assert not any("device" in line for line in lines), "null says nothing"
    assert f"  git checkout {'c' * 40}" in lines
    assert "  # the checkout had uncommitted changes (diff dddddddd)" in lines
    assert "lacks its key" in lines[-1], "this manifest has no config to compose"


def test_long_lines_are_cut_and_told(folder, tmp_path, capsys):
    (entry,) = folder(1, provenance={"longest": "x" * (10_000 - 23), "longer": "y" * (10_000 - 22)})
    lines = shown(capsys, entry["id"], tmp_path)
    assert f"  longest              {'x' * 9977}" in lines
    assert f"  longer               {'y' * 9977}… (10,001 characters; --json has all)" in lines


def test_only_the_cells_of_the_stage_are_named(folder, tmp_path, capsys):
    """And a record as JSON, as it is."""
    first, second, third = folder(3)
    for own in (first, second):
        lines = shown(capsys, own["stages"]["adapt"], tmp_path)
        assert [line.split()[1:4] for line in lines if line.startswith("  cell ")] == [
            [own["id"], own["model"], own["label"]]
        ]
    print_stage(first["id"], str(tmp_path), as_json=True)
    text = capsys.readouterr().out
    assert (
        text
        == json.dumps(json.loads((tmp_path / "evaluate" / first["id"] / "record.json").read_text()), indent=1) + "\n"
    )
    print_stage(third["id"], str(tmp_path), as_json=True)
    assert capsys.readouterr().out == "null\n"


def test_very_long_texts_are_cut(folder, tmp_path, capsys, monkeypatch):
    (entry,) = folder(1)
    whole = shown(capsys, entry["id"], tmp_path)
    for most in (len(whole), len(whole) - 1, 3):
        monkeypatch.setattr(stage_text, "_MOST_LINES", most)
        left = len(whole) - most
        more = [f"… and {left} more lines; --json has all"] if left else []
        assert shown(capsys, entry["id"], tmp_path) == whole[:most] + more
