"""How sure a difference is: the paired bootstrap over items, t over seeds, and Holm's adjustment for many at once.

The bootstrap draws items with replacement (B. Efron, "Bootstrap methods: another look at the jackknife", Annals of
Statistics 7, 1979); the adjustment is S. Holm's ("A simple sequentially rejective multiple test procedure",
Scandinavian Journal of Statistics 6, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import ThreadpoolController

RESAMPLES = 2000
# p is called small below this, after Holm's adjustment.
CERTAIN = 0.05
BOOTSTRAP, ERRORS = "paired bootstrap", "standard errors"
# Resamples are drawn so many numbers at a time, and kept for sets of at most so many items: a sweep asks for the same
# ones again and again.
_DRAWN, _KEPT = 1 << 22, 1024


def paired_bootstrap(differences: np.ndarray, weights: np.ndarray | None = None, seed: int = 0) -> dict:
    """Mean of paired differences [items], its standard error, percentile interval (95 %) and two-sided p.

    Args:
        differences: second minus first, an item each.
        weights: of the items in the mean; None for equal ones.
        seed: of the draws; the same one for the same items.
    """
    weights = np.ones(len(differences)) if weights is None else np.asarray(weights, dtype=np.float64)
    means = resampled_means(differences[None, :], weights, seed)
    mean = float((differences * weights).sum() / weights.sum())
    low, high = np.quantile(means[0], [0.025, 0.975])
    p = float(p_values(means, np.array([mean]), np.array([np.count_nonzero(differences)]))[0])
    return {"difference": mean, "stderr": float(means.std(ddof=1)), "low": float(low), "high": float(high), "p": p,
            "method": BOOTSTRAP, "items": len(differences)}  # fmt: skip


def resampled_means(differences: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """Weighted means [rows, RESAMPLES] of differences [rows, items] over items drawn with replacement.

    All rows are drawn alike, so that means of the same items may be added and subtracted.
    """
    weighted = differences * weights
    means, start = np.empty((len(differences), RESAMPLES)), 0
    # These products are small: a second thread of BLAS waits for the first, and on a busy machine for its turn.
    with _blas().limit(limits=1, user_api="blas"):
        for counts in _draws(len(weights), seed):
            part = means[:, start : start + len(counts)]
            np.matmul(weighted, counts.T, out=part)
            part /= counts @ weights
            start += len(counts)
    return means


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """The threads of numpy's BLAS; to look for them takes as long as many of the products."""
    return ThreadpoolController()


def _draws(items: int, seed: int) -> Iterable[np.ndarray]:
    """How often each item is drawn, [resamples, items], some resamples at a time."""
    return _kept_draws(items, seed) if items <= _KEPT else _new_draws(items, seed)


@lru_cache(maxsize=8)
def _kept_draws(items: int, seed: int) -> tuple[np.ndarray, ...]:
    return tuple(_new_draws(items, seed))


def _new_draws(items: int, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    at_once = max(1, min(RESAMPLES, _DRAWN // items))
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        picked = generator.integers(0, items, (rows, items)) + items * np.arange(rows)[:, None]
        yield np.bincount(picked.ravel(), minlength=rows * items).reshape(rows, items).astype(np.float64)


def p_values(means: np.ndarray, differences: np.ndarray, differing: np.ndarray) -> np.ndarray:
    """Two-sided p of no difference, a row each.

    It is twice the smaller share of resampled means on one side of zero. Two things keep it honest at its ends. Where
    no resample lies on the other side, their number says no more than p < 1 / RESAMPLES, which would drown among many
    comparisons: the normal tail of difference over standard error is taken there. And where few items differ at all, no
    test of paired differences can be surer than by their signs: p is at least 2 / 2^differing.

    Args:
        means: [rows, RESAMPLES].
        differences: [rows], of all items.
        differing: [rows], how many items differ.
    """
    side = np.minimum((means <= 0).mean(axis=1), (means >= 0).mean(axis=1))
    errors = means.std(axis=1, ddof=1)
    tails = [normal_p(*pair) for pair in zip(differences, errors)]
    p = np.where(side > 0, np.maximum(2 * side, 1 / RESAMPLES), np.minimum(1 / RESAMPLES, tails))
    return np.minimum(1.0, np.maximum(p, least_p(differing)))


def least_p(differing: Any) -> Any:
    """The smallest two-sided p of `differing` paired differences, a number or an array: that of their signs alone."""
    return 2.0 ** (1.0 - np.minimum(differing, 1000))


def normal_p(difference: float, stderr: float) -> float:
    """Two-sided p of a difference with a known standard error; 0 where that is zero."""
    return math.erfc(abs(difference) / stderr / math.sqrt(2)) if stderr > 0 else 0.0


def t_p(values: Iterable[float]) -> float:
    """Two-sided p of a mean of zero, by Student's t, of a few values (one a seed); null for fewer than two."""
    known = np.asarray(list(values), dtype=np.float64)
    if len(known) < 2 or not np.isfinite(known).all():
        return math.nan
    error = known.std(ddof=1) / math.sqrt(len(known))
    if error == 0:
        return 1.0 if known[0] == 0 else 0.0
    return _student_tail(abs(known.mean()) / error, len(known) - 1)


def _student_tail(t: float, freedom: int) -> float:
    """P(|T| > t) of Student's t with whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for n in range(3 if odd else 2, freedom - (0 if odd else 1), 2):
        term *= cosine**2 * ((n - 1) / n)
        total += term
    if freedom == 1:
        total = 0.0
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1.0 - inside))


def holm(p: pd.Series) -> pd.Series:
    """Holm's adjustment of several p values: what each is worth when all are looked at; null stays null."""
    # In plain arrays: a report with thousands of results asks for three of these each.
    values = p.to_numpy(dtype=np.float64)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known])]
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1.0)
    return pd.Series(adjusted, index=p.index)
