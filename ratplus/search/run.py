"""A whole search: what is measured once for all budgets, then each budget, then everything on the test split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ratplus.config.model import ModelConfig
from ratplus.config.search import SearchSection
from ratplus.pattern import Pattern
from ratplus.search.budgets import Budget, Prices, uniform_map
from ratplus.search.choose import Chooser
from ratplus.search.damage import cleaned, difference, fixed_weight
from ratplus.search.outcome import outcome
from ratplus.search.probe import Probes
from ratplus.search.screen import screen
from ratplus.search.singles import Singles, measure
from ratplus.search.solve import fits, hull_moves, price, solve
from ratplus.search.units import Choice, Space


def check_budgets(budgets: Sequence[Budget], prices: dict[str, Prices], candidates: Sequence[Pattern]) -> None:
    """Refuse a budget that no choice of candidates meets, before anything is measured. Raises ValueError."""
    for budget in budgets:
        kind = prices[budget.kind]
        shares = {p.label: kind.map(uniform_map(p, kind.config)) for p in candidates}
        label = min(shares, key=lambda name: shares[name])
        if not fits(shares[label], kind.limit(budget)):
            amount = f" ({shares[label] * kind.dense:g} {'ms' if budget.kind == 'latency' else ''})".replace(" )", ")")
            advice = "allow more, or give sparser candidates"
            if shares[label] >= 1:  # decoding times of short rows, where nothing is gained by reading less
                advice = (
                    "no candidate is cheaper than dense there, so there is nothing to search: take longer rows (length)"
                )
            raise ValueError(
                f"budget: got {budget.text}; the cheapest candidate, {label}, costs {shares[label]:.4g} of the dense "
                f"model{amount} at {kind.length} tokens: {advice}"
            )


def run_search(
    probes: Probes, section: SearchSection, candidates: Sequence[Pattern], budgets: Sequence[Budget],
    prices: dict[str, Prices], tell: Callable[[str], None] = lambda phase: None,
) -> dict:  # fmt: skip
    """Measure, choose and compare; returns everything that the report shows, JSON-ready.

    Args:
        candidates: of every unit.
        prices: of each kind of budget, and of the kinds that tables show.
        tell: called with the name of each phase as it begins.

    Raises:
        ValueError: a budget that even the cheapest candidates exceed.
        BadLogits: NaN or infinite logits.
    """
    config = probes.model.config
    check_budgets(budgets, prices, candidates)
    tell("uniform patterns")
    dense = probes.losses(probes.dense, "search")
    maps = {p: uniform_map(p, config) for p in candidates}
    values = {p: probes.losses(patterns, "search") for p, patterns in maps.items()}
    weight = section.weight if section.weight is not None else fixed_weight(dense, list(values.values()))
    layers = Space.of(config, candidates)
    heads = Space.of(config, candidates, range(config.layers))
    fine = heads if section.over == "heads" else layers
    first: Singles | None = None
    if section.anchor != "sparse" or section.over == "layers,heads":
        tell("substitutions in the dense model")
        first = measure(probes, fine, probes.dense)
    singles, coarse = first, first
    if section.over == "layers,heads":
        assert first is not None
        split = undecided(first, weight, budgets, prices, section.undecided)
        fine = Space.of(config, candidates, split)
        tell("substitutions of heads")
        singles = measure(probes, fine, probes.dense)
    screened = None
    if section.screen:
        tell("screen")
        screened = screen(probes, fine)
    results = []
    for budget in budgets:
        kind = prices[budget.kind]
        limit = kind.limit(budget)

        def told(phase: str, budget: Budget = budget) -> None:
            tell(f"{budget.text}: {phase}")

        by_layers = None
        if coarse is not None and section.over != "layers":
            by_layers = fine.taken_over(_by_layers(coarse, layers, weight, kind, limit), layers)
        used = singles if section.anchor != "sparse" else None
        chooser = Chooser(probes, fine, kind, section, weight, used, by_layers, told)
        results.append(outcome(budget, chooser, chooser.find(limit), prices, screened))
    uniform_rows = [_uniform_row(probes, prices, weight, p, config) for p in candidates]
    return {
        "weight": weight, "groups": sorted(dense), "candidates": [p.label for p in candidates],
        "shape": {"layers": config.layers, "heads": config.heads, "kv_heads": config.key_heads},
        "dense": {name: float(rows.mean()) for name, rows in probes.losses(probes.dense, "test").items()},
        "uniform": uniform_rows, "budgets": results,
    }  # fmt: skip


def _by_layers(singles: Singles, layers: Space, weight: float, kind: Prices, limit: float) -> Choice:
    """The solution over whole layers; damages of a layer's heads are added up where heads were measured."""
    raw, space = singles.raw(weight), singles.space
    summed = np.zeros((layers.layers, raw.shape[1]))
    for unit, row in zip(space.units, raw):
        summed[unit.layer] += row
    cost = kind.table(layers)
    return solve(cleaned(summed, cost), cost, limit, kind.total(layers))


def undecided(
    singles: Singles, weight: float, budgets: Sequence[Budget], prices: dict[str, Prices], most: int
) -> list[int]:
    """The layers, at most so many, whose pattern changes at a λ that is nearest to one of the budgets'."""
    distance: dict[int, float] = {}
    for budget in budgets:
        kind = prices[budget.kind]
        cost = kind.table(singles.space)
        damage = cleaned(singles.raw(weight), cost)
        level = price(damage, cost, solve(damage, cost, kind.limit(budget), kind.total(singles.space)))
        for unit in range(len(singles.space.units)):
            slopes = [slope for slope, _, _ in hull_moves(damage[unit], cost[unit])]
            nearest = min((abs(np.log((s + 1e-12) / (level + 1e-12))) for s in slopes), default=np.inf)
            layer = singles.space.units[unit].layer
            distance[layer] = min(distance.get(layer, np.inf), float(nearest))
    order = sorted(distance, key=lambda layer: (distance[layer], layer))
    return sorted(order[:most])


def _uniform_row(
    probes: Probes, prices: dict[str, Prices], weight: float, pattern: Pattern, config: ModelConfig
) -> dict:
    """Damage of a uniform pattern on the test split, for the line of the figure."""
    patterns = uniform_map(pattern, config)
    own, dense = (probes.losses(m, "test") for m in (patterns, probes.dense))
    change = difference(own, dense, weight)
    costs = {kind: p.map(patterns) for kind, p in prices.items()}
    groups = {name: difference({name: own[name]}, {name: dense[name]}, 1.0).to_dict() for name in own}
    return {"pattern": pattern.label, "costs": costs, "damage": change.to_dict(), "groups": groups}
