"""Conditions on cells: what they select, and that nothing in them is executed."""

import pandas as pd
import pytest

from ratplus.analysis.frame.query import LONGEST, QueryError, plain_column, select

FRAME = pd.DataFrame(
    {
        "cell": ["a", "b", "c", "d"],
        "model": ["ratplus_tiny", "attention_tiny", "ratplus_tiny", "ratplus_tiny"],
        "kv_ratio": [1.0, 0.05, 0.05, 0.2],
        "loss": [1.0, 2.0, float("nan"), float("inf")],
        "window": pd.array([0, 64, None, 0], dtype="Int64"),
        "recurrence": [True, False, True, True],
        "train.adapt.lr": [None, 1e-3, 3e-4, 1],
        "asked": [True, False, None, None],
        "timing:seconds": [1.0, 2.0, 3.0, 4.0],
        "name with `no` sign": [1, 2, 3, 4],
    }
)


@pytest.mark.parametrize(
    ("condition", "cells"),
    [
        ('kv_ratio<0.1 and model=="ratplus_tiny"', "c"),
        ("kv_ratio < 0.1 or recurrence", "abcd"),
        ("not recurrence", "b"),
        ("not (kv_ratio < 0.1 or loss < 1.5)", "d"),
        ("0.1 <= kv_ratio < 1", "d"),
        ("window == 0", "ad"),
        ("window != 0", "b"),  # what is not known differs from nothing
        ("0 != window", "b"),
        ("1 < loss", "bd"),
        ("window == None", "c"),
        ("window != None and loss != None", "abd"),
        ("loss > -1 * 2 + 3", "bd"),
        ("loss - kv_ratio >= 1.95", "bd"),
        ("train.adapt.lr < 1e-3", "c"),
        ("`timing:seconds` / 2 > 1.5", "d"),
        ('cell in ["a", "c", "x"]', "ac"),
        ("window not in (64, 7)", "ad"),
        ('model != "ratplus_tiny" or cell == "d"', "bd"),
        ("recurrence == False", "b"),
        ("True", "abcd"),
        ("1 < 0", ""),
        ("asked == True", "a"),
        ("asked != True", "b"),
        ("asked == None", "cd"),
        ("-window < -1", "b"),
        ("+window > 1", "b"),
        ("not 1 < 0", "abcd"),
        ("window * 2 > 100", "b"),
        ("window in [0, None]", "ad"),
        ("recurrence and 1 < 2", "acd"),
        ("1 < window <= 64", "b"),
        ("9007199254740992 > kv_ratio", "abcd"),
    ],
)
def test_what_is_selected(condition, cells):
    assert "".join(select(FRAME, condition)[0]["cell"]) == cells


def test_a_condition_may_be_as_long_as_it_is_read():
    condition = "loss > 0"
    assert len(select(FRAME, condition + " " * (LONGEST - len(condition)))[0]) == 3
    with pytest.raises(QueryError, match="the condition has 2,001 characters, of which at most 2,000 are read"):
        select(FRAME, condition + " " * (LONGEST - len(condition) + 1))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([1, 2.5, None], "float64"), ([None, None], "float64"), ([True, False], "bool"), ([True, None], "object"),
        (["a", None], "object"), ([1, True], "object"), (pd.array([1, None], dtype="Int64"), "float64"),
        ([1 << 70, 2.5], "float64"), ([1 << 70, 1], "float64"),
    ],
)  # fmt: skip
def test_how_a_column_is_compared(column, kind):
    for dtype in (None, object):
        given = pd.Series(column, dtype=dtype) if dtype is None or isinstance(column, list) else pd.Series(column)
        assert str(plain_column(given).dtype) in (kind, "str")


def test_the_columns_that_are_named():
    named = select(FRAME, "`timing:seconds` > 1 and kv_ratio < 1 and kv_ratio > 0 and train.adapt.lr > 0")[1]
    assert named == ["timing:seconds", "kv_ratio", "train.adapt.lr"]


@pytest.mark.parametrize(
    ("condition", "line"),
    [
        ("kv_rato < 1", "there is no column 'kv_rato'; did you mean kv_ratio"),
        ("quality < 1 and loss < 1", "there is no column 'quality'; `ratplus ls --json` shows all columns"),
        ("`timing:second` < 1", "there is no column 'timing:second'; did you mean timing:seconds"),
        ("__import__('os').system('touch evil') == 0", "is not allowed in a condition; allowed: names of columns"),
        ("@pd.io.common.os.system('touch evil')", "not understood"),
        ("cell.str.upper() == 'A'", "'cell.str.upper()' is not allowed"),
        ("cell.__class__ == 1", "there is no column 'cell.__class__'"),
        ("(lambda: 1)() == 1", "is not allowed"),
        ("[c for c in (1,)] == 1", "is not allowed"),
        ("(x := 1) == 1", "is not allowed"),
        ("kv_ratio ** 9999999 > 1", "is not allowed"),
        ("cell * 1000000000 == 'a'", "cell is no number to calculate with"),
        ("'a' * 1000000000 == 'a'", "'a' is no number to calculate with"),
        ("loss + None > 1", "None is no number to calculate with"),
        ("True * 2 > 1", "True is no number to calculate with"),
        ("recurrence + 1 > 1", "recurrence is no number to calculate with"),
        ("-model == 1", "model is no number to calculate with"),
        ("f'{cell}' == 'a'", "is not allowed"),
        ("cell[0] == 'a'", "is not allowed"),
        ("kv_ratio", "this is a value, not a condition"),
        ("kv_ratio and loss < 1", "kv_ratio is no condition"),
        ("model < 3", "model and 3 cannot be compared"),
        ("window < None", "None is compared with == and !="),
        ("window is None", "is not allowed"),
        ("'a' in model", "`in` asks whether a column is one of a list"),
        ("cell in [loss]", "a list holds numbers and texts alone"),
        ("cell in ['a', loss]", "a list holds numbers and texts alone"),
        ("loss < 1 / 0", "not understood"),
        ("loss <", "not understood"),
        ("import os", "not understood"),
        ("", "not understood"),
        ("loss < 1; loss > 0", "not understood"),
        ("(" * 900 + "loss<1" + ")" * 900, "not understood"),
        ("loss < 1 or " * 300 + "loss < 1", f"of which at most {LONGEST:,} are read"),
    ],
)
def test_what_is_refused_in_one_line(condition, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QueryError) as error:
        select(FRAME, condition)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
