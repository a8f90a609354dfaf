"""The report's page: one file, safe whatever the records say, with all of the sweep's numbers embedded."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from ratplus.analysis.draw import style
from ratplus.analysis.draw.tables import Table
from ratplus.analysis.frame.load import read_sweep
from ratplus.analysis.page.embed import packed, repeated, values
from ratplus.analysis.page.page import COMPARE_SCRIPTS, PAGE_SCRIPTS, script_of, write_page
from ratplus.analysis.report import report
from ratplus.pattern import Pattern
from ratplus.records.samples import write_samples

# Sorting, filtering and opening a cell need no figures, which take most of a report's time.
HEADLINE = "At D=64 RAT+ loses 0.01 nats."


def page_of(folder, **options) -> str:
    sweep = read_sweep(folder)
    return write_page(sweep, [], [], HEADLINE, folder / "report", **options).read_text(encoding="utf-8")


def data_of(text: str) -> dict:
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert "<" not in inside  # a browser would also take `<!--` or `<script` for markup
    return json.loads(inside)


def test_one_file_that_needs_nothing_else(everything, reported):
    text = reported[-1].read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert text.count("data:image/png;base64,") == len(list((everything / "report").glob("*.png")))
    assert "At D=64 RAT+" in text
    assert "Commonsense, pattern by pattern" in text
    assert text.count("<img ") == text.count('alt="Figure')


def test_tables_are_shown_from_their_frames(sweep):
    sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7))
    shown = pd.DataFrame({"A|b": ["<i>x*y</i>", "<i>x*y</i>"], "n": ["**bold_1**", "−1.0\n± 0.1"]})
    table = Table("my_table", shown, shown, "c_ **d** &", ["one|two"], grouped=True)
    page = write_page(read_sweep(sweep.write()), [], [table], HEADLINE, sweep.path / "report", titles={"my_table": "T"})
    text = page.read_text(encoding="utf-8").partition('<h2 id="tables"')[2].partition("</section>")[0]
    assert "<summary>T</summary>" in text
    assert '<p class="soft">c_ **d** &amp;</p>' in text
    assert '<th scope="col">A|b</th><th scope="col" class="n">n</th>' in text
    assert re.findall("<tr>(<td.*?)</tr>", text) == [
        '<td>&lt;i&gt;x*y&lt;/i&gt;</td><td class="n"><strong>bold_1</strong></td>',
        '<td></td><td class="n">−1.0 ± 0.1</td>',
    ]
    assert '<p class="soft">one|two</p>' in text
    assert "my_table.md, .tex and .csv beside this page" in text


def text_of(table: dict, row: int) -> str:
    """A row's text in a column of repeated ones."""
    return table["names"][table["of"][row]] if table["of"][row] >= 0 else ""


def column(data: dict, key: str) -> dict:
    return next(column for column in data["columns"] if column["key"] == key)


def test_what_is_known_of_a_cell(sweep):
    curve = [(step, 4096 * step, 2 + 1 / step) for step in range(1, 201)]
    for dilation in (1, 4):
        sweep.add("ratplus_tiny", Pattern(dilation), sweep.results(1.7, 0.8), curve=curve, timing={"decode_ms": 1.25})
    text = page_of(sweep.write(), reproduce=lambda entry: f"ratplus evaluate pattern.dilation={entry['label']}")
    data = data_of(text)
    details = data["details"]
    assert details["titles"] == ["ratplus_tiny · D1 · seed 0", "ratplus_tiny · D4 · seed 0"]
    assert details["ids"] == [cell["id"] for cell in sweep.cells]
    assert details["commands"][1] == "ratplus evaluate pattern.dilation=D4"
    assert {stage: text_of(ids, 1) for stage, ids in details["stages"].items()} == sweep.cells[1]["stages"]
    loss = column(data, "loss")
    assert (loss["values"], loss["errors"], loss["digits"], loss["lower"]) == ([1.7, 1.7], [0.006, 0.006], 3, True)
    recall = column(data, "recall_accuracy")
    assert (recall["title"], recall["scale"], recall["lower"]) == ("recall accuracy (%)", 100, False)
    assert not column(data, "recall_accuracy_1_64")["shown"]  # a part of it: to be plotted, not in the table
    assert column(data, "timing:decode_ms")["values"] == [1.25, 1.25]
    assert column(data, "kv_ratio")["values"] == [1, 0.25]
    points = details["curves"][sweep.cells[1]["stages"]["adapt"]]
    assert len(points) == 80
    assert (points[0], points[-1]) == ([4096, 3.0], [819200, 2.005])
    assert "<dt>train.context</dt><dd>512</dd>" in text  # shared by all, so said once


