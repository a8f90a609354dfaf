"""What a search tells of one budget: winner, uniform and baselines on the test split, paired; prediction; stability."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from ratplus.search import baselines
from ratplus.search.budgets import Budget, Prices
from ratplus.search.choose import Chooser, Found
from ratplus.search.damage import cleaned, coefficients, difference, interval
from ratplus.search.probe import Probes
from ratplus.search.solve import solve, sum_of
from ratplus.search.units import Choice, Space

# Parts of the search split that the choice is made on again, each alone.
PARTS = 3


def outcome(
    budget: Budget, chooser: Chooser, found: Found, prices: dict[str, Prices], screened: np.ndarray | None
) -> dict:
    """All numbers of one budget, JSON-ready; runs the passes over the test split."""
    space, section, probes = chooser.space, chooser.section, chooser.probes
    named: dict[str, Choice] = {"searched": found.winner}
    if found.uniform is not None:
        named["best uniform"] = found.uniform
    arguments = (chooser.cost, found.limit)
    for name, choice in (
        ("alternate layers", baselines.alternate(space, found.limit, chooser.spent)),
        ("first layers dense", baselines.ends_dense(space, *arguments, chooser.spent, last=False)),
        ("last layers dense", baselines.ends_dense(space, *arguments, chooser.spent, last=True)),
    ):
        if choice is not None:
            named[name] = choice
    named["ranking reversed"] = baselines.reversed_ranking(found.damage, *arguments, chooser.total)
    if screened is not None:
        named["screen only"] = solve(cleaned(screened, chooser.cost), *arguments, chooser.total)
    drawn = baselines.randoms(space, *arguments, chooser.spent, section.random, section.seed)
    chooser.tell("test")
    rows = [_row(probes, space, prices, chooser.weight, found, name, choice) for name, choice in named.items()]
    random_rows = [_row(probes, space, prices, chooser.weight, found, "random", choice) for choice in drawn]
    seen = {name: chooser.damage_of(choice, "verify") for name, choice in found.options.items()}
    uniform_seen = {} if found.uniform is None else {"best uniform": chooser.damage_of(found.uniform, "verify")}
    return {
        "budget": budget.text, "kind": budget.kind, "limit": found.limit,
        "limit_amount": found.limit * prices[budget.kind].dense, "how": found.how,
        "winner": rows[0] | {"map": space.map(found.winner).to_dict()},
        "verify": seen | uniform_seen,
        "search": chooser.damage_of(found.winner, "search"),
        "rows": rows, "random": random_rows, "beats_uniform": beats_uniform(rows, found),
        "cells": [[p.label for p in row[:: space.group]] for row in space.map(found.winner)],
        "predicted": _predictions(chooser, found, [*named.values(), *drawn]),
        "stability": _stability(chooser, found),
    }  # fmt: skip


def beats_uniform(rows: list[dict], found: Found) -> bool | None:
    """Whether the 95% interval of searched - best uniform on test lies below 0; None where no uniform fits."""
    uniform = next((row for row in rows if row["name"] == "best uniform"), None)
    if uniform is None:
        return None
    return found.winner != found.uniform and uniform["over_searched"]["low"] > 0


def _row(
    probes: Probes, space: Space, prices: dict[str, Prices], weight: float, found: Found, name: str, choice: Choice
) -> dict:
    """A pattern on the test split: damage to dense, what it is worse by than the searched one, each group by itself."""
    patterns = space.map(choice)
    own, dense = probes.losses(patterns, "test"), probes.losses(probes.dense, "test")
    searched = probes.losses(space.map(found.winner), "test")
    each = {group: interval({group: own[group]}, {group: dense[group]}, 1.0) for group in coefficients(list(own), 1.0)}
    return {
        "name": name, "pattern": patterns.label,
        "costs": {kind: p.map(patterns) for kind, p in prices.items()},
        "damage": interval(own, dense, weight).to_dict(),
        "over_searched": interval(own, searched, weight).to_dict(),
        "groups": {group: estimate.to_dict() for group, estimate in each.items()},
    }  # fmt: skip


def _predictions(chooser: Chooser, found: Found, choices: list[Choice]) -> list[dict]:
    """Damage that single substitutions in the dense model add up to, beside what was measured (both to dense)."""
    if chooser.singles is None:
        return []
    raw = chooser.singles.raw(chooser.weight)
    pairs = []
    for choice in dict.fromkeys(choices):
        own, dense = (chooser.probes.losses(m, "test") for m in (chooser.space.map(choice), chooser.probes.dense))
        pairs.append({"predicted": sum_of(raw, choice), "measured": difference(own, dense, chooser.weight).mean,
                      "searched": choice == found.winner})  # fmt: skip
    return pairs


def _stability(chooser: Chooser, found: Found) -> dict:
    """The first solution made on thirds of the search split: Jaccard overlap of the units that get more than a fair
    share, and how precise the damages are that it was made of."""
    if chooser.singles is None:
        return {}
    fair = np.array([len(unit.heads) for unit in chooser.space.units]) / chooser.space.layers / chooser.space.kv_heads
    dense_units = []
    for part in range(PARTS):
        damage = cleaned(chooser.singles.raw(chooser.weight, (part, PARTS)), chooser.cost)
        choice = solve(damage, chooser.cost, found.limit, chooser.total)
        spent = chooser.cost[np.arange(len(choice)), list(choice)]
        dense_units.append({unit for unit in range(len(choice)) if spent[unit] > found.limit * fair[unit]})
    overlaps = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in combinations(dense_units, 2)]
    raw, error = chooser.singles.raw(chooser.weight), chooser.singles.stderr(chooser.weight)
    positive = raw[np.isfinite(raw) & (raw > 0)]
    typical = float(np.median(positive)) if len(positive) else 0.0
    noise = float(np.median(error[error > 0])) if (error > 0).any() else 0.0
    return {"jaccard": overlaps, "median_damage": typical, "median_stderr": noise}
