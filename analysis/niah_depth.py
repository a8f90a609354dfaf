# %% [markdown]
"""
# Needles by depth

Where in the haystack does a pattern lose a needle? Accuracy of the NIAH tasks that ask for one needle, by pattern and
by the needle's depth: a fifth of the haystack each, from its start to its end.

- `table`: one row a cell, task and depth, with plain values, for CSV
- `summary`: one row a model, pattern and task, rounded, a column a depth
- `figure`: a heat map a model, patterns downwards and depth to the right; several tasks are averaged

Run it as `python -m ratplus.analysis.niah_depth outputs/niah`, through `ratplus report`, or as a notebook (with
jupytext; set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

import re

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ratplus.analysis.draw import style
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import error_source, first_runs, in_order, over_seeds, short_patterns, unfinished
from ratplus.analysis.page.notebook import run
from ratplus.analysis.paired.differences import baseline_title, stored_results, with_differences, with_row_errors
from ratplus.analysis.paired.ties import delta_texts, difference_notes, mark_ties

NAME = "niah_depth"
# A figure has room for so many models, and for so many patterns of each.
MOST_RUNS, MOST_PATTERNS = 4, 14
# `<task>_<score>_<from>_<to>` in percent of the haystack, <to> excluded; the last bin ends at 101.
_BIN = re.compile(r"(?:.*[/:])?(niah_\w+?)_(overlap|substring)_(\d+)_(\d+)")
_SAYS = {
    "substring": "An answer counts if it occurs in what the model says (RULER's score).",
    "overlap": "An answer counts if it is all that the model says between two commas (the paper's score).",
}

# %% [markdown]
"""
## Tables