def test_each_row_knows_its_dense_cell(sweep):
    for model in ("attention_tiny", "ratplus_tiny"):
        for seed in (0, 1):
            sweep.add(model, Pattern(4), sweep.results(1.8), seed=seed)
            status = "failed" if model == "attention_tiny" and seed else "done"
            sweep.add(model, Pattern(1), sweep.results(1.7), seed=seed, status=status)
    data = data_of(page_of(sweep.write()))
    rows = {title: row for row, title in enumerate(data["details"]["titles"])}
    for model in ("attention_tiny", "ratplus_tiny"):
        for pattern in ("D1", "D4"):
            for seed in (0, 1):
                dense = -1 if model == "attention_tiny" and seed else rows[f"{model} · D1 · seed {seed}"]
                assert data["dense"][rows[f"{model} · {pattern} · seed {seed}"]] == dense
    assert column(data, "seed")["shown"]


@pytest.mark.parametrize(
    ("stored", "seeds", "marks"),
    [
        (True, 1, {"D2": "best", "D4": ""}),  # the items tell them apart
        (False, 1, None),  # the best alone would say that nothing ties with it
        (False, 3, {"D2": "best", "D4": "~"}),
    ],
)
def test_marks_where_something_is_known_of_ties(sweep, stored, seeds, marks):
    for dilation, loss in ((1, 1.5), (2, 1.6), (4, 1.7)):
        for seed in range(seeds):
            # Over three seeds D4 is 0.4 better, 0.1 worse and 0.6 worse than D2.
            own = loss + (dilation == 4 and seeds > 1) * (seed - 1) / 2
            values = [own + item / 16 for item in range(16)]
            cell = sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (sum(values) / 16, 0.1)}, seed=seed)
            if stored:
                write_samples(sweep.path / "evaluate" / cell["id"],
                              [{"task": "loss", "id": i, "loss": value} for i, value in enumerate(values)])  # fmt: skip
    loss = column(data_of(page_of(sweep.write())), "loss")
    assert ("delta_errors" in loss) is stored
    if marks is None:
        assert "marks" not in loss
    else:
        assert loss["marks"] == [mark for mark in ("", *marks.values()) for _ in range(seeds)]


def test_a_cell_without_a_result_has_no_mark(sweep):
    """Neither the failed seed of the best pattern nor that of one that ties with it."""
    for dilation, change in ((1, 0.0), (2, 0.1), (4, 0.1)):
        for seed in (0, 1):
            # Of D4 every second item is better than of D2.
            values = [2 + change + item / 16 + (dilation == 4) * (item % 2 - 0.4) / 50 for item in range(16)]
            done = dilation == 1 or seed == 0
            cell = sweep.add("ratplus_tiny", Pattern(dilation), {"loss": (sum(values) / 16, 0.1)} if done else None,
                             seed=seed, status="done" if done else "failed")  # fmt: skip
            if done:
                write_samples(sweep.path / "evaluate" / cell["id"],
                              [{"task": "loss", "id": i, "loss": value} for i, value in enumerate(values)])  # fmt: skip
    assert column(data_of(page_of(sweep.write())), "loss")["marks"] == ["", "", "best", "", "=", ""]


def test_metrics_called_like_columns_of_the_page(sweep):
    named = {"kv_ratio": (0.5, 0.1), "status": (0.25, None), "my_task/acc": (0.5, 0.1)}
    for dilation in (1, 4):
        sweep.add("ratplus_tiny", Pattern(dilation), sweep.results(1.7) | named, axes={"train.adapt.lr": dilation / 8})
    data = data_of(page_of(sweep.write()))
    keys = [column["key"] for column in data["columns"]]
    assert len(keys) == len(set(keys))
    assert column(data, "kv_ratio")["values"] == [1, 0.25]
    assert column(data, "metric:kv_ratio")["values"] == [0.5, 0.5]
    assert column(data, "metric:status")["values"] == [0.25, 0.25]
    assert column(data, "train.adapt.lr")["values"] == [0.125, 0.5]


