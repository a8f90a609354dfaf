"""The learning curve of a stage: `curve.csv` beside the record, and a mirror (such as W&B) that gets the same."""

from __future__ import annotations

import csv
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ratplus.records.atomic import write_atomically
from ratplus.records.lines import first_line
from ratplus.records.reading import open_own, open_plain, read_lines

CURVE_FILE = "curve.csv"
# More rows than a picture shows, or W&B keeps. A row takes half a kilobyte in memory.
MOST_ROWS = 100_000
_LONGEST_LINE = 1 << 16
_PIECE = 1 << 20
_MOST_BYTES = 4 << 30
_MOST_COUNT = 1 << 62


def curve_rows(
    path: Path, most: int = MOST_ROWS, on_thinned: Callable[[str], None] | None = None
) -> list[dict[str, int | float]]:
    """Rows of a curve.csv as numbers, by step; none if there is no such file.

    A row that a crash cut short, or whose step or tokens are no count, is left out; of one that repeats a step the last
    writing counts. Of a curve of more than `most` rows every second, fourth, ... is given, and the last: of two curves
    with the same steps the same ones.

    Args:
        on_thinned: told in one line of a curve that is not given as a whole.
    """
    columns = curve_columns(path, most, on_thinned)
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def curve_columns(
    path: Path | str, most: int = MOST_ROWS, on_thinned: Callable[[str], None] | None = None
) -> dict[str, Sequence[int | float]]:
    """`curve_rows` as columns, all of the same length; none if there is no row.

    Args:
        on_thinned: told in one line of a curve that is not given as a whole.
    """
    try:
        head, lines, number, every = _some_lines(path, most)
    except (OSError, ValueError, csv.Error):
        return {}
    if every > 1 and on_thinned is not None:
        on_thinned(f"{path}: {number:,} rows, of which one in {every} is shown")
    return _plain_columns(head, lines) or _columns(head, lines)


def _plain_columns(head: list[str], lines: list[list[str]]) -> dict[str, Sequence[int | float]]:
    """The columns of a curve in which every row is whole and stands behind those of earlier steps; none of any other.

    A report reads the curves of thousands of stages, and row by row takes twice as long.
    """
    # The last row is given apart from the others, and stands among them too where all are given.
    lines = lines[:-1] if len(lines) > 1 and lines[-1] == lines[-2] else lines
    if "step" not in head or len(set(head)) < len(head) or set(map(len, lines)) != {len(head)}:
        return {}
    try:
        columns: dict[str, Sequence[int | float]] = {
            name: tuple(map(_number, texts)) for name, texts in zip(head, zip(*lines))
        }
    except ValueError:
        return {}
    counts = (columns[name] for name in ("step", "tokens") if name in columns)
    if not all(0 <= count < _MOST_COUNT for column in counts for count in column):
        return {}
    steps = [int(step) for step in columns["step"]]
    return columns if all(map(operator.lt, steps, steps[1:])) else {}


def _columns(head: list[str], lines: list[list[str]]) -> dict[str, Sequence[int | float]]:
    rows: dict[int, dict] = {}
    for line in lines:
        try:
            row = dict(zip(head, map(_number, line), strict=True))
            if all(0 <= row.get(name, 0) < _MOST_COUNT for name in ("step", "tokens")):
                rows[int(row["step"])] = row
        except (KeyError, ValueError):
            continue
    kept = [rows[step] for step in sorted(rows)]
    return {name: tuple(row[name] for row in kept) for name in kept[0]} if kept else {}


def _some_lines(path: Path | str, most: int) -> tuple[list[str], list[list[str]], int, int]:
    """(fields of the head, fields of some rows, how many rows there are, of how many rows one is given, and the last).

    A curve may have tens of millions of rows, so those that are not given are found by their line feeds alone.
    """
    head: list[str] = []
    lines: list[bytes] = []
    number, every, begun = 0, 1, b""
    last = b""
    with open_plain(path, follow=False, most=_MOST_BYTES) as file:
        while piece := file.read(_PIECE):
            *whole, begun = (begun + piece).split(b"\n")
            if whole and not head:
                head = _fields(whole.pop(0))
            lines += whole[-number % every :: every]
            number, last = number + len(whole), whole[-1] if whole else last
            while len(lines) > most:
                lines, every = lines[::2], 2 * every
            if len(begun) > _LONGEST_LINE:
                raise ValueError("a line without end")
    if begun:
        number, last = number + 1, begun
    return head, [_fields(line) for line in (*lines, last)], number, every


def _lines_up_to(path: Path, step: int) -> list[list[str]]:
    """The fields of a curve's head and of its rows up to a step; none if there is no such file."""
    kept: list[list[str]] = []
    try:
        for line in read_lines(path, _LONGEST_LINE, follow=False, most=_MOST_BYTES):
            fields = _fields(line)
            # A row that a crash cut short lacks its last fields.
            if not kept or (len(fields) == len(kept[0]) and fields[0].isdigit() and int(fields[0][:20]) <= step):
                kept.append(fields)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not a curve ({first_line(error)}); remove it to go on") from None
    return kept if kept and kept[0][:1] == ["step"] else []


def _fields(line: bytes) -> list[str]:
    if len(line) > _LONGEST_LINE:
        raise ValueError("a line without end")
    if b'"' not in line:  # as all of ours
        return line.decode().rstrip("\r\n").split(",")
    return next(csv.reader([line.decode()]), [])


def _number(text: str) -> int | float:
    if "." in text:  # as most: they need no failed attempt first
        return float(text)
    try:
        return int(text) if len(text) < 19 else float(text)
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
        """Keep the rows up to `step`.

        Raises:
            ValueError: what lies there is no curve of ours.
        """
        kept = _lines_up_to(self.path, step) if step else []
        self._columns = kept[0] if kept else []
        write_atomically(self.path, "".join(",".join(line) + "\n" for line in kept))

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
