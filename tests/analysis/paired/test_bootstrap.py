"""The paired bootstrap, Student's t and Holm's adjustment against plain loops, tables, and numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from ratplus.analysis.paired.bootstrap import (
    _DRAWN,
    _KEPT,
    RESAMPLES,
    _draws,
    _student_tail,
    holm,
    least_p,
    normal_p,
    p_values,
    paired_bootstrap,
    resampled_means,
    t_p,
)


def test_means_are_of_items_as_often_as_they_were_drawn():
    """The same draws by a plain loop: each resample picks as many items as there are."""
    items, seed = 5, 11
    changes, weights = np.array([[1.0, 2.0, 4.0, 8.0, 16.0], [0.0, 0.0, 1.0, 0.0, 0.0]]), np.array([1, 1, 2, 1, 3.0])
    picked = np.random.default_rng(seed).integers(0, items, (RESAMPLES, items))
    found = resampled_means(changes, weights, seed)
    for number in (0, 1, RESAMPLES - 1):
        drawn = picked[number]
        for row in (0, 1):
            mean = sum(changes[row][i] * weights[i] for i in drawn) / sum(weights[i] for i in drawn)
            assert found[row, number] == pytest.approx(mean)
    assert found.shape == (2, RESAMPLES)


@pytest.mark.parametrize("items", [_KEPT, _KEPT + 1, _DRAWN // 999])
def test_all_resamples_are_drawn_whole_also_where_not_all_at_once(items):
    parts = list(_draws(items, 3))
    assert [part.shape[1] for part in parts] == [items] * len(parts)
    assert sum(len(part) for part in parts) == RESAMPLES
    assert all((part.sum(axis=1) == items).all() for part in parts)
    assert len(parts) == (3 if items == _DRAWN // 999 else 1)


def test_p_is_the_share_on_the_smaller_side_twice_and_has_a_floor():
    means = np.ones((4, RESAMPLES))
    means[0, :100] = -1  # 5 % on one side
    means[1, :1900] = -1
    means[2, :1] = 0  # zero lies on both sides
    found = p_values(means, means.mean(axis=1), np.array([1000, 1000, 1000, 4]))
    assert found[:2] == pytest.approx([0.1, 0.1])
    assert found[2] == pytest.approx(2 / RESAMPLES)
    assert found[3] == 2 / 2**4, "of four items that differ"
    spread = np.full((1, RESAMPLES), 5.0) + np.tile([-1.0, 1.0], RESAMPLES // 2)
    assert p_values(spread, np.array([5.0]), np.array([1000]))[0] == pytest.approx(normal_p(5.0, spread.std(ddof=1)))
    wide = np.full((1, RESAMPLES), 1.0)
    wide[0, ::2] = 1e-9
    assert p_values(wide, np.array([0.5]), np.array([1000]))[0] == 1 / RESAMPLES, "no more than is counted"
    assert (least_p(0), least_p(1), least_p(3)) == (2.0, 1.0, 0.25)
    assert p_values(np.zeros((1, RESAMPLES)), np.zeros(1), np.zeros(1, dtype=int))[0] == 1.0


def test_the_bootstrap_of_a_constant_and_of_weights():
    found = paired_bootstrap(np.full(12, 0.5))
    assert (found["difference"], found["low"], found["high"], found["stderr"]) == (0.5, 0.5, 0.5, 0.0)
    assert (found["p"], found["items"], found["method"]) == (2 / 2**12, 12, "paired bootstrap")
    assert paired_bootstrap(np.array([1.0, 3.0]), [3, 1])["difference"] == 1.5
    assert paired_bootstrap(np.array([1.0, 3.0]), seed=1) != paired_bootstrap(np.array([1.0, 3.0]))


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.706), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (6, 2.4469), (9, 2.2622), (30, 2.0423)],
)
def test_students_t_as_tables_have_it(freedom, t):
    assert _student_tail(t, freedom) == pytest.approx(0.05, abs=2e-5)
    assert _student_tail(0.0, freedom) == pytest.approx(1.0)


def test_t_of_a_few_values():
    assert t_p([1.0, 2.0, 3.0]) == pytest.approx(_student_tail(2.0 / (1 / math.sqrt(3)), 2))
    assert t_p([1.0, 2.0, 3.0]) == t_p([-1.0, -2.0, -3.0])
    assert [t_p(values) for values in ((0.0, 0.0), (0.5, 0.5))] == [1.0, 0.0]
    assert all(math.isnan(t_p(values)) for values in ((), (1.0,), (1.0, math.nan), (1.0, math.inf)))
    assert (normal_p(1.0, 0.0), normal_p(0.0, 1.0)) == (0.0, 1.0)
    assert normal_p(-1.959964, 1.0) == pytest.approx(0.05)


def test_holms_p_never_falls_and_is_at_most_one():
    p = pd.Series([0.03, math.nan, 0.01, 0.02, 0.9], index=list("abcde"))
    assert holm(p).to_dict() == pytest.approx({"a": 0.06, "b": math.nan, "c": 0.04, "d": 0.06, "e": 0.9}, nan_ok=True)
    assert list(holm(pd.Series([0.5, 0.6, 0.7]))) == [1.0, 1.0, 1.0]
    assert list(holm(pd.Series([], dtype=float))) == []