The score is RULER's: whether what the model says holds the answer. It is all or nothing for one needle: a wrong digit
counts as much as a wrong number. Records of before the suite's version 2 have by depth the paper's score alone, which
compares the comma-separated parts of the answer word for word; where a cell has no other, all are shown by that one.
"""


# %%
def bins(frame: pd.DataFrame) -> dict[str, dict[tuple[int, int], str]]:
    """{task: {(from, to) in percent: column}} that a finished cell has a value of, from the haystack's start on.

    The columns are those of `score(frame)`.
    """
    found: dict[str, dict[tuple[int, int], str]] = {}
    for name, (task, depth) in _columns(frame, score(frame)).items():
        found.setdefault(task, {})[depth] = name
    return {task: dict(sorted(columns.items())) for task, columns in found.items()}


def score(frame: pd.DataFrame) -> str:
    """`substring`, or `overlap` where some cell has accuracies by depth of that one alone: one score for all cells."""
    both = {name: frame[list(_columns(frame, name))].notna().any(axis=1) for name in ("overlap", "substring")}
    return "overlap" if (both["overlap"] & ~both["substring"]).any() else "substring"


def _columns(frame: pd.DataFrame, wanted: str) -> dict[str, tuple[str, tuple[int, int]]]:
    """{column: (task, (from, to))} of a score, of those that a finished cell has a value of."""
    found = {}
    for name in frame.attrs["metrics"]:
        match = _BIN.fullmatch(name.removeprefix("metric:"))
        if match and match[2] == wanted and frame[name].notna().any():
            found[name] = match[1], (int(match[3]), int(match[4]))
    return found


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each cell, task and depth: `depth_from`, `depth_to` (percent), `accuracy` with its `_stderr`."""
    parts = []
    cells = in_order(frame)
    for task, columns in bins(frame).items():
        for (low, high), name in columns.items():
            part = cells[["model", "variant", "pattern", "dilation", "window", "sinks", "seed"]].copy()
            part["task"], part["depth_from"], part["depth_to"] = task, low, min(high, 100)
            part["accuracy"], part["accuracy_stderr"] = cells[name], cells[f"{name}_stderr"]
            part["status"] = cells["status"]
            parts.append(part)
    rows = pd.concat(parts).reset_index(names="place")
    return rows.sort_values(["place", "task", "depth_from"], kind="stable").drop(columns="place").reset_index(drop=True)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each model, pattern and task: accuracy in percent by depth, mean over seeds, and over all depths."""
    rows, tasks = _over_seeds(frame)
    depths = _depths(tasks)
    short, several = short_patterns(rows), len(tasks) > 1
    shown, alls, deltas = [], {}, {}
    for task in tasks:
        name = f"{task}_all"
        if name in rows:
            errors = rows[f"{name}_stderr"] * 100
            texts = [number(value, 1, error) for value, error in zip(rows[name] * 100, errors)]
            alls[task], deltas[task] = mark_ties(rows, name, texts), delta_texts(rows, name, 100, 1)
    for place, row in enumerate(rows.to_dict("records")):
        for task, columns in tasks.items():
            line = {"Model": row["run"], "Pattern": short[row["pattern"]]}
            line |= {"Task": _title(task)} if several else {}
            texts = [
                number(100 * row[columns[depth]], 0, 100 * row[f"{columns[depth]}_stderr"]) if depth in columns else "—"
                for depth in depths
            ]
            if row["status"] != "done":
                texts[0] = f"**{row['status']}**"
            line |= dict(zip(map(_depth_title, depths), texts))
            line["All (%)"] = alls[task][place] if task in alls else "—"
            shown.append(line | ({"Δ all": deltas[task][place] if task in deltas else "—"} if deltas else {}))
    return pd.DataFrame(shown)


def _over_seeds(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict]:
    """(rows of model and pattern with each bin's mean over seeds and `<task>_all`; the bins)."""
    tasks, cells, wholes = bins(frame), in_order(frame), _wholes(frame)
    names = [name for columns in tasks.values() for name in columns.values()]
    for name, whole in wholes.items():
        cells[name], cells[f"{name}_stderr"] = cells[whole], cells[f"{whole}_stderr"]
    rows = over_seeds(with_differences(cells, wholes), [*names, *wholes, *(f"{name}_delta" for name in wholes)])
    return with_row_errors(rows, frame, wholes), tasks


def _wholes(frame: pd.DataFrame) -> dict[str, str]:
    """{`<task>_all`: column of the task's score over all depths}."""
    ends = {re.split(r"[/:]", name)[-1]: name for name in reversed(frame.attrs["metrics"])}
    chosen = score(frame)
    return {f"{task}_all": ends[f"{task}_{chosen}"] for task in bins(frame) if f"{task}_{chosen}" in ends}


def _depths(tasks: dict) -> list[tuple[int, int]]:
    return sorted({depth for columns in tasks.values() for depth in columns})


def _depth_title(depth: tuple[int, int]) -> str:
    return f"{depth[0]}–{min(depth[1], 100)} %"


def _title(task: str) -> str:
    return task.removeprefix("niah_").replace("_", " ")


# %% [markdown]
"""
## Figure

Darker is better. White with a cross: a cell without a result.
"""


# %%
def figure(frame: pd.DataFrame) -> Figure:
    """A heat map for each model (the first four): accuracy in percent by pattern and depth, the mean over its tasks.

    Raises:
        ValueError: no finished cell has accuracies by depth.
    """
    rows, tasks = _over_seeds(frame)
    if not tasks:
        raise ValueError("niah_depth: no finished cell has NIAH accuracies by depth")
    depths, short = _depths(tasks), short_patterns(rows)
    rows, left_out = first_runs(rows, MOST_RUNS)
    panels = {name: part for name, part in rows.groupby("run", sort=False)}
    longest = max(len(part) for part in panels.values())
    if longest > MOST_PATTERNS:
        panels = {name: part.iloc[:MOST_PATTERNS] for name, part in panels.items()}
        left_out = "; ".join(filter(None, [left_out, f"{MOST_PATTERNS} of {longest} patterns; all: see table"]))
    with style.context():
        across = min(2, len(panels))
        down = -(-len(panels) // across)
        width = style.COLUMN_WIDTH_IN if across == 1 else style.TEXT_WIDTH_IN
        height = max(0.22 * min(longest, MOST_PATTERNS) + 0.75, 1.4)
        drawing = Figure(figsize=(width, height * down))
        grid = drawing.subplots(down, across, squeeze=False).ravel()
        for place, (axes, (name, part)) in enumerate(zip(grid, panels.items())):
            values = np.array([[_mean(row, tasks, depth) for depth in depths] for row in part.to_dict("records")])
            image = _draw(axes, 100 * values, [short[pattern] for pattern in part["pattern"]], depths)
            axes.set_title(name)
            if place >= len(panels) - across:
                axes.set_xlabel("Depth of the needle (% of the haystack)")
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        bar = drawing.colorbar(image, ax=list(grid), shrink=0.9, pad=0.02)
        bar.set_label("Accuracy (%)" if len(tasks) == 1 else f"Accuracy (%), mean of {len(tasks)} tasks")
        bar.outline.set_linewidth(0.6)
        if left_out:
            style.legend_below(drawing, [], left_out=left_out)
    return drawing


def _mean(row: dict, tasks: dict, depth: tuple[int, int]) -> float:
    """The mean over the tasks that have this depth; null where one has no value, never the mean of the others."""
    return float(np.mean([row[columns[depth]] for columns in tasks.values() if depth in columns]))


def _draw(axes, values: np.ndarray, patterns: list[str], depths: list[tuple[int, int]]):
    scale = Normalize(0, 100)
    image = axes.imshow(values, cmap=style.SHADES, norm=scale, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.set_facecolor("white")
    axes.set_yticks(range(len(patterns)), patterns)
    axes.set_xticks(range(len(depths)), [f"{low}–{min(high, 100)}" for low, high in depths])
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(column, row, number(value, 0), ha="center", va="center", fontsize=7,
                      color="white" if scale(value) > 0.55 else "black")  # fmt: skip
        else:
            axes.plot(column, row, "x", color="0.3")
    return image


# %% [markdown]
"""
## In the report
"""


# %%
def applies(frame: pd.DataFrame) -> bool:
    """Whether a finished cell has NIAH accuracies by depth."""
    return bool(bins(frame))


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The table and the figure.

    Raises:
        ValueError: no finished cell has accuracies by depth.
    """
    if not applies(frame):
        raise ValueError("niah_depth: no finished cell has NIAH accuracies by depth")
    shown = summary(frame)
    caption = (
        "Needle in a haystack (NIAH): accuracy in percent by pattern and by the needle's depth, from the haystack's "
        f"start (0 %) to its end; ± is the standard error {error_source(frame)}. Tasks that ask for one needle. "
        f"Δ: difference to {baseline_title(frame)} of the same model. " + _SAYS[score(frame)]
    )
    wholes = {name: f"{_title(name.removesuffix('_all'))} over all depths" for name in _wholes(frame)}
    notes = difference_notes(_over_seeds(frame)[0], wholes, wholes, stored_results(frame, _wholes(frame)))
    notes += unfinished(frame)
    names = 3 if "Task" in shown else 2
    made = Table(NAME, table(frame), shown, caption, notes, names=names, grouped=True)
    return [made, Picture(NAME, figure(frame))]


# %%
if __name__ == "__main__":
    run(contents)
