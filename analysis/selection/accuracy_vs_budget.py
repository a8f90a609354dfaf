# %% [markdown]
"""
# Accuracy against entries read

Patterns that select by query (top-k blocks, Quest, SnapKV) read few of the entries that they hold. What does a budget
of reads buy? Every method beside every other at what a decoding step reads: selected blocks, dilation, window and
sinks, random blocks.

- `table`: one row a cell, plain values, for CSV
- `summary`: one row a model, method and pattern, mean over seeds, rounded; what was measured beside what was counted
- `figure`: a column a model, a row a result, a line a method

Run it as `python -m ratplus.analysis.selection.accuracy_vs_budget outputs/topk`, through `ratplus report`, or as a
notebook (with jupytext; set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ratplus.analysis.draw import style
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import (
    SELECTING,
    error_source,
    first_runs,
    in_order,
    over_seeds,
    short_patterns,
    unfinished,
)
from ratplus.analysis.frame.load import ENDINGS
from ratplus.analysis.frame.reads import READ_CAPTION, entries
from ratplus.analysis.frame.tasks import is_cost, is_share, result_column
from ratplus.analysis.page.notebook import run
from ratplus.analysis.paired.differences import baseline_title, stored_results, with_differences, with_row_errors
from ratplus.analysis.paired.ties import delta_texts, difference_notes, mark_ties

NAME = "accuracy_vs_budget"
# A figure has room for so many models, methods of each, and results.
MOST_RUNS, MOST_METHODS, MOST_RESULTS = 4, 9, 3
# A table shows the differences of so many results; the CSV file has all.
MOST_WITH_DELTA = 3
# Metrics of a pattern that selects, as the evaluation measured it on real prompts.
DENSITY, HIT_RATE = "selection_density", "selection_hit_rate"
REFERENCE = (0, (1, 1.6))

# %% [markdown]
"""
## Tables

`kv_read` is counted for the step at the end of the context. `selection_density` is what was measured: the share of all
entries that a step after a real prompt read, mean over layers and heads of keys.
"""


# %%
def results_of(frame: pd.DataFrame) -> list[str]:
    """The results that say how good a pattern is: the loss and every task as a whole, in the frame's order.

    Of several measures of one task the first is taken, perplexity and next-token accuracy repeat the loss.
    """
    names: dict[str, str] = {}
    for name in frame.attrs["metrics"]:
        column = result_column(name)
        repeats = name in ("perplexity", "next_token_accuracy") or column.part or is_cost(name)
        if repeats or not np.isfinite(frame[name]).any():
            continue
        key = f"{column.suite}/{column.task}"
        if key not in names or column.rank < result_column(names[key]).rank:
            names[key] = name
    return list(names.values())


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: which, what it holds and reads, its results with `_stderr`, status."""
    results = results_of(frame)
    cells = with_differences(in_order(frame), results)
    measured = [name + end for name in (DENSITY, HIT_RATE) if name in cells for end in ("", "_stderr")]
    results = [*(name + end for name in results for end in ("", "_stderr", *ENDINGS)), *measured]
    names = ["model", "variant", "method", "pattern", "seed", "context", "kv_entries", "kv_read", "kv_read_exact"]
    return cells[[*names, *results, "status", "error"]]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each model, method and pattern, rounded, by what a step reads within a method."""
    rows = _rows(frame)
    shown = pd.DataFrame(
        {"Model": rows["run"], "Method": rows["method"], "Pattern": rows["pattern"].map(short_patterns(rows))}
    )
    if (rows["cells"] > 1).any():
        seeds = zip(rows["done"], rows["cells"])
        shown["Seeds"] = [str(done) if done == cells else f"{done} of {cells}" for done, cells in seeds]
    shown["KV held"] = entries(rows["kv_entries"])
    shown["KV read"] = entries(rows["kv_read"], rows["kv_read_exact"])
    if DENSITY in rows:
        shown["Measured (%)"] = [number(100 * value, 1) for value in rows[DENSITY]]
    if HIT_RATE in rows:
        shown["Hits (%)"] = [number(100 * value, 1) for value in rows[HIT_RATE]]
    first = None
    results = results_of(frame)
    for name in results:
        scale, digits, title = _shown(frame, name)
        first = first or title
        pairs = zip(rows[name] * scale, rows[f"{name}_stderr"] * scale)
        shown[title] = mark_ties(rows, name, [number(value, digits, error) for value, error in pairs])
        if len(results) <= MOST_WITH_DELTA:
            shown[f"Δ {title.removesuffix(' (%)').lower()}"] = delta_texts(rows, name, scale, digits)
    place = first or "KV read"
    shown[place] = [f"**{status}**" if status != "done" else text for status, text in zip(rows["status"], shown[place])]
    return shown


def _shown(frame: pd.DataFrame, name: str) -> tuple[float, int, str]:
    """(scale, digits, title) of a result."""
    column = result_column(name)
    if is_share(column.measure, frame[name]):
        return 100, 1, f"{column.task.replace('_', ' ').capitalize()} (%)"
    return 1, 3, "Loss" if name == "loss" else name.replace("_", " ").capitalize()


def _rows(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each model and pattern, mean over seeds."""
    results = results_of(frame)
    cells = with_differences(in_order(frame), results)
    measured = [name for name in (DENSITY, HIT_RATE) if name in cells]
    rows = over_seeds(cells, [*results, *(f"{name}_delta" for name in results), *measured])
    return with_row_errors(rows, frame, results)


