"""The columns of the page's table of cells, which its plots, ranges and copies take their numbers from."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ratplus.analysis.frame.aggregate import RUN, in_order, run_name, short_patterns
from ratplus.analysis.frame.reads import reads_apart
from ratplus.analysis.frame.rows import rows_of
from ratplus.analysis.frame.tasks import is_cost, is_share, less_is_better, result_column
from ratplus.analysis.page.embed import repeated, values

# Results in the table beside the loss. The others are there to be plotted, and in each cell's own view.
MOST_RESULTS = 8


def columns_of(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Every column, in the order of the table; `cells` is a frame in the order of its rows.

    A column of texts is {key, title, names, of}: `of` has each row's place in `names`, which stand in sorting order. A
    column of numbers is {key, title, kind, digits, scale, values}: shown is value × scale with so many digits (null:
    four that count). Besides it may have `errors` (standard errors), `exact` (false: an upper bound), `lower` (whether
    less is better, of results and costs), `delta` (has differences to a baseline) and `shown` (stands in the table). Of
    `paired.differences` it has, where they are known, `delta_errors` (of the difference to the own dense cell, over the
    items) and `marks` ("best" of its model's sparse patterns, "=" tied with that, "~" tied over seeds alone; else "").
    """
    names = short_patterns(cells)
    runs = [run_name(*run) for run in cells[RUN].itertuples(index=False, name=None)]
    pattern = repeated((names[label] for label in cells["pattern"]), [names[p] for p in _ranked(cells)])
    columns: list[dict[str, Any]] = [
        {"key": "pattern", "title": "Pattern", "shown": True, **pattern},
        {"key": "model", "title": "Model", "shown": True, **repeated(runs)},
        {"key": "method", "title": "Method", "shown": False, **repeated(cells["method"])},
    ]
    if cells["seed"].nunique() > 1:
        columns.append(_number(cells, "seed", "Seed", "setting", digits=0, shown=True))
    in_table = ["loss", *table_results(cells)]
    for name in [*in_table, *(n for n in cells.attrs["metrics"] if n not in in_table)]:
        if name != "loss" and not cells[name].notna().any():
            continue
        # What a metric counts rather than scores has no baseline.
        columns.append(_result(cells, name, shown=name in in_table, delta=not is_cost(name)))
    columns += _costs(cells)
    columns.append({"key": "status", "title": "Status", "shown": True, **repeated(cells["status"])})
    used: set[str] = set()
    for column in columns:
        # A metric may be called like one of the page's own columns.
        while column["key"] in used:
            column["key"] = f"metric:{column['key']}"
        used.add(column["key"])
    return columns


def own_dense(cells: pd.DataFrame) -> list[int]:
    """For each row the number of that of the finished dense cell of the same model, variant and seed; −1 if none."""
    keys = list(zip(cells["model"], cells["variant"], cells["seed"].fillna(-1)))
    dense: dict[tuple, int] = {}
    # In this order plain D1 stands before D1 with a window, which is dense too.
    for row, (key, kind, status) in enumerate(zip(keys, cells["kind"], cells["status"])):
        if kind == "dense" and status == "done":
            dense.setdefault(key, row)
    return [dense.get(key, -1) for key in keys]


def table_results(frame: pd.DataFrame) -> list[str]:
    """The results beside the loss that the table has room for: totals before parts, in the frame's order."""
    names = [
        name for name in frame.attrs["metrics"]
        if name not in ("loss", "perplexity") and frame[name].notna().any() and not is_cost(name)
    ]  # fmt: skip
    return [name for name in names if not result_column(name).part][:MOST_RESULTS]


def _ranked(cells: pd.DataFrame) -> list[str]:
    """Patterns in their order, whatever the model."""
    one = cells.assign(model="", variant="")
    one.attrs = cells.attrs
    return list(dict.fromkeys(in_order(one)["pattern"]))


def _number(
    cells: pd.DataFrame, name: str, title: str, kind: str, *, digits: int | None, scale: float = 1, shown: bool = False,
    exact: str | None = None, key: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    column = {"key": key or name, "title": title, "kind": kind, "digits": digits, "scale": scale, "shown": shown,
              "values": values(cells[name].astype("float64"))}  # fmt: skip
    if exact is not None and not cells[exact].astype(bool).all():
        column["exact"] = [bool(value) for value in cells[exact]]
    return column


def _result(cells: pd.DataFrame, name: str, shown: bool, delta: bool) -> dict[str, Any]:
    result = result_column(name)
    share = is_share(result.measure, cells[name])
    title = "Loss" if name == "loss" else name.replace("_", " ") + (" (%)" if share else "")
    column = _number(cells, name, title, "result", digits=1 if share else 3, scale=100 if share else 1, shown=shown)
    column |= {"errors": values(cells[f"{name}_stderr"], errors=True), "lower": bool(less_is_better(name))}
    return column | ({"delta": True, **_differences(cells, name)} if delta else {})


def _differences(cells: pd.DataFrame, name: str) -> dict[str, Any]:
    """What `with_differences` says of a result."""
    if f"{name}_delta_pm" not in cells:
        return {}
    found: dict[str, Any] = {}
    if cells[f"{name}_delta_pm"].notna().any():
        found["delta_errors"] = values(cells[f"{name}_delta_pm"], errors=True)
    kinds = zip(*(cells[f"{name}_{kind}"] for kind in ("best", "tied", "tied_seeds")), cells[name].notna())
    marks = [
        ("best" if best else "=" if tied else "~" if seeds else "") if known else ""
        for best, tied, seeds, known in kinds
    ]
    # The best alone says little where nothing is known of ties.
    if {"=", "~"} & set(marks) or "delta_errors" in found:
        found["marks"] = marks
    return found


def _costs(cells: pd.DataFrame) -> list[dict[str, Any]]:
    found = [
        _number(cells, "kv_ratio", "KV (%)", "cost", digits=1, scale=100, shown=True),
        _number(cells, "kv_entries", "KV entries", "cost", digits=0, shown=True),
    ]
    if reads_apart(cells):
        found.append(_number(cells, "kv_read", "KV read", "cost", digits=0, shown=True, exact="kv_read_exact"))
    found.append(_number(cells, "kv_bytes", "KV KiB", "cost", digits=1, scale=1 / 1024, shown=True))
    found.append(
        _number(cells, "attention_flops_ratio", "FLOPs (%)", "cost", digits=1, scale=100, shown=True,
                exact="flops_exact")
    )  # fmt: skip
    for name in (name for name in cells.columns if name.startswith("timing:")):
        found.append(_number(cells, name, name, "cost", digits=None))
    for column in found:
        column["lower"] = bool(less_is_better(column["key"]))
    settings = ["dilation", "window", "parameters", *cells.attrs["axes"]]
    for name in settings:
        numbers = pd.to_numeric(cells[name], errors="coerce").astype("float64")
        # What is text in some cells is no number in the others.
        if numbers.nunique() > 1 and bool((numbers.notna() | cells[name].isna()).all()):
            title = name.replace("_", " ").capitalize() if name in ("dilation", "window", "parameters") else name
            found.append(_number(cells.assign(**{name: numbers}), name, title, "setting", digits=None))
    return found


def words_of(cells: pd.DataFrame) -> list[str]:
    """What a search finds of each row beside its columns: the whole label of a pattern that is shown by its name."""
    names = short_patterns(cells)
    return ["" if names[row.pattern] == row.pattern else row.pattern for row in rows_of(cells)]
