"""`samples.jsonl` beside an evaluation's record: one line an item, so that two models can be compared item by item."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ratplus.pattern import is_whole
from ratplus.records.atomic import write_atomically
from ratplus.records.lines import first_line
from ratplus.records.reading import MOST_BYTES, parse_json, read_bytes, read_lines, whole_text

SAMPLES_FILE = "samples.jsonl"
# More than any evaluation of ours has. An item of a hundred bytes takes ten times as much in memory.
MOST_ITEMS = 1_000_000
_LONGEST_LINE = 1 << 20
# A whole number that may have more than 63 bits.
_LONG_NUMBER = re.compile(rb":\s*-?\d{19}")


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
        if (plain := _plain_samples(read_bytes(path, follow=False, most=MOST_BYTES))) is not None:
            return plain
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


def _plain_samples(data: bytes) -> list[dict] | None:
    """The items of a file without lists and odd numbers, parsed all at once; None for any other file.

    A report of ten thousand evaluations reads millions of lines, and line by line takes five times as long.
    """
    lines = data.split(b"\n")
    if lines.pop() or not lines or len(lines) > MOST_ITEMS or data.count(b"{") != len(lines):
        return None
    if b"[" in data or b"\\" in data or _LONG_NUMBER.search(data):
        return None
    try:
        samples = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        return None
    if len(samples) != len(lines) or max(map(len, lines)) > _LONGEST_LINE or set(map(type, samples)) != {dict}:
        return None
    # As `_misshapen` has it, all items at once.
    types = [{type(sample.get(key, default)) for sample in samples} for key, default in (("id", ""), ("count", 1))]
    filters = {type(sample.get("filter") or "") for sample in samples}
    return samples if types[0] == {int} and types[1] <= {int, float} and filters == {str} else None


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
