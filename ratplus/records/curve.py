"""The learning curve of a stage: `curve.csv` beside the record, and a mirror (such as W&B) that gets the same."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Protocol

from ratplus.records.atomic import write_atomically
from ratplus.records.reading import open_own, read_text

CURVE_FILE = "curve.csv"


def curve_rows(path: Path) -> list[dict[str, int | float]]:
    """Rows of a curve.csv as numbers, by step; none if there is no such file.

    A row that a crash cut short is left out; of one that repeats a step the last writing counts.
    """
    try:
        head, *lines = list(csv.reader(read_text(path, follow=False).splitlines())) or [[]]
    except (OSError, ValueError, csv.Error):
        return []
    rows: dict[int, dict] = {}
    for line in lines:
        try:
            row = dict(zip(head, map(_number, line), strict=True))
            rows[int(row["step"])] = row
        except (KeyError, ValueError, OverflowError):
            continue
    return [rows[step] for step in sorted(rows)]


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


class Mirror(Protocol):
    """Somewhere else that is told a stage's numbers; never the truth, and never allowed to break a stage."""

    def log(self, step: int, values: dict) -> None: ...

    def finish(self, record: dict) -> None: ...

    def abandon(self) -> None: ...


class StageLog:
    """Rows of (step, values); after a resume, rows past the checkpoint are dropped, so each step stands once."""

    def __init__(self, folder: Path, mirror: Mirror | None = None):
        self.path = Path(folder) / CURVE_FILE
        self.mirror = mirror
        self._columns: list[str] = []

    def start(self, step: int) -> None:
        """Keep the rows up to `step`."""
        rows = []
        if step and self.path.exists():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or [])
                # A row that a crash cut short lacks its last fields.
                rows = [r for r in reader if None not in r.values() and r["step"].isdigit() and int(r["step"]) <= step]
        text = "".join(",".join(line) + "\n" for line in [self._columns, *([*r.values()] for r in rows)] if line)
        write_atomically(self.path, text)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add a row; the first one fixes the columns."""
        header = not self._columns
        if header:
            self._columns = ["step", *values]
        with open_own(self.path, append=True) as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            if header:
                writer.writeheader()
            writer.writerow({"step": step, **values})
        if self.mirror is not None:
            self.mirror.log(step, values)
