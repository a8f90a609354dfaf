"""The report of a pattern search, from a result written by hand in which no two numbers are equal by chance."""

import json

import numpy as np
import pytest
from seen import check

from ratplus.analysis.draw import style
from ratplus.analysis.search import figures
from ratplus.analysis.search.report import first_line, write_report


def estimate(mean, low, high):
    return {"mean": mean, "low": low, "high": high}


def row(name, pattern, kv, damage, over=(0.0, 0.0, 0.0), text=0.5, answers=0.7):
    return {
        "name": name, "pattern": pattern, "costs": {"kv": kv, "flops": kv / 2},
        "damage": estimate(damage, damage - 0.01, damage + 0.03), "over_searched": estimate(*over),
        "groups": {"text": estimate(text, text - 0.02, text + 0.04), "answers": estimate(answers, 0.6, 0.9)},
    }  # fmt: skip


def budget(name="kv:0.25", **changes):
    searched = row("searched", "heads[...]", 0.24, 0.11)
    made = {
        "budget": name, "kind": name.partition(":")[0], "winner": searched, "how": "searched", "search": 0.0812,
        "verify": {"searched": 0.0923, "best uniform": 0.1534}, "beats_uniform": True,
        "rows": [searched, row("best uniform", "D4", 0.25, 0.16, (0.05, 0.02, 0.08))],
        "random": [row(f"random {i}", "x", kv, damage, (damage - 0.11, 0.1, 0.3))
                   for i, (kv, damage) in enumerate([(0.21, 0.44), (0.25, 0.22), (0.20, 0.33), (0.22, 0.29)])],
        "predicted": [
            {"searched": False, "predicted": 0.17, "measured": 0.16},
            {"searched": True, "predicted": 0.1, "measured": 0.11},
        ],
        "stability": {"jaccard": [0.5, 0.75], "median_stderr": 0.003, "median_damage": 0.02},
        "cells": [["D1", "D16"], ["D4", "D4"], ["D16", "D1"]],
    }  # fmt: skip
    return made | changes


