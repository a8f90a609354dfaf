"""Stored samples of evaluations, brought together item by item."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ratplus.records.reading import read_json
from ratplus.records.record import RECORD_FILE, canonical_json
from ratplus.records.samples import SAMPLES_FILE, read_samples

# These keys of a sample are no scores.
_FACTS = ("task", "id", "count", "filter")
# What decides the items of the suites that read rows of held-out text, as keys of the evaluation's config.
_ROWS = {"loss": "text_rows", "perplexity": "text_rows", "next": "text_rows", "recall": "recall_rows"}


@dataclass(frozen=True, eq=False)
class Items:
    """What an evaluation stored of one metric.

    Attributes:
        ids: int64 [items], rising.
        values: float64 [items].
        weights: float64 [items]: the `count` of tokens or queries, and 1 where an item has none.
        of: names the set of items; equal names are the same prompts or rows.
        whole: whether their mean is what the record says. It is not for a perplexity, a score of a whole corpus, or a
            file that was cut: differences of such items would not be differences of the metric.
    """

    ids: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    of: str
    whole: bool = True

    def pairs_with(self, other: Items) -> bool:
        """Whether both are of the same items, item by item, and make up what their records say."""
        same = self.whole and other.whole and self.of == other.of and np.array_equal(self.ids, other.ids)
        return same and np.array_equal(self.weights, other.weights)

    @property
    def seed(self) -> int:
        """Of the draws from these items: two evaluations of the same items are resampled alike."""
        return int(hashlib.sha256(self.of.encode()).hexdigest()[:8], 16)


def read_items(folder: Path) -> dict[str, Items]:
    """{metric, as the record calls it: its items}; empty if an evaluation's folder stores none.

    Raises:
        ValueError: the file, or the record beside it, is damaged.
    """
    folder = Path(folder)
    if not (folder / SAMPLES_FILE).exists():
        return {}
    record = _record(folder)
    if record is None:
        return {}
    groups: dict[tuple, list[dict]] = {}
    for sample in read_samples(folder):
        groups.setdefault((sample.get("task"), sample.get("filter")), []).append(sample)
    found: dict[str, list[tuple[str, list[dict]]]] = {}
    for (task, chosen), samples in groups.items():
        for name in sorted(set().union(*samples).difference(_FACTS)):
            metric = str(task) if name == task else f"{task}_{name}"
            for full in (metric, f"{metric}_{chosen}") if chosen else (metric,):
                if full in record["metrics"]:
                    found.setdefault(full, []).append((name, samples))
    items = {metric: _items(parts, record, metric) for metric, parts in found.items()}
    return {metric: kept for metric, kept in items.items() if kept is not None}


def joined_items(folder: Path, evaluations: Iterable[str]) -> dict[str, Items]:
    """`read_items` of all evaluations of a cell, of which the first that has a metric counts.

    Args:
        folder: the sweep folder.
        evaluations: their ids: the cell's own first, then those of suites that were added to it.
    """
    found: dict[str, Items] = {}
    for identity in evaluations:
        found = read_items(Path(folder) / "evaluate" / identity) | found
    return found


# Two sweeps are compared pattern by pattern, so a folder is asked for as often as it has metrics.
scores = lru_cache(maxsize=64)(joined_items)


def _items(parts: list[tuple[str, list[dict]]], record: Mapping[str, Any], metric: str) -> Items | None:
    """The items of one metric, in the order of their ids; None where an id stands for several, or there are none."""
    known = [(name, sample) for name, samples in parts for sample in samples if type(sample.get(name)) in (int, float)]
    ids = np.array([sample["id"] for _, sample in known], dtype=np.int64)
    values = np.array([sample[name] for name, sample in known], dtype=np.float64)
    weights = np.array([sample.get("count", 1) for _, sample in known], dtype=np.float64)
    order = np.argsort(ids, kind="stable")
    order = order[weights[order] > 0]  # a row in which nothing was asked has no value
    ids = ids[order]
    # Where several filters of a task share a name, nobody knows which of them the record means.
    if not len(ids) or (ids[1:] == ids[:-1]).any():
        return None
    values, weights = values[order], weights[order]
    mean, told = float(np.average(values, weights=weights)), record["metrics"][metric].get("value")
    whole = isinstance(told, (int, float)) and math.isclose(mean, told, rel_tol=1e-5, abs_tol=1e-7)
    return Items(ids, values, weights, items_of(record, metric), whole)


def items_of(record: Mapping[str, Any], metric: str) -> str:
    """A name for the set of items that a metric of an evaluation's record was measured on.

    Tasks that ask questions have a hash of their prompts. The rows of held-out text and of recall, which no seed of a
    sweep changes, follow from the data, the context and how many were asked for.
    """
    tasks = (record.get("provenance") or {}).get("tasks") or {}
    named = [task for task in tasks if metric == task or metric.startswith(f"{task}_")]
    if named and (prompts := tasks[max(named, key=len)].get("prompts_sha256")):
        return str(prompts)
    config = record["config"]
    data, evaluation = config.get("data"), config.get("eval")
    first = metric.partition("_")[0]
    if first in _ROWS and isinstance(data, dict) and isinstance(evaluation, dict):
        rows: Any = evaluation.get(_ROWS[first])
        text = [(data.get("sha256") or {}).get("validation"), data.get("tokenizer")]
        recall = first == "recall"
        parts = ["recall" if recall else "text", data.get("recall") if recall else text, config.get("context"), rows]
    else:
        parts = [metric, data, config.get("context"), evaluation]
    return canonical_json(parts)


def asked(folder: Path, evaluations: Iterable[str], metric: str) -> str | None:
    """`items_of` of the first evaluation of a cell whose record has the metric; None if none has it.

    Args:
        folder: the sweep folder.
        evaluations: as of `joined_items`.
    """
    for identity in evaluations:
        record = _record_once(Path(folder) / "evaluate" / identity)
        if record is not None and metric in record["metrics"]:
            return items_of(record, metric)
    return None


def _record(folder: Path) -> dict[str, Any] | None:
    """The record beside the samples; it has been checked when the sweep was read."""
    try:
        record = read_json(folder / RECORD_FILE, follow=False)
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("metrics"), dict)
    return record if whole and isinstance(record.get("config"), dict) else None


# Two sweeps are compared metric by metric.
_record_once = lru_cache(maxsize=256)(_record)
