"""`samples.jsonl` beside an evaluation's record: one line an item, so that two models can be compared item by item."""

from __future__ import annotations

import json
from pathlib import Path

from ratplus.records.atomic import write_atomically
from ratplus.records.reading import parse_json, read_text

SAMPLES_FILE = "samples.jsonl"
_MOST_BYTES = 4 << 30


def write_samples(folder: Path, samples: list[dict]) -> Path:
    """Write `<folder>/samples.jsonl`, whole or not at all: {"task", "id", scores by name, ...} a line.

    `id` counts a task's items; equal (task, id) of two records are the same item if the records' `prompts_sha256` of
    the task are equal.
    """
    path = Path(folder) / SAMPLES_FILE
    write_atomically(path, "".join(json.dumps(_finite(sample), allow_nan=False) + "\n" for sample in samples))
    return path


def read_samples(folder: Path) -> list[dict]:
    """The items of an evaluation's folder.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(folder) / SAMPLES_FILE
    try:
        return [parse_json(line) for line in read_text(path, follow=False, most=_MOST_BYTES).splitlines()]
    except ValueError:
        raise ValueError(f"{path}: damaged; delete the folder and evaluate again") from None


def _finite(value):
    """JSON has no NaN and no infinities."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value
