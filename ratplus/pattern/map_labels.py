"""Labels of maps: `layers[D1x2,D64x2]`, `heads[D1,top8x64x3]`, `mixed[D1,D64|D64,D1]`, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ratplus.pattern.labels import is_label
from ratplus.pattern.one_head import Pattern

_MAP_LABEL = re.compile(r"(?P<over>layers|heads|mixed)\[(?P<runs>.+)\]")
_COUNTED = re.compile(r"(?P<label>.+)x(?P<count>\d+)")

Rows = tuple[tuple[Pattern, ...], ...]


def label_of_rows(rows: Rows) -> str:
    """Label of patterns [layers][heads]: the shortest form that says them all."""
    if len({p for row in rows for p in row}) == 1:
        return rows[0][0].label
    if all(len(set(row)) == 1 for row in rows):
        return f"layers[{_runs([row[0] for row in rows])}]"
    if len(set(rows)) == 1:
        return f"heads[{_runs(rows[0])}]"
    return "mixed[" + "|".join(_runs(row) for row in rows) + "]"


def is_map_label(text: str) -> bool:
    """Whether a text has the form of a map's label; what is in its brackets may still be none."""
    return _MAP_LABEL.fullmatch(text) is not None


def rows_of_label(label: str, layers: int, heads: int) -> Rows:
    """Patterns [layers][heads] that a label stands for in a model of that size; see `PatternMap.from_label`.

    Raises:
        ValueError: a text that is no label, or a list that is longer than the model.
    """
    found = _MAP_LABEL.fullmatch(label)
    if found is None:
        return ((Pattern.from_label(label),) * heads,) * layers
    if found["over"] == "layers":
        return tuple((p,) * heads for p in _filled(label, found["runs"], layers, "layers"))
    if found["over"] == "heads":
        return (tuple(_filled(label, found["runs"], heads, "heads")),) * layers
    rows = [tuple(_filled(label, runs, heads, "heads")) for runs in found["runs"].split("|")]
    if len(rows) > layers:
        raise ValueError(f"pattern {label!r}: names {len(rows)} layers, but the model has {layers}")
    return tuple(rows[layer % len(rows)] for layer in range(layers))


def _filled(label: str, runs: str, need: int, over: str) -> list[Pattern]:
    """The patterns of a list of runs, repeated in turn to `need`."""
    row: list[Pattern] = []
    named = 0
    for text in runs.split(","):
        name, count = _run(text.strip())
        named += count
        row += [Pattern.from_label(name)] * min(count, need)
    if not 1 <= named <= need:
        raise ValueError(f"pattern {label!r}: names {named} {over}, but the model has {need}")
    return [row[i % len(row)] for i in range(need)]


def _run(text: str) -> tuple[str, int]:
    """(label, count) of `D64x3`. A label as it stands counts once: `top16x64` has blocks of 64, not 64 heads."""
    counted = None if is_label(text) else _COUNTED.fullmatch(text)
    return (counted["label"], int(counted["count"])) if counted else (text, 1)


def _runs(patterns: Sequence[Pattern]) -> str:
    """Run-length label of a sequence of patterns."""
    parts: list[list] = []
    for p in patterns:
        if parts and parts[-1][0] == p.label:
            parts[-1][1] += 1
        else:
            parts.append([p.label, 1])
    return ",".join(name if count == 1 else f"{name}x{count}" for name, count in parts)
