# %% [markdown]
"""
# Every task, pattern by pattern

One table for each suite of tasks that the sweep's cells were evaluated on: commonsense, LongBench, needle in a
haystack, cloze, recall, and any other task under its own name. Rows are patterns, columns tasks and their average.

- `table`: one row a cell with plain values, the average and the difference to dense, for CSV
- `summary`: one row a pattern, mean over seeds, rounded; the best sparse pattern of each model in bold

Run it as `python -m ratplus.analysis.pattern_tables outputs/demo`, through `ratplus report`, or as a notebook (with
jupytext; set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import error_source, in_order, over_seeds, short_patterns, unfinished
from ratplus.analysis.frame.averages import averaged, has_average, mean_of, one_measure, suites_of
from ratplus.analysis.frame.load import ENDINGS
from ratplus.analysis.frame.methods import needs_methods
from ratplus.analysis.frame.reference import paper_rows
from ratplus.analysis.frame.rows import groups_of
from ratplus.analysis.frame.tasks import SUITES, ResultColumn, is_share, niah_groups
from ratplus.analysis.page.notebook import run
from ratplus.analysis.paired.differences import (
    baseline_title,
    stored_results,
    with_differences,
    with_row_errors,
)
from ratplus.analysis.paired.ties import delta_texts, difference_notes, mark_ties

NAME = "pattern_tables"
# With more tasks than this, a table shows standard errors of the average only, and with more still it is continued.
MOST_WITH_ERRORS, MOST_TASKS = 5, 12
# Without an average, the difference of each of so few tasks is shown.
MOST_WITH_DELTA = 3

# %% [markdown]
"""
## Tables

The average is over tasks, each with equal weight and one measure (accuracy before normalised accuracy); a suite that
records a total of its own has that instead. It is null where one of its tasks is missing: never the mean of the others.
"""


# %%
@dataclass(frozen=True)
class _Prepared:
    """What all parts of a suite's table are made of: its tasks, `_with_average` of the cells, and `_rows` of these."""

    tasks: list[ResultColumn]
    cells: pd.DataFrame
    rows: pd.DataFrame


def _prepared(frame: pd.DataFrame, suite: str) -> _Prepared:
    tasks = suites_of(frame)[suite]
    cells = _with_average(in_order(frame), tasks)
    return _Prepared(tasks, cells, _rows(frame, cells, tasks))


def table(frame: pd.DataFrame, suite: str, prepared: _Prepared | None = None) -> pd.DataFrame:
    """One row a cell: which it is, its tasks with `_stderr` and their differences, the same of `average`, status."""
    prepared = prepared or _prepared(frame, suite)
    tasks, cells = prepared.tasks, prepared.cells
    ends = ("", "_stderr", *ENDINGS)
    results = [name + end for name in _compared(tasks) if name != "average" for end in ends if name + end in cells]
    names = ["model", "variant", "method", "pattern", "dilation", "window", "sinks", "seed", *results]
    return cells[[*names, *(f"average{end}" for end in ends), "status", "error"]]


def summary(frame: pd.DataFrame, suite: str, prepared: _Prepared | None = None) -> pd.DataFrame:
    """One row for each model and pattern, rounded; of each model the best sparse pattern is bold, its ties marked."""
    prepared = prepared or _prepared(frame, suite)
    columns, rows = _shown_columns(prepared.cells, prepared.tasks), prepared.rows
    shown = pd.DataFrame({"Model": rows["run"], "Pattern": rows["pattern"].map(short_patterns(rows))})
    if needs_methods(rows):
        shown.insert(1, "Method", rows["method"])
    if (rows["cells"] > 1).any():
        seeds = zip(rows["done"], rows["cells"])
        shown["Seeds"] = [str(done) if done == cells_ else f"{done} of {cells_}" for done, cells_ in seeds]
    few = len(columns) <= MOST_WITH_ERRORS + 2
    for title, column, scale, digits in columns:
        if column.endswith("_delta"):
            shown[title] = delta_texts(rows, column.removesuffix("_delta"), scale, digits)
            continue
        errors = rows[f"{column}_stderr"] if few or column == "average" else np.nan
        values = rows[column] * scale
        texts = [number(v, digits, e) for v, e in zip(values, np.broadcast_to(errors * scale, len(rows)))]
        shown[title] = mark_ties(rows, column, texts, [number(v, digits) for v in values])
    first = shown.columns[list(shown.columns).index("Pattern") + 1 + ("Seeds" in shown)]
    shown[first] = [f"**{status}**" if status != "done" else text for status, text in zip(rows["status"], shown[first])]
    return shown if frame.attrs.get("reference") != "paper" else _with_paper(shown, suite)