def caption(frame: pd.DataFrame) -> str:
    """What the columns of `summary` mean."""
    contexts = " or ".join(str(context) for context in sorted(frame["context"].unique()))
    measured = (
        " Measured: the share of all entries that a step at the end of real rows, of their own length, read."
        if DENSITY in frame
        else ""
    ) + (
        " Hits: how often a head sees the answer where it is asked for, mean over layers and heads."
        if HIT_RATE in frame
        else ""
    )
    return (
        f"Results by method and by what a decoding step reads; ± is the standard error {error_source(frame)}. KV held: "
        f"cache entries of a head before the step at position {contexts}, mean over layers and heads.{READ_CAPTION}"
        f"{measured} Bold: the best sparse pattern of each model. Δ: difference to {baseline_title(frame)} of the same "
        "model."
    )


# %% [markdown]
"""
## Figure

A method has a colour, a line and a marker, over all models. The dotted line is the model's dense value. White markers
stand where the entries read, by a head at a decoding step, are an upper bound. Hybrids are points: what they read is a
mean over unlike heads.
"""


# %%
def figure(frame: pd.DataFrame) -> Figure:
    """Results (rows) of each model (columns) against entries read, a line a method; at the width of a page.

    Raises:
        ValueError: no finished cell has a result.
    """
    results = results_of(frame)
    # Tasks say more about a selection than the loss: most of the text needs nothing far away.
    results = [*[name for name in results if name != "loss"], *[name for name in results if name == "loss"]]
    if not results:
        raise ValueError(f"{NAME}: no finished cell has a result, so there is nothing to draw")
    rows, left_out = first_runs(_rows(frame), MOST_RUNS)
    runs = list(dict.fromkeys(rows["run"]))
    methods = [method for method in dict.fromkeys(rows["method"]) if method != "dense"]
    notes = [left_out] if left_out else []
    if len(methods) > MOST_METHODS:
        notes.append(f"{MOST_METHODS} of {len(methods)} methods; all: see table")
    if len(results) > MOST_RESULTS:
        notes.append(f"{MOST_RESULTS} of {len(results)} results; all: see table")
    methods, results = methods[:MOST_METHODS], results[:MOST_RESULTS]
    looks, marks = style.looks(methods), style.markers(methods)
    with style.context():
        drawing = Figure(figsize=(style.TEXT_WIDTH_IN, 0.4 + 1.7 * len(results)))
        grid = drawing.subplots(len(results), len(runs), sharex=True, sharey="row", squeeze=False)
        for line, name in zip(grid, results):
            scale, _, title = _shown(frame, name)
            for axes, run_key in zip(line, runs):
                own = rows[rows["run"].eq(run_key) & np.isfinite(rows[name])]
                dense = own.loc[own["kind"].eq("dense"), name]
                if len(dense):
                    axes.axhline(dense.iloc[0] * scale, color="0.4", linewidth=0.7, linestyle=REFERENCE, zorder=1)
                for method in methods:
                    _draw(axes, own[own["method"].eq(method)], name, scale, looks[method], marks[method])
            line[0].set_ylabel(title)
        for axes, run_key in zip(grid[0], runs):
            axes.set_title(run_key.replace(", ", "\n"))  # the model above its variant: columns are narrow
        for axes in grid[-1]:
            axes.set_xscale("log", base=2)
            axes.set_xticks(_ticks(rows.loc[rows["method"].isin(methods), "kv_read"]))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.set_xlabel("KV entries read")
        style.legend_below(drawing, _legend(rows, methods, looks, marks), most=4, left_out="; ".join(notes))
    return drawing


