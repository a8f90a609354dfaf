"""Outcomes of single items in the page: whose they are, how many, and that they make up the records' values."""

import base64
import json

import numpy as np
import pytest

from ratplus.analysis.frame.aggregate import in_order
from ratplus.analysis.frame.load import read_sweep
from ratplus.analysis.page import items
from ratplus.pattern import Pattern


def unpacked(array: dict) -> list[float]:
    return np.frombuffer(base64.b64decode(array["data"]), "<f4" if array["type"] == "f4" else "<u1").tolist()


def store(sweep, cell: dict, samples: list[dict]) -> None:
    (sweep.path / "evaluate" / cell["id"] / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))


def asked(loss: list[float], right: list[int]) -> list[dict]:
    rows = [{"task": "loss", "id": i, "loss": value, "count": 10 + i} for i, value in enumerate(loss)]
    return rows + [{"task": "recall", "id": i, "accuracy": value} for i, value in enumerate(right)]


def metrics(loss: list[float], right: list[int]) -> dict:
    return {
        "loss": (float(np.average(loss, weights=10 + np.arange(len(loss)))), 0.1),
        "recall_accuracy": (np.mean(right), 0.1),
    }


CELLS = {1: ([1.5, 2.5, 2.0], [1, 1, 0, 1]), 2: ([1.75, 2.5, 2.25], [1, 0, 0, 1]), 4: ([2.0, 2.0, 2.0], [0, 0, 0, 1])}


def embedded(sweep) -> dict:
    read = read_sweep(sweep.write())
    cells = in_order(read.frame)
    assert list(cells["dilation"]) == sorted(cells["dilation"])
    return items.items_of(read, cells, ["loss", "recall_accuracy"])


@pytest.fixture
def three(sweep):
    for dilation in (4, 1, 2):
        store(sweep, sweep.add("ratplus_tiny", Pattern(dilation), metrics(*CELLS[dilation])), asked(*CELLS[dilation]))
    return sweep


def test_items_of_the_same_questions_stand_together(three):
    three.add("ratplus_tiny", Pattern(8), three.results(1.7, 0.5))  # stored none
    found = embedded(three)
    assert found["left_out"] == []
    (loss,), (recall,) = found["of"]["loss"], found["of"]["recall_accuracy"]
    assert (loss["rows"], loss["count"]) == ([0, 1, 2], 3)
    assert unpacked(loss["values"]) == [*CELLS[1][0], *CELLS[2][0], *CELLS[4][0]]
    assert unpacked(loss["weights"]) == [10, 11, 12]
    assert recall["values"]["type"] == "u1"  # right or wrong: a byte
    assert unpacked(recall["values"]) == [*CELLS[1][1], *CELLS[2][1], *CELLS[4][1]]
    assert "weights" not in recall


@pytest.mark.parametrize("change", ["other items", "other weights", "other value", "null", "damaged", "other data"])
def test_what_is_not_of_the_same_items_stands_apart(three, change):
    cell = next(cell for cell in three.cells if cell["label"] == "D2")
    samples = asked(*CELLS[2])
    path = three.path / "evaluate" / cell["id"]
    if change == "other items":
        samples[0]["id"] = 7
    elif change == "other weights":
        samples = [
            sample | ({"count": 20 + 2 * sample["id"]} if sample["task"] == "loss" else {}) for sample in samples
        ]
    elif change == "other value":
        samples[0]["loss"] += 1  # no longer what the record says
    elif change == "null":
        samples[0]["loss"] = None
    elif change == "other data":
        record = json.loads((path / "record.json").read_text())
        record["config"]["data"] = {"sha256": "another"}
        (path / "record.json").write_text(json.dumps(record))
    store(three, cell, samples)
    if change == "damaged":
        (path / "samples.jsonl").write_text("{")
    (loss,) = embedded(three)["of"]["loss"]
    assert loss["rows"] == [0, 2]
    assert unpacked(loss["values"]) == [*CELLS[1][0], *CELLS[4][0]]


def test_files_of_exactly_so_many_bytes_are_read_and_a_single_item_tells_nothing(sweep, monkeypatch):
    for dilation in (1, 2):
        found = {"loss": (2.0, 0.1), "recall_accuracy": (0.5, 0.1)}
        rows = [{"task": "loss", "id": 0, "loss": 2.0}, *({"task": "recall", "id": i, "accuracy": i} for i in (0, 1))]
        store(sweep, sweep.add("ratplus_tiny", Pattern(dilation), found), rows)
    size = sum(path.stat().st_size for path in sweep.path.rglob("samples.jsonl"))
    monkeypatch.setattr(items, "MOST_READ", size)
    assert list(embedded(sweep)["of"]) == ["recall_accuracy"]
    monkeypatch.setattr(items, "MOST_READ", size - 1)
    assert embedded(sweep)["of"] == {}


def test_too_many_items_are_left_out_and_named(three, monkeypatch):
    monkeypatch.setattr(items, "MOST_BYTES", 60)
    found = embedded(three)
    assert (list(found["of"]), found["left_out"]) == (["loss"], ["recall_accuracy"])
    monkeypatch.setattr(items, "MOST_BYTES", 40)
    found = embedded(three)
    assert (list(found["of"]), found["left_out"]) == (["recall_accuracy"], ["loss"])
    monkeypatch.setattr(items, "MOST_READ", 10)
    assert embedded(three) == {"of": {}, "left_out": ["loss", "recall_accuracy"]}


def test_all_items_together_stay_within_the_bound(sweep, monkeypatch):
    """Three results of four bytes a cell, eight characters each; there is room for two."""
    names = [f"{task}_acc" for task in ("piqa", "hellaswag", "winogrande")]
    for dilation, right in ((1, [1, 1, 0, 1]), (2, [1, 0, 0, 1])):
        cell = sweep.add("ratplus_tiny", Pattern(dilation), {name: (float(np.mean(right)), 0.1) for name in names})
        store(sweep, cell, [{"task": name.removesuffix("_acc"), "id": i, "acc": value}
                            for name in names for i, value in enumerate(right)])  # fmt: skip
    read = read_sweep(sweep.write())
    cells = in_order(read.frame)
    size = len(items.items_of(read, cells, names)["of"][names[0]][0]["values"]["data"])
    for room, kept in ((3 * size, 3), (3 * size - 1, 2), (2 * size, 2), (2 * size - 1, 1)):
        monkeypatch.setattr(items, "MOST_BYTES", room)
        found = items.items_of(read, cells, names)
        assert (list(found["of"]), found["left_out"]) == (names[:kept], names[kept:])
