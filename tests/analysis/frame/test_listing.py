"""Cells as `ratplus ls` shows them: order, what is not known, and numbers that JSON has not."""

import json
import math

import pandas as pd
import pytest

from ratplus.analysis.frame import all_sweeps
from ratplus.analysis.frame.all_sweeps import NoSweeps, as_json, find_sweeps, list_cells, read_all
from ratplus.pattern import Pattern

FRAME = pd.DataFrame(
    {
        "sweep": "s", "cell": ["a", "b", "c", "d"], "model": "m", "pattern": ["D1", "D2", "D4", "D8"], "status": "done",
        "pattern_name": "", "kv_ratio": [1.0, 0.5, 0.25, 0.125], "variant": "", "seed": 0, "note": "",
        "loss": [2.0, math.nan, math.inf, -math.inf], "recall_accuracy": math.nan,
        "steps": pd.array([3, None, 20, 3], dtype="Int64"),
    }
)  # fmt: skip


def order(sort: str) -> str:
    return "".join(row["cell"] for row in list_cells(FRAME, None, sort=sort).rows)


def test_what_is_not_known_stands_last_whichever_way_is_sorted():
    assert [order(name) for name in ("loss", "-loss", "steps", "-steps", "-cell")] == [
        "dacb", "cadb", "adcb", "cadb", "dcba",
    ]  # fmt: skip
    for how in ({"sort": "-los"}, {"sort": "los"}, {"columns": ["loss", "los"]}, {"columns": ["los"], "sort": "loss"}):
        with pytest.raises(NoSweeps, match="there is no column 'los'; did you mean loss"):
            list_cells(FRAME, None, **how)


def test_so_many_folders_are_looked_through(tmp_path, monkeypatch):
    for name in ("a/sweep.json", "b/c/sweep.json", ".git/sweep.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(all_sweeps, "_MOST_FOLDERS", 4)
    assert find_sweeps(tmp_path) == [tmp_path / "a", tmp_path / "b" / "c"], "four folders but the hidden one"
    monkeypatch.setattr(all_sweeps, "_MOST_FOLDERS", 3)
    with pytest.raises(NoSweeps, match="more than 3 folders; give one closer to the sweeps"):
        find_sweeps(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoSweeps, match=r"empty: holds no sweep folder \(none with a sweep.json\)"):
        find_sweeps(tmp_path / "empty")
    with pytest.raises(NoSweeps, match="absent: no such folder; give one that holds sweep folders, such as outputs"):
        find_sweeps(tmp_path / "absent")


def test_json_has_null_for_what_is_not_known_and_texts_for_infinities():
    listing = list_cells(FRAME, None, columns=["loss", "steps"])
    assert [row["loss"] for row in listing.rows] == [2.0, None, "inf", "-inf"]
    assert [row["steps"] for row in listing.rows] == [3, None, 20, 3]
    told = json.loads(as_json(list_cells(FRAME, "cell in ['b', 'c']", columns=["cell"])))
    assert (told["format"], told["of"], [cell["loss"] for cell in told["cells"]]) == (1, 4, [None, "inf"])
    assert list(told["cells"][0]) == list(FRAME), "all columns, whatever is shown"


def test_a_note_seeds_and_variants_are_shown_where_they_say_something():
    usual = ["sweep", "cell", "model", "pattern", "status", "kv_ratio", "loss"]
    assert list(list_cells(FRAME, None).rows[0]) == usual
    told = FRAME.assign(note=["", "x", "", ""], seed=[0, 0, 1, 0], variant=["a", "b", "a", "a"])
    assert list(list_cells(told, None).rows[0]) == [*usual[:4], "variant", "seed", *usual[4:], "note"]
    assert list(list_cells(told, "steps > 3").rows[0]) == [*usual, "steps"], "of one row no seeds differ"


def test_one_sweep_that_cannot_be_read_leaves_the_others(sweep):
    sweep.add("ratplus_tiny", Pattern(4), {"loss": 1.0, "sweep": 7.0}, axes={"folder": "f"})
    path = sweep.write("good")

    def broken():
        raise ValueError("first line\nsecond")

    found = read_all({"broken": broken, "here": lambda: path})
    assert found.unreadable == ["first line"]
    (row,) = found.frame.to_dict("records")
    assert (row["folder"], row["sweep"], row["metric:sweep"], row["metric:folder"]) == ("here", "good", 7.0, "f")
    assert found.evaluations == {("here", row["cell"]): (row["cell"],)}
    with pytest.raises(NoSweeps, match="^first line; first line$"):
        read_all({"a": broken, "b": broken})


def test_a_column_of_nulls_in_one_sweep_leaves_the_numbers_of_another_numbers(sweep, folder_of_sweep, tmp_path):
    sweep.add("ratplus_tiny", Pattern(4), {"loss": 1.0}, axes={"train.lr": None})
    other = folder_of_sweep(tmp_path / "other")
    other.add("ratplus_tiny", Pattern(8), {"loss": 2.0}, axes={"train.lr": 0.5})
    column = read_all({"a": sweep.write, "b": other.write}).frame["train.lr"]
    assert (str(column.dtype), column.tolist()) == ("float64", pytest.approx([math.nan, 0.5], nan_ok=True))


def test_sweeps_with_and_without_a_column_or_cells(sweep, folder_of_sweep, tmp_path):
    sweep.add("ratplus_tiny", Pattern(4), {"loss": 1.0, "piqa/acc": 0.5})
    other, empty = (folder_of_sweep(tmp_path / name) for name in ("other", "empty"))
    other.add("ratplus_tiny", Pattern(8), {"loss": 2.0})
    folders = {"empty": empty.write, "a": sweep.write, "b": other.write}
    alone = read_all({"empty": empty.write}).frame
    assert (len(alone), list(alone)[:2]) == (0, ["folder", "sweep"])
    frame = read_all(folders).frame
    assert frame["piqa/acc"].tolist() == pytest.approx([0.5, math.nan], nan_ok=True)
    assert list(frame["folder"]) == ["a", "b"]
    assert list(frame)[:2] == ["folder", "sweep"]
