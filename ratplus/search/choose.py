"""The search at one budget: solutions from several anchors, re-measuring, exchanges; the verify split chooses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ratplus.config.search import SearchSection
from ratplus.search import baselines
from ratplus.search.budgets import Prices
from ratplus.search.damage import cleaned, difference
from ratplus.search.probe import Probes
from ratplus.search.singles import Singles, measure
from ratplus.search.solve import price, solve, sum_of
from ratplus.search.units import Choice, Space

# Share of the units that are measured again around a solution.
_NEAR = 0.2


@dataclass
class Found:
    """What a search found at one budget.

    Attributes:
        options: name of how it was found -> choice; those that the verify split chose among.
        winner, how: chosen on the verify split.
        uniform: the best uniform choice on the verify split; None if none fits.
        damage: [units, candidates], the cleaned damages that the first solution was made of.
    """

    limit: float
    options: dict[str, Choice]
    winner: Choice
    how: str
    uniform: Choice | None
    damage: np.ndarray
    notes: list[str] = field(default_factory=list)


@dataclass
class Chooser:
    """Searches one space of units at one budget.

    Args:
        damages: singles within the dense model, if they were measured.
        coarse: a solution over whole layers, where units are finer.
        weight: of answers in the damage.
    """

    probes: Probes
    space: Space
    prices: Prices
    section: SearchSection
    weight: float
    singles: Singles | None
    coarse: Choice | None = None
    tell: Callable[[str], None] = lambda phase: None

    def find(self, limit: float) -> Found:
        """Raises ValueError if even the cheapest candidates everywhere cost more than the limit."""
        self.limit = limit
        self.cost, self.total = self.prices.table(self.space), self.prices.total(self.space)
        uniform = {f"uniform {self.space.candidates[i].label}": self.space.uniform(i)
                   for i in baselines.uniforms(self.space, limit, self.spent)}  # fmt: skip
        options: dict[str, Choice] = {}
        damage = None
        if self.singles is not None:
            damage = cleaned(self.singles.raw(self.weight), self.cost)
            options["from dense"] = solve(damage, self.cost, limit, self.total)
        if self.coarse is not None:
            options["whole layers"] = self.coarse
        models = {name: damage for name in options}
        if self.section.anchor != "dense" or damage is None:
            # Without a uniform pattern that fits, the cheapest units are what is sparse everywhere.
            start = self.best(uniform)[1] if uniform else solve(np.zeros_like(self.cost), self.cost, limit, self.total)
            self.tell("substitutions in a sparse model")
            sparse = measure(self.probes, self.space, self.space.map(start))
            models["from sparse"] = cleaned(sparse.raw(self.weight), self.cost)
            options["from sparse"] = solve(models["from sparse"], self.cost, limit, self.total)
            damage = models["from sparse"] if damage is None else damage
        assert damage is not None
        first = damage
        name, choice = self.best(options)
        table = models[name]
        assert table is not None
        table, choice = self._measured_again(table, choice, options)
        self._exchanged(table, choice, options)
        self.tell("verify")
        return self._chosen(options, uniform, first)

    def spent(self, choice: Choice) -> float:
        """Cost of a choice, as a share of the dense model's."""
        return sum_of(self.cost, choice) if self.total is None else self.total(choice)

    def best(self, options: dict[str, Choice], split: str = "search") -> tuple[str, Choice]:
        """The option of least damage; of equal ones the first."""
        name = min(options, key=lambda option: self.damage_of(options[option], split))
        return name, options[name]

    def damage_of(self, choice: Choice, split: str) -> float:
        values, dense = (self.probes.losses(m, split) for m in (self.space.map(choice), self.probes.dense))
        return difference(values, dense, self.weight).mean

    def _measured_again(
        self, table: np.ndarray, choice: Choice, options: dict[str, Choice]
    ) -> tuple[np.ndarray, Choice]:
        """Substitutions within the solution, of the units nearest to a change; solved again as long as that helps."""
        for round_ in range(1, self.section.remeasure + 1):
            self.tell("re-measuring")
            near = nearest(table, self.cost, choice, math.ceil(_NEAR * len(choice)))
            again = measure(self.probes, self.space, self.space.map(choice), near)
            raw = again.raw(self.weight)
            table = table.copy()
            table[near] = cleaned(raw[near], self.cost[near])
            further = solve(table, self.cost, self.limit, self.total)
            if further == choice:
                break
            options[f"re-measured {round_}"] = further
            if self.damage_of(further, "search") >= self.damage_of(choice, "search"):
                break
            choice = further
        return table, choice

    def _exchanged(self, table: np.ndarray, choice: Choice, options: dict[str, Choice]) -> None:
        """Try exchanges in the order of what they promise; keep those that gain more than a standard error."""
        left, tried, start = self.section.swaps, {choice}, choice
        self.tell("exchanges")
        self.probes.set_base(self.space.map(choice))
        while left > 0:
            proposed = baselines.swaps(table, self.cost, self.limit, choice, self.total, left + len(tried))
            fresh = [option for option in proposed if option not in tried][:left]
            if not fresh:
                break
            for option in fresh:
                tried.add(option)
                left -= 1
                now, then = (self.probes.losses(self.space.map(x), "search") for x in (option, choice))
                change = difference(now, then, self.weight)
                if change.mean < -change.stderr:
                    choice = option
                    break
        if choice != start:
            options["after exchanges"] = choice

    def _chosen(self, options: dict[str, Choice], uniform: dict[str, Choice], damage: np.ndarray) -> Found:
        """The winner on the verify split: best, or cheaper within a standard error of it; never worse than uniform."""
        everything = {**options, **uniform}
        name, best = self.best(everything, "verify")
        reference = self.best(uniform, "verify")[1] if uniform else None
        allowed = self.damage_of(reference, "verify") if reference is not None else np.inf
        at_best = self.probes.losses(self.space.map(best), "verify")
        near = []
        for option, choice in everything.items():
            worse = difference(self.probes.losses(self.space.map(choice), "verify"), at_best, self.weight)
            if worse.mean <= worse.stderr and self.damage_of(choice, "verify") <= allowed:
                near.append((round(self.spent(choice), 9), len(set(choice)), self.damage_of(choice, "verify"), option))
        if near:
            name = min(near)[-1]
        return Found(self.limit, options, everything[name], name, reference, damage)


def nearest(damage: np.ndarray, cost: np.ndarray, choice: Choice, count: int) -> list[int]:
    """The units whose choice would change first if λ did: those with a ratio Δ damage / Δ cost nearest to λ."""
    level = price(damage, cost, choice)
    distance = []
    for unit, now in enumerate(choice):
        best = np.inf
        for other in range(cost.shape[1]):
            more, gain = cost[unit, other] - cost[unit, now], damage[unit, now] - damage[unit, other]
            if more == 0:
                continue
            ratio = max(gain / more, 0.0)
            best = min(best, abs(np.log((ratio + 1e-12) / (level + 1e-12))))
        distance.append((best, unit))
    return sorted(unit for _, unit in sorted(distance)[:count])
