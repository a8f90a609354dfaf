"""Differences within one sweep, with their errors: to a baseline, and to the best pattern of each model.

`with_differences(frame, names)` adds plain columns to a loaded frame, a row a cell, for each result `<m>` in `names`:

| column | meaning |
|---|---|
| `<m>_delta` | the value minus that of the baseline's finished cell of the same model, variant and seed |
| `<m>_delta_pm` | its standard error over the evaluation's items (paired bootstrap); null without samples of these |
| `<m>_delta_p` | p of no difference of the pattern (all seeds together), over items, after Holm's adjustment |
| `<m>_best` | True: of the patterns of this model and variant that are not dense, its mean over seeds is the best |
| `<m>_tied` | True: over the items it cannot be told from that best one: p ≥ 0.05 (Holm, all patterns of a metric) |
| `<m>_tied_seeds` | True: over the items it can, but not over three or more seeds (Student's t, Holm) |

The last four are the same in all seeds of a pattern. `with_row_errors` adds the same columns to rows of `over_seeds`,
where `<m>_delta_pm` is the error over items of the mean over seeds, and `<m>_delta_stderr` stays the one over seeds.

The baseline is the dense pattern, or the label or name in `frame.attrs["baseline"]`. All of it is computed once for a
loaded frame, a model and variant at a time, and kept.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ratplus.analysis.frame.aggregate import (
    GROUP,
    RUN,
    deltas_to,
    in_order,
    over_seeds,
    reference_cells,
    reference_places,
)
from ratplus.analysis.frame.averages import averages_of
from ratplus.analysis.frame.load import evaluations_of
from ratplus.analysis.frame.rows import groups_of, keys_of
from ratplus.analysis.frame.tasks import is_cost, recorded, result_column
from ratplus.analysis.paired.bootstrap import CERTAIN, RESAMPLES, holm, least_p, p_values, resampled_means, t_p
from ratplus.analysis.paired.samples import DrawnAlike, Items, joined_items
from ratplus.analysis.paired.ties import Stored, difference_notes

# With fewer seeds than this, nothing is said about them: of two, Student's t tells hardly any difference apart.
LEAST_SEEDS = 3
# Patterns at once, so that their resampled means, half a megabyte, stay in a core's cache.
_AT_ONCE = 32
_MOST_KEPT = 4


@dataclass
class Differences:
    """What is known of all differences of a frame.

    Attributes:
        cells: {metric: {cell id: standard error over items of its difference to the baseline}}.
        rows: {metric: {(model, variant, pattern): {"pm", "p", "best", "tied", "tied_seeds"}}}.
        sampled: metrics of which some cell has items that make up its result.
        odd: metrics of which some cell has items that do not.
        few: {metric: items that differ} where too few of them, and not the differences' size, make a pattern tie.
    """

    cells: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: dict[str, dict[tuple, dict]] = field(default_factory=dict)
    sampled: set[str] = field(default_factory=set)
    odd: set[str] = field(default_factory=set)
    few: dict[str, int] = field(default_factory=dict)


_kept: OrderedDict[tuple, Differences] = OrderedDict()


def differences_of(frame: pd.DataFrame) -> Differences:
    """All differences of a loaded frame; the same frame, also in another order, is computed once."""
    key = (frame.attrs.get("loaded"), baseline_of(frame), hash(frozenset(keys_of(frame, ["cell"]))))
    if key[0] is None:
        return _compute(frame)
    if key not in _kept:
        _kept[key] = _compute(frame)
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    return _kept[key]


def baseline_of(frame: pd.DataFrame) -> str:
    """What differences are taken to: "dense", or the label or name of a pattern."""
    return frame.attrs.get("baseline") or "dense"


def baseline_title(frame: pd.DataFrame) -> str:
    """The baseline as a caption names it."""
    name = baseline_of(frame)
    return "the dense pattern" if name == "dense" else name


def with_differences(frame: pd.DataFrame, names: Iterable[str] | Mapping[str, str]) -> pd.DataFrame:
    """The frame with the columns of the module's docstring for each of `names`, behind `<name>_stderr`.

    Args:
        frame: cells, as loaded, in any order.
        names: results. A mapping says what a column is called in `averages_of`: {"average": "average:recall"}.
    """
    found = differences_of(frame)
    groups = keys_of(frame, GROUP)
    places = reference_places(frame, reference_cells(frame, baseline_of(frame)))
    # Asked once, since there may be thousands of names.
    ids = [cell for (cell,) in keys_of(frame, ["cell"])]
    place_of = {column: place for place, column in enumerate(frame.columns)}
    added: dict[str, Any] = {}
    behind: dict[int, list[str]] = {}
    for name, known in _named(names):
        cells, rows = found.cells.get(known, {}), found.rows.get(known, {})
        own = {f"{name}_delta": deltas_to(frame, name, places)} | _columns(name, groups, rows)
        own[f"{name}_delta_pm"] = [cells.get(cell, math.nan) for cell in ids]
        behind.setdefault(place_of[f"{name}_stderr"], []).extend(own)
        added |= own
    # Put in their places all at once: piece by piece takes minutes for thousands of results.
    whole = pd.concat([frame, pd.DataFrame(added, index=frame.index)], axis=1)
    place_of_added = {column: len(place_of) + place for place, column in enumerate(added)}
    order = [
        place
        for before in range(frame.shape[1])
        for place in (before, *(place_of_added[column] for column in behind.get(before, ())))
    ]
    return whole.iloc[:, order]


def with_row_errors(rows: pd.DataFrame, frame: pd.DataFrame, names: Iterable[str] | Mapping[str, str]) -> pd.DataFrame:
    """Rows of `over_seeds(frame, ...)` with the same columns but `<name>_delta`, for each of `names`."""
    found = differences_of(frame)
    groups = keys_of(rows, GROUP)
    added: dict[str, list] = {}
    for name, known in _named(names):
        added |= _columns(name, groups, found.rows.get(known, {}))
    rest = rows.drop(columns=[name for name in added if name in rows])
    return pd.concat([rest, pd.DataFrame(added, index=rows.index)], axis=1)


def rows_with_deltas(frame: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """One row a model, variant and pattern in order, means over seeds, with `loss_delta` and all that is known of it.

    Args:
        metrics: results whose means the rows have beside the loss's.
    """
    cells = with_differences(in_order(frame), ["loss"])
    rows = over_seeds(cells, list(dict.fromkeys(["loss", "loss_delta", *metrics])))
    return with_row_errors(rows, frame, ["loss"])


def loss_delta_notes(frame: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """The lines under a table that shows `loss_delta` of `rows_with_deltas`: what the errors are of."""
    return difference_notes(rows, {"loss": "loss"}, {}, stored_results(frame, ["loss"]), ties=False)


def stored_results(frame: pd.DataFrame, names: Iterable[str] | Mapping[str, str]) -> Stored:
    """Which of the results have samples, for the lines under a table."""
    found = differences_of(frame)
    known = list(_named(names))
    odd = {name for name, column in known if column not in found.sampled and recorded(column) in found.odd}
    few = {name: found.few[column] for name, column in known if column in found.few}
    return Stored({name for name, column in known if column in found.sampled}, odd, few)


def _named(names: Iterable[str] | Mapping[str, str]) -> Iterable[tuple[str, str]]:
    return names.items() if isinstance(names, Mapping) else ((name, name) for name in names)


def _columns(name: str, groups: list[tuple], rows: Mapping[tuple, dict]) -> dict[str, list]:
    """What is known of the groups, as columns."""
    known = [rows.get(group, {}) for group in groups]
    columns = {
        f"{name}_delta_pm": [one.get("pm", math.nan) for one in known],
        f"{name}_delta_p": [one.get("p", math.nan) for one in known],
    }
    return columns | {f"{name}_{key}": [bool(one.get(key)) for one in known] for key in ("best", "tied", "tied_seeds")}


# ---- how it is computed ----


@dataclass(frozen=True)
class _Cell:
    """A finished cell: its place in the columns of results, its pattern and seed, and what it stored."""

    place: int
    cell: str
    pattern: str
    seed: object
    dense: bool
    items: Mapping[str, Items]


def _compute(frame: pd.DataFrame) -> Differences:
    found = Differences()
    if frame.empty:
        return found
    results: dict[str, tuple[str, ...]] = {
        name: (name,) for name in frame.attrs["metrics"] if not is_cost(name) and frame[name].notna().any()
    }
    results |= averages_of(frame)
    values = {
        name: (frame[columns[0]] if len(columns) == 1 else frame[list(columns)].mean(axis=1, skipna=False)).to_numpy(
            dtype=np.float64
        )
        for name, columns in results.items()
    }
    reference = reference_cells(frame, baseline_of(frame))
    folder = Path(frame.attrs["folder"])
    ps: dict[str, dict[tuple, dict]] = {name: {} for name in results}
    plain = frame[["cell", "pattern", "seed", "kind", "status", *RUN]].assign(place=range(len(frame)))
    for run, own in groups_of(plain[plain["status"].eq("done")], RUN):
        cells = [
            _Cell(row["place"], row["cell"], row["pattern"], row["seed"], row["kind"] == "dense",
                  joined_items(folder, evaluations_of(frame, row["cell"])))
            for row in own.to_dict("records")
        ]  # fmt: skip
        stored = {name for cell in cells for name, items in cell.items.items() if items.whole}
        found.odd |= {name for cell in cells for name, items in cell.items.items() if not items.whole}
        references = {cell.seed: cell for cell in cells if reference.get((*run, cell.seed)) == cell.cell}
        for name, columns in results.items():
            known = all(recorded(column) in stored for column in columns)
            if known:
                found.sampled.add(name)
            value, lower = values[name], result_column(columns[0]).lower
            if known and references:
                _to_baseline(found, ps, run, name, columns, cells, references)
            _to_best(found, ps, run, name, columns if known else (), cells, value, lower)
    _adjust(found, ps)
    return found


def _to_baseline(found, ps, run, name, columns, cells, references) -> None:
    """Errors of each cell's difference to the baseline's cell of its seed, and of each pattern's over its seeds."""
    by_pattern: dict[str, list[_Cell]] = {}
    alone = set()
    for cell in cells:
        if cell.seed not in references:
            alone.add(cell.pattern)
        elif references[cell.seed] is not cell:
            by_pattern.setdefault(cell.pattern, []).append(cell)
    errors = found.cells.setdefault(name, {})
    for pattern, pm, p, _, of_cells in _against(by_pattern, references, columns, with_cells=True):
        errors.update(of_cells)
        # The mean over seeds has no difference where a seed has no baseline.
        if pattern not in alone:
            ps[name].setdefault((*run, pattern), {}).update(pm=pm, p=p)


