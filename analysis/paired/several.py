"""Cells of several sweep folders as one frame, and which of their results may be ranked together."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ratplus.analysis.frame.aggregate import GROUP, first_problem
from ratplus.analysis.frame.all_sweeps import NoSweeps, read_all
from ratplus.analysis.frame.load import Names
from ratplus.analysis.frame.rows import groups_of, rows_of
from ratplus.analysis.frame.tasks import is_cost, recorded
from ratplus.analysis.paired.samples import asked
from ratplus.records.manifest import given_as


def read_folders(folders: Iterable[Path]) -> pd.DataFrame:
    """The cells of all folders, with `folder`, `sweep` and `evaluations` (ids); `attrs` has the names of the metrics.

    If there are several, a cell's variant says which sweep it is of.

    Raises:
        ValueError: one of them is no sweep folder, or all are empty.
    """
    folders = list(dict.fromkeys(Path(folder) for folder in folders))
    found = read_all({str(folder): lambda folder=folder: folder for folder in folders})
    if found.unreadable:
        raise NoSweeps("; ".join(found.unreadable))
    frame = found.frame
    if frame.empty:
        raise NoSweeps(f"{', '.join(map(str, folders))}: no cells, so there is nothing to choose from")
    if len(folders) > 1:
        names = names_of(folders)
        sweeps = [names[Path(folder)] for folder in frame["folder"]]
        frame["variant"] = [f"sweep={s}, {v}" if v else f"sweep={s}" for s, v in zip(sweeps, frame["variant"])]
    frame["evaluations"] = [found.evaluations[key] for key in zip(frame["folder"], frame["cell"])]
    frame.attrs = {"metrics": Names(name for name in found.metrics if name in frame)}
    return frame


def names_of(folders: Iterable[Path]) -> dict[Path, str]:
    """What a reader calls each folder: its name, with its parents' where that is another's too."""
    folders = [Path(folder) for folder in folders]
    names, depth = {folder: folder.resolve().name for folder in folders}, 1
    while len(set(names.values())) < len(folders) and depth < 20:
        depth += 1
        names = {folder: "/".join(folder.resolve().parts[-depth:]) for folder in folders}
    return names


def place_of(row: Any) -> tuple[Path, tuple[str, ...]]:
    """The sweep folder and the evaluations of a row of `read_folders`, as `joined_items` and `asked` take them."""
    return Path(row.folder), row.evaluations


def result_named(name: str, frame: pd.DataFrame, what: str) -> str:
    """The column of a result or measured time that a user names: whole, without `timing:`, or as its only beginning.

    Raises:
        ValueError: there is none, or there are several; one line with the nearest.
    """
    known = [*frame.attrs["metrics"], *(column for column in frame if str(column).startswith("timing:"))]
    known = [column for column in known if frame[column].notna().any()]
    for exact in (name, f"metric:{name}", f"timing:{name}"):
        if exact in known:
            return exact
    begun = [column for column in known if column.partition("timing:")[2 if ":" in column else 0].startswith(name)]
    if len(begun) == 1:
        return begun[0]
    if begun and name:
        raise ValueError(f"{what}: {name!r} may be {', '.join(begun[:6])}; write the whole name")
    raise ValueError(f"{what}: no cell has a result {name!r}; {_nearest(name, known)}{first_problem(frame)}")


def number_named(name: str, frame: pd.DataFrame, what: str) -> str:
    """The column of numbers that a user bounds.

    Raises:
        ValueError: there is none; one line with the nearest.
    """
    known = [str(c) for c in frame if pd.api.types.is_numeric_dtype(frame[c].dtype) and frame[c].dtype != bool]
    for exact in (name, f"metric:{name}", f"timing:{name}"):
        if exact in known:
            return exact
    raise ValueError(f"{what}: there is no column of numbers {name!r}; {_nearest(name, known)}")


def shared_seeds(cells: pd.DataFrame) -> list[int] | None:
    """The seeds that every model and pattern of some cells has; None where all have the same ones.

    Means over different seeds would rank the seeds, which differ by more than patterns do.
    """
    sets = [set(own["seed"]) for _, own in groups_of(cells, GROUP)]
    common = set.intersection(*sets)
    return None if all(own == common for own in sets) else sorted(common)


def seeds_note(shared: list[int] | None) -> str:
    """How rows of different seeds were compared; empty where all have the same."""
    if shared is None:
        return ""
    if not shared:
        return "rows have different seeds and none in common, so their means differ by their seeds too"
    return f"over the seeds that all rows have ({', '.join(map(str, shared))})"


def _nearest(name: str, known: list[str]) -> str:
    bare = {column.removeprefix("timing:"): column for column in known}
    close = difflib.get_close_matches(name, bare, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(sorted(bare)[:12]) or 'none'}"


def same_items(cells: pd.DataFrame, metric: str) -> Mapping[str | None, list]:
    """{name of a set of items: cells that the result was measured on}; one entry where all may be ranked together.

    A time or a count of costs is measured on no items.
    """
    found: dict[str | None, list] = {}
    # Of the hundred columns of a frame only these are asked for: pandas takes its time to step through all of them.
    rows = rows_of(cells[["cell", "folder", "evaluations"]])
    if is_cost(metric) or metric.startswith("timing:"):
        return {"": list(rows)}
    for row in rows:
        found.setdefault(asked(*place_of(row), recorded(metric)), []).append(row)
    return found


def refuse_other_items(cells: pd.DataFrame, metric: str) -> None:
    """Refuse to rank cells by a result that was measured on different prompts or data.

    Raises:
        ValueError: one line that names two of them.
    """
    sets = list(same_items(cells, metric).values())
    if len(sets) > 1:
        one, other = sets[0][0], sets[1][0]
        raise ValueError(
            f"{metric}: measured on different prompts or data by {one.cell} ({given_as(one.folder)}) and {other.cell} "
            f"({given_as(other.folder)}), so they are not ranked together; give the sweeps of one kind, or say --where"
        )
