"""`ratplus best`, `ratplus compare`, and `ratplus report` of several folders with `--fail`."""

import json
import math
import re
import shutil

import pytest
from cli_runs import run_here as ratplus

from ratplus.analysis.frame.load import load_sweep
from ratplus.analysis.paired.bootstrap import ERRORS
from ratplus.analysis.paired.cells import Compared
from ratplus.records.record import write_record
from ratplus.records.samples import read_samples, write_samples
from ratplus.sweeps.bench.generated_sweep import generate_sweep
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.verbs import best
from ratplus.sweeps.verbs.best import bounds, plain_json


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """110 generated cells of one model (22 patterns × 5 seeds), and the same in which D64 recalls less."""
    place = tmp_path_factory.mktemp("decide")
    generate_sweep(place / "one", 110)
    shutil.copytree(place / "one", place / "two")
    frame = load_sweep(place / "two")
    for cell in frame[frame["pattern"].eq("D64") & frame["status"].eq("done")]["cell"]:
        change(place / "two" / "evaluate" / cell, "recall", -0.1)
    return place


def change(folder, task, by=0.0, prompts=None):
    """Change every item of a task, and the record's value with them; or the hash of its prompts."""
    record = json.loads((folder / "record.json").read_text())
    samples = read_samples(folder)
    own = [sample for sample in samples if sample["task"] == task]
    for sample in own:
        sample["accuracy"] += by
    record["metrics"][f"{task}_accuracy"]["value"] = sum(s["accuracy"] for s in own) / len(own)
    if prompts:
        record["provenance"]["tasks"] = {task: {"prompts_sha256": prompts}}
    write_samples(folder, samples)
    kept = ("stage", "config", "parent", "status", "metrics", "timing", "provenance")
    write_record(folder, **{key: record[key] for key in kept})


