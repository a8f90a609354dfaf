"""Damage of a pattern: losses item by item, paired with another pattern's on the same items.

Damage = mean Δ loss of text rows + w * mean over answer groups of their mean Δ loss (nats per token), Δ to dense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TEXT = "text"
# Group ("text", "recall", a needle task) -> loss of each of its rows, float64 [rows].
Values = Mapping[str, np.ndarray]
_RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A mean difference, its standard error, and where given its 95% interval of a paired bootstrap."""

    mean: float
    stderr: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict:
        return {"mean": self.mean, "stderr": self.stderr, "low": self.low, "high": self.high}


def coefficients(groups: Sequence[str], weight: float) -> dict[str, float]:
    """What the mean Δ of each group is multiplied with in the damage."""
    answers = [name for name in groups if name != TEXT]
    return {name: 1.0 if name == TEXT else weight / len(answers) for name in groups}


def difference(a: Values, b: Values, weight: float, part: tuple[int, int] = (0, 1)) -> Estimate:
    """Damage of `a` over `b`, paired row by row; positive where a is worse.

    Args:
        part: (which, of how many): only the rows i with i % of_how_many == which.
    """
    which, many = part
    mean, variance = 0.0, 0.0
    for name, factor in coefficients(list(a), weight).items():
        delta = (a[name] - b[name])[which::many]
        mean += factor * float(delta.mean())
        if len(delta) > 1:
            variance += factor**2 * float(delta.var(ddof=1)) / len(delta)
    return Estimate(mean, variance**0.5)


def interval(a: Values, b: Values, weight: float, seed: int = 0) -> Estimate:
    """`difference` with the 95% percentile interval of a paired bootstrap over the rows of each group."""
    draw = np.random.default_rng([seed, 95])
    total = np.zeros(_RESAMPLES)
    for name, factor in coefficients(list(a), weight).items():
        delta = a[name] - b[name]
        picked = draw.integers(0, len(delta), (_RESAMPLES, len(delta)))
        total += factor * delta[picked].mean(axis=1)
    low, high = np.quantile(total, [0.025, 0.975])
    point = difference(a, b, weight)
    return Estimate(point.mean, point.stderr, float(low), float(high))


def fixed_weight(dense: Values, uniform: Sequence[Values]) -> float:
    """The w with which Δ text and Δ answers have the same standard deviation over uniform patterns, or a larger one:
    that with which they have the same standard error (the median over these patterns).

    The latter is the larger where uniform patterns hardly change the text's loss: equal spread would then drown the
    answers in the noise of text. 1 without answers, and where answers do not differ between the patterns at all.
    """
    answers = [name for name in dense if name != TEXT]
    if not answers:
        return 1.0
    text = [_part(values, dense, [TEXT]) for values in uniform]
    asked = [_part(values, dense, answers) for values in uniform]
    ratios = []
    for spread in (
        lambda parts: float(np.std([part.mean for part in parts])),
        lambda parts: float(np.median([part.stderr for part in parts if part.stderr > 0] or [0.0])),
    ):
        below = spread(asked)
        ratios.append(spread(text) / below if below > 1e-9 else 0.0)
    return max(ratios) or 1.0


def _part(values: Values, dense: Values, names: Sequence[str]) -> Estimate:
    """Mean Δ of some groups alone, each weighing the same."""
    alone = [difference({TEXT: values[name]}, {TEXT: dense[name]}, 1.0) for name in names]
    error = sum(part.stderr**2 for part in alone) ** 0.5 / len(alone)
    return Estimate(float(np.mean([part.mean for part in alone])), error)


def isotonic(values: Sequence[float], weights: Sequence[float] | None = None) -> np.ndarray:
    """The nearest non-decreasing sequence (least squares; pool adjacent violators)."""
    weights = [1.0] * len(values) if weights is None else list(weights)
    blocks: list[list[float]] = []  # value, weight, count
    for value, weight in zip(values, weights, strict=True):
        blocks.append([float(value), float(weight), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value2, weight2, count2 = blocks.pop()
            value1, weight1, count1 = blocks.pop()
            together = weight1 + weight2
            blocks.append([(value1 * weight1 + value2 * weight2) / together, together, count1 + count2])
    return np.concatenate([np.full(int(count), value) for value, _, count in blocks])


def cleaned(raw: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Damages [units, candidates] made plausible: never less for a cheaper candidate of the same kind of unit, ≥ 0.

    Candidates are ordered by cost; along that order, from the dearest to the cheapest, each unit's damages are made
    non-decreasing, and the dearest counts as 0. What measurement says beyond that is noise.

    Args:
        raw: damage of each unit under each candidate, relative to anything.
        costs: [units, candidates].
    """
    found = np.empty_like(raw)
    for unit, row in enumerate(raw):
        order = np.lexsort((row, -costs[unit]))
        smooth = isotonic(row[order])
        found[unit, order] = np.maximum(smooth - smooth[0], 0.0)
    return found
