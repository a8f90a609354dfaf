"""The pure parts of a pattern search: the knapsack against brute force, clean-up, budgets, baselines, statistics."""

from dataclasses import replace
from itertools import pairwise, product
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratplus.config.model import ModelConfig
from ratplus.config.search import SearchSection
from ratplus.costs.cost import cost
from ratplus.pattern import Pattern, PatternMap
from ratplus.search import baselines
from ratplus.search.budgets import Budget, Prices, uniform_map
from ratplus.search.choose import Chooser
from ratplus.search.damage import cleaned, difference, fixed_weight, interval, isotonic
from ratplus.search.latency import features, fit
from ratplus.search.solve import fill, hull_moves, solve, sum_of
from ratplus.search.units import Space, candidates_of

CONFIG = ModelConfig(vocab_size=50, layers=3, d_model=32, d_head=8, max_len=64)
CANDIDATES = candidates_of(["D1", "D4", "D16"], True)


def brute_force(damage, cost, budget) -> float:
    choices = product(range(cost.shape[1]), repeat=len(cost))
    return min(sum_of(damage, x) for x in choices if sum_of(cost, x) <= budget * (1 + 1e-9))


@st.composite
def instances(draw):
    units, kinds = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    numbers = st.integers(0, 20)
    table = st.lists(st.lists(numbers, min_size=kinds, max_size=kinds), min_size=units, max_size=units)
    cost = np.array(draw(table), dtype=float) + 1
    damage = np.array(draw(table), dtype=float)
    least = cost.min(axis=1).sum()
    return damage, cost, draw(st.floats(least, cost.max(axis=1).sum()))


@settings(max_examples=200, deadline=None)
@given(instances())
def test_the_solution_fits_and_is_within_one_move_of_the_best(instance):
    """Lagrange's path is optimal at its corners, so it loses at most one move of the hull."""
    damage, cost, budget = instance
    choice = solve(damage, cost, budget)
    assert sum_of(cost, choice) <= budget * (1 + 1e-9)
    moves = [(damage[u, a] - damage[u, b]) for u in range(len(cost)) for _, a, b in hull_moves(damage[u], cost[u])]
    assert sum_of(damage, choice) <= brute_force(damage, cost, budget) + max(moves, default=0) + 1e-9


@settings(max_examples=100, deadline=None)
@given(instances())
def test_at_the_cost_of_a_corner_of_the_path_it_is_the_best(instance):
    damage, cost, _ = instance
    moves = sorted((-slope, u, a, b) for u in range(len(cost)) for slope, a, b in hull_moves(damage[u], cost[u]))
    spent = sum(cost[u].min() for u in range(len(cost)))
    for (slope, u, a, b), following in pairwise([*moves, (1.0, 0, 0, 0)]):
        spent += cost[u, b] - cost[u, a]
        if following[0] != slope:  # within equal slopes the order is free
            assert sum_of(damage, solve(damage, cost, spent)) == pytest.approx(brute_force(damage, cost, spent))


def test_a_budget_below_the_cheapest_is_refused():
    with pytest.raises(ValueError, match="budget: got 1; the cheapest candidate in every unit costs 2"):
        solve(np.zeros((2, 2)), np.array([[1.0, 3.0], [1.0, 3.0]]), 1.0)


def test_isotonic_pools_what_is_out_of_order():
    assert isotonic([1, 3, 2, 4]).tolist() == [1, 2.5, 2.5, 4]
    assert isotonic([3, 2, 1]).tolist() == [2, 2, 2]
    assert isotonic([1, 2], [1, 1]).tolist() == [1, 2]


def test_damages_are_cleaned_along_the_cost():
    # Candidates in any order; the dearest (index 1) is 0, and a cheaper one is never better than a dearer one.
    raw, cost = np.array([[0.2, 0.1, 0.1, -0.3]]), np.array([[2.0, 4.0, 1.0, 3.0]])
    assert cleaned(raw, cost)[0] == pytest.approx([0.25, 0.0, 0.25, 0.0])


