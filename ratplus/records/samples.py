"""`samples.jsonl` beside an evaluation's record: one line an item, so that two models can be compared item by item."""

from __future__ import annotations

import json
from pathlib import Path

from ratplus.pattern import is_whole
from ratplus.records.atomic import write_atomically
from ratplus.records.lines import first_line
from ratplus.records.reading import parse_json, read_lines, whole_text

SAMPLES_FILE = "samples.jsonl"
# More than any evaluation of ours has. An item of a hundred bytes takes ten times as much in memory.
MOST_ITEMS = 1_000_000
_LONGEST_LINE = 1 << 20


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
    samples = []
    try:
        for line in read_lines(path, _LONGEST_LINE, follow=False):
            sample = whole_text(parse_json(line), line)
            if problem := _misshapen(sample):
                raise ValueError(problem)
            samples.append(sample)
            if len(samples) > MOST_ITEMS:
                raise ValueError(f"more than {MOST_ITEMS:,} items")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({first_line(error)}); delete the folder and evaluate again") from None
    return samples


def _misshapen(sample: object) -> str:
    """What in an item is not as `write_samples` has it; empty if all is."""
    if not isinstance(sample, dict):
        return f"an item is a {type(sample).__name__}"
    if not is_whole(sample.get("id")):
        return "an item's id is no whole number"
    if not isinstance(sample.get("count", 1), (int, float)) or not isinstance(sample.get("filter") or "", str):
        return "an item's count is no number, or its filter no text"
    return ""


def _finite(value):
    """JSON has no NaN and no infinities."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value
