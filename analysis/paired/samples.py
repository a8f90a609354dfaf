"""Stored samples of evaluations, brought together item by item."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ratplus.analysis.frame.kept import Kept, stamp_of
from ratplus.records.reading import read_json
from ratplus.records.record import RECORD_FILE, canonical_json
from ratplus.records.samples import SAMPLES_FILE, read_samples

# These keys of a sample are no scores.
_FACTS = ("task", "id", "count", "filter")
# Bytes of items that are kept once they were read; what one metric's take besides its arrays; a long array's bytes.
MOST_KEPT, _BYTES_OF_ONE, _LONG = 64 << 20, 400, 1 << 16
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
        same = self.whole and other.whole and self.of == other.of and _same(self.ids, other.ids)
        return same and _same(self.weights, other.weights)

    @property
    def seed(self) -> int:
        """Of the draws from these items: two evaluations of the same items are resampled alike."""
        return int(hashlib.sha256(self.of.encode()).hexdigest()[:8], 16)


class DrawnAlike:
    """Changes of items, summed over the evaluations (seeds) that were asked the same ones.

    Such evaluations are resampled alike, so that an item of theirs is one item, however many seeds it was asked under.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str, int], np.ndarray] = {}

    def add(self, metric: str, items: Items, changes: np.ndarray) -> None:
        """Count one evaluation's changes, [rows, items]; all evaluations have the same rows."""
        key = metric, items.of, len(items.ids)
        self._sums[key] = self._sums[key] + changes if key in self._sums else changes

    def differing(self) -> np.ndarray:
        """How many items differ, [rows]."""
        return np.sum([np.count_nonzero(changes, axis=1) for changes in self._sums.values()], axis=0)

    def asked(self) -> int:
        """How many items there are."""
        return sum(changes.shape[1] for changes in self._sums.values())


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or np.array_equal(one, other)


def read_items(folder: Path) -> dict[str, Items]:
    """{metric, as the record calls it: its items}; empty if an evaluation's folder stores none.

    What was read last is kept as far as it takes little memory, since the tables and the page of a report ask for the
    same items. A file that was written since is read again.

    Raises:
        ValueError: the file, or the record beside it, is damaged.
    """
    path = str(folder)
    if not (stamp := stamp_of(os.path.join(path, SAMPLES_FILE))):
        return {}
    stamp += stamp_of(os.path.join(path, RECORD_FILE))
    found = _kept.get(path, stamp)
    if found is None:
        _kept.add(path, stamp, found := _read(Path(folder)))
    return found


def _bytes_of(found: Mapping[str, Items]) -> int:
    """What items take that no other evaluation shares."""
    arrays = (a for items in found.values() for a in (items.values, items.ids, items.weights) if a.base is None)
    return _BYTES_OF_ONE * len(found) + sum(a.nbytes for a in arrays)


_kept: Kept[dict[str, Items]] = Kept(MOST_KEPT, _bytes_of)


def _alike(numbers: np.ndarray) -> np.ndarray:
    """The same array for equal numbers, as the ids of all cells of a sweep are; a long one as it is."""
    return numbers if numbers.nbytes > _LONG else _equal(numbers.tobytes(), numbers.dtype.str)


@lru_cache(maxsize=64)
def _equal(data: bytes, kind: str) -> np.ndarray:
    return np.frombuffer(data, kind)


def _read(folder: Path) -> dict[str, Items]:
    record = _record(folder)
    if record is None:
        return {}
    groups: dict[tuple, list[dict]] = {}
    for sample in read_samples(folder):
        groups.setdefault((sample.get("task"), sample.get("filter")), []).append(sample)
    found: dict[str, list[tuple[str, _Group]]] = {}
    for (task, chosen), samples in groups.items():
        group = _Group(samples)
        for name in group.scores:
            metric = str(task) if name == task else f"{task}_{name}"
            for full in (metric, f"{metric}_{chosen}") if chosen else (metric,):
                if full in record["metrics"]:
                    found.setdefault(full, []).append((name, group))
    known = _Asked(record)
    items = {metric: _items(parts, known, metric) for metric, parts in found.items()}
    return {metric: kept for metric, kept in items.items() if kept is not None}


