"""A search's parts against plain loops, and the whole choice on a model whose damages are known."""

import math
from itertools import product
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratplus.config.model import ModelConfig
from ratplus.config.search import SearchSection
from ratplus.pattern import Pattern, PatternMap
from ratplus.search import baselines
from ratplus.search.budgets import KINDS, Budget, Prices
from ratplus.search.choose import Chooser, nearest
from ratplus.search.outcome import beats_uniform, outcome
from ratplus.search.singles import measure
from ratplus.search.solve import fill, fits, hull_moves, lower_hull, price, solve, sum_of
from ratplus.search.units import Space, candidates_of

CONFIG = ModelConfig(vocab_size=50, layers=4, d_model=32, d_head=8, kv_heads=2, max_len=64)
SPACE = Space.of(CONFIG, candidates_of(["D1", "D4", "D16"], True))
COST = Prices.of("kv", CONFIG, 64).table(SPACE)


@st.composite
def tables(draw, units=4, kinds=3):
    numbers = st.lists(st.lists(st.integers(0, 9), min_size=kinds, max_size=kinds), min_size=units, max_size=units)
    damage, cost = (np.array(draw(numbers), dtype=float) for _ in range(2))
    return damage, cost + 1, tuple(draw(st.lists(st.integers(0, kinds - 1), min_size=units, max_size=units)))


def single_changes(choice, kinds=3):
    for unit, now in enumerate(choice):
        for other in range(kinds):
            if other != now:
                yield unit, (*choice[:unit], other, *choice[unit + 1 :])


@given(tables())
def test_the_hull_is_what_some_price_would_choose(instance):
    damage, cost, _ = instance
    for s, c in zip(damage, cost):
        hull = lower_hull(s, c)
        for level in np.arange(0, 12, 0.25):
            assert min(s[hull] + level * c[hull]) == pytest.approx(min(s + level * c))
        slopes = [slope for slope, _, _ in hull_moves(s, c)]
        assert slopes == sorted(slopes, reverse=True)
        assert len(set(slopes)) == len(slopes), "a candidate on the line between two others is none of the hull"
        assert all(slope > 0 for slope in slopes)
        assert c[hull[0]] == min(c)


@given(tables(), st.floats(4, 40))
def test_filling_leaves_no_single_change_that_helps(instance, budget):
    damage, cost, choice = instance
    if not fits(sum_of(cost, choice), budget):
        return
    for total in (None, lambda x: max(cost[u, i] for u, i in enumerate(x)) * len(x)):
        spent = total or (lambda x: sum_of(cost, x))
        if not fits(spent(choice), budget):
            continue
        found = fill(damage, cost, budget, choice, total)
        assert fits(spent(found), budget)
        assert sum_of(damage, found) <= sum_of(damage, choice)
        for _, changed in single_changes(found):
            assert not fits(spent(changed), budget) or sum_of(damage, changed) >= sum_of(damage, found)


@given(tables())
def test_the_price_is_the_least_slope_that_was_paid(instance):
    damage, cost, choice = instance
    paid = [
        slope for unit, now in enumerate(choice) for slope, _, after in hull_moves(damage[unit], cost[unit])
        if cost[unit, after] <= cost[unit, now]
    ]  # fmt: skip
    assert price(damage, cost, choice) == (min(paid) if paid else 0.0)


@given(tables(), st.integers(0, 4))
def test_the_nearest_units_are_those_with_a_ratio_nearest_to_the_price(instance, count):
    damage, cost, choice = instance
    level = price(damage, cost, choice)
    far = {}
    for unit, now in enumerate(choice):
        ratios = [
            max((damage[unit, now] - damage[unit, i]) / (cost[unit, i] - cost[unit, now]), 0.0)
            for i in range(3) if cost[unit, i] != cost[unit, now]
        ]  # fmt: skip
        far[unit] = min((abs(math.log((r + 1e-12) / (level + 1e-12))) for r in ratios), default=math.inf)
    found = nearest(damage, cost, choice, count)
    assert found == sorted(found)
    assert len(found) == count
    assert sorted(far[u] for u in found) == pytest.approx(sorted(far.values())[:count])


