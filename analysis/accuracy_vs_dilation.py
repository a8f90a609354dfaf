# %% [markdown]
"""
# Accuracy against dilation

What does each inference pattern cost in quality? One table and one figure from the records of a sweep: held-out loss
and accuracy for every model and pattern, beside the cache entries and attention FLOPs that the pattern leaves.

- `table`: one row a cell, plain values, for CSV and for further work
- `summary`: one row a pattern, mean over seeds, rounded, for a reader
- `figure`: loss and accuracy against dilation at the width of a paper's column

Run it as `python -m ratplus.analysis.accuracy_vs_dilation outputs/demo`, through `ratplus report`, or as a notebook
(with jupytext; set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ratplus.analysis.draw import style
from ratplus.analysis.draw.dilation_axis import DilationAxis
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import (
    GROUP,
    RUN,
    SELECTING,
    error_source,
    first_runs,
    in_order,
    over_seeds,
    progress,
    run_name,
    short_patterns,
    unfinished,
)
from ratplus.analysis.frame.load import METRICS
from ratplus.analysis.frame.reads import READ_CAPTION, entries, reads_apart
from ratplus.analysis.frame.rows import groups_of
from ratplus.analysis.page.notebook import run
from ratplus.analysis.paired.differences import baseline_title, stored_results, with_differences, with_row_errors
from ratplus.analysis.paired.ties import delta_texts, difference_notes, mark_ties
from ratplus.costs.facts import MIXERS, at_most

NAME = "accuracy_vs_dilation"
# A table's notes name this many errors; the CSV file has all.
MOST_ERRORS = 10
# Models and variants that a figure has room for.
MOST_RUNS = 8
# Results that patterns are compared by; perplexity would only say the loss's once more.
COMPARED = {"loss": "loss", "next_token_accuracy": "next token", "recall_accuracy": "recall"}
# Line style of the dense value; thin and dotted, unlike any model's.
REFERENCE = (0, (1, 1.6))
# What the CSV starts with; all other columns of the loaded frame follow.
LEADING = [
    "model", "pattern", "dilation", "window", "sinks", "seed", "loss", "loss_stderr", "loss_delta", "loss_delta_pm",
    "perplexity", "perplexity_stderr", "next_token_accuracy", "next_token_accuracy_stderr", "recall_accuracy",
    "recall_accuracy_stderr", "kv_entries", "kv_read", "attention_flops_ratio", "status", "error",
]  # fmt: skip

# %% [markdown]
"""
## Tables

`loss_delta` is the loss minus that of the dense cell of the same model, variant and seed: what sparsity costs.
"""


# %%
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a cell with plain values: `LEADING`, then the frame's other columns; models in the sweep's order."""
    cells = with_differences(in_order(frame), list(COMPARED))
    return cells[LEADING + [name for name in cells if name not in LEADING]]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each model and pattern as rounded strings: mean ± standard error, Δ ± to dense, what is missing.

    The best sparse pattern of each model is bold, those that tie with it are marked.
    """
    rows = _rows(frame)
    shown = pd.DataFrame({"Model": rows["run"], "Pattern": rows["pattern"].map(short_patterns(rows))})
    if (rows["cells"] > 1).any():
        seeds = zip(rows["done"], rows["cells"])
        shown["Seeds"] = [str(done) if done == cells else f"{done} of {cells}" for done, cells in seeds]
    stored = stored_results(frame, list(COMPARED))
    for title, name, scale, digits in (
        ("Loss", "loss", 1, 3),
        ("Δ loss", "loss_delta", 1, 3),
        ("Perplexity", "perplexity", 1, 2),
        ("Next token (%)", "next_token_accuracy", 100, 1),
        ("Recall (%)", "recall_accuracy", 100, 1),
    ):
        if name == "loss_delta":
            shown[title] = delta_texts(rows, "loss", scale, digits)
        elif name == "loss" or rows[name].notna().any():
            # The perplexity's spread is the loss's once more: it would only take room.
            errors = rows[f"{name}_stderr"] * scale * (np.nan if name == "perplexity" else 1)
            texts = [number(value, digits, error) for value, error in zip(rows[name] * scale, errors)]
            shown[title] = mark_ties(rows, name, texts) if name in stored.sampled else texts
    # A finished cell whose loss is not a number has diverged: a result, unlike that of a cell which was not asked.
    unasked = set(
        frame.loc[frame["cell"].isin(frame.attrs.get("no_loss", ())), GROUP].itertuples(index=False, name=None)
    )
    shown["Loss"] = [
        f"**{status}**" if status != "done" else "NaN" if pd.isna(loss) and key not in unasked else text
        for status, loss, text, key in zip(
            rows["status"], rows["loss"], shown["Loss"], rows[GROUP].itertuples(index=False, name=None)
        )
    ]
    shown["KV entries"] = entries(rows["kv_entries"])
    if reads_apart(rows):
        shown["KV read"] = entries(rows["kv_read"], rows["kv_read_exact"])
    shown["FLOPs"] = [
        at_most(number(ratio, 3), exact) for ratio, exact in zip(rows["attention_flops_ratio"], rows["flops_exact"])
    ]
    return shown


def caption(frame: pd.DataFrame) -> str:
    """What the columns of `summary` mean, for the line above the table."""
    contexts = " or ".join(str(context) for context in sorted(frame["context"].unique()))
    read = READ_CAPTION if reads_apart(frame) else ""
    return (
        "Held-out loss (nats per token) and accuracy by inference pattern; ± is the standard error "
        f"{error_source(frame)}. Δ loss: difference to {baseline_title(frame)} of the same model. KV entries: cache "
        f"entries a head before the step at position {contexts}, mean over layers and heads.{read} FLOPs: attention "
        "FLOPs relative to dense."
    )


def notes(frame: pd.DataFrame) -> list[str]:
    """Lines under the table: patterns whose label has no room in it, cells without a result and what went wrong."""
    lines = [f"{short}: {label}." for label, short in short_patterns(in_order(frame)).items() if short != label]
    stored, rows = stored_results(frame, list(COMPARED)), _rows(frame)
    told = {*stored.sampled, *stored.odd, *(name for name in COMPARED if rows[f"{name}_tied_seeds"].any())}
    marked = {name: title for name, title in COMPARED.items() if name in told}
    lines += difference_notes(rows, {"loss": "loss"}, marked, stored)
    held = in_order(frame[frame["method"].isin(MIXERS)])
    for (model, method), own in groups_of(held, ["model", "method"]):
        kib = number(own["kv_bytes"].iloc[0] / 1024, 1)
        lines.append(f"{model}: {method}, no attention and so no pattern; a sequence is a state of {kib} KiB.")
    lines += unfinished(frame)
    wrong = in_order(frame[frame["error"].ne("")])
    alike = list(groups_of(wrong, [*RUN, "pattern", "status", "error"]))
    for (model, variant, pattern, status, error), own in alike[:MOST_ERRORS]:
        seed = ", ".join(str(seed) for seed in own["seed"])
        lines.append(f"{run_name(model, variant)} {pattern} (seed {seed}) {status}: {_shortened(error, 200)}")
    if len(alike) > MOST_ERRORS:
        lines.append(f"{len(alike) - MOST_ERRORS} more errors: see the CSV file.")
    return lines


# %% [markdown]
"""
## Figure