def _to_best(found, ps, run, name, columns, cells, value, lower) -> None:
    """Which sparse pattern is best, and p of every other's difference to it, over items and over seeds."""
    by_pattern: dict[str, dict] = {}
    for cell in cells:
        if not cell.dense:
            by_pattern.setdefault(cell.pattern, {})[cell.seed] = cell
    means = {
        pattern: float(np.mean([value[cell.place] for cell in own.values()])) for pattern, own in by_pattern.items()
    }
    most = max((len(own) for own in by_pattern.values()), default=0)
    # A pattern of which one lucky seed has finished is not the best of all.
    candidates = [p for p, mean in means.items() if math.isfinite(mean) and len(by_pattern[p]) == most]
    if len([mean for mean in means.values() if math.isfinite(mean)]) < 2 or not candidates:
        return
    best = (min if lower else max)(candidates, key=means.__getitem__)
    for pattern in candidates:
        if means[pattern] == means[best]:
            ps[name].setdefault((*run, pattern), {})["best"] = True
    of_best = by_pattern[best]
    others = {
        pattern: [cell for seed, cell in own.items() if seed in of_best]
        for pattern, own in by_pattern.items()
        if pattern != best and math.isfinite(means[pattern])
    }
    for pattern, own in others.items():
        if len(own) >= LEAST_SEEDS:
            changes = [value[cell.place] - value[of_best[cell.seed].place] for cell in own]
            ps[name].setdefault((*run, pattern), {})["of_seeds"] = t_p(changes)
    if columns:
        for pattern, _, p, few, _ in _against(others, of_best, columns):
            ps[name].setdefault((*run, pattern), {}).update(of_best=p, few=few)


