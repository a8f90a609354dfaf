# %% [markdown]
"""
# Does a head select the answer?

A pattern that selects by query fails where no head reads what is asked for. The hit rate of a head: how often a query
that must give an answer sees every position of the answer in the text before (arXiv 2605.28640). From the
`selection.json` that an evaluation leaves beside its record.

- `table`: one row a cell, task, layer and head
- `summary`: one row a model and pattern: mean over heads, and the best head
- `figure`: a heat map, layers downwards and heads to the right, for each model and pattern

Run it as `python -m ratplus.analysis.selection.selection_hits outputs/topk`, through `ratplus report`, or as a
notebook (with jupytext; set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ratplus.analysis.draw import style
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import first_runs, in_order, run_name, short_patterns, spread_patterns
from ratplus.analysis.frame.rows import groups_of, rows_of
from ratplus.analysis.frame.selection import selections_of
from ratplus.analysis.page.notebook import run

NAME = "selection_hits"
# A figure has room for so many models, and patterns of each.
MOST_RUNS, MOST_PATTERNS = 3, 6

# %% [markdown]
"""
## Tables
"""


# %%
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a cell, task, layer and head: `run`, `method`, `pattern`, `seed`, `task`, `layer`, `head`, `hit_rate`."""
    found, rows = selections_of(frame), []
    for cell in rows_of(in_order(frame)):
        for task, rates in found.get(cell.cell, {"hit_rate": {}})["hit_rate"].items():
            for layer, heads in enumerate(rates):
                rows += [
                    {"run": run_name(cell.model, cell.variant), "method": cell.method, "pattern": cell.pattern,
                     "pattern_name": cell.pattern_name, "seed": cell.seed, "task": task, "layer": layer, "head": head,
                     "hit_rate": rate}
                    for head, rate in enumerate(heads)
                ]  # fmt: skip
    columns = ["run", "method", "pattern", "pattern_name", "seed", "task", "layer", "head", "hit_rate"]
    return pd.DataFrame(rows, columns=columns)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a model, pattern and task of a `table`: mean over heads, best head (of means over seeds), in percent."""
    names = short_patterns(rows)
    lines = []
    for (name, method, pattern, task), own in groups_of(rows, ["run", "method", "pattern", "task"]):
        heads = own.groupby(["layer", "head"])["hit_rate"].mean()
        layer, head = heads.idxmax()
        lines.append(
            {"Model": name, "Method": method, "Pattern": names[pattern], "Task": task.replace("_", " "),
             "Hits (%)": number(100 * heads.mean(), 1), "Best head (%)": number(100 * heads.max(), 1),
             "Layer, head": f"{layer}, {head}"}
        )  # fmt: skip
    return pd.DataFrame(lines)


# %% [markdown]
"""
## Figure

Mean over tasks and seeds. Darker: the head sees the answer more often.
"""


# %%
def figure(frame: pd.DataFrame, rows: pd.DataFrame | None = None) -> Figure:
    """A heat map for each model (rows) and pattern (columns).

    Args:
        rows: of `table`, where they are at hand.
    """
    rows = table(frame) if rows is None else rows
    rows, left_out = first_runs(rows, MOST_RUNS)
    patterns, left_out = spread_patterns(dict.fromkeys(rows["pattern"]), rows, MOST_PATTERNS, left_out)
    runs, names = list(dict.fromkeys(rows["run"])), short_patterns(rows, longest=18)
    scale = Normalize(0, 100)
    with style.context():
        width = style.COLUMN_WIDTH_IN if len(patterns) < 3 else style.TEXT_WIDTH_IN
        drawing = Figure(figsize=(width, 0.5 + 1.35 * len(runs)))
        grid = drawing.subplots(len(runs), len(patterns), squeeze=False, sharex=True, sharey="row")
        for line, name in zip(grid, runs):
            for axes, pattern in zip(line, patterns):
                own = rows[rows["run"].eq(name) & rows["pattern"].eq(pattern)]
                axes.grid(False)
                if own.empty:
                    axes.set_axis_off()
                    continue
                heat = own.groupby(["layer", "head"])["hit_rate"].mean().unstack("head").to_numpy()
                image = axes.imshow(100 * heat, cmap=style.SHADES, norm=scale, aspect="auto", interpolation="nearest")
                _write(axes, 100 * heat, scale)
                axes.set_xticks(range(0, heat.shape[1], max(1, heat.shape[1] // 4)))
                axes.set_yticks(range(0, heat.shape[0], max(1, heat.shape[0] // 4)))
                have = [run for run in runs if not rows[rows["run"].eq(run) & rows["pattern"].eq(pattern)].empty]
                if name == have[0]:
                    axes.set_title(names[pattern], fontsize=7)
                if name == have[-1]:
                    axes.set_xlabel("Head", fontsize=7)
            line[0].set_ylabel(f"{name}\nlayer", fontsize=7)
        bar = drawing.colorbar(image, ax=list(grid.ravel()), shrink=0.9, pad=0.02)
        bar.set_label("Hits (%)")
        bar.outline.set_linewidth(0.6)
        if left_out:
            style.legend_below(drawing, [], left_out=left_out)
    return drawing


def _write(axes, heat: np.ndarray, scale: Normalize) -> None:
    """Numbers in the fields, where there are few enough to be read."""
    if heat.size > 24:
        return
    for (layer, head), value in np.ndenumerate(heat):
        colour = "white" if scale(value) > 0.55 else "black"
        axes.text(head, layer, number(value, 0), ha="center", va="center", fontsize=5.5, color=colour)


# %% [markdown]
"""
## In the report
"""


# %%
def applies(frame: pd.DataFrame) -> bool:
    """Whether a finished cell has hit rates."""
    return any(plain["hit_rate"] for plain in selections_of(frame).values())


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The table and the figure.

    Raises:
        ValueError: no finished cell has hit rates.
    """
    rows = table(frame)
    if rows.empty:
        raise ValueError(f"{NAME}: no finished cell has hit rates; patterns that select by query have them")
    caption = (
        "Hits: how often a head sees every position of the answer where it is asked for, on a few rows of each task; "
        "mean over layers and heads, and the head that has most. Mean over seeds."
    )
    data = rows.drop(columns="pattern_name")
    return [Table(NAME, data, summary(rows), caption, names=4, grouped=True), Picture(NAME, figure(frame, rows))]


# %%
if __name__ == "__main__":
    run(contents)
