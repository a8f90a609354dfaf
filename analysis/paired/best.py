"""Which pattern do I take? The best row within bounds, why it won, and which others cannot be told from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ratplus.analysis.draw.tables import number
from ratplus.analysis.frame.aggregate import GROUP, first_problem, in_order, over_seeds
from ratplus.analysis.frame.query import select
from ratplus.analysis.frame.rows import groups_of, rows_of
from ratplus.analysis.frame.tasks import is_share, less_is_better, recorded, result_column
from ratplus.analysis.paired.bootstrap import CERTAIN, ERRORS, holm, t_p
from ratplus.analysis.paired.differences import LEAST_SEEDS
from ratplus.analysis.paired.pairs import difference_of
from ratplus.analysis.paired.samples import Items, joined_items
from ratplus.analysis.paired.several import (
    number_named,
    place_of,
    read_folders,
    refuse_other_items,
    result_named,
    seeds_note,
    shared_seeds,
)

TIES = ("best", "cheapest")


def choose(
    folders: Iterable[Path],
    metric: str,
    most: Mapping[str, float] | None = None,
    least: Mapping[str, float] | None = None,
    tie: str = "best",
    where: str | None = None,
) -> dict[str, Any]:
    """The best row of a model and pattern (mean over seeds) by a result, as plain values.

    Args:
        folders: sweep folders.
        metric: a result or measured time.
        most, least: {column: bound, itself allowed} of rows.
        tie: "cheapest" takes, of the best and all that tie with it, the one of least cost: the first column of `most`,
            then entries read and bytes of the cache.
        where: a condition on cells, as of `ratplus ls`.

    Returns:
        `metric`, `lower` (is better), `unit` (`%` or empty), `of` (rows within the bounds), `left_out` {reason: rows},
        `winner`, `best`, `ties` (rows), `why` (a sentence), `how` (what the ties rest on). A row: `folder`, `cells`
        (ids), `model`, `variant`, `pattern`, `seeds`, `value`, `stderr`, `difference` (to the best), `pm`, `p` (Holm),
        `method`, `tied` ("items", "seeds" or ""), `costs` {column: value}.

    Raises:
        ValueError: a name that is not known, no row within the bounds, or rows that were measured on different items.
    """
    frame = read_folders(folders)
    metric = result_named(metric, frame, "--metric")
    bounds = [(number_named(name, frame, "--max"), value, 1) for name, value in (most or {}).items()]
    bounds += [(number_named(name, frame, "--min"), value, -1) for name, value in (least or {}).items()]
    if where:
        attrs = frame.attrs
        frame = select(frame, where)[0]
        frame.attrs = attrs
    if frame.empty:
        raise ValueError(f"--where: no cell meets {where!r}")
    lower = bool(less_is_better(metric))
    costs = list(dict.fromkeys([name for name, _, sign in bounds if sign > 0] + ["kv_read", "kv_bytes"]))
    rows, left_out = _candidates(frame, metric, bounds, costs)
    chosen = frame[frame["status"].eq("done")].merge(rows[GROUP], on=GROUP)
    refuse_other_items(chosen, metric)
    shared = shared_seeds(chosen)
    if shared:
        chosen = chosen[chosen["seed"].isin(shared)]
        rows, _ = _candidates(chosen, metric, bounds, costs)
    rows = rows.sort_values(metric, ascending=lower, kind="stable").reset_index(drop=True)
    compared = compare_to_first(rows, chosen, metric, dict.fromkeys([*costs, *(name for name, *_ in bounds)]))
    ties = [row for row in compared[1:] if row["tied"]]
    best = compared[0]
    pool = [best, *ties] if tie == "cheapest" else [best]
    winner = min(pool, key=lambda row: tuple(row["costs"][name] for name in costs))
    unit = "%" if is_share(result_column(metric).measure, rows[metric]) else ""
    return {
        "metric": metric, "lower": lower, "unit": unit, "of": len(rows), "left_out": left_out, "winner": winner,
        "best": best, "ties": ties, "why": _why(metric, lower, unit, winner, best, rows, bounds, costs[0], len(ties)),
        "how": _how(compared[1:], seeds_note(shared)),
    }  # fmt: skip


def _candidates(frame, metric, bounds, costs) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows within the bounds, and how many are not among them, by reason."""
    numbers = list(dict.fromkeys([*(name for name, *_ in bounds), *costs]))
    plain = frame.assign(**{f"{metric}_stderr": frame.get(f"{metric}_stderr", math.nan)})
    rows = over_seeds(in_order(plain), [metric])
    done = plain[plain["status"].eq("done")]
    means = done.assign(**{name: done[name].astype("float64") for name in numbers}).groupby(GROUP)[numbers].mean()
    rows = rows.drop(columns=[name for name in numbers if name in rows]).merge(
        means.reset_index(), on=GROUP, how="left"
    )
    whole = rows["done"].eq(rows["cells"]) & rows[metric].notna() & np.isfinite(rows[metric].astype("float64"))
    inside = pd.Series(True, index=rows.index)
    for name, value, sign in bounds:
        inside &= (rows[name] - value) * sign <= 0  # null is not within a bound
    left_out = {"not finished, or without the result": int((~whole).sum())}
    left_out["beyond the bounds"] = int((whole & ~inside).sum())
    if not (whole & inside).any():
        nearest = ""
        for name, _, sign in bounds:
            known = rows.loc[whole, name].dropna()
            if len(known):
                nearest += (
                    f"; {name} is {'from' if sign > 0 else 'up to'} {(known.min() if sign > 0 else known.max()):.4g}"
                )
        raise ValueError(
            f"no finished row has {metric} within the bounds ({len(rows)} rows{nearest}){first_problem(frame)}"
        )
    return rows[whole & inside], {reason: count for reason, count in left_out.items() if count}


