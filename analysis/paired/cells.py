"""Cells of one sweep against each other: every pair of the patterns that are named, every result, item by item."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ratplus.analysis.frame.aggregate import RUN, first_problem, in_order, run_name
from ratplus.analysis.frame.load import Names
from ratplus.analysis.frame.query import select
from ratplus.analysis.frame.rows import groups_of
from ratplus.analysis.frame.tasks import is_cost, is_share, recorded, result_column
from ratplus.analysis.paired.bootstrap import CERTAIN, holm, t_p
from ratplus.analysis.paired.differences import LEAST_SEEDS
from ratplus.analysis.paired.pairs import difference_of
from ratplus.analysis.paired.samples import joined_items
from ratplus.analysis.paired.several import read_folders, same_items

_SHORTEST_ID = 4


@dataclass
class Compared:
    """What was compared.

    Attributes:
        rows: `first`, `second` (as named), `run`, `metric`, `unit` (`%` or empty), `a`, `b`, `difference` (b − a),
            `stderr`, `low`, `high` (95 %, over items), `seeds`, `seeds_stderr` (over seeds), `p` (Holm within a
            metric), `p_seeds` (likewise, of three seeds or more), `method`, `items`, `certain`.
        notes: what was left out.
    """

    rows: list[dict[str, Any]]
    notes: list[str]


def compare_cells(folder: Path, names: list[str], where: str | None = None) -> Compared:
    """Every two of the named patterns of each model and variant, second minus first.

    Args:
        folder: the sweep's.
        names: two or more, each a pattern's label, the name of its config group, or a cell's id (or its beginning).
        where: a condition on cells, as of `ratplus ls`.

    Raises:
        ValueError: a name that stands for no cell or for several patterns, the same one twice, or nothing finished.
    """
    frame = in_order(read_folders([folder]))
    frame.attrs["metrics"] = Names(name for name in frame.attrs["metrics"] if frame[name].notna().any())
    if where:
        attrs = frame.attrs
        frame = select(frame, where)[0]
        frame.attrs = attrs
    if len(set(names)) < max(2, len(names)):
        raise ValueError(f"compare: got {' '.join(names)}; name two patterns or cells, or more, each once")
    chosen = {name: _named(name, frame) for name in names}
    units = {m: "%" if is_share(result_column(m).measure, frame[m]) else "" for m in frame.attrs["metrics"]}
    rows, notes = [], []
    for first, second in combinations(names, 2):
        for run, pairs in _pairs(chosen[first], chosen[second]):
            rows += _rows(frame, first, second, run, pairs, units, notes)
    if not rows:
        raise ValueError(
            f"compare: no two of {', '.join(names)} are finished in the same model and seed of {folder}"
            f"{first_problem(frame)}"
        )
    for kind in ("p", "p_seeds"):
        for metric in dict.fromkeys(row["metric"] for row in rows):
            own = [row for row in rows if row["metric"] == metric]
            for row, p in zip(own, holm(pd.Series([row[kind] for row in own], dtype=np.float64))):
                row[kind] = float(p)
    for row in rows:
        row["certain"] = row["p"] < CERTAIN and not row["p_seeds"] >= CERTAIN
    return Compared(rows, list(dict.fromkeys(notes)))


def _named(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The cells that a name stands for."""
    for column in ("pattern", "pattern_name"):
        found = frame[frame[column].eq(name)]
        if found["pattern"].nunique() > 1:
            labels = ", ".join(found["pattern"].unique()[:6])
            raise ValueError(f"compare: {name} are several patterns of this sweep ({labels}); write a label")
        if len(found):
            return found
    if len(name) >= _SHORTEST_ID:
        found = frame[frame["cell"].str.startswith(name)]
        if len(found) == 1:
            return found
        if len(found):
            raise ValueError(f"compare: {name} is how {len(found)} ids of cells begin; write more of it")
    labels = list(dict.fromkeys([*frame["pattern"], *frame["pattern_name"]]))
    close = difflib.get_close_matches(name, [label for label in labels if label], cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(frame['pattern'].unique()[:8])}"
    raise ValueError(f"compare: the sweep has no pattern or cell {name!r}; {hint}")


def _pairs(first: pd.DataFrame, second: pd.DataFrame):
    """(run, [(cell, cell)]) of the finished cells that belong together: of one model, variant and seed.

    Two single cells belong together whatever they are.
    """
    first, second = (part[part["status"].eq("done")] for part in (first, second))
    if len(first) == len(second) == 1:
        a, b = (part.to_dict("records")[0] for part in (first, second))
        runs = list(dict.fromkeys(run_name(cell["model"], cell["variant"]) for cell in (a, b)))
        yield " → ".join(runs), [(a, b)]
        return
    others = {(row["model"], row["variant"], row["seed"]): row for row in second.to_dict("records")}
    for run, own in groups_of(first, RUN):
        pairs = [(row, others[*run, row["seed"]]) for row in own.to_dict("records") if (*run, row["seed"]) in others]
        if pairs:
            yield run_name(*run), pairs


def _rows(frame, first, second, run, pairs, units, notes) -> list[dict[str, Any]]:
    found = []
    places = [[(Path(cell["folder"]), cell["evaluations"]) for cell in pair] for pair in pairs]
    stored = [(joined_items(*a), joined_items(*b)) for a, b in places]
    both = frame[frame["cell"].isin([cell["cell"] for pair in pairs for cell in pair])]
    for metric in frame.attrs["metrics"]:
        values = np.array([[pair[side][metric] for pair in pairs] for side in (0, 1)], dtype=np.float64)
        if is_cost(metric) or not np.isfinite(values).all():
            continue
        if metric == "perplexity" and found:
            notes.append("perplexity: not shown, it follows from the loss")
            continue
        name = recorded(metric)
        items = [(a.get(name), b.get(name)) for a, b in stored]
        known = all(a is not None and b is not None and a.of == b.of for a, b in items)
        if not known and len(same_items(both, metric)) > 1:
            notes.append(f"{metric}: not compared, {first} and {second} were asked different prompts or data")
            continue
        errors = np.array([[pair[side][f"{metric}_stderr"] for pair in pairs] for side in (0, 1)], dtype=np.float64)
        changes = values[1] - values[0]
        spread = float(changes.std(ddof=1) / math.sqrt(len(changes))) if len(changes) > 1 else math.nan
        found.append(
            {
                "first": first, "second": second, "run": run, "metric": metric,
                "unit": units[metric],
                "a": float(values[0].mean()), "b": float(values[1].mean()), **difference_of(values, errors, items),
                "seeds": len(pairs), "seeds_stderr": spread,
                "p_seeds": t_p(changes) if len(changes) >= LEAST_SEEDS else math.nan,
            }
        )  # fmt: skip
    return found