class _Group:
    """The samples of one task and filter as columns."""

    def __init__(self, samples: list[dict]) -> None:
        keys = {tuple(sample) for sample in samples}
        if len(keys) == 1:  # as evaluations write them
            self._columns = dict(zip(keys.pop(), zip(*map(dict.values, samples))))
        else:
            names = dict.fromkeys(name for sample in samples for name in sample)
            defaults: dict[str, Any] = {"count": 1}
            self._columns = {name: tuple(sample.get(name, defaults.get(name)) for sample in samples) for name in names}
        self.scores = sorted(self._columns.keys() - set(_FACTS))
        self._ids = np.array(self._columns["id"], dtype=np.int64)
        self._weights = np.array(self._columns.get("count", (1,) * len(samples)), dtype=np.float64)

    def of(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, values, weights) of the samples that have a number of that name."""
        column = self._columns[name]
        if set(map(type, column)) <= {int, float}:
            return self._ids, np.array(column, dtype=np.float64), self._weights
        known = [place for place, value in enumerate(column) if type(value) in (int, float)]
        values = np.array([column[place] for place in known], dtype=np.float64)
        return self._ids[known], values, self._weights[known]


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


def _items(parts: list[tuple[str, _Group]], known: _Asked, metric: str) -> Items | None:
    """The items of one metric, in the order of their ids; None where an id stands for several, or there are none."""
    if len(parts) == 1:
        ids, values, weights = parts[0][1].of(parts[0][0])
    else:
        ids, values, weights = map(np.concatenate, zip(*(group.of(name) for name, group in parts)))
    # A row in which nothing was asked has no value.
    if not (weights > 0).all() or not (ids[1:] > ids[:-1]).all():
        order = np.argsort(ids, kind="stable")
        order = order[weights[order] > 0]
        ids, values, weights = ids[order], values[order], weights[order]
    # Where several filters of a task share a name, nobody knows which of them the record means.
    if not len(ids) or (ids[1:] == ids[:-1]).any():
        return None
    mean, told = float((values * weights).sum() / weights.sum()), known.metrics[metric].get("value")
    whole = isinstance(told, (int, float)) and math.isclose(mean, told, rel_tol=1e-5, abs_tol=1e-7)
    return Items(_alike(ids), values, _alike(weights), sys.intern(known.of(metric)), whole)


class _Asked:
    """What the metrics of a record were measured on, by metric; the parts that all share are written out once."""

    def __init__(self, record: Mapping[str, Any]):
        self._tasks = (record.get("provenance") or {}).get("tasks") or {}
        self._config = record["config"]
        self.metrics = record["metrics"]
        self._rest = ""

    def of(self, metric: str) -> str:
        """A name for the set of items that a metric was measured on.

        Tasks that ask questions have a hash of their prompts. The rows of held-out text and of recall, which no seed of
        a sweep changes, follow from the data, the context and how many were asked for.
        """
        named = [task for task in self._tasks if metric == task or metric.startswith(f"{task}_")]
        if named and (prompts := self._tasks[max(named, key=len)].get("prompts_sha256")):
            return str(prompts)
        config = self._config
        data, evaluation = config.get("data"), config.get("eval")
        first = metric.partition("_")[0]
        if first in _ROWS and isinstance(data, dict) and isinstance(evaluation, dict):
            rows: Any = evaluation.get(_ROWS[first])
            text = [(data.get("sha256") or {}).get("validation"), data.get("tokenizer")]
            recall = first == "recall"
            parts = ["recall" if recall else "text", data.get("recall") if recall else text, config.get("context")]
            return canonical_json([*parts, rows])
        # As canonical_json writes [metric, data, context, evaluation].
        self._rest = self._rest or canonical_json([data, config.get("context"), evaluation])[1:]
        return f"[{canonical_json(metric)},{self._rest}"


def asked(folder: Path, evaluations: Iterable[str], metric: str) -> str | None:
    """What a metric was measured on by the first evaluation of a cell whose record has it; None if none has it.

    Args:
        folder: the sweep folder.
        evaluations: as of `joined_items`.
    """
    for identity in evaluations:
        known = _asked_once(Path(folder) / "evaluate" / identity)
        if known is not None and metric in known.metrics:
            return known.of(metric)
    return None


def _record(folder: Path) -> dict[str, Any] | None:
    """The record beside the samples; it has been checked when the sweep was read."""
    try:
        record = read_json(folder / RECORD_FILE, follow=False)
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("metrics"), dict)
    return record if whole and isinstance(record.get("config"), dict) else None


@lru_cache(maxsize=256)  # two sweeps are compared metric by metric
def _asked_once(folder: Path) -> _Asked | None:
    record = _record(folder)
    return None if record is None else _Asked(record)
