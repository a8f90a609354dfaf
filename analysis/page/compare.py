"""`report/compare_<sweep>.html`: two sweeps side by side in one file, with every difference to sort and filter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import in_order, progress, short_patterns
from ratplus.analysis.frame.load import Sweep
from ratplus.analysis.frame.rows import groups_of, rows_of
from ratplus.analysis.frame.tasks import is_share, result_column
from ratplus.analysis.page.page import MOST_ROWS, as_json, commits_of, figure_of, order_key, render, table_of
from ratplus.records.atomic import write_atomically

# A difference is called certain where p, after Holm's adjustment, is below this.
CERTAIN = 0.05
# The headline has room for so many metrics.
MOST_NAMED = 4


def write_compare_page(
    path: Path, rows: pd.DataFrame, pictures: Sequence[Path], table: Table, sweeps: tuple[Sweep, Sweep],
    names: tuple[str, str],
) -> Path:  # fmt: skip
    """Write the page to `path`, and return it.

    Args:
        path: where to write it.
        rows: of `compare.differences`.
        pictures: PNG files of the comparison's figures.
        table: the comparison's table; its caption and notes are the page's too.
        sweeps: the first and the second.
        names: what a reader calls them.
    """
    rows = _by_metric(rows)
    lines = _rows(rows)
    first, second = (
        {"name": name, "folder": sweep.frame.attrs["folder"], "progress": progress(sweep.frame),
         "commits": commits_of(sweep.records)}
        for name, sweep in zip(names, sweeps)
    )  # fmt: skip
    text = render(
        "compare.html.jinja",
        first=first,
        second=second,
        headline=headline(rows, names[1]),
        caption=table.caption,
        notes=table.notes,
        columns=[("Model", False), ("Metric", False), ("Pattern", False), ("First", True), ("Second", True),
                 ("Δ", True), ("95 % interval", True), ("p", True), ("Items", True), ("Verdict", False)],
        rows=lines,
        most=MOST_ROWS,
        filters=[(key, title, list(dict.fromkeys(line[key] for line in lines)))
                 for key, title in (("model", "Model"), ("metric", "Metric"), ("verdict", "Verdict"))],
        figures=[figure_of(picture, {table.name: "Loss: second minus first"}) for picture in pictures],
        tables=[table_of(table, {table.name: "Every pattern: values and differences"})],
        data=as_json({"what": "differences", "most": MOST_ROWS}),
    )  # fmt: skip
    write_atomically(path, text)
    return path


def headline(rows: pd.DataFrame, second: str) -> str:
    """What differs for certain, metric by metric: how many patterns, and the largest change among them."""
    sentences = []
    for name, own in rows[~rows["metric"].eq("perplexity")].groupby("metric", sort=False):
        if result_column(name).part or len(sentences) == MOST_NAMED:
            continue
        sure = own[own["p_holm"].lt(CERTAIN)]
        title = name.replace("_", " ")
        if sure.empty:
            sentences.append(f"{title}: no certain difference ({_count(own)})")
            continue
        most = sure.loc[sure["difference"].abs().idxmax()]
        scale, digits, unit = _unit(name, own)
        change = number(most["difference"] * scale, digits, most["stderr"] * scale)
        change = change if change.startswith("−") else f"+{change}"
        sentences.append(
            f"{title}: {len(sure)} of {_count(own)} differ for certain, {most['pattern']} of {_model(most)} most, "
            f"by {change}{unit}"
        )
    return f"In {second}, " + "; ".join(sentences) + "."


def _count(own: pd.DataFrame) -> str:
    one, several = ("pattern", "patterns") if own["run_a"].nunique() == 1 else ("pair", "pairs of model and pattern")
    return f"{len(own)} {one if len(own) == 1 else several}"


def _by_metric(rows: pd.DataFrame) -> pd.DataFrame:
    """Metrics in the frame's order, totals before their parts; patterns in theirs."""
    ranks = {name: (result_column(name).part != "", rank) for rank, name in enumerate(dict.fromkeys(rows["metric"]))}
    order = sorted(range(len(rows)), key=lambda i: ranks[rows["metric"].iloc[i]])
    return rows.iloc[order].reset_index(drop=True)


def _unit(name: str, own: pd.DataFrame) -> tuple[float, int, str]:
    """(scale, digits, unit) in which a metric is shown."""
    share = is_share(result_column(name).measure, [*own["a"], *own["b"]])
    return (100, 1, " %") if share else (1, 3, "")


def _rows(rows: pd.DataFrame) -> list[dict]:
    names = short_patterns(rows)
    one = rows.assign(model="", variant="", seed=0).drop_duplicates("pattern")
    ranks = {pattern: rank for rank, pattern in enumerate(in_order(one)["pattern"])}
    units = {name: _unit(name, own) for name, own in groups_of(rows, "metric")}
    found = []
    for row in rows_of(rows):
        scale, digits, unit = units[row.metric]
        metric = row.metric.replace("_", " ") + (f" ({unit.strip()})" if unit else "")
        low, high = number(row.low * scale, digits), number(row.high * scale, digits)
        certain = row.p_holm < CERTAIN
        verdict = ("higher" if row.difference > 0 else "lower") if certain else "not certain"
        cells = [
            (_model(row._asdict()), None, False), (metric, None, False),
            (names[row.pattern], ranks[row.pattern], False),
            (number(row.a * scale, digits), order_key(row.a), True),
            (number(row.b * scale, digits), order_key(row.b), True),
            (number(row.difference * scale, digits, row.stderr * scale), order_key(row.difference), True),
            (f"{low} to {high}", order_key(row.low), True),
            ("—" if pd.isna(row.p_holm) else f"{row.p_holm:.2g}", order_key(row.p_holm), True),
            (str(row.items) if row.items else "—", row.items or "", True),
            (verdict, None, False),
        ]  # fmt: skip
        found.append({"model": cells[0][0], "metric": metric, "verdict": verdict, "cells": cells})
    return found


def _model(row) -> str:
    a, b = row["run_a"], row["run_b"]
    return a if a == b else f"{a} → {b}"