A model has a colour and a line, a window a marker. The thin dotted line is the model's dense value; patterns without a
dilation stand right of the axis (hybrids at one place if they are many). A cross at the bottom marks a cell without a
result. Patterns that select by query are left to `accuracy_vs_budget`: a dilation says little of what they read.
"""


# %%
def figure(frame: pd.DataFrame) -> Figure:
    """Loss above accuracy (recall if the sweep measured it, else next-token) against dilation, at column width.

    Raises:
        ValueError: no finished cell has a finite loss, so that there is nothing to draw.
    """
    if nothing := nothing_to_draw(frame):
        raise ValueError(nothing)
    rows = _rows(frame)
    rows, left_out = first_runs(rows[~rows["kind"].isin(SELECTING)], MOST_RUNS)
    rows = rows.reset_index(drop=True)
    drawn = [name + suffix for name in METRICS for suffix in ("", "_stderr")]
    rows[drawn] = rows[drawn].where(np.isfinite(rows[drawn]))
    axis = DilationAxis(rows)
    rows["x"] = axis.positions(rows)
    rows["local"] = [_local(*row) for row in zip(rows["kind"], rows["window"], rows["sinks"])]
    runs = list(dict.fromkeys(rows["run"]))
    looks = style.looks(runs) if len(runs) <= 5 else style.sequence(runs)
    shapes = style.markers(sorted(set(rows["local"]) - {None})) | {None: style.HYBRID_MARKER}
    recall = rows["recall_accuracy"].notna().any()
    panels = [("loss", 1, "Held-out loss\n(nats per token)")]
    if recall or rows["next_token_accuracy"].notna().any():
        metric, title = ("recall_accuracy", "Recall") if recall else ("next_token_accuracy", "Next-token")
        panels.append((metric, 100, f"{title}\naccuracy (%)"))
    with style.context():
        drawing = Figure(figsize=(style.COLUMN_WIDTH_IN, 0.35 + 1.35 * len(panels)))
        grid = drawing.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (metric, scale, title) in zip(grid, panels):
            for name, of_run in rows.groupby("run", sort=False):
                _draw_run(axes, of_run, metric, scale, looks[name], shapes)
            if metric == "recall_accuracy":
                axes.set_ylim(bottom=0)  # a share of all answers; the other metrics have no natural floor
            _mark_lost(axes, rows, metric, looks)
            axes.set_ylabel(title)
        axis.draw(list(grid))
        grid[-1].set_xlabel(axis.title)
        drawing.align_ylabels(grid)
        handles = _legend(rows, looks, shapes, axis, [metric for metric, _, _ in panels])
        style.legend_below(drawing, handles, left_out=left_out)
    return drawing


def nothing_to_draw(frame: pd.DataFrame) -> str:
    """Why there is no figure, in one line; empty if there is one."""
    shown = frame[~frame["kind"].isin(SELECTING)]
    if (np.isfinite(shown["loss"]) & shown["status"].eq("done")).any():
        return ""
    without = "" if len(shown) == len(frame) else " and a pattern that does not select by query"
    return f"no figure: {progress(frame)}, none with a finite loss{without}"


def _draw_run(axes: Axes, rows: pd.DataFrame, metric: str, scale: float, look: style.Look, shapes: dict) -> None:
    """One model in one panel: its dense reference, a line for each window, and its other points."""
    colours: dict[str, Any] = {"color": look.colour, "markerfacecolor": look.face, "markeredgecolor": look.colour}
    dense = rows.loc[rows["kind"].eq("dense"), metric].dropna()
    if len(dense):
        axes.axhline(dense.iloc[0] * scale, color=look.colour, linewidth=0.7, linestyle=REFERENCE, zorder=1)
    on_scale = rows["dilation"].notna()
    groups = [(key, part, look.line) for key, part in rows[on_scale].groupby("local", sort=False)]
    groups += [(row.local, rows.loc[[row.Index]], "none") for row in rows[~on_scale].itertuples()]
    for local, part, line in groups:
        # A gap in the line, not a bridge, where a cell has no result.
        axes.errorbar(
            part["x"], part[metric] * scale, yerr=part[f"{metric}_stderr"] * scale, elinewidth=0.8,
            linestyle=line, marker=shapes[local], zorder=3, **colours,
        )  # fmt: skip


def _mark_lost(axes: Axes, rows: pd.DataFrame, metric: str, looks: dict) -> None:
    """A cross in a strip below the data for each pattern without a value; models one above the other."""
    lost = rows[rows[metric].isna()]
    runs = list(dict.fromkeys(lost["run"]))
    low, high = axes.get_ylim()
    step = 0.075 * (high - low)
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    for rank, run_key in enumerate(reversed(runs)):
        places = lost.loc[lost["run"].eq(run_key), "x"]
        heights = [low - (rank + 0.6) * step] * len(places)
        axes.plot(places, heights, "x", color=looks[run_key].colour, zorder=4)
    axes.set_ylim(low - (len(runs) + 0.2) * step if runs else low, high)
    axes.set_yticks(ticks)  # none in the strip


def _legend(rows: pd.DataFrame, looks: dict, shapes: dict, axis: DilationAxis, metrics: list[str]) -> list[Line2D]:
    """Legend entries: models, windows (if there are several), the dense line, missing cells, hybrids by their name."""
    handles = [
        Line2D([], [], color=look.colour, linestyle=look.line, marker="o", markerfacecolor=look.face, label=name)
        for name, look in looks.items()
    ]
    if rows.loc[rows["kind"].eq("dense"), "loss"].notna().any():
        handles.append(Line2D([], [], color="0.4", linewidth=0.7, linestyle=REFERENCE, label="same model, dense"))
    grey: dict[str, Any] = {"color": "0.4", "linestyle": "none"}
    locals_ = [local for local in shapes if local is not None]
    if len(locals_) > 1 or rows["kind"].eq("hybrid").any():
        for window, sinks in locals_:
            parts = [f"$W$ = {window}"] + ([f"$I$ = {sinks}"] if sinks else [])
            handles.append(Line2D([], [], marker=shapes[window, sinks], label=", ".join(parts), **grey))
    if rows[metrics].isna().any(axis=None):
        handles.append(Line2D([], [], marker="x", label="no result", **grey))
    names = short_patterns(rows)
    for label, short in axis.others.items():
        handles.append(Line2D([], [], marker=style.HYBRID_MARKER, label=f"{short}: {names[label]}", **grey))
    if not axis.others and rows["kind"].eq("hybrid").any():
        handles.append(Line2D([], [], marker=style.HYBRID_MARKER, label="hybrids (see table)", **grey))
    return handles


def _rows(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each model and pattern, mean over seeds."""
    if frame.empty:
        raise ValueError("no cells: the sweep is empty, so there is nothing to show")
    cells = in_order(frame)
    rows = over_seeds(with_differences(cells, ["loss"]), [*METRICS, "loss_delta"])
    return with_row_errors(rows, frame, list(COMPARED))


def _local(kind: str, window: int, sinks: int) -> tuple[int, int] | None:
    return None if kind == "hybrid" else (int(window), int(sinks))


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


# %% [markdown]
"""
## In the report
"""


# %%
def applies(frame: pd.DataFrame) -> bool:
    """Whether a sweep has what this module shows: any cell at all."""
    return len(frame) > 0


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The table and, if any cell has finished with a finite loss, the figure."""
    made = Table(NAME, table(frame), summary(frame), caption(frame), notes(frame), names=2, grouped=True)
    if nothing := nothing_to_draw(frame):
        logging.getLogger(__name__).warning("%s: %s", NAME, nothing)
        return [made]
    return [made, Picture(NAME, figure(frame))]


# %%
if __name__ == "__main__":
    run(contents)