def test_numbers_for_json():
    assert values([1.23456789012, math.nan, math.inf, -math.inf, 514.0, 0.0061234567]) == [
        1.23456789, None, "inf", "-inf", 514, 0.0061234567,
    ]  # fmt: skip
    assert values([0.0061234567], errors=True) == [0.00612346]
    assert repeated(["b", None, "a", "b"], ["a"]) == {"names": ["a", "b"], "of": [1, -1, 0, 1]}
    assert packed(np.array([[0, 1], [255, 2]])) == {"type": "u1", "data": "AAH/Ag=="}
    assert packed(np.array([0.5])) == {"type": "f4", "data": "AAAAPw=="}


@pytest.mark.parametrize("scripts", [PAGE_SCRIPTS, COMPARE_SCRIPTS])
def test_scripts_make_no_markup_and_ask_no_network(scripts):
    """Texts of records reach the page as text nodes alone: nothing in the scripts parses markup or code."""
    text = script_of(scripts)
    assert text.splitlines()[1] == '"use strict";'
    assert "</script" not in text.lower()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser|srcdoc", text
    )
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import|localStorage|sendBeacon)\b\s*[(.]", text)
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]
    assert text.count("innerText") == 0


def test_without_a_reproducer_the_page_names_the_verb_that_has_it(sweep):
    cell = sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.7))
    command = data_of(page_of(sweep.write()))["details"]["commands"][0]
    assert command == f"ratplus show {cell['id']} {sweep.path}"


def test_failures_are_shown_and_their_text_is_harmless(sweep):
    sweep.add_failures()
    text = page_of(sweep.write())
    assert "<b>boom" not in text
    assert text.count("</script>") == 2
    assert "&lt;/script&gt;&lt;b&gt;boom&lt;/b&gt; &amp; 50%" in text
    data = data_of(text)
    status = column(data, "status")
    assert "\\u003c/script" in text
    assert [text_of(status, row) for row in range(7)] == [
        "done", "done", "failed", "failed", "running", "missing", "damaged",
    ]  # fmt: skip
    assert [text_of(data["details"]["errors"], row) for row in (0, 1)] == ["", ""]
    assert text_of(data["details"]["errors"], 2).startswith("loss=nan: training had diverged")
    assert text_of(data["details"]["errors"], 3).endswith("</script><b>boom</b> & 50%")
    section = text.partition('id="problems"')[2].partition("</section>")[0]
    assert section.count('class="bad"') == 5


@pytest.mark.parametrize("kind", ["one cell", "nothing finished", "not a number", "infinite", "seeds", "older format"])
def test_odd_sweeps_have_a_page_too(sweep, kind, monkeypatch):
    monkeypatch.setattr(style, "save", lambda figure, stem: [])  # drawn, but not rendered
    if kind == "nothing finished":
        sweep.add("ratplus_tiny", Pattern(4), status="failed")
        sweep.add("ratplus_tiny", Pattern(8), status="missing")
    elif kind == "seeds":
        sweep.add("ratplus_tiny", Pattern(1), sweep.results(1.7), seed=3)
        sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.8), seed=3)
        sweep.add("ratplus_tiny", Pattern(4), sweep.results(1.9), seed=4)
    else:
        loss = {"not a number": float("nan"), "infinite": float("inf")}.get(kind, 1.7)
        cell = sweep.add("ratplus_tiny", Pattern(4), sweep.results(loss))
        if kind == "older format":
            record = sweep.path / "evaluate" / cell["id"] / "record.json"
            record.write_text(record.read_text().replace('"format": 1', '"format": 0'))
    paths = report(sweep.write())
    text = paths[-1].read_text(encoding="utf-8")
    data = data_of(text)
    assert data["rows"] == len(data["details"]["ids"]) == len(sweep.cells)
    if kind == "older format":
        assert "record format 0; this version reads format 1" in text_of(data["details"]["errors"], 0)
    if kind == "nothing finished":
        assert "0 of 2 cells finished (1 failed, 1 missing)" in text