def _with_average(cells: pd.DataFrame, tasks: list[ResultColumn]) -> pd.DataFrame:
    """The cells with `average`, its standard error and its difference to dense; for needles also the paper's groups."""
    cells = cells.copy()
    chosen = averaged(tasks)
    if chosen[0].suite == "niah":
        for name, members in niah_groups(chosen).items():
            cells[f"group:{name}"], cells[f"group:{name}_stderr"] = mean_of(cells, members)
    cells["average"], cells["average_stderr"] = mean_of(cells, chosen) if has_average(chosen) else (np.nan, np.nan)
    return with_differences(cells, _compared(tasks))


def _compared(tasks: list[ResultColumn]) -> dict[str, str]:
    """{column of `_with_average`: what it is called in `averages_of`} of all that patterns are compared by."""
    chosen = averaged(tasks)
    groups = niah_groups(chosen) if chosen[0].suite == "niah" else {}
    columns = [*(task.column for task in tasks), *(f"group:{name}" for name in groups)]
    return {**{name: name for name in columns}, "average": f"average:{tasks[0].suite}"}


def _rows(frame: pd.DataFrame, cells: pd.DataFrame, tasks: list[ResultColumn]) -> pd.DataFrame:
    """One row for each model and pattern, mean over seeds, with the errors of differences."""
    compared = _compared(tasks)
    return with_row_errors(over_seeds(cells, [*compared, *(f"{name}_delta" for name in compared)]), frame, compared)


def _shown_columns(cells: pd.DataFrame, tasks: list[ResultColumn]) -> list[tuple[str, str, float, int]]:
    """(title, column, scale, digits) of each column of numbers; titles all different."""
    columns: list[tuple[str, str, float, int]] = []
    parts = [task for task in tasks if not task.whole]
    if len(parts) > MOST_TASKS:
        # Every task once, and whole: its other measures and its parts are in the CSV file.
        parts = [task for task in one_measure(parts) if not task.part] or parts
    average = cells["average"].notna().any() and (len(parts) > 1 or len(parts) < len(tasks))
    measures = Counter(task.task for task in parts)
    for task in parts:
        scale, unit = _unit(cells[task.column], task.measure)
        title = task.task.replace("_", " ") + (f" {task.measure}" if measures[task.task] > 1 else "")
        columns.append((f"{title}{unit}{' ↓' if task.lower else ''}", task.column, scale, _digits(scale)))
        if not average and len(parts) <= MOST_WITH_DELTA:
            columns.append((f"Δ {title}", f"{task.column}_delta", scale, _digits(scale)))
    for name in [name for name in _compared(tasks) if name.startswith("group:")]:
        scale, unit = _unit(cells[name], "accuracy")
        columns.append((f"{name.removeprefix('group:')}{unit}", name, scale, _digits(scale)))
    if average:
        whole = next((task for task in tasks if task.whole), tasks[0])
        scale, unit = _unit(cells["average"], whole.measure)
        name = "All" if whole.whole else "Average"
        columns.append((f"{name}{unit}{' ↓' if whole.lower else ''}", "average", scale, _digits(scale)))
        columns.append((f"Δ {name.lower()}", "average_delta", scale, _digits(scale)))
    titles = Counter(title for title, *_ in columns)
    return [
        (title if titles[title] == 1 else column, column, scale, digits) for title, column, scale, digits in columns
    ]


def _unit(values: pd.Series, measure: str) -> tuple[float, str]:
    return (100, " (%)") if is_share(measure, values) else (1, "")


def _digits(scale: float) -> int:
    return 1 if scale == 100 else 2


