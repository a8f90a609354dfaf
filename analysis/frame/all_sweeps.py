"""The cells of all sweeps under a folder as one frame, and which columns of it a list shows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ratplus.analysis.frame.aggregate import short_patterns
from ratplus.analysis.frame.load import evaluations_of, read_sweep
from ratplus.analysis.frame.query import plain_column, select, unknown_column
from ratplus.records.lines import first_line
from ratplus.records.manifest import MANIFEST_FILE

# Always shown; the others of `_OFTEN` where they say something.
_ALWAYS = ("sweep", "cell", "model", "pattern", "status", "kv_ratio")
_OFTEN = ("variant", "seed", "loss", "recall_accuracy", "note")
_MOST_FOLDERS = 100_000


class NoSweeps(ValueError):
    """There is no sweep where one was looked for, or no such column."""


@dataclass
class AllSweeps:
    """Cells of several sweeps.

    Attributes:
        frame: a row a cell: `folder` (the sweep folder's path), `sweep` (its name), and the columns of `load_sweep`. A
            column that a sweep does not have is null there.
        unreadable: lines on sweeps that could not be read.
        metrics: names of the columns that hold results.
        evaluations: {(folder, cell): ids of its evaluations that are done}.
    """

    frame: pd.DataFrame
    unreadable: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    evaluations: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)


def find_sweeps(root: Path, packs: str = "") -> list[Path]:
    """The sweep folders at or under a folder, in the order of their paths; links are not followed.

    Args:
        packs: how the names of files end that are packs, to be found too.

    Raises:
        NoSweeps: no such folder, or none in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise NoSweeps(f"{root}: no such folder; give one that holds sweep folders, such as outputs")
    found = []
    for seen, (place, folders, files) in enumerate(os.walk(root)):
        if seen >= _MOST_FOLDERS:
            raise NoSweeps(f"{root}: more than {_MOST_FOLDERS:,} folders; give one closer to the sweeps")
        found += [Path(place) / name for name in files if packs and name.endswith(packs)]
        if MANIFEST_FILE in files:
            found.append(Path(place))
            folders.clear()  # stages, by the thousand
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))
    if not found:
        raise NoSweeps(f"{root}: holds no sweep folder (none with a {MANIFEST_FILE})")
    return sorted(found)


def read_all(folders: Mapping[str, Callable[[], Path]]) -> AllSweeps:
    """The cells of sweep folders, given by what they are called and how their folder is opened.

    One that cannot be read is told in `unreadable`, and the others are read.

    Raises:
        NoSweeps: none could be read.
    """
    frames, unreadable, metrics, evaluations = [], [], [], {}
    for name, opened in folders.items():
        try:
            frame = read_sweep(opened()).frame
        except (OSError, ValueError) as error:
            unreadable.append(first_line(error))
            continue
        metrics += frame.attrs["metrics"]
        evaluations |= {(name, cell): evaluations_of(frame, cell) for cell in frame["cell"]}
        own = {"folder": name, "sweep": frame.attrs["sweep"]}
        clear = frame.rename(columns={key: f"metric:{key}" for key in own if key in frame})
        clear.attrs = {}
        for place, (key, value) in enumerate(own.items()):
            clear.insert(place, key, value)
        frames.append(clear)
    if not frames:
        raise NoSweeps("; ".join(unreadable) or "no sweep folder was given")
    # A column of nothing but nulls would decide the type of what it is joined with.
    known = [frame.dropna(axis="columns", how="all") for frame in frames if len(frame)]
    names = list(dict.fromkeys(name for frame in frames for name in frame))
    whole = (pd.concat(known, ignore_index=True) if known else frames[0]).reindex(columns=names)
    return AllSweeps(whole, unreadable, list(dict.fromkeys(metrics)), evaluations)


@dataclass
class Listing:
    """Cells that meet a condition: `rows` as they are shown, each {title: text or number}; `cells` with all columns."""

    rows: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    of: int


def list_cells(
    frame: pd.DataFrame, condition: str | None, columns: list[str] | None = None, sort: str | None = None
) -> Listing:
    """The cells of `read_all` that meet a condition.

    Args:
        condition: as `query.select` takes it; None takes all.
        columns: to show, in this order. None shows what a cell is, what the condition names, loss and recall.
        sort: column to sort by, with a `-` before it from the largest down; null last.

    Raises:
        QueryError: a condition that is not understood.
        NoSweeps: no such column.
    """
    found, named = (frame, []) if condition is None else select(frame, condition)
    for name in [*(columns or []), *([sort.removeprefix("-")] if sort else [])]:
        if name not in frame.columns:
            raise NoSweeps(unknown_column(name, list(frame.columns)))
    if sort:
        keys = plain_column(found[sort.removeprefix("-")])
        order = keys.sort_values(ascending=not sort.startswith("-"), kind="stable", na_position="last").index
        found = found.loc[order]
    if columns is None:
        often = [name for name in _OFTEN if _tells(found[name])]
        # What a cell is stands before how it is, and that before its results.
        own = [name for name in often if name in ("variant", "seed")]
        columns = list(dict.fromkeys([*_ALWAYS[:4], *own, *_ALWAYS[4:], *often, *named]))
    shown = found[columns].copy()
    if "pattern" in columns:
        shown["pattern"] = found["pattern"].map(short_patterns(found)) if len(found) else found["pattern"]
    return Listing(_plain_rows(shown), _plain_rows(found), len(frame))


def _tells(column: pd.Series) -> bool:
    """Whether a column is worth its room: `seed` and `variant` where they differ, others where there are any."""
    known = column.dropna()
    if column.name == "note":
        return known.ne("").any()
    if column.name in ("seed", "variant"):
        return known.nunique() > 1
    return len(known) > 0


def _plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them: null for what is not known, text for infinities, which JSON has not."""
    columns = {}
    for name in frame:
        values = frame[name].astype(object).where(frame[name].notna(), None).tolist()
        columns[str(name)] = [str(v) if isinstance(v, float) and abs(v) == float("inf") else v for v in values]
    return [dict(zip(columns, row)) for row in zip(*columns.values())] if columns else []


def as_json(listing: Listing) -> str:
    """The documented form for scripts: `{"format": 1, "cells": [...], "of": cells in all}`."""
    return json.dumps({"format": 1, "of": listing.of, "cells": listing.cells}, indent=1, allow_nan=False)
