"""The difference of two results, one a seed each: item by item where both stored the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ratplus.analysis.paired.bootstrap import BOOTSTRAP, ERRORS, RESAMPLES, normal_p, p_values, resampled_means
from ratplus.analysis.paired.samples import DrawnAlike, Items

Pair = tuple[Items | None, Items | None]


def difference_of(values: np.ndarray, errors: np.ndarray, pairs: Sequence[Pair]) -> dict:
    """Second minus first, mean over seeds: `difference`, `stderr`, `low`, `high` (95 %), `p`, `method`, `items`.

    Args:
        values: [2, seeds].
        errors: standard errors of the values, [2, seeds].
        pairs: what the two evaluations of each seed stored. Where one pair is not of the same items, the standard
            errors decide, as if the items of both were different ones.
    """
    known = [(a, b) for a, b in pairs if a is not None and b is not None and len(a.ids) > 1 and a.pairs_with(b)]
    if known and len(known) == len(pairs):
        return _by_items(known)
    difference = float((values[1] - values[0]).mean())
    stderr = float(np.sqrt((np.asarray(errors) ** 2).sum()) / len(values[0]))
    if not stderr > 0:
        stderr = math.nan
    p = normal_p(difference, stderr) if stderr > 0 else math.nan
    return {"difference": difference, "stderr": stderr, "low": difference - 1.96 * stderr,
            "high": difference + 1.96 * stderr, "p": p, "method": ERRORS, "items": 0}  # fmt: skip


def _by_items(pairs: list[tuple[Items, Items]]) -> dict:
    """By a paired bootstrap. Seeds that were asked the same items are drawn alike, so these count once."""
    means, difference, drawn = np.zeros((1, RESAMPLES)), 0.0, DrawnAlike()
    for a, b in pairs:
        changes = b.values - a.values
        means += resampled_means(changes[None, :], a.weights, a.seed) / len(pairs)
        difference += float(changes @ a.weights / a.weights.sum()) / len(pairs)
        drawn.add("", a, changes[None, :])
    low, high = np.quantile(means[0], [0.025, 0.975])
    p = float(p_values(means, np.array([difference]), drawn.differing())[0])
    return {"difference": difference, "stderr": float(means.std(ddof=1)), "low": float(low), "high": float(high),
            "p": p, "method": BOOTSTRAP, "items": drawn.asked()}  # fmt: skip