def test_differences_are_paired_and_weighted():
    a = {"text": np.array([1.0, 3.0]), "recall": np.array([2.0, 2.0, 5.0]), "niah_single_1": np.array([4.0, 4.0])}
    b = {"text": np.array([0.5, 2.5]), "recall": np.array([1.0, 1.0, 1.0]), "niah_single_1": np.array([4.0, 2.0])}
    found = difference(a, b, 0.5)
    assert found.mean == pytest.approx(0.5 + 0.5 * (2.0 + 1.0) / 2)
    # Standard errors of the mean: 0 of text, 1 of recall (values 1, 1, 4), 1 of needles (0, 2), each times 0.25.
    assert found.stderr == pytest.approx(0.25 * (1 + 1) ** 0.5)
    wide = interval(a, b, 0.5)
    assert wide.mean == found.mean
    assert wide.low < found.mean < wide.high
    assert interval(a, b, 0.5) == wide, "a bootstrap of the same values is the same"


def test_a_part_takes_every_so_many_th_row():
    drawn = np.random.default_rng(2)
    a, b = ({name: drawn.normal(size=n) for name, n in (("text", 7), ("recall", 5))} for _ in range(2))
    for which in range(3):
        thirds = [{name: values[which::3] for name, values in x.items()} for x in (a, b)]
        assert difference(a, b, 0.7, (which, 3)) == difference(*thirds, 0.7)


def test_the_weight_makes_both_spread_equally():
    dense = {"text": np.zeros(2), "recall": np.zeros(2)}
    uniform = [{"text": np.full(2, t), "recall": np.full(2, r)} for t, r in ((0.0, 0.0), (1.0, 4.0), (2.0, 8.0))]
    assert fixed_weight(dense, uniform) == pytest.approx(0.25)
    assert fixed_weight({"text": np.zeros(2)}, [{"text": np.ones(2)}]) == 1.0


def test_groups_of_answers_count_by_their_mean_in_the_weight():
    """Recall spreads 4 times as much as text and needles 12 times, so together 8 times."""
    dense = {name: np.zeros(2) for name in ("text", "recall", "niah_single_1")}
    uniform = [
        {"text": np.full(2, t), "recall": np.full(2, 4 * t), "niah_single_1": np.full(2, 12 * t)} for t in (0, 2)
    ]
    assert fixed_weight(dense, uniform) == pytest.approx(1 / 8)
    # Standard errors: 4 of text, 3 and 4 of the answers, whose mean has (9 + 16) ** 0.5 / 2.
    noisy = [{"text": np.array([-4, 4.0]), "recall": np.array([-3, 3.0]), "niah_single_1": np.array([-4, 4.0])}]
    assert fixed_weight(dense, noisy) == pytest.approx(4 / 2.5)


@pytest.mark.parametrize("turned", [False, True])
def test_what_is_left_of_a_budget_goes_to_the_best_ratio(turned):
    """Of two units one may have more: the one that gains 5; what costs nothing more is taken whatever it gains."""
    damage, cost = np.array([[6.0, 5, 6], [6, 1, 5.9]]), np.array([[1.0, 2, 3], [1, 2, 1]])
    if turned:
        damage, cost = damage[::-1], cost[::-1]
    chosen = fill(damage, cost, 3.0, (0, 0))
    assert chosen == ((1, 0) if turned else (0, 1))
    assert fill(damage, cost, 2.0, (0, 0)) == ((2, 0) if turned else (0, 2))
    assert fill(damage, cost, 4.0, (0, 0)) == (1, 1)
    assert fill(damage, cost, 3.0, (0, 0), lambda choice: 9.0) == (0, 0), "the true cost decides what fits"


def test_the_weight_does_not_drown_answers_in_the_noise_of_text():
    dense = {"text": np.zeros(2), "recall": np.zeros(2)}
    noisy = [{"text": np.array([-1.0, 1.0]), "recall": np.array([r - 0.5, r + 0.5])} for r in (1.0, 5.0)]
    assert fixed_weight(dense, noisy) == pytest.approx(2.0), "standard errors of 1 and 0.5; text does not spread at all"


def test_one_noisy_pattern_does_not_decide_the_weight():
    """The median over patterns of each standard error: of text 1, 1 and 20, of recall 0.5, 0.5 and 0.5."""
    dense = {"text": np.zeros(2), "recall": np.zeros(2)}
    uniform = [
        {"text": np.array([-t, t]), "recall": np.array([r - 0.5, r + 0.5])} for t, r in ((1, 1.0), (20, 3.0), (1, 5.0))
    ]
    assert fixed_weight(dense, uniform) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rea:0.5", "did you mean read?"), ("kv", "allowed: kv:0.25"), ("kv:1.5", "a share > 0 and ≤ 1"),
        ("kv:0", "a share > 0"), ("kv:3ms", "B, KB, MB, GB"), ("latency:3MB", "us, ms, s"),
        ("kv:x", "after kv: stands"),
    ],
)  # fmt: skip
def test_budgets_that_are_none(text, line):
    with pytest.raises(ValueError, match="budget: got") as caught:
        Budget.parse(text)
    assert line in str(caught.value)


