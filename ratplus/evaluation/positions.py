"""Loss and recall by position: what a model does where it was never trained.

Three questions, each answered for bins of positions or distances: the held-out loss at a position (`loss_at_...`);
whether recall that was trained in short rows still works when the row stands late in a long one (`recall_at_...`: only
the position is new); and whether it works over distances that no trained row had (`recall_over_...`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ratplus.data.batches import Batches
from ratplus.data.recall import RecallTask
from ratplus.data.sampling import IGNORE
from ratplus.evaluation.metrics import clustered_mean
from ratplus.records.record import Metric

Bin = tuple[int, int]  # [low, high)


def by_position(name: str, values: np.ndarray, labels: np.ndarray, bins: list[Bin]) -> dict[str, Metric]:
    """`<name>_<low>_<high>` of every bin of positions that has a label; values and labels [rows, length]."""
    return _in_bins(name, values, labels != IGNORE, np.arange(labels.shape[1]), bins)


@dataclass(frozen=True)
class RecallRows:
    """Recall rows [rows, length] that differ from those trained, and what they are sorted by.

    Attributes:
        places: position of each query, or its distance; [length] or [rows, length].
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    bins: list[Bin]

    def metrics(self, correct: np.ndarray) -> dict[str, Metric]:
        """`<name>_<low>_<high>`: share of correct answers in each bin that was asked for."""
        return _in_bins(self.name, correct, self.labels != IGNORE, self.places, self.bins)


def recall_rows(batches: Batches, rows: int, bins: list[Bin], distances: list[Bin]) -> list[RecallRows]:
    """The rows of `recall_at` (a set for each bin that a trained row can end in) and of `recall_over`.

    Args:
        bins: of positions; none for no rows.
        distances: bins of token distances.
    """
    if not bins or batches.recall is None or not rows:
        return []
    task = batches.recall
    sets = [_late(task, batches.held_out_recall(rows), at) for at in bins if at[1] >= task.length]
    if batches.context > task.length:
        far = batches.held_out_recall(rows, replace(task, length=batches.context))
        sets.append(RecallRows("recall_over", *far, distances))
    return sets


def _late(task: RecallTask, trained: tuple, at: Bin) -> RecallRows:
    """Rows as trained, with filler before them, so that they end where the bin does."""
    high = at[1]
    before = ((0, 0), (high - task.length, 0))
    inputs, labels = (np.pad(x, before, constant_values=fill) for x, fill in zip(trained, (task.base, IGNORE)))
    return RecallRows("recall_at", inputs, labels, np.arange(high), [at])


def _in_bins(name: str, values: np.ndarray, asked: np.ndarray, places: np.ndarray, bins: list[Bin]) -> dict:
    metrics = {}
    for low, high in bins:
        here = asked & (places >= low) & (places < high)
        if here.any():
            metrics[f"{name}_{low}_{high}"] = clustered_mean((values * here).sum(axis=1), here.sum(axis=1))
    return metrics