@settings(max_examples=60)
@given(tables(), st.floats(6, 40), st.booleans())
def test_exchanges_are_all_pairs_of_one_dearer_and_one_cheaper(instance, budget, additive):
    damage, cost, choice = instance
    total = None if additive else lambda x: sum_of(cost, x) + 1
    expected = {}
    for up, once in single_changes(choice):
        if cost[up, once[up]] <= cost[up, choice[up]]:
            continue
        for down, twice in [(None, once), *single_changes(once)]:
            cheaper = down is None or (down != up and cost[down, twice[down]] < cost[down, choice[down]])
            if cheaper and fits(sum_of(cost, twice) + (0 if additive else 1), budget):
                expected[twice] = sum_of(damage, twice)
    found = baselines.swaps(damage, cost, budget, choice, total, 1000)
    assert set(found) == set(expected)
    assert len(found) == len(expected)
    assert [expected[x] for x in found] == pytest.approx(sorted(expected.values()))
    assert baselines.swaps(damage, cost, budget, choice, total, 3) == found[:3]


@pytest.mark.parametrize("budget", [0.07, 0.16, 0.3, 0.45, 0.7, 0.99])
def test_simple_hybrids_are_the_dearest_that_fit(budget):
    def total(choice):
        return sum_of(COST, choice)

    pairs = [(a, b) * 2 for a in range(3) for b in range(3) if a != b]
    fitting = [total(x) for x in pairs if total(x) <= budget]
    found = baselines.alternate(SPACE, budget, total)
    assert (None if found is None else total(found)) == (max(fitting) if fitting else None)
    for last in (False, True):
        best = None
        for dense in range(3):  # the densest first, then the most layers, then the dearest rest
            made = {}
            for layers, other in product((1, 2, 3), range(3)):
                ends = (dense,) * layers
                rest = (other,) * (4 - layers)
                if other != dense:
                    made[rest + ends if last else ends + rest] = layers
            made = {x: layers for x, layers in made.items() if total(x) <= budget}
            if made:
                most = max(made.values())
                best = max(total(x) for x, layers in made.items() if layers == most)
                break
        found = baselines.ends_dense(SPACE, COST, budget, total, last)
        assert (None if found is None else total(found)) == pytest.approx(best)
    for drawn in baselines.randoms(SPACE, COST, budget, total, 5, seed=1):
        for unit, changed in single_changes(drawn):
            assert COST[unit, changed[unit]] <= COST[unit, drawn[unit]] or not fits(total(changed), budget)


SIZES = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}
AMOUNTS = {"kv": SIZES, "read": SIZES, "flops": {"F": 1, "MF": 1e6, "GF": 1e9, "TF": 1e12},
           "latency": {"us": 1e-3, "ms": 1, "s": 1e3}}  # fmt: skip


def test_every_unit_of_a_budget():
    assert set(AMOUNTS) == set(KINDS)
    for kind, units in AMOUNTS.items():
        for unit, size in units.items():
            assert Budget.parse(f"{kind}:2.5{unit}") == Budget(f"{kind}:2.5{unit}", kind, 2.5 * size, True)
        assert Budget.parse(f" {kind}:1 ") == Budget(f"{kind}:1", kind, 1.0, False)
        for text in (f"{kind}:1.001", f"{kind}:0", f"{kind}:0{unit}", f"{kind}:1e999{unit}"):
            with pytest.raises(ValueError, match="it must be"):
                Budget.parse(text)


class Known:
    """Damage of a map is the sum over layers of what its pattern does there; split by split, row by row."""

    def __init__(self, damage: dict[str, np.ndarray], noise: float = 0.0):
        self.damage, self.noise, self.dense, self.asked = damage, noise, PatternMap.uniform(Pattern(), 4, 4), []

    def set_base(self, patterns):
        pass

    def losses(self, patterns, split):
        self.asked.append((patterns, split))
        places = [SPACE.candidates.index(row[0]) for row in patterns]
        mean = self.damage[split][range(4), places].sum()
        return {"text": mean + self.noise * np.array([-1.0, 1.0, -1.0, 1.0]) * sum(places)}


DAMAGE = np.array([[0.0, 0.1, 0.9], [0.0, 0.5, 0.8], [0.0, 0.05, 0.1], [0.0, 0.3, 2.0]])