# %% [markdown]
"""
## Beside the paper

With `--reference paper` the paper's values stand below ours, in rows that say so. They are of larger models, other data
and the paper's own harness: for orientation, not for a difference.
"""


# %%
def _with_paper(shown: pd.DataFrame, suite: str) -> pd.DataFrame:
    """`shown` with the paper's rows of that suite below, in the columns of the same name; the rest is `—`."""
    rows = paper_rows(suite)
    if rows.empty:
        return shown
    heads = {title.split(" (%)")[0].lower(): title for title in shown.columns}
    if "average" in rows["task"].values and "average" not in heads:
        heads["average"] = "Average (%)"
        shown = shown.assign(**{"Average (%)": "—"})
    below = []
    for (model, pattern), values in groups_of(rows, ["model", "pattern"]):
        line = dict.fromkeys(shown.columns, "—") | {"Model": f"{model} (paper)", "Pattern": pattern}
        line |= {heads[task]: f"{value:g}" for task, value in values[["task", "value"]].values if task in heads}
        below.append(line)
    return pd.concat([shown, pd.DataFrame(below)], ignore_index=True)


# %% [markdown]
"""
## In the report
"""


# %%
def caption(frame: pd.DataFrame, suite: str, shown: pd.DataFrame) -> str:
    """What the columns of `shown`, the suite's `summary`, mean."""
    text = f"{SUITES[suite]} by inference pattern; ± is the standard error {error_source(frame)}."
    text += " Bold: the best sparse pattern of each model. ↓: lower is better."
    if any(name.startswith("Δ") for name in shown):
        text += f" Δ: difference to {baseline_title(frame)} of the same model."
    if frame.attrs.get("reference") == "paper" and len(paper_rows(suite)):
        text += " Rows marked (paper) are those of arXiv 2602.18196: other models, data and harness."
    return text


def _difference_notes(frame: pd.DataFrame, prepared: _Prepared) -> list[str]:
    """What the errors and marks of a suite's `summary` are of."""
    titles = {column: title for title, column, *_ in _shown_columns(prepared.cells, prepared.tasks)}
    deltas = {name.removesuffix("_delta"): title for name, title in titles.items() if name.endswith("_delta")}
    marked = {name: title for name, title in titles.items() if not name.endswith("_delta")}
    return difference_notes(prepared.rows, deltas, marked, stored_results(frame, _compared(prepared.tasks)))


def applies(frame: pd.DataFrame) -> bool:
    """Whether any cell was evaluated on a task beside the loss."""
    return bool(suites_of(frame))


def contents(frame: pd.DataFrame) -> list[Table]:
    """A table `pattern_tables_<suite>` for each suite; one of more than 12 tasks is continued in `_2`, `_3`, ...

    The CSV file of the first has all tasks.

    Raises:
        ValueError: none of the finished cells was evaluated on more than the loss.
    """
    if not applies(frame):
        raise ValueError("no task results: none of the sweep's finished cells was evaluated on more than the loss")
    made = []
    for suite in suites_of(frame):
        prepared = _prepared(frame, suite)
        data, shown = table(frame, suite, prepared), summary(frame, suite, prepared)
        left = 3 if "Method" in shown else 2  # columns of names
        names = left + ("Seeds" in shown)
        heads, rest = list(shown.columns[:names]), list(shown.columns[names:])
        last = [name for name in rest if name.startswith(("Average", "All", "Δ"))]
        rest = [name for name in rest if name not in last]
        pages = [rest[i : i + MOST_TASKS] for i in range(0, len(rest), MOST_TASKS)] or [[]]
        notes = [*_difference_notes(frame, prepared), *unfinished(frame)]
        notes += [f"{short}: {label}." for label, short in short_patterns(in_order(frame)).items() if short != label]
        text = caption(frame, suite, shown)
        for page, titles in enumerate(pages, start=1):
            part = shown[[*heads, *titles, *(last if page == len(pages) else [])]]
            name = f"{NAME}_{suite}" + (f"_{page}" if page > 1 else "")
            made.append(Table(name, data if page == 1 else None, part, text, notes, names=left, grouped=True))
    return made


# %%
if __name__ == "__main__":
    run(contents)