def compare_to_first(
    rows: pd.DataFrame, cells: pd.DataFrame, metric: str, costs: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Each row as plain values, with its difference to the first, the best one, and whether it ties with that.

    Args:
        rows: of `over_seeds`, best first.
        cells: the finished cells of these rows, of `read_folders`.
        metric: the result.
        costs: columns of `rows` that go into `costs`.
    """
    costs = list(costs)
    # Of a frame with hundreds of columns, each of thousands of rows would be copied with all of them.
    needed = [*GROUP, "seed", "cell", "folder", "evaluations", metric, f"{metric}_stderr"]
    cells = cells[[name for name in dict.fromkeys(needed) if name in cells]]
    own = {key: part.set_index("seed") for key, part in groups_of(cells, GROUP)}
    first, compared, seeds_p = own[tuple(rows.iloc[0][GROUP])], [], []
    of_first: dict[tuple, Items | None] = {}

    def stored(place: tuple[Path, tuple[str, ...]]) -> Items | None:
        if place in of_first:
            return of_first[place]
        items = joined_items(*place).get(recorded(metric))
        if place in firsts:
            of_first[place] = items  # every other row asks for it again
        return items

    firsts = set(_places(first))
    for row in rows.to_dict("records"):
        part = own[tuple(row[key] for key in GROUP)]
        found: dict[str, Any] = {}
        changes: list[float] = []
        if compared:
            seeds = [seed for seed in first.index if seed in part.index]
            if seeds:
                pair = first.loc[seeds], part.loc[seeds]
                values = np.array([one[metric].to_numpy(dtype=np.float64) for one in pair])
                changes = list(values[1] - values[0])
                errors = np.array([_errors(one, metric) for one in pair])
                items = list(zip(*([stored(place) for place in _places(one)] for one in pair)))
                found = difference_of(values, errors, items)
            else:  # other seeds: nothing to pair
                values = np.array([[rows.iloc[0][metric]], [row[metric]]], dtype=np.float64)
                errors = np.array([[rows.iloc[0][f"{metric}_stderr"]], [row[f"{metric}_stderr"]]], dtype=np.float64)
                found = difference_of(values, errors, [(None, None)])
        seeds_p.append(t_p(changes) if len(changes) >= LEAST_SEEDS else math.nan)
        compared.append(
            {
                "folder": part["folder"].iloc[0], "cells": list(part["cell"]), "model": row["model"],
                "variant": row["variant"], "run": row["run"], "pattern": row["pattern"],
                "pattern_name": row["pattern_name"], "seeds": len(part), "value": float(row[metric]),
                "stderr": float(row[f"{metric}_stderr"]), "difference": found.get("difference", 0.0),
                "pm": found.get("stderr", math.nan), "p": found.get("p", math.nan), "method": found.get("method", ""),
                "costs": {name: float(row[name]) for name in costs},
            }
        )  # fmt: skip
    adjusted = holm(pd.Series([row["p"] for row in compared], dtype=np.float64))
    of_seeds = holm(pd.Series(seeds_p, dtype=np.float64))
    for row, p, p_seeds in zip(compared, adjusted, of_seeds):
        row["p"] = float(p)
        row["tied"] = "items" if p >= CERTAIN else "seeds" if p_seeds >= CERTAIN else ""
    return compared


def _places(part: pd.DataFrame) -> list[tuple[Path, tuple[str, ...]]]:
    return [place_of(row) for row in rows_of(part)]


def _errors(part: pd.DataFrame, metric: str) -> np.ndarray:
    name = f"{metric}_stderr"
    return part[name].to_numpy(dtype=np.float64) if name in part else np.full(len(part), math.nan)


def shown_value(row: Mapping[str, Any], unit: str, key: str = "value", error: str = "stderr") -> str:
    """A value or difference of a row of `choose` with its ±, in the unit of the result."""
    scale, digits = (100, 1) if unit == "%" else (1, 3)
    return number(row[key] * scale, digits, row[error] * scale)


def _why(metric, lower, unit, winner, best, rows, bounds, cost, ties) -> str:
    within = " and ".join(f"{name} {'≤' if sign > 0 else '≥'} {value:g}" for name, value, sign in bounds)
    of = f"{len(rows)} {'row' if len(rows) == 1 else 'rows'}" + (f" with {within}" if within else "")
    most = f"{'lowest' if lower else 'highest'} {metric} of {of}"
    if winner is best:
        others = {0: "no other ties with it", 1: "one other ties with it"}.get(ties, f"{ties} others tie with it")
        return f"the {most}; {others}"
    return (
        f"the cheapest ({cost}) of {ties + 1} rows that cannot be told from the {most}, which is {best['run']} "
        f"{best['pattern']} with {shown_value(best, unit)}"
    )


def _how(others: list[dict[str, Any]], seeds: str) -> str:
    """What the comparison with the best rests on; `seeds` is of `seeds_note`."""
    if not others:
        return ""
    return "; ".join(filter(None, [_method(others), seeds]))


def _method(others: list[dict[str, Any]]) -> str:
    methods = {row["method"] for row in others}
    unpaired = methods == {ERRORS}
    known = [row for row in others if not math.isnan(row["p"])]
    if not known:
        return "no errors are known, so nothing is said about ties"
    text = "ties: p ≥ 0.05 after Holm's adjustment over all rows, "
    text += "from standard errors, unpaired (no samples of the same items)" if unpaired else "paired item by item"
    if not unpaired and ERRORS in methods:
        text += ", by standard errors where there are no samples of the same items"
    return text
