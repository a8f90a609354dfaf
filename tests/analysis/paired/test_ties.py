"""Marks of ties and the lines below a table, of rows written by hand."""

import math

import numpy as np
import pandas as pd

from ratplus.analysis.paired.ties import Stored, delta_texts, difference_notes, mark_ties

ROWS = pd.DataFrame(
    {
        "run": ["a", "a", "a", "b", "b", "b"],
        "kind": ["dense", "dilated", "dilated", "dense", "dilated", "dilated"],
        "done": [3, 3, 1, 3, 2, 3],
        "x_best": [False, True, False, False, True, False],
        "x_tied": [False, False, False, False, False, True],
        "x_tied_seeds": [False] * 6,
    }
)


def test_bold_is_what_rounds_to_the_best_of_its_own_model():
    texts = ["0.50", "0.50", "0.50", "0.60", "0.60", "0.50"]
    assert mark_ties(ROWS, "x", [f"{text} ± 0.1" for text in texts], texts) == [
        "0.50 ± 0.1", "**0.50 ± 0.1**", "**0.50 ± 0.1**", "0.60 ± 0.1", "**0.60 ± 0.1**", "0.50 ± 0.1 =",
    ]  # fmt: skip


def test_without_rounded_values_the_best_alone_is_bold():
    rows = ROWS.assign(x_tied_seeds=[False, False, True, False, False, True])
    assert mark_ties(rows, "x", ["1"] * 6) == ["1", "**1**", "1 ~", "1", "**1**", "1 ="]


def test_an_error_over_seeds_keeps_its_place_behind_one_over_items():
    rows = pd.DataFrame(
        {"x_delta": [0.0, 0.1, 0.2], "x_delta_pm": [np.nan, 0.01, np.nan], "x_delta_stderr": [0.0, 0.02, 0.03]}
    )
    assert delta_texts(rows, "x", 1, 2) == ["0.00", "0.10 ± 0.01 ± 0.02", "0.20 ± — ± 0.03"]
    assert delta_texts(rows, "x", 100, 0) == ["0", "10 ± 1 ± 2", "20 ± — ± 3"]
    assert delta_texts(rows.assign(x_delta_pm=math.nan), "x", 1, 2)[2] == "0.20 ± 0.03"
    assert delta_texts(rows.assign(x_delta_stderr=math.nan), "x", 1, 2) == ["0.00", "0.10 ± 0.01", "0.20"]


def test_notes_tell_the_most_seeds_and_the_most_items_that_were_too_few():
    rows = ROWS.assign(x_delta_stderr=0.1, y_best=True, y_tied_seeds=False)
    stored = Stored({"x", "y"}, set(), {"x": 3, "y": 7})
    notes = difference_notes(rows, {"x": "X"}, {"x": "X", "y": "Y"}, stored)
    assert notes[0].endswith("; the second ±: over 3 training seeds (standard error).")
    assert any("with no more than 7 items that differ, none is certain" in note for note in notes)
    assert len(notes) == 3
    of_one = difference_notes(rows, {}, {"x": "X"}, stored)
    assert any("with no more than 3 items" in note for note in of_one)
    assert difference_notes(rows, {"z": "Z"}, {}, Stored(set(), {"z"})) == [
        "No ± over items and no ties over them of Z: the samples' mean is not the recorded result."
    ]