@pytest.fixture(autouse=True)
def inside(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setattr("ratplus.analysis.draw.style.save", lambda figure, stem: [])


def said(capsys, *words, code=0):
    assert ratplus(*words) == code
    return capsys.readouterr().out


# ---- best ----


def test_the_best_within_a_bound(capsys):
    choice = json.loads(said(capsys, "best", "one", "--metric", "loss", "--max", "kv_ratio=0.2", "--json"))
    frame = load_sweep("one")
    frame = frame[frame["kv_ratio"].le(0.2)]
    whole = frame.groupby("pattern").filter(lambda own: own["status"].eq("done").all())
    means = whole.groupby("pattern")["loss"].mean()
    assert choice["winner"]["pattern"] == means.idxmin()
    assert choice["winner"]["value"] == pytest.approx(means.min())
    assert choice["winner"]["seeds"] == 5
    assert choice["of"] == len(means)
    assert choice["why"].startswith(f"the lowest loss of {len(means)} rows with kv_ratio ≤ 0.2")
    assert all(row["method"] == "paired bootstrap" for row in choice["ties"])
    assert choice["command"].startswith("ratplus evaluate model=attention_tiny ")
    assert set(choice["pattern"]) >= {"dilation", "window", "sinks"}


def test_the_cheapest_of_those_that_tie(capsys):
    words = ["best", "one", "--metric", "loss", "--max", "kv_ratio=0.2", "--tie", "cheapest"]
    choice = json.loads(said(capsys, *words, "--json"))
    pool = [choice["best"], *choice["ties"]]
    assert choice["winner"] != choice["best"]
    assert choice["winner"]["costs"]["kv_ratio"] == min(row["costs"]["kv_ratio"] for row in pool)
    assert choice["why"].startswith(f"the cheapest (kv_ratio) of {len(pool)} rows that cannot be told from the lowest")
    shown = said(capsys, *words)
    assert "→" in shown
    assert f"dilation: {json.dumps(choice['pattern']['dilation'])}" in shown
    assert choice["command"] in shown
    assert "paired item by item" in shown


def test_several_folders_are_ranked_together(capsys):
    choice = json.loads(said(capsys, "best", "one", "two", "--metric", "recall_accuracy", "--json"))
    assert {row["variant"] for row in [choice["best"], *choice["ties"]]} == {"sweep=one", "sweep=two"}


def test_other_prompts_are_not_ranked_together(tmp_path, capsys, monkeypatch):
    """Of 22 cells each, since three reports are written."""
    made = tmp_path
    monkeypatch.chdir(made)
    generate_sweep(made / "one", 22)
    for name in ("two", "other"):
        shutil.copytree(made / "one", made / name)
    for cell in load_sweep("other").query("status == 'done'")["cell"]:
        change(made / "other" / "evaluate" / cell, "cloze", prompts="f" * 64)
    assert ratplus("best", "one", "other", "--metric", "cloze_accuracy") == 2
    assert "cloze_accuracy: measured on different prompts or data by" in capsys.readouterr().err
    assert ratplus("report", "one", "other", "--fail", "cloze_accuracy<-1pt") == 2
    assert "asked different prompts or data" in capsys.readouterr().err
    assert "one/report/compare_other.html" in said(capsys, "report", "one", "other")
    assert "cloze_accuracy: not compared where prompts" in (made / "one/report/compare_other.md").read_text()
    assert "one/report/ranking.md" in said(capsys, "report", "one", "two", "other")
    text = (made / "one" / "report" / "ranking.md").read_text()
    assert "Not ranked, since prompts or data are different: cloze_accuracy." in text.replace("\\_", "_")
    assert "sweep=other" in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--metric", "lozz"], "--metric: no cell has a result 'lozz'; did you mean loss"),
        (["--metric", "recal"], "'recal' may be recall_accuracy, recall_accuracy_1_64; write the whole name"),
        (["--metric", "loss", "--max", "kv_rato=1"], "no column of numbers 'kv_rato'; did you mean kv_ratio"),
        (["--metric", "loss", "--max", "kv_ratio"], "--max: got 'kv_ratio'; write a column and a number"),
        (["--metric", "loss", "--max", "kv_ratio=nan"], "write a column and a number"),
        (["--metric", "loss", "--max", "kv_ratio=1", "--max", "kv_ratio=2"], "--max: kv_ratio is given twice"),
        (["--metric", "loss", "--max", "kv_ratio=0"], "no finished row has loss within the bounds"),
        (["--metric", "loss", "--tie", "x"], "--tie: got 'x'; allowed: best, cheapest"),
        (["--metric", "loss", "--where", "model=='x'"], "--where: no cell meets"),
    ],
)
def test_mistakes_of_best(words, line, capsys):
    assert ratplus("best", "one", *words) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("word", ["0.1", "=0.1", "kv_ratio", "kv_ratio=", "kv_ratio=x", "kv_ratio=inf", ""])
def test_a_bound_is_a_column_and_a_number(word):
    assert bounds(["a=1", "b=c=-2.5"], "--min") == {"a": 1.0, "b=c": -2.5}
    with pytest.raises(UsageError, match=re.escape(f"--min: got {word!r}; write a column and a number, such as --min")):
        bounds(["a=1", word], "--min")


# ---- compare ----


def test_every_pair_and_result(capsys):
    found = json.loads(said(capsys, "compare", "one", "D16", "D64", "stream-W64-I4", "--json"))
    rows = found["differences"]
    assert {(row["first"], row["second"]) for row in rows} == {
        ("D16", "D64"), ("D16", "stream-W64-I4"), ("D64", "stream-W64-I4"),
    }  # fmt: skip
    row = next(row for row in rows if (row["second"], row["metric"]) == ("D64", "loss"))
    frame = load_sweep("one").query("status == 'done'").set_index(["pattern", "seed"])["loss"]
    changes = (frame["D64"] - frame["D16"]).dropna()
    assert row["difference"] == pytest.approx(changes.mean())
    assert row["seeds"] == len(changes)
    assert row["seeds_stderr"] == pytest.approx(changes.std() / len(changes) ** 0.5)
    assert (row["method"], row["items"]) == ("paired bootstrap", 32)
    shown = said(capsys, "compare", "one", "D16", "D64", "--metric", "loss")
    assert "D64 minus D16" in shown
    assert "± seeds" in shown


