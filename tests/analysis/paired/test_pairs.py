"""`difference_of`, worked by hand: the mean over seeds, and whose errors it has."""

import math

import numpy as np
import pytest

from ratplus.analysis.paired.bootstrap import RESAMPLES, normal_p
from ratplus.analysis.paired.pairs import difference_of
from ratplus.analysis.paired.samples import Items


def items(values, of="rows", weights=None, **options) -> Items:
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    return Items(np.arange(len(values)), np.asarray(values, dtype=np.float64), weights, of, **options)


def test_without_items_the_errors_of_all_values_add_up():
    values, errors = np.array([[1.0, 2.0], [1.5, 2.1]]), np.array([[0.3, 0.0], [0.4, 1.2]])
    found = difference_of(values, errors, [(None, None)] * 2)
    assert found["difference"] == pytest.approx(0.3)  # (0.5 + 0.1) / 2
    assert found["stderr"] == pytest.approx(1.3 / 2)  # root of 0.3² + 0.4² + 1.2², of a mean of two
    assert found["low"] == pytest.approx(0.3 - 1.96 * 0.65)
    assert found["high"] == pytest.approx(0.3 + 1.96 * 0.65)
    assert found["p"] == normal_p(found["difference"], found["stderr"])
    assert (found["method"], found["items"]) == ("standard errors", 0)


@pytest.mark.parametrize("errors", [np.zeros((2, 1)), np.full((2, 1), math.nan)])
def test_without_errors_nothing_is_said(errors):
    found = difference_of(np.array([[1.0], [2.0]]), errors, [(None, None)])
    assert found["difference"] == 1.0
    assert math.isnan(found["stderr"])
    assert math.isnan(found["p"])


def test_seeds_of_the_same_items_are_drawn_alike_and_others_apart():
    first, second = np.zeros(64), np.tile([0.0, 1.0], 32)
    alike = [(items(first), items(second)), (items(second), items(first))]
    found = difference_of(np.zeros((2, 2)), np.ones((2, 2)), alike)
    # What one seed gains the other loses, in every resample.
    assert (found["difference"], found["stderr"], found["items"]) == (0.0, 0.0, 64)
    apart = [alike[0], (items(second, "others"), items(first, "others"))]
    found = difference_of(np.zeros((2, 2)), np.ones((2, 2)), apart)
    assert found["stderr"] == pytest.approx(0.5 / 8 / math.sqrt(2), rel=0.1)
    assert found["items"] == 128


def test_items_of_all_seeds_count_for_the_smallest_p():
    changes = [(items(np.zeros(3), str(seed)), items(np.ones(3), str(seed))) for seed in (0, 1)]
    assert difference_of(np.zeros((2, 1)), np.ones((2, 1)), changes[:1])["p"] == 2 / 2**3
    assert difference_of(np.zeros((2, 2)), np.ones((2, 2)), changes)["p"] == 2 / 2**6 > 1 / RESAMPLES


def test_an_item_counts_once_however_many_seeds_were_asked_it():
    """Three questions of three seeds are three questions: p is no smaller than their signs allow."""
    changes = [(items(np.zeros(3)), items(np.ones(3)))] * 3
    found = difference_of(np.zeros((2, 3)), np.ones((2, 3)), changes)
    assert (found["p"], found["items"]) == (2 / 2**3, 3)
    # In the sum over seeds two of four differ: one seed takes back what another gains.
    apart = [[1.0, 1.0, 0.5, 0.0], [0.0, 0.0, -0.5, 0.0]]
    found = difference_of(np.zeros((2, 2)), np.ones((2, 2)), [(items(np.zeros(4)), items(c)) for c in apart])
    assert found["p"] == 2 / 2**2


def test_the_interval_of_items_holds_95_percent():
    changes = np.random.default_rng(0).normal(0.3, 1.0, 400)
    found = difference_of(np.zeros((2, 1)), np.ones((2, 1)), [(items(np.zeros(400)), items(changes))])
    assert found["stderr"] == pytest.approx(changes.std() / 20, rel=0.05)
    assert found["low"] == pytest.approx(found["difference"] - 1.96 * found["stderr"], abs=0.012)
    assert found["high"] == pytest.approx(found["difference"] + 1.96 * found["stderr"], abs=0.012)


def test_a_single_item_tells_nothing_of_its_error():
    found = difference_of(np.array([[1.0], [2.0]]), np.full((2, 1), 0.3), [(items([1.0]), items([2.0]))])
    assert (found["method"], found["items"]) == ("standard errors", 0)
    assert found["stderr"] == pytest.approx(0.3 * math.sqrt(2))


def test_weights_decide_the_mean_of_items():
    pair = items([0.0, 0.0, 0.0], weights=[1, 1, 2]), items([1.0, 2.0, 4.0], weights=[1, 1, 2])
    assert difference_of(np.zeros((2, 1)), np.ones((2, 1)), [pair])["difference"] == pytest.approx(11 / 4)


@pytest.mark.parametrize(
    "other",
    [
        items([1.0, 1.0], "others"), items([1.0, 1.0], weights=[1, 3]), items([1.0, 1.0], whole=False),
        items([1.0, 1.0, 1.0]), None, Items(np.array([1, 2]), np.ones(2), np.ones(2), "rows"),
    ],
)  # fmt: skip
def test_one_pair_that_does_not_fit_leaves_the_standard_errors(other):
    good = items([0.0, 0.0]), items([1.0, 1.0])
    for pair in ((items([0.0, 0.0]), other), (other, items([0.0, 0.0]))):
        found = difference_of(np.zeros((2, 2)), np.ones((2, 2)), [good, pair])
        assert found["method"] == "standard errors"