def chooser(probes, anchor="both", weight=1.0, **section) -> Chooser:
    given = SearchSection(model="m", anchor=anchor, **section)
    singles = measure(cast("Any", probes), SPACE, probes.dense) if anchor != "sparse" else None
    return Chooser(cast("Any", probes), SPACE, Prices.of("kv", CONFIG, 64), given, weight, singles)


@pytest.mark.parametrize("anchor", ["dense", "sparse", "both"])
@pytest.mark.parametrize("limit", [0.1, 0.3, 0.5, 0.8])
def test_where_damages_add_up_the_best_choice_is_found(anchor, limit):
    probes = Known(dict.fromkeys(("search", "verify", "test"), DAMAGE))
    found = chooser(probes, anchor).find(limit)
    best = min(sum_of(DAMAGE, x) for x in product(range(3), repeat=4) if fits(sum_of(COST, x), limit))
    assert sum_of(DAMAGE, found.winner) == pytest.approx(best)
    assert fits(sum_of(COST, found.winner), limit)
    uniform = [x for x in range(3) if fits(sum_of(COST, (x,) * 4), limit)]
    assert found.uniform == (min(uniform),) * 4
    wanted = {"dense": {"from dense"}, "sparse": {"from sparse"}, "both": {"from dense", "from sparse"}}[anchor]
    assert {name for name in found.options if name.startswith("from")} == wanted
    assert {split for _, split in probes.asked} == {"search", "verify"}, "the test split is for the end alone"


def test_of_options_of_equal_damage_the_first_is_taken():
    one = chooser(Known({"search": ALIKE}))
    options = {"a": (1, 0, 0, 0), "b": (0, 0, 0, 0), "c": (0, 0, 0, 0)}
    assert one.best(options) == ("b", (0, 0, 0, 0))
    assert one.best(dict(reversed(options.items()))) == ("c", (0, 0, 0, 0))


def test_the_verify_split_chooses_and_no_worse_than_uniform():
    """On the search split layers differ; on verify only a uniform pattern does no harm."""
    search, verify = DAMAGE, np.array([[1.0, 0.0, 1.0]] * 4)
    found = chooser(Known({"search": search, "verify": verify})).find(0.5)
    assert (found.winner, found.how, found.uniform) == ((1,) * 4, "uniform D4", (1,) * 4)


def test_of_what_cannot_be_told_apart_the_cheapest_wins():
    """Within a standard error of the best on verify: less cost, then fewer patterns."""
    flat = np.zeros((4, 3))
    found = chooser(Known({"search": DAMAGE, "verify": flat})).find(0.8)
    assert found.winner == (2,) * 4
    # Noise grows with what is sparse, and the mean with it a little: all is within error of the best, but D16
    # everywhere is worse than the best uniform pattern.
    slope = np.array([[0.0, 0.001, 0.002]] * 4)
    assert chooser(Known({"search": DAMAGE, "verify": slope}, noise=0.1)).find(0.8).winner == (1,) * 4
    told = chooser(Known({"search": DAMAGE, "verify": slope})).find(0.8)
    assert sum_of(slope, told.winner) == min(sum_of(slope, x) for x in told.options.values())


class Redundant(Known):
    """Layers 0 and 1 stand in for each other: one of them may be sparse, both do harm."""

    def losses(self, patterns, split):
        both = all(row[0] != Pattern() for row in list(patterns)[:2])
        return {"text": super().losses(patterns, split)["text"] + 2.0 * both}


ALIKE = np.array([[0.0, 0.1, 0.2], [0.0, 0.11, 0.21], [0.0, 0.3, 0.5], [0.0, 0.4, 0.7]])


@pytest.mark.parametrize("rounds", [0, 1, 2, 4])
def test_units_are_measured_again_around_a_solution_as_often_as_asked(rounds):
    """Each round starts at the solution before it; the third finds nothing else, and is the last."""
    probes, told = Redundant(dict.fromkeys(("search", "verify"), ALIKE)), []
    searching = chooser(probes, "dense", remeasure=rounds, swaps=0)
    searching.tell = told.append
    found = searching.find(0.6)
    solutions = {"from dense": (1, 1, 1, 0), "re-measured 1": (0, 1, 1, 1), "re-measured 2": (0, 2, 1, 0)}
    assert found.options == dict(list(solutions.items())[: rounds + 1])
    assert found.winner == list(found.options.values())[-1]
    assert told == ["re-measuring"] * min(rounds, 3) + ["exchanges", "verify"]