def difference(metric, a, b, p, certain, unit="", **more):
    row = {"first": "D1", "second": "D4", "run": "m", "metric": metric, "unit": unit, "a": a, "b": b}
    row |= {"difference": b - a, "stderr": 0.005, "low": b - a - 0.01, "high": b - a + 0.02, "seeds": 1}
    return row | {"seeds_stderr": math.nan, "p": p, "certain": certain, "items": 40, "method": "bootstrap"} | more


def test_what_is_printed_of_a_difference(capsys, monkeypatch):
    rows = [
        difference("loss", 1.5, 1.2346, 0.00009, True),
        difference("recall", 0.251, 0.5, 0.0001, True, "%"),
        difference("cloze", 0.25, 0.5, 0.2, False, "%", items=0, method=ERRORS),
        difference("niah", 0.5, 0.25, math.nan, False, "%"),
        difference("piqa", 0.5, 0.25, 0.04, False, "%"),  # certain over the items, not over the seeds
    ]
    monkeypatch.setattr("ratplus.analysis.paired.cells.compare_cells", lambda *_: Compared(rows, ["one note"]))
    shown = said(capsys, "compare", "one", "D1", "D4")
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    assert lines[0] == ["D4 minus D1"]
    at = {line[1]: line[2:] for line in lines if line[0] == "m"}
    assert at["loss"] == ["1.500", "1.235", "−0.265 ± 0.005", "−0.275 to −0.245", "<0.0001", "40", "lower"]
    assert at["recall (%)"] == ["25.1", "50.0", "24.9 ± 0.5", "23.9 to 26.9", "0.0001", "40", "higher"]
    assert at["cloze (%)"][4:] == ["0.2000", "—", "="]
    assert at["piqa (%)"][4:] == ["0.0400", "40", "="]
    assert at["niah (%)"][2:] == ["−25.0 ± 0.5", "−26.0 to −23.0", "—", "40", "="]
    assert "items —: no samples" in shown
    assert "seeds" not in shown
    assert shown.rstrip().endswith("one note")


def test_seeds_are_shown_where_a_row_has_several_and_pairs_apart(capsys, monkeypatch):
    rows = [
        difference("loss", 1.5, 1.25, 0.01, True, seeds=3, seeds_stderr=0.0125),
        difference("loss", 2.5, 1.25, 0.01, True) | {"second": "D16"},
    ]
    monkeypatch.setattr("ratplus.analysis.paired.cells.compare_cells", lambda *_: Compared(rows, []))
    shown = said(capsys, "compare", "one", "D1", "D4", "D16")
    first, second = shown.split("D16 minus D1")
    assert first.startswith("D4 minus D1")
    assert "2.500" not in first
    assert "1.500" not in second
    (line,) = (line.split() for line in first.splitlines() if line.strip().startswith("m "))
    assert line[-3:] == ["0.013", "3", "lower"]
    assert "items —" not in shown
    assert "± seeds: standard error of Δ over training seeds" in shown


def test_two_cells_by_their_ids(capsys):
    cells = load_sweep("one").query("status == 'done'").head(2)["cell"]
    rows = json.loads(said(capsys, "compare", "one", *cells, "--json"))["differences"]
    assert {row["seeds"] for row in rows} == {1}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["D16"], "name two patterns or cells"),
        (["D16", "D16"], "each once"),
        (["D16", "D46"], "no pattern or cell 'D46'; did you mean D4 or"),
        (["D16", "D64", "--metric", "lozz"], "--metric: no result 'lozz' is there to compare; there are loss"),
    ],
)
def test_mistakes_of_compare(words, line, capsys):
    assert ratplus("compare", "one", *words) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


# ---- report --fail ----