def _draw(axes: Axes, rows: pd.DataFrame, name: str, scale: float, look: style.Look, marker: str) -> None:
    """One method of one model: a line by entries read, markers white where those are an upper bound."""
    rows = rows[rows["kv_read"] > 0].sort_values("kv_read", kind="stable")  # zero has no place on a log axis
    line = "none" if rows["kind"].eq("hybrid").any() else look.line
    axes.plot(rows["kv_read"], rows[name] * scale, color=look.colour, linestyle=line, linewidth=0.9, zorder=2)
    for exact, part in rows.groupby(rows["kv_read_exact"].astype(bool)):
        axes.errorbar(
            part["kv_read"], part[name] * scale, yerr=part[f"{name}_stderr"] * scale, elinewidth=0.8, linestyle="none",
            marker=marker, color=look.colour, markerfacecolor=look.colour if exact else "white", zorder=3,
        )  # fmt: skip


def _ticks(reads: pd.Series) -> list[float]:
    """Powers of two, at most five of them, from below what is read least to above what is read most."""
    reads = reads[reads > 0]
    if reads.empty:
        return [1.0]
    low, high = int(np.floor(np.log2(reads.min()))), int(np.ceil(np.log2(reads.max())))
    return [2.0**power for power in range(low, high + 1, max(1, -(-(high - low) // 4)))]


def _legend(rows: pd.DataFrame, methods: list[str], looks: dict, marks: dict) -> list[Line2D]:
    handles = [
        Line2D([], [], color=looks[m].colour, linestyle=looks[m].line, marker=marks[m], label=m) for m in methods
    ]
    grey: dict[str, Any] = {"color": "0.4"}
    if rows["kind"].eq("dense").any():
        handles.append(Line2D([], [], linewidth=0.7, linestyle=REFERENCE, label="dense", **grey))
    if not rows["kv_read_exact"].astype(bool).all():
        handles.append(
            Line2D([], [], marker="o", markerfacecolor="white", linestyle="none", label="at most so many read", **grey)
        )
    return handles


# %% [markdown]
"""
## In the report
"""


# %%
def applies(frame: pd.DataFrame) -> bool:
    """Whether some pattern of the sweep selects by query."""
    return bool(frame["kind"].isin(SELECTING).any())


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The table and, if any cell has a result, the figure.

    Raises:
        ValueError: no pattern of the sweep selects by query.
    """
    if not applies(frame):
        raise ValueError(f"{NAME}: no pattern of the sweep selects by query; see accuracy_vs_dilation")
    titles = {name: _shown(frame, name)[2] for name in results_of(frame)}
    deltas = titles if len(titles) <= MOST_WITH_DELTA else {}
    notes = [*difference_notes(_rows(frame), deltas, titles, stored_results(frame, list(titles))), *unfinished(frame)]
    notes += [f"{short}: {label}." for label, short in short_patterns(in_order(frame)).items() if short != label]
    made = Table(NAME, table(frame), summary(frame), caption(frame), notes, names=3, grouped=True)
    return [made, Picture(NAME, figure(frame))] if results_of(frame) else [made]


# %%
if __name__ == "__main__":
    run(contents)
