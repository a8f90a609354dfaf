"""What the page is made of: numbers and texts as they are embedded, points of curves, and what cells share."""

import base64
import math

import numpy as np
import pandas as pd
import pytest

from ratplus.analysis.page.columns import own_dense
from ratplus.analysis.page.details import MOST_POINTS, _kept_places, _points, _shared_and_own
from ratplus.analysis.page.embed import packed, repeated, values


def test_numbers_keep_nine_digits_and_errors_six():
    assert values([1 / 3, 2 / 3e6, 1e20, -0.0]) == [0.333333333, 6.66666667e-07, 1e20, 0]
    assert values([1 / 3, 12345678.9], errors=True) == [0.333333, 12345700.0]
    assert values([math.nan, math.inf, -math.inf]) == [None, "inf", "-inf"]
    assert all(type(value) is int for value in values([7.0, -3.0, 2.0**53 - 1]))


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [([0, 1, 255], "u1"), ([0, 256], "f4"), ([-1, 0], "f4"), ([0.5, 1], "f4"), ([math.nan, 1], "f4")],
)
def test_whole_numbers_of_a_byte_are_bytes_and_others_floats(numbers, kind):
    found = packed(np.array(numbers, dtype=np.float64))
    assert found["type"] == kind
    back = np.frombuffer(base64.b64decode(found["data"]), {"u1": "<u1", "f4": "<f4"}[kind])
    assert np.array_equal(back, numbers, equal_nan=True)


def test_texts_stand_once_in_the_order_that_is_given_and_then_as_they_appear():
    assert repeated(["b", None, "a", "b", "c"], ["c"]) == {"names": ["c", "b", "a"], "of": [1, -1, 2, 1, 0]}
    assert repeated([]) == {"names": [], "of": []}


@pytest.mark.parametrize("rows", [0, 1, 2, MOST_POINTS - 1, MOST_POINTS, MOST_POINTS + 1, 1000])
def test_the_points_of_a_curve_are_spread_from_its_first_row_to_its_last(rows):
    kept = list(_kept_places(rows))
    assert len(kept) == min(rows, MOST_POINTS)
    if rows:
        assert (kept[0], kept[-1]) == (0, rows - 1)
        steps = np.diff(kept)
        assert steps.size == 0 or steps.min() >= steps.max() - 1 >= 0


def test_points_are_tokens_and_losses(tmp_path):
    assert _points(tmp_path) == []
    (tmp_path / "curve.csv").write_text("step,tokens,loss\n1,10,3.123456\n2,20,nan\n3,30,2.5\n")
    assert _points(tmp_path) == [[10, 3.1235], [20, None], [30, 2.5]]


def test_plain_dense_attention_is_the_pages_dense_cell_where_one_with_a_window_follows():
    cells = pd.DataFrame(
        {
            "model": ["a", "a", "a", "a", "b", "b"], "variant": "", "seed": [0, 0, 0, None, 0, 0],
            "kind": ["dense", "dense", "dilated", "dilated", "dense", "dense"],
            "status": ["done", "done", "done", "done", "failed", "done"],
        }
    )  # fmt: skip
    assert own_dense(cells) == [0, 0, 0, -1, 5, 5]


def test_what_all_settings_share_stands_once():
    a = {"model": {"name": "m", "heads": 4}, "train": {"lr": 1e-3, "arl": True}, "seed": 0}
    b = {"model": {"name": "m", "heads": 2}, "train": {"lr": 1e-3, "arl": None}, "seed": 0, "axes": ["x", "y"]}
    shared, own = _shared_and_own([a, b, a])
    assert shared == {"model.name": "m", "train.lr": "0.001", "seed": "0"}
    assert own == [
        {"model.heads": "4", "train.arl": "true"}, {"model.heads": "2", "train.arl": "null", "axes": "x y"},
        {"model.heads": "4", "train.arl": "true"},
    ]  # fmt: skip


def test_settings_that_hold_nothing_say_nothing_about_what_is_shared():
    one = {"device": "cpu", "threads": 2}
    assert _shared_and_own([{}, one, one], ignore_empty=True) == ({"device": "cpu", "threads": "2"}, [{}, {}, {}])
    assert _shared_and_own([{}, one, one])[0] == {}
    assert _shared_and_own([one, {"device": "cpu"}], ignore_empty=True)[0] == {"device": "cpu"}
