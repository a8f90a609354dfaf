"""Learning curves: the `curve.csv` that a training stage leaves beside its record."""

from __future__ import annotations

import csv
import math
from pathlib import Path

CURVE_FILE = "curve.csv"


def read_curve(folder: Path) -> dict[str, list[float]]:
    """A stage's curve, {column: values of its steps, in order}; empty if there is none.

    A row that a crash cut short, or that repeats a step, is left out; the last writing of a step counts.
    """
    try:
        with (Path(folder) / CURVE_FILE).open(newline="", encoding="utf-8") as file:
            head, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError):
        return {}
    if "step" not in head:
        return {}
    place, rows = head.index("step"), {}
    for line in lines:
        try:
            row = [float(text) for text in line]
        except ValueError:
            continue
        if len(row) == len(head) and math.isfinite(row[place]):
            rows[row[place]] = row
    kept = [rows[step] for step in sorted(rows)]
    return {name: [row[i] for row in kept] for i, name in enumerate(head)} if kept else {}
