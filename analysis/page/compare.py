"""`report/compare_<sweep>.html`: two sweeps side by side in one file, with every difference to sort and filter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import in_order, progress, short_patterns
from ratplus.analysis.frame.load import Sweep
from ratplus.analysis.frame.rows import groups_of, rows_of
from ratplus.analysis.frame.tasks import is_share, result_column
from ratplus.analysis.page.embed import as_json, repeated, values
from ratplus.analysis.page.page import COMPARE_SCRIPTS, MOST_ROWS, commits_of, render
from ratplus.analysis.page.parts import figure_of, table_of
from ratplus.records.atomic import write_atomically
from ratplus.records.manifest import given_as

# A difference is called certain where p, after Holm's adjustment, is below this.
CERTAIN = 0.05
_TITLES = {
    "model": "Model", "metric": "Metric", "pattern": "Pattern", "a": "First", "b": "Second", "difference": "Δ",
    "low": "95 % interval", "p_holm": "p", "items": "Items", "verdict": "Verdict",
}  # fmt: skip
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
    first, second = (
        {"name": name, "folder": given_as(sweep.folder), "progress": progress(sweep.frame),
         "commits": commits_of(sweep.records)}
        for name, sweep in zip(names, sweeps)
    )  # fmt: skip
    text = render(
        "compare.html.jinja",
        COMPARE_SCRIPTS,
        first=first,
        second=second,
        headline=headline(rows, names[1]),
        caption=table.caption,
        notes=table.notes,
        count=len(rows),
        filters=[("model", "Model"), ("metric", "Metric"), ("verdict", "Verdict")],
        figures=[figure_of(picture, {table.name: "Loss: second minus first"}) for picture in pictures],
        tables=[table_of(table, {table.name: "Every pattern: values and differences"})],
        data=as_json(
            {"what": "differences", "name": f"{names[1]} against {names[0]}", "most": MOST_ROWS, "rows": len(rows),
             "filters": ["model", "metric", "verdict"], "columns": _columns(rows)}
        ),
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
    ranks = {name: (result_column(name).part, rank) for rank, name in enumerate(dict.fromkeys(rows["metric"]))}
    order = sorted(range(len(rows)), key=lambda i: ranks[rows["metric"].iloc[i]])
    return rows.iloc[order].reset_index(drop=True)


def _unit(name: str, own: pd.DataFrame) -> tuple[float, int, str]:
    """(scale, digits, unit) in which a metric is shown."""
    share = is_share(result_column(name).measure, [*own["a"], *own["b"]])
    return (100, 1, " %") if share else (1, 3, "")


def _columns(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The columns of the table as the page's script reads them: texts, each with the number that it sorts by."""
    names = short_patterns(rows)
    one = rows.assign(model="", variant="", seed=0).drop_duplicates("pattern")
    units = {name: _unit(name, own) for name, own in groups_of(rows, "metric")}
    texts: dict[str, list[str]] = {key: [] for key in _TITLES}
    for row in rows_of(rows):
        scale, digits, unit = units[row.metric]
        low, high = number(row.low * scale, digits), number(row.high * scale, digits)
        certain = row.p_holm < CERTAIN
        cells = {
            "model": _model(row._asdict()),
            "metric": row.metric.replace("_", " ") + (f" ({unit.strip()})" if unit else ""),
            "pattern": names[row.pattern],
            "a": number(row.a * scale, digits),
            "b": number(row.b * scale, digits),
            "difference": number(row.difference * scale, digits, row.stderr * scale),
            "low": f"{low} to {high}",
            "p_holm": "—" if pd.isna(row.p_holm) else f"{row.p_holm:.2g}",
            "items": str(row.items) if row.items else "—",
            "verdict": ("higher" if row.difference > 0 else "lower") if certain else "not certain",
        }
        for key, text in cells.items():
            texts[key].append(text)
    first = {"pattern": [names[pattern] for pattern in in_order(one)["pattern"]]}
    columns = []
    for key, title in _TITLES.items():
        column = {"key": key, "title": title, "shown": True, **repeated(texts[key], first.get(key, ()))}
        if key in rows and key not in ("metric", "pattern"):
            column["values"] = values(rows[key].where(rows[key].ne(0)) if key == "items" else rows[key])
        columns.append(column)
    return columns


def _model(row) -> str:
    a, b = row["run_a"], row["run_b"]
    return a if a == b else f"{a} → {b}"
