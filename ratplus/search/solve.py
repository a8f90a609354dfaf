"""One candidate for each unit under a budget: the multiple-choice knapsack, by Lagrange's path and a greedy fill.

Damages s and costs c are [units, candidates] and add up. For each λ the units choose argmin s + λ c apart from each
other; going down in λ, units move along the lower convex hull of their (c, s), and the path of all λ is these moves in
the order of their slopes (Everett 1963; Sinha and Zoltners 1979). The last one that fits is followed by whatever else
fits and helps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from ratplus.search.units import Choice

_SLACK = 1e-9  # of the budget: sums of floats that are equal on paper


def fits(cost, budget: float):
    """Whether a cost (or each of an array) is within a budget."""
    return cost <= budget * (1 + _SLACK)


def solve(
    damage: np.ndarray, cost: np.ndarray, budget: float, total: Callable[[Choice], float] | None = None
) -> Choice:
    """The choice of least damage that fits the budget, by Lagrange's path, then greedily.

    Args:
        damage: [units, candidates], ≥ 0.
        cost: [units, candidates].
        total: true cost of a choice where it does not add up; then `cost` only ranks.

    Raises:
        ValueError: even the cheapest candidate everywhere costs more than the budget.
    """
    total = total or (lambda choice: sum_of(cost, choice))
    choice = cheapest(damage, cost)
    if not fits(total(choice), budget):
        raise ValueError(f"budget: got {budget:g}; the cheapest candidate in every unit costs {total(choice):g}")
    moves = []
    for unit in range(len(cost)):
        moves += [(-slope, unit, before, after) for slope, before, after in hull_moves(damage[unit], cost[unit])]
    blocked: set[int] = set()
    for _, unit, before, after in sorted(moves):
        if unit in blocked or choice[unit] != before:
            continue
        further = (*choice[:unit], after, *choice[unit + 1 :])
        if fits(total(further), budget):
            choice = further
        else:
            blocked.add(unit)  # its later moves begin where this one would have ended
    return fill(damage, cost, budget, choice, total)


def fill(
    damage: np.ndarray, cost: np.ndarray, budget: float, choice: Choice, total: Callable[[Choice], float] | None = None
) -> Choice:
    """Single changes that fit and lower the damage, the one of the best ratio first, until there is none."""
    total = total or (lambda choice: sum_of(cost, choice))
    while True:
        best = None
        for unit, now in enumerate(choice):
            for other in range(cost.shape[1]):
                gain = damage[unit, now] - damage[unit, other]
                more = cost[unit, other] - cost[unit, now]
                if gain <= 0 or (best is not None and (gain / more if more > 0 else np.inf) <= best[0]):
                    continue
                changed = (*choice[:unit], other, *choice[unit + 1 :])
                if fits(total(changed), budget):
                    best = (gain / more if more > 0 else np.inf, changed)
        if best is None:
            return choice
        choice = best[1]


def cheapest(damage: np.ndarray, cost: np.ndarray) -> Choice:
    """Each unit's cheapest candidate; among equal costs that of least damage."""
    return tuple(int(np.lexsort((damage[unit], cost[unit]))[0]) for unit in range(len(cost)))


def lower_hull(damage: np.ndarray, cost: np.ndarray) -> list[int]:
    """Candidates of one unit on the lower convex hull of (cost, damage), from the cheapest on, damages falling."""
    hull: list[int] = []
    for index in np.lexsort((damage, cost)):
        i = int(index)
        if hull and damage[i] >= damage[hull[-1]]:
            continue  # dearer, and no better
        while len(hull) > 1 and _above(hull[-2], hull[-1], i, damage, cost):
            hull.pop()
        hull.append(i)
    return hull


def hull_moves(damage: np.ndarray, cost: np.ndarray) -> list[tuple[float, int, int]]:
    """(damage saved for each unit of cost, from, to) between neighbours of one unit's hull, from the cheapest on."""
    return [(float((damage[a] - damage[b]) / (cost[b] - cost[a])), a, b) for a, b in pairwise(lower_hull(damage, cost))]


def _above(a: int, b: int, c: int, damage: np.ndarray, cost: np.ndarray) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (damage[a] - damage[b]) * (cost[c] - cost[a]) <= (damage[a] - damage[c]) * (cost[b] - cost[a])


def sum_of(table: np.ndarray, choice: Choice) -> float:
    """Sum of a table [units, candidates] at a choice."""
    return float(table[np.arange(len(choice)), list(choice)].sum())


def price(damage: np.ndarray, cost: np.ndarray, choice: Choice) -> float:
    """λ of a choice: what the last unit of cost bought, the smallest ratio of damage to cost that it has paid for."""
    paid: list[float] = []
    for unit, now in enumerate(choice):
        moves = hull_moves(damage[unit], cost[unit])
        paid += [slope for slope, _, after in moves if cost[unit, after] <= cost[unit, now]]
    return min(paid, default=0.0)