def _against(by_pattern, references, columns, with_cells: bool = False):
    """(pattern, standard error, p, few, {cell: standard error}) of each pattern's mean difference to the references.

    `few` is how many items differ, where p would be smaller if more did, else 0.

    A pattern is left out where one of its cells has no items that pair with its reference's.
    """
    paired = {p: own for p, own in by_pattern.items() if own and all(_pairs(c, references, columns) for c in own)}
    # Cells that differ from the same items are drawn together; patterns of the same seeds have the same sets.
    alike: dict[tuple, list[str]] = {}
    for pattern, own in paired.items():
        alike.setdefault(tuple(cell.seed for cell in own), []).append(pattern)
    for seeds, patterns in alike.items():
        for start in range(0, len(patterns), _AT_ONCE):
            part = patterns[start : start + _AT_ONCE]
            total, difference = np.zeros((len(part), RESAMPLES)), np.zeros(len(part))
            drawn, errors = DrawnAlike(), []
            for turn, seed in enumerate(seeds):
                of_seed = np.zeros((len(part), RESAMPLES))
                for column in map(recorded, columns):
                    items = references[seed].items[column]
                    changes = np.stack([paired[p][turn].items[column].values for p in part]) - items.values
                    of_seed += resampled_means(changes, items.weights, items.seed) / len(columns)
                    difference += changes @ items.weights / items.weights.sum() / len(columns) / len(seeds)
                    drawn.add(column, items, changes)
                if with_cells:
                    errors.append(of_seed.std(axis=1, ddof=1))
                total += of_seed / len(seeds)
            differing, asked = drawn.differing(), drawn.asked()
            stderr, p = total.std(axis=1, ddof=1), p_values(total, difference, differing)
            # Equal differences of all items have no spread, but for what rounding leaves.
            stderr[stderr < 1e-9 * np.abs(difference)] = 0
            least = least_p(differing)
            # Where most items are alike, it is not their number that makes a pattern tie.
            few = np.where((p <= least) & ((least < CERTAIN) | (differing == asked)), differing, 0)
            for row, pattern in enumerate(part):
                of_cells = {cell.cell: errors[turn][row] for turn, cell in enumerate(paired[pattern]) if with_cells}
                yield pattern, float(stderr[row]), float(p[row]), int(few[row]), of_cells


