"""What a searched pattern has to beat at the same budget: simple hybrids, random ones, and rankings that know less."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from ratplus.search.solve import fits, solve, sum_of
from ratplus.search.units import Choice, Space

Total = Callable[[Choice], float]
# Random hybrids are of the same cost as the result up to this share of the budget, where the candidates allow it.
_NEAR = 0.01
_TRIES = 30


def uniforms(space: Space, budget: float, total: Total) -> list[int]:
    """The candidates that fit the budget in every unit."""
    return [i for i in range(len(space.candidates)) if fits(total(space.uniform(i)), budget)]


def randoms(space: Space, cost: np.ndarray, budget: float, total: Total, count: int, seed: int) -> list[Choice]:
    """Random choices of about the budget: drawn, made to fit by random steps, then filled by random steps."""
    draw = random.Random(f"hybrids/{seed}/{budget:g}")
    found: list[Choice] = []
    for _ in range(count):
        best: tuple[float, Choice] | None = None
        for _ in range(_TRIES):
            choice = _random(space, cost, budget, total, draw)
            spent = total(choice)
            if best is None or spent > best[0]:
                best = spent, choice
            if spent >= budget * (1 - _NEAR):
                break
        assert best is not None
        found.append(best[1])
    return found


def _random(space: Space, cost: np.ndarray, budget: float, total: Total, draw: random.Random) -> Choice:
    units, count = len(space.units), len(space.candidates)
    choice = tuple(draw.randrange(count) for _ in range(units))
    while not fits(total(choice), budget):
        dearer = [u for u in range(units) if cost[u, choice[u]] > cost[u].min()]
        unit = draw.choice(dearer)
        cheaper = np.flatnonzero(cost[unit] < cost[unit, choice[unit]]).tolist()
        choice = space.changed(choice, unit, draw.choice(cheaper))
    for unit in draw.sample(range(units), units):
        options = [i for i in range(count) if cost[unit, i] > cost[unit, choice[unit]]]
        options = [i for i in options if fits(total(space.changed(choice, unit, i)), budget)]
        if options:
            choice = space.changed(choice, unit, draw.choice(options))
    return choice


def alternate(space: Space, budget: float, total: Total) -> Choice | None:
    """Two patterns in turn over the layers: the dearest such pair that fits; None if none does."""

    def made(a: int, b: int) -> Choice:
        return tuple(a if unit.layer % 2 == 0 else b for unit in space.units)

    return _dearest((made(a, b) for a in _all(space) for b in _all(space) if a != b), budget, total)


def ends_dense(space: Space, cost: np.ndarray, budget: float, total: Total, last: bool) -> Choice | None:
    """The first (or last) layers with the densest pattern that fits there, the others with one other pattern.

    As many layers as the budget allows, at least one and not all; None if nothing of that kind fits.
    """
    order = sorted(_all(space), key=lambda i: -float(cost[:, i].sum()))
    for dense in order:
        options = []
        for layers in range(1, space.layers):
            at = range(space.layers - layers, space.layers) if last else range(layers)
            for other in _all(space):
                if other != dense:
                    options.append(tuple(dense if unit.layer in at else other for unit in space.units))
        # Of the most layers that fit, the dearest rest.
        fitting = [option for option in options if fits(total(option), budget)]
        if fitting:
            most = max(option.count(dense) for option in fitting)
            return _dearest((option for option in fitting if option.count(dense) == most), budget, total)
    return None


def reversed_ranking(damage: np.ndarray, cost: np.ndarray, budget: float, total: Total | None) -> Choice:
    """The solution for damages dealt the wrong way round: the unit that suffers most gets those of the least."""
    order = np.argsort(damage.mean(axis=1), kind="stable")
    wrong = np.empty_like(damage)
    wrong[order] = damage[order[::-1]]
    return solve(wrong, cost, budget, total)


def swaps(
    damage: np.ndarray, cost: np.ndarray, budget: float, choice: Choice, total: Total | None, most: int
) -> list[Choice]:
    """At most so many exchanges of a choice that fit: a unit dearer, another cheaper; most predicted gain first.

    A unit that may get dearer without another's getting cheaper is among them.
    """
    additive = total is None
    total = total or (lambda changed: sum_of(cost, changed))
    ups, downs = _steps(cost, choice, dearer=True), [None, *_steps(cost, choice, dearer=False)]
    if not ups or not most:
        return []

    def change(table: np.ndarray, step: tuple[int, int] | None) -> float:
        return 0.0 if step is None else float(table[step] - table[step[0], choice[step[0]]])

    rise = np.array([[change(table, step) for step in ups] for table in (damage, cost)])
    fall = np.array([[change(table, step) for step in downs] for table in (damage, cost)])
    predicted = rise[0][:, None] + fall[0]
    if additive:  # then most pairs need no closer look
        fitting = fits(sum_of(cost, choice) + rise[1][:, None] + fall[1], budget)
        predicted = np.where(fitting, predicted, np.inf)
    found: list[Choice] = []
    for place in np.argsort(predicted, axis=None, kind="stable"):
        up, down = ups[place // len(downs)], downs[place % len(downs)]
        if len(found) == most or not np.isfinite(predicted.flat[place]):
            break
        if down is not None and down[0] == up[0]:
            continue
        changed = (*choice[: up[0]], up[1], *choice[up[0] + 1 :])
        if down is not None:
            changed = (*changed[: down[0]], down[1], *changed[down[0] + 1 :])
        if fits(total(changed), budget):
            found.append(changed)
    return found


def _steps(cost: np.ndarray, choice: Choice, dearer: bool) -> list[tuple[int, int]]:
    """(unit, candidate): all candidates that cost more (or less) than a unit's own."""
    found = []
    for unit, now in enumerate(choice):
        here = cost[unit]
        found += [(unit, int(i)) for i in np.flatnonzero(here > here[now] if dearer else here < here[now])]
    return found


def _all(space: Space) -> range:
    return range(len(space.candidates))


def _dearest(options, budget: float, total: Total) -> Choice | None:
    fitting: Sequence[tuple[float, Choice]] = [
        (spent, option) for option in options if fits(spent := total(option), budget)
    ]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None