def test_a_gate_that_fails_and_one_that_holds(capsys):
    gates = ["--fail", "recall_accuracy<-2pt@p0.05", "--fail", "seconds>5%", "--fail", "loss>0.01@p0.05"]
    lines = said(capsys, "report", "one", "two", *gates, code=1).splitlines()[-3:]
    assert lines[0].startswith("FAIL recall_accuracy<-2pt@p0.05: 1 of ")
    assert "attention_tiny D64" in lines[0]
    assert "Δ −10.0" in lines[0]
    assert lines[1].startswith("ok   seconds>5%: none of ")
    assert lines[2].startswith("ok   loss>0.01@p0.05: none of ")
    assert "ok   recall_accuracy<-2pt" in said(capsys, "report", "two", "one", "--fail", "recall_accuracy<-2pt")
    told = json.loads(said(capsys, "report", "one", "two", *gates[:4], "--json", code=1))
    assert [(gate["gate"], gate["failed"], gate["folder"]) for gate in told["gates"]] == [
        ("recall_accuracy<-2pt@p0.05", True, "two"), ("seconds>5%", False, "two"),
    ]  # fmt: skip
    assert told["gates"][0]["line"] == lines[0]
    assert told["files"][-1] == "one/report/compare_two.html"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["one", "--fail", "loss>1"], "--fail: compares a sweep with another; give two folders or more"),
        (["one", "two", "--fail", "loss"], "--fail: got 'loss'; write a result, < or >"),
        (["one", "two", "--fail", "loss>1@p2"], "the level behind @p lies between 0 and 1"),
        (["one", "two", "--fail", "loss>2pt"], "pt are percentage points, but loss is no share"),
        (["one", "two", "--fail", "recall_acuracy<-2pt"], "did you mean recall_accuracy"),
        (["one", "two", "--fail", "seconds>5%@p0.05"], "timing:seconds has no items, so no p; leave out @p"),
        (["one", "two", "--baseline", "D4"], "of one sweep folder, not of a comparison"),
        (["one", "--baseline", "D46"], "--baseline: the sweep has no finished cell of pattern 'D46'; did you mean"),
    ],
)
def test_mistakes_of_report(words, line, capsys):
    assert ratplus("report", *words) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


# ---- what `best` prints, of a choice that is given ---------------------------------------------------------------


def row(number: int, **keys) -> dict:
    return {
        "run": f"m{number}", "pattern": f"D{number}", "value": 1.0 + number, "ci": [1.0, 2.0], "tied": "1 seed",
        "costs": {"kv_ratio": 0.123456}, "p": 0.04567, "difference": 0.5, "pm": 0.25, "cells": ["x"], "seeds": 1,
        "stderr": 0.125,
    } | keys  # fmt: skip


@pytest.mark.parametrize("ties", [0, 1, 2])
def test_ties_of_the_best_are_shown_up_to_a_limit(monkeypatch, capsys, ties):
    monkeypatch.setattr(best, "_MOST_TIES", 1)
    monkeypatch.setattr("ratplus.analysis.paired.best.shown_value", lambda row, unit, *what: f"{row['value']:g}")
    rows = [row(number) for number in range(ties + 1)]
    choice = {
        "winner": rows[0], "best": rows[0], "ties": rows[1:], "unit": "%", "metric": "loss", "why": "it is lowest",
        "left_out": {"without a value": 2} if ties else {}, "how": "by pairs" if ties == 1 else "",
    }  # fmt: skip
    best._show(choice, {"dilation": 4, "window": None}, "ratplus adapt")
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["m0 D0: loss 1 %", "  why: it is lowest"]
    assert ("  not among them: 2 without a value" in said) == bool(ties)
    assert ("1 more ties: --json" in said) == (ties == 2)
    assert ("by pairs" in said) == (ties == 1)
    named = [line for line in said if " D1 " in line]
    assert len(named) == min(ties, 1)
    assert any("D2" in line for line in said) is False
    if ties:
        assert named[0].split() == ["m1", "D1", "2", "2", "0.046", "1", "seed", "0.1235"]
        (own,) = [line for line in said if line.startswith("→")]
        assert own.split() == ["→", "m0", "D0", "1", "1", "seed", "0.1235"]
    assert said[-4:] == ["dilation: 4", "window: null", "", "ratplus adapt"]


def test_numbers_that_json_does_not_have():
    given = {"a": [1.5, float("nan"), (float("inf"), "x")], "b": {"c": -float("inf")}, "d": 3}
    assert plain_json(given) == {"a": [1.5, None, [None, "x"]], "b": {"c": None}, "d": 3}