def _pairs(cell: _Cell, references: Mapping, columns: Iterable[str]) -> bool:
    other = references.get(cell.seed)
    if other is None:
        return False
    pairs = [(cell.items.get(name), other.items.get(name)) for name in map(recorded, columns)]
    return all(a is not None and b is not None and a.pairs_with(b) for a, b in pairs)


def _adjust(found: Differences, ps: dict[str, dict[tuple, dict]]) -> None:
    """Holm's adjustment within each metric, and what it means for ties."""
    for name, rows in ps.items():
        keys = list(rows)
        adjusted = {
            kind: dict(zip(keys, holm(pd.Series([rows[key].get(kind, math.nan) for key in keys], dtype=np.float64))))
            for kind in ("p", "of_best", "of_seeds")
        }
        for key, row in rows.items():
            p_items, p_seeds = adjusted["of_best"][key], adjusted["of_seeds"][key]
            tied = p_items >= CERTAIN
            if tied and row.get("few"):
                found.few[name] = max(row["few"], found.few.get(name, 0))
            found.rows.setdefault(name, {})[key] = {
                "pm": row.get("pm", math.nan), "p": adjusted["p"][key], "best": row.get("best", False), "tied": tied,
                "tied_seeds": p_seeds >= CERTAIN and not tied,
            }  # fmt: skip