def result(*budgets):
    return {
        "model": "a model", "length": 512, "weight": 0.4, "groups": ["text", "answers"], "budgets": list(budgets),
        "uniform": [row("", "D4", 0.25, 0.16, text=0.2), row("", "D1", 1.0, 0.0, text=0.0), row("", "D2", 0.5, 0.07)],
        "candidates": ["D1", "D4", "D16"],
        "spent": {"passes": 12.5, "seconds": 34.4, "reused": 3, "reused_seconds": 7.0},
        "splits": {"search": {"documents": 5, "rows": {"text": 8, "answers": 6}}},
    }  # fmt: skip


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a report and gives its page. Figures are drawn but not rendered, which takes most of the time."""
    monkeypatch.setattr(style, "save", lambda figure, stem: [stem.with_suffix(end) for end in (".png", ".pdf")])

    def write(found):
        (tmp_path / "search.json").write_text(json.dumps(found))
        report = write_report(tmp_path)
        return report, (tmp_path / "report" / "report.md").read_text()

    return write


def cells(page, first):
    """The cells of the table's row that begins with these."""
    (line,) = (line for line in page.splitlines() if line.replace(" ", "").startswith("|" + "|".join(first) + "|"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_choice_at_each_budget(written):
    _, page = written(result(budget()))
    assert cells(page, ["kv:0.25", "heads[...]"]) == [
        "kv:0.25", "heads[...]", "searched", "0.0812", "0.0923", "0.1100", "0.1000", "0.50, 0.75", "0.15",
    ]  # fmt: skip
    assert "are more than" not in page
    assert "12.5 passes through the model in 34 s by this run, and 3 stored ones of earlier runs (7 s then)" in page
    assert "search: 5 documents, 8 rows of text, 6 rows of answers" in page


def test_the_uniform_choice_is_verified_as_itself(written):
    uniform = row("best uniform", "D4", 0.25, 0.16)
    _, page = written(result(budget(how="best uniform", winner=uniform)))
    assert cells(page, ["kv:0.25", "D4"])[2:5] == ["best uniform", "0.0812", "0.1534"]
    _, page = written(result(budget(how="another")))  # one that verify did not see
    assert cells(page, ["kv:0.25", "heads[...]"])[4] == "0.1534"


def test_what_was_not_predicted_or_not_stable_is_a_dash(written):
    _, page = written(result(budget(predicted=[], stability={"median_stderr": 0.1})))
    assert cells(page, ["kv:0.25", "heads[...]"])[6:] == ["-", "-", "-"]


@pytest.mark.parametrize(
    ("predicted", "measured", "told"),
    [(0.1, 0.2, False), (0.1, 0.21, True), (0.2, 0.1, False), (0.21, 0.1, True), (0.1, -0.1, False), (0.1, 0.0, False)],
)
def test_a_prediction_is_told_if_it_is_off_by_more_than_twice_either_way(written, predicted, measured, told):
    pairs = [
        {"searched": False, "predicted": 9.0, "measured": 0.1},
        {"searched": True, "predicted": predicted, "measured": measured},
    ]
    _, page = written(result(budget(predicted=pairs)))
    assert ("kv:0.25: predicted and measured damage are more than 2 times apart" in page) is told


def test_the_table_has_all_rows_and_of_random_ones_the_median_and_the_best(written):
    _, page = written(result(budget()))
    assert cells(page, ["kv:0.25", "**searched**"])[2:] == ["0.2400", "0.1100 [0.1000, 0.1400]", "", "0.5000", "0.7000"]
    assert cells(page, ["", "bestuniform"])[2:5] == ["0.2500", "0.1600 [0.1500, 0.1900]", "0.0500 [0.0200, 0.0800]"]
    # Of four, the third smallest; its cost is its own.
    assert cells(page, ["", "random,median"])[2:4] == ["0.2000", "0.3300 [0.3200, 0.3600]"]
    assert cells(page, ["", "random,best"])[2:4] == ["0.2500", "0.2200 [0.2100, 0.2500]"]
    assert "of 4 hybrids by their damage" in page
    assert "512 tokens: damage = Δ text + 0.4 × mean Δ of answers" in page
    assert "hybrids by their damage" not in written(result(budget(random=[])))[1]


def test_the_cost_is_of_the_budgets_own_kind(written):
    _, page = written(result(budget("flops:0.5")))
    assert cells(page, ["flops:0.5", "**searched**"])[2] == "0.1200"


def test_timed_winners_have_a_column_and_a_note(written):
    winner = budget()["winner"] | {"decode_ms": 1.25, "dense_decode_ms": 2.5}
    found = result(budget(winner=winner)) | {"latency": {"points": 6, "error": 0.123, "worst": 0.3}}
    _, page = written(found)
    assert cells(page, ["kv:0.25", "heads[...]"])[-1] == "1.250 (2.500)"
    assert "fitted on 6 timings, relative error 12.3% (root mean square), 30.0% at most" in page


def test_the_first_line_counts_what_beats_uniform():
    other = budget("kv:0.5", beats_uniform=False)
    same = budget("kv:1.0", beats_uniform=False, winner=row("best uniform", "D4", 0.25, 0.16))
    none = budget("kv:0.1", rows=[budget()["winner"]])
    assert first_line(result(budget(), other, same, none)) == (
        "The search beats the best uniform pattern on the test split at 1 of 3 budgets. kv:0.25: 0.0500 nats less "
        "damage than D4 everywhere [0.0200, 0.0800]; kv:0.5: not told apart from D4 everywhere, 0.0500 [0.0200, "
        "0.0800]; kv:1.0: the choice is the uniform D4 itself; kv:0.1: no uniform pattern fits."
    )
    assert first_line(result(other, none)).startswith("Nothing beats the uniform patterns on the test split. ")
    assert first_line(result(none)).startswith("No uniform pattern fits the budgets. ")


def test_the_frontier_shows_uniform_patterns_by_cost_random_ones_and_winners():
    drawing = figures.frontier(result(budget(), budget("flops:0.5")), "kv")
    damage, text, _ = drawing.axes
    assert [axes.get_title() for axes in drawing.axes] == ["Damage", "Δ loss of text", "Δ loss of answers"]
    uniform, band, point = damage.lines[:3]
    assert uniform.get_xydata().tolist() == [[0.25, 0.16], [0.5, 0.07], [1.0, 0.0]]
    assert band.get_xdata().tolist() == pytest.approx([0.215, 0.215])  # the median of four costs
    assert band.get_ydata().tolist() == pytest.approx(np.quantile([0.22, 0.29, 0.33, 0.44], [0.05, 0.95]).tolist())
    assert point.get_xydata().tolist() == [[0.24, 0.11]]
    (bars,) = damage.collections[0].get_segments()
    assert bars.tolist() == pytest.approx(np.array([[0.24, 0.10], [0.24, 0.14]]))
    assert len([line for line in damage.lines if line.get_xydata().tolist() == [[0.24, 0.11]]]) == 1  # one kind
    assert text.lines[0].get_ydata().tolist() == [0.2, 0.5, 0.0]
    assert text.lines[2].get_ydata().tolist() == [0.5]
    assert damage.get_xlabel() == "Keys and values held (share)"


def test_the_frontier_of_flops_is_drawn_over_flops():
    drawing = figures.frontier(result(budget("flops:0.5", random=[])) | {"groups": ["text"]}, "flops")
    assert drawing.get_figwidth() == style.COLUMN_WIDTH_IN, "of one group there is one panel"
    (axes,) = drawing.axes
    assert axes.lines[0].get_xdata().tolist() == [0.125, 0.25, 0.5]
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "Uniform patterns",
        "Searched, 95% interval",
    ]


def test_the_choice_has_layers_downwards_and_sparser_patterns_lighter():
    drawing = figures.choices(result(*[budget(f"kv:0.{i}") for i in range(1, 6)]))
    shown = [axes for axes in drawing.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["kv:0.1", "kv:0.2", "kv:0.3", "kv:0.4"]
    assert shown[0].images[0].get_array().tolist() == [[2, 0], [1, 1], [0, 2]]
    texts = {tuple(map(int, text.get_position())): text.get_text() for text in shown[0].texts}
    assert texts[1, 0] == "D16"  # the second head of the first layer
    assert texts[0, 2] == "D16"
    assert {text.get_text(): text.get_color() for text in shown[0].texts} == {
        "D1": "white", "D4": "white", "D16": "black",
    }  # fmt: skip
    four = figures.choices(result(*[budget(f"kv:0.{i}") for i in range(1, 5)]))
    assert not any("budgets" in text.get_text() for text in four.legends[0].get_texts())
    assert any("4 of 5 budgets" in text.get_text() for text in drawing.findobj(lambda x: hasattr(x, "get_text")))


def test_predictions_of_all_budgets_with_the_searched_ones_apart():
    other = budget("kv:0.5", predicted=[{"searched": True, "predicted": 0.4, "measured": 0.3}])
    (axes,) = figures.prediction(result(budget(), other)).axes
    others, searched, diagonal = axes.lines
    assert others.get_xydata().tolist() == [[0.17, 0.16]]
    assert searched.get_xydata().tolist() == [[0.1, 0.11], [0.4, 0.3]]
    assert diagonal.get_xydata().tolist() == [[0.1, 0.1], [0.4, 0.4]]


def test_seen_of_a_whole_report(written):
    """Every line and mark; two budgets of one kind and one of another, with all that may be told of one."""
    timed = budget()["winner"] | {"decode_ms": 1.25, "dense_decode_ms": 2.5}
    far = [{"searched": True, "predicted": 0.1, "measured": 0.3}]
    budgets = (
        budget(winner=timed), budget("kv:0.5", beats_uniform=False, random=[], predicted=far),
        budget("flops:0.5", predicted=[], stability={"median_stderr": 0.1}),
    )  # fmt: skip
    found = result(*budgets) | {"latency": {"points": 6, "error": 0.123, "worst": 0.3}}
    report, page = written(found)
    pictures = [figures.frontier(found, kind) for kind in ("kv", "flops")]
    check("search", report.summary, "\n".join(path.name for path in report.paths), page,
          *(path.read_text() for path in report.paths if path.suffix == ".csv"), *pictures,
          figures.choices(found), figures.prediction(found))  # fmt: skip


def test_predictions_of_one_kind_alone():
    pairs = [{"searched": False, "predicted": 0.25, "measured": 0.5}]
    (axes,) = figures.prediction(result(budget(predicted=pairs))).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Baselines and random"]
    assert len(axes.lines) == 2


def test_seen_of_choices_of_many_layers_and_heads():
    """Names where there are few enough: six heads and 24 layers; ticks at most twelve a side."""
    for layers, heads, named, ticks in ((24, 6, True, (12, 6)), (25, 6, False, (9, 6)), (24, 7, False, (12, 7))):
        cells = [["D4"] * heads] * layers
        (axes,) = figures.choices(result(budget(cells=cells)) | {"candidates": ["D4"]}).axes
        assert (len(axes.get_yticks()), len(axes.get_xticks())) == ticks
        assert [text.get_text() for text in axes.texts] == (["D4"] * layers * heads if named else [])
        assert axes.images[0].get_clim() == (0, 1)
