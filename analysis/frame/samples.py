"""Stored samples of two evaluations, brought together item by item."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pandas as pd

from ratplus.records.record import Record, RecordError, read_record
from ratplus.records.samples import SAMPLES_FILE, read_samples

# These keys of a sample are no scores.
_FACTS = ("task", "id", "count", "filter")


@lru_cache(maxsize=64)
def scores(folder: Path) -> dict[str, pd.DataFrame]:
    """{metric, as the record calls it: frame indexed by item, with `value` and `weight`}; empty if none are stored.

    The weight of an item is its `count` of tokens or queries, and 1 where it has none.

    Raises:
        ValueError: the file is damaged.
    """
    if not (Path(folder) / SAMPLES_FILE).exists():
        return {}
    found: dict[str, list] = {}
    for sample in read_samples(folder):
        task = str(sample.get("task"))
        for name, value in sample.items():
            if name in _FACTS or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            metric = task if name == task else f"{task}_{name}"
            row = (sample["id"], float(value), float(sample.get("count", 1)))
            for full in (metric, f"{metric}_{sample['filter']}") if sample.get("filter") else (metric,):
                found.setdefault(full, []).append(row)
    frames = {}
    for name, rows in found.items():
        frame = pd.DataFrame(rows, columns=["item", "value", "weight"])
        # Where several filters of a task share a name, nobody knows which of them the record means.
        if frame["item"].is_unique and frame["weight"].gt(0).all():
            frames[name] = frame.set_index("item")
    return frames


def same_items(first: Path, second: Path, metric: str) -> bool:
    """Whether the items of two evaluate folders' samples of a metric are the same ones.

    Tasks that ask questions have a hash of their prompts in both records. The rows of held-out text are the same where
    data, context, seed and evaluation settings are.
    """
    records = [record for folder in (first, second) if (record := _record(Path(folder))) is not None]
    if len(records) < 2:
        return False
    hashes = [_prompts(record, metric) for record in records]
    if hashes[0] is not None or hashes[1] is not None:
        return hashes[0] == hashes[1]
    return all(records[0]["config"].get(k) == records[1]["config"].get(k) for k in ("data", "context", "seed", "eval"))


@lru_cache(maxsize=256)
def _record(folder: Path) -> Record | None:
    try:
        return read_record(folder)
    except RecordError:
        return None


def _prompts(record: Record, metric: str) -> str | None:
    """Hash of the prompts of a metric's task: the task with the longest name that the metric's name begins with."""
    tasks = record["provenance"].get("tasks") or {}
    named = [task for task in tasks if metric == task or metric.startswith(f"{task}_")]
    return tasks[max(named, key=len)].get("prompts_sha256") if named else None