def test_a_round_that_does_not_help_is_the_last():
    """It is an option all the same, for the verify split to judge."""

    class Misleading(Redundant):
        def losses(self, patterns, split):
            worse = 3.0 * (patterns == SPACE.map((0, 1, 1, 1)))
            return {"text": super().losses(patterns, split)["text"] + worse}

    probes, told = Misleading(dict.fromkeys(("search", "verify"), ALIKE)), []
    searching = chooser(probes, "dense", remeasure=4, swaps=0)
    searching.tell = told.append
    found = searching.find(0.6)
    assert found.options == {"from dense": (1, 1, 1, 0), "re-measured 1": (0, 1, 1, 1)}
    assert found.winner == (1, 1, 1, 0)
    assert told.count("re-measuring") == 1


def test_where_a_sparse_search_starts_and_what_it_tells():
    """Around the best uniform pattern that fits, not around the cheapest; a solution of whole layers is one option."""
    probes, told, bases = Known(dict.fromkeys(("search", "verify"), DAMAGE)), [], []
    probes.set_base = bases.append
    searching = chooser(probes, "sparse", remeasure=0, swaps=0)
    searching.tell, searching.coarse = told.append, (2, 0, 1, 2)
    found = searching.find(0.3)
    assert bases[0] == SPACE.map((1,) * 4)
    assert found.options["whole layers"] == (2, 0, 1, 2)
    assert told == ["substitutions in a sparse model", "exchanges", "verify"]


def test_damages_of_the_first_solution_are_those_of_the_dense_model():
    probes = Redundant(dict.fromkeys(("search", "verify"), ALIKE))
    assert chooser(probes, "both").find(0.6).damage == pytest.approx(ALIKE)
    assert chooser(probes, "sparse").find(0.6).damage[0, 1] > 1, "within D4, layer 1 cannot stand in for layer 0"


@pytest.mark.parametrize("swaps", [0, 1, 3, 7])
def test_exchanges_are_tried_once_each_and_no_more_than_asked(swaps):
    probes = Known(dict.fromkeys(("search", "verify"), DAMAGE))
    searching = chooser(probes, "dense", remeasure=0, swaps=swaps)
    probes.asked.clear()
    searching.limit, searching.cost, searching.total = 0.5, COST, None
    start, options = solve(DAMAGE, COST, 0.5), {}
    searching._exchanged(DAMAGE, start, options)
    tried = [patterns for patterns, _ in probes.asked if patterns != SPACE.map(start)]
    # One unit dearer, and at most one other cheaper, within the budget.
    others = [x for x in product(range(3), repeat=4) if fits(sum_of(COST, x), 0.5)]
    dearer = [[COST[u, x[u]] > COST[u, start[u]] for u in range(4)] for x in others]
    changed = [[x[u] != start[u] for u in range(4)] for x in others]
    possible = sum(sum(up) == 1 and sum(any_) <= 2 for up, any_ in zip(dearer, changed, strict=True))
    assert possible == 6
    assert len(tried) == len(set(tried)) == min(swaps, possible)
    assert options == {}, "the solution is the best there is"
    assert searching.spent(start) == pytest.approx(sum_of(COST, start))
    searching.total = lambda choice: 7.0
    assert searching.spent(start) == 7.0


@pytest.mark.parametrize("swaps", [3, 60])
def test_after_an_exchange_that_helps_the_next_ones_start_there(swaps):
    """Several exchanges lead from the start to the best; none is tried again on the way."""
    probes = Known(dict.fromkeys(("search", "verify"), DAMAGE))
    searching = chooser(probes, "dense", remeasure=0, swaps=swaps)
    probes.asked.clear()
    searching.limit, searching.cost, searching.total = 0.5, COST, None
    options: dict = {}
    searching._exchanged(DAMAGE, (2, 2, 2, 0), options)
    tried = [patterns for patterns, _ in probes.asked[::2]]  # each beside the best so far
    assert len(tried) == len(set(tried)) <= swaps
    if swaps == 3:
        assert len(tried) == 3
        return
    best = min(sum_of(DAMAGE, x) for x in product(range(3), repeat=4) if fits(sum_of(COST, x), 0.5))
    assert sum_of(DAMAGE, options["after exchanges"]) == pytest.approx(best)