def test_budgets_and_prices():
    kv = Prices.of("kv", CONFIG, 64)
    assert kv.dense == 3 * 4 * 64 * 2 * 8 * 2
    assert kv.map(uniform_map(Pattern(4), CONFIG)) == pytest.approx(0.25)
    assert kv.limit(Budget.parse("kv:12288B")) == pytest.approx(12288 / kv.dense)
    assert Budget.parse("kv:1.5KB").number == 1500
    selecting = Pattern.from_label("top2x8")
    assert kv.map(uniform_map(selecting, CONFIG)) == 1, "all keys are held"
    assert Prices.of("read", CONFIG, 64).map(uniform_map(selecting, CONFIG)) < 0.5
    table = kv.table(Space.of(CONFIG, CANDIDATES, [1]))
    assert table.shape == (2 + 4, 3)
    assert table.sum(axis=0).tolist() == pytest.approx([1, 0.25, 0.0625])


def test_heads_are_ranked_by_what_they_read_where_latency_is_bounded():
    """Times of heads do not add up; of what selects, everything is held and little is read."""
    latency, read = Prices.of("latency", CONFIG, 64, lambda patterns: 3.0), Prices.of("read", CONFIG, 64)
    for label in ("top2x8", "D4", "D1"):
        pattern = Pattern.from_label(label)
        assert latency.head(pattern) == read.head(pattern) <= 1 / 12
    assert latency.head(Pattern.from_label("top2x8")) < Prices.of("kv", CONFIG, 64).head(Pattern.from_label("top2x8"))
    assert latency.dense == 3.0
    assert latency.map(uniform_map(Pattern(4), CONFIG)) == 1.0
    assert latency.limit(Budget.parse("latency:6ms")) == pytest.approx(2.0)


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, kv_heads=2)])
@pytest.mark.parametrize("label", ["D1", "D4-W3", "top2x8"])
def test_prices_are_the_costs_of_every_table(config, label):
    patterns = uniform_map(Pattern.from_label(label), config)
    costs, dense = (
        cost(rows, 64, config.d_head, kv_heads=config.kv_heads) for rows in (patterns, uniform_map(Pattern(), config))
    )
    for kind, of in {
        "kv": lambda c: c.kv_bytes, "read": lambda c: c.decode_bytes,
        "flops": lambda c: c.attention_flops + c.selection_flops,
    }.items():  # fmt: skip
        prices = Prices.of(kind, config, 64)
        assert prices.dense == of(dense)
        assert prices.map(patterns) == pytest.approx(of(costs) / of(dense))
        assert prices.limit(Budget(kind, kind, of(costs), True)) == pytest.approx(of(costs) / of(dense))


def test_grouped_heads_are_one_unit():
    config = ModelConfig(vocab_size=50, layers=2, d_model=32, d_head=8, kv_heads=2, max_len=64)
    space = Space.of(config, CANDIDATES, [1])
    patterns = space.map((2, 0, 1))
    assert patterns.label == "mixed[D16x4|D1x2,D4x2]"
    assert Prices.of("flops", config, 64).map(uniform_map(Pattern(), config)) == pytest.approx(1)
    changed = space.substituted(patterns, space.units[2], 0)
    assert changed.label == "layers[D16,D1]"


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (["D1"], "at least two"), (["D1", "D1-W4"], "at least two"), (["D1", "dilated"], "not a label"),
        (["D1", "snap64x8"], "no loss"), (["D1", "quest4x8-decode"], "no loss"),
        (["top4x8", "top4x16"], "one block length"),
    ],
)  # fmt: skip
def test_candidates_that_cannot_be(labels, line):
    with pytest.raises(ValueError, match="candidates: ") as caught:
        candidates_of(labels, heads_differ=True)
    assert line in str(caught.value)


