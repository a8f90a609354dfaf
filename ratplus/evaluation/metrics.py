"""Means over tokens with a standard error that respects rows: tokens of one row are not independent."""

from __future__ import annotations

import math

import numpy as np

from ratplus.records.record import Metric


def metric(value: float, stderr: float | None, count: float) -> Metric:
    """A metric as it stands in a record."""
    return {"value": float(value), "stderr": None if stderr is None else float(stderr), "count": int(count)}


def clustered_mean(sums, counts) -> Metric:
    """Mean of all items, given each row's sum and count of items.

    The standard error treats rows as the independent units (linearised ratio estimator); None for a single row.
    """
    sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    sums, counts = sums[counts > 0], counts[counts > 0]
    total, rows = counts.sum(), len(counts)
    if rows == 0:
        return metric(math.nan, None, 0)
    mean = sums.sum() / total
    stderr = None
    if rows > 1:
        residual = sums - counts * mean
        stderr = math.sqrt((residual**2).sum() * rows / (rows - 1)) / total
    return metric(mean, stderr, int(total))


def perplexity(loss: Metric) -> Metric:
    """exp(loss); its standard error by the delta method. Infinite where it exceeds a float."""
    value = math.exp(loss["value"]) if loss["value"] < 700 else math.inf
    stderr = None if loss["stderr"] is None else value * loss["stderr"]
    return metric(value, stderr, loss["count"])