def test_an_exchange_has_to_gain_more_than_its_error():
    """Noise that goes with the sum of the places leaves only exchanges certain that do not change it."""
    ended = {}
    for noise in (0.0, 100.0):
        probes = Known({"search": DAMAGE}, noise)
        searching = chooser(probes, "dense", remeasure=0, swaps=60)
        searching.limit, searching.cost, searching.total = 0.5, COST, None
        options: dict = {}
        searching._exchanged(DAMAGE, (2, 2, 2, 0), options)
        ended[noise] = sum(options.get("after exchanges", (2, 2, 2, 0)))
    assert ended[100.0] == 6 != ended[0.0]


def test_the_result_beats_uniform_only_where_the_whole_interval_does():
    probes = Known(dict.fromkeys(("search", "verify", "test"), DAMAGE))
    found = chooser(probes).find(0.5)
    row = {"name": "best uniform", "over_searched": {"low": 0.1}}
    assert found.winner != found.uniform
    assert beats_uniform([row], found) is True
    assert beats_uniform([row | {"over_searched": {"low": 0.0}}], found) is False
    assert beats_uniform([row | {"name": "searched"}], found) is None
    found.uniform = found.winner
    assert beats_uniform([row], found) is False


def test_stability_tells_thirds_of_the_rows_that_give_other_layers_more_than_a_fair_share():
    """Two thirds make layer 0 dense, one makes layer 3 dense; a fair share is one of the budget, not of the model."""

    class Thirds(Known):
        def losses(self, patterns, split):
            sparse = [float(row[0] != Pattern()) for row in patterns]
            return {"text": np.array([sparse[0], sparse[0], sparse[3]])}

    searching = chooser(Thirds({}), "dense", remeasure=0, swaps=0, random=0)
    found = searching.find(0.3)
    told = outcome(Budget.parse("kv:0.3"), searching, found, {"kv": searching.prices}, None)
    assert told["stability"]["jaccard"] == [1.0, 0.0, 0.0]


def test_a_solution_of_whole_layers_holds_for_single_heads():
    fine = Space.of(CONFIG, SPACE.candidates, [1, 3])
    assert [unit.name(2) for unit in fine.units] == [
        "layer 0", "layer 1 head 0", "layer 1 head 1", "layer 2", "layer 3 head 0", "layer 3 head 1",
    ]  # fmt: skip
    coarse = (2, 1, 0, 1)
    assert fine.map(fine.taken_over(coarse, SPACE)) == SPACE.map(coarse)
    for unit, index in product(range(len(fine.units)), range(3)):
        choice = fine.taken_over(coarse, SPACE)
        changed = fine.substituted(fine.map(choice), fine.units[unit], index)
        assert changed == fine.map(fine.changed(choice, unit, index))
        assert solve(np.zeros((6, 3)), np.ones((6, 3)), 6.0) == (0,) * 6


def test_a_true_total_decides_where_costs_do_not_add_up():
    """Of three layers the dearest decides what a step takes; the costs of units alone only rank."""
    damage = np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    cost = np.array([[0.0, 1.0]] * 3)

    def dearest(choice) -> float:
        return max(cost[unit, kind] for unit, kind in enumerate(choice))

    assert solve(damage, cost, 1.0) == (1, 0, 0)
    assert solve(damage, cost, 1.0, dearest) == (1, 1, 1)
    assert solve(damage, cost, 2.0, lambda choice: 2.0 * sum(choice)) == (1, 0, 0)
    assert fill(damage, cost, 1.0, (0, 0, 0)) == (1, 0, 0)
    assert fill(damage, cost, 1.0, (0, 0, 0), dearest) == (1, 1, 1)
    with pytest.raises(ValueError, match=r"^budget: got 1; the cheapest candidate in every unit costs 5$"):
        solve(damage, cost, 1.0, lambda choice: 5.0)