def test_baselines_keep_to_the_budget():
    space = Space.of(CONFIG, CANDIDATES, range(3))
    cost = Prices.of("kv", CONFIG, 64).table(space)

    def total(choice):
        return sum_of(cost, choice)

    damage = np.outer(np.arange(12.0), [0, 1, 2])
    drawn = baselines.randoms(space, cost, 0.3, total, 20, seed=0)
    assert drawn == baselines.randoms(space, cost, 0.3, total, 20, seed=0)
    assert all(0.25 < total(choice) <= 0.3 + 1e-9 for choice in drawn)
    assert len(set(drawn)) > 10
    other = baselines.alternate(space, 0.3, total)
    assert space.map(other).label == "layers[D4,D16,D4]"
    assert space.map(baselines.ends_dense(space, cost, 0.4, total, last=False)).label == "layers[D1,D16x2]"
    assert space.map(baselines.ends_dense(space, cost, 0.4, total, last=True)).label == "layers[D16x2,D1]"
    assert baselines.alternate(space, 0.05, total) is None
    wrong = baselines.reversed_ranking(cleaned(damage, cost), cost, 0.3, None)
    assert sum_of(cleaned(damage, cost), wrong) >= sum_of(
        cleaned(damage, cost), solve(cleaned(damage, cost), cost, 0.3)
    )


def test_exchanges_come_in_the_order_of_what_they_promise():
    space = Space.of(CONFIG, CANDIDATES)
    cost = Prices.of("kv", CONFIG, 64).table(space)
    damage = np.array([[0.0, 1.0, 2.0], [0.0, 0.1, 0.2], [0.0, 3.0, 9.0]])
    proposed = baselines.swaps(damage, cost, 0.4, (2, 0, 2), None, 100)
    assert proposed[0] == (2, 2, 0), "the unit that suffers most becomes dense in place of the one that suffers least"
    changes = [sum_of(damage, choice) for choice in proposed]
    assert changes == sorted(changes)
    assert all(sum_of(cost, choice) <= 0.4 + 1e-9 for choice in proposed)
    assert len(baselines.swaps(damage, cost, 0.4, (2, 0, 2), None, 2)) == 2


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ([-1.0, -1.0, -1.0, -1.0], True),
        ([-3.0, 1.0, -2.0, 0.5], False),  # -0.9 in the mean, with a standard error of 0.97
        ([-3.0, 0.9, -2.0, -0.5], True),  # -1.15, with one of 0.86
        ([0.0, 0.0, 0.0, 0.0], False),
    ],
)
def test_an_exchange_is_kept_if_it_gains_more_than_a_standard_error(change, kept):
    space, start = Space.of(CONFIG, CANDIDATES), (2, 0, 2)

    class Probes:
        def set_base(self, patterns):
            pass

        def losses(self, patterns, split):
            assert split == "search", "what is verified must not be looked at"
            return {"text": np.zeros(4) if patterns == space.map(start) else np.array(change)}

    prices = Prices.of("kv", CONFIG, 64)
    chooser = Chooser(cast("Any", Probes()), space, prices, SearchSection(model="m", swaps=1), 1.0, None)
    chooser.limit, chooser.cost, chooser.total = 0.4, prices.table(space), None
    options: dict[str, tuple[int, ...]] = {}
    damage = np.array([[0.0, 1.0, 2.0], [0.0, 0.1, 0.2], [0.0, 3.0, 9.0]])
    chooser._exchanged(damage, start, options)
    assert options == ({"after exchanges": (2, 2, 0)} if kept else {})


def test_latency_is_fitted_from_timings_of_any_maps():
    maps = [uniform_map(p, CONFIG) for p in CANDIDATES] + [PatternMap.from_label("heads[D1,D16]", 3, 4)]
    points = [(m, 0.5 + 0.01 * features(m, CONFIG, 64)[1] + 0.02 * features(m, CONFIG, 64)[2]) for m in maps]
    fitted = fit(points, CONFIG, 64)
    assert (fitted.base, fitted.each, fitted.most) == pytest.approx((0.5, 0.01, 0.02))
    assert fitted.worst < 1e-9
    prices = Prices.of("latency", CONFIG, 64, fitted)
    one_head = PatternMap.from_label("heads[D1,D16,D16,D16]", 3, 4)
    additive = sum(prices.head(p) for row in one_head for p in row)
    assert prices.map(one_head) > additive, "a layer waits for its busiest head"
    with pytest.raises(ValueError, match="at least 3 patterns"):
        fit(points[:2], CONFIG, 64)
