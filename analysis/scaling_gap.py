# %% [markdown]
"""
# The gap between dense and sparse against size

Does sparsity cost larger models less? Sparse loss minus dense loss of the same model, against the number of parameters;
a line for each pattern, a panel for each family (with and without recurrence).

Run it as `python -m ratplus.analysis.scaling_gap outputs/demo`, through `ratplus report`, or as a notebook (with
jupytext; set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from ratplus.analysis.draw import style
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table
from ratplus.analysis.frame.aggregate import in_order, over_seeds, short_patterns, spread_patterns, with_loss_delta
from ratplus.analysis.frame.reference import PARAMETERS, paper_rows
from ratplus.analysis.frame.rows import groups_of, rows_of
from ratplus.analysis.page.notebook import run
from ratplus.analysis.paired.differences import baseline_of, baseline_title, loss_delta_notes, rows_with_deltas
from ratplus.analysis.paired.ties import delta_texts

NAME = "scaling_gap"
MOST_PATTERNS = 8
FAMILIES = {True: "RAT+ (with recurrence)", False: "Attention only"}

# %% [markdown]
"""
## Table
"""


# %%
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a model and sparse pattern: `recurrence`, `run`, `parameters`, `pattern`, `loss`, `loss_delta`, errors.

    `loss_delta_pm` is the error over the evaluation's items, `loss_delta_stderr` that over seeds.
    """
    rows = _sparse(rows_with_deltas(frame, []))
    columns = ["recurrence", "run", "model", "variant", "parameters", "pattern", "kind", "loss", "loss_stderr",
               "loss_delta", "loss_delta_pm", "loss_delta_p", "loss_delta_stderr", "done", "cells"]  # fmt: skip
    return rows[columns].reset_index(drop=True)


def _sparse(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose gap is known, smallest model first."""
    rows = rows[rows["kind"].ne("dense") & np.isfinite(rows["loss_delta"]) & rows["parameters"].notna()]
    return rows.sort_values(["recurrence", "parameters"], ascending=[False, True], kind="stable")


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Models as rows, smallest first, patterns as columns; the gap in nats. With reference=paper also the paper's."""
    rows, names = table(frame), short_patterns(in_order(frame))
    rows["text"] = delta_texts(rows, "loss", 1, 3)
    lines = []
    for (recurrence, name), part in groups_of(rows, ["recurrence", "run"]):
        line = {"Family": "RAT+" if recurrence else "attention", "Model": name}
        line["Parameters"] = _millions(part["parameters"].iloc[0])
        gaps = part.set_index("pattern")
        for pattern in [pattern for pattern in names if pattern in set(rows["pattern"])]:
            gap = gaps.loc[pattern] if pattern in gaps.index else None
            line[names[pattern]] = "—" if gap is None else gap["text"]
        lines.append(line)
    shown = pd.DataFrame(lines)
    if frame.attrs.get("reference") == "paper":
        paper = [
            {"Family": "RAT+ (paper)", "Model": row.model, "Parameters": _millions(_parameters_of(row.model)),
             "Sparse (paper)": f"{row.value:.3f}"}
            for row in rows_of(paper_rows("gap"))
        ]  # fmt: skip
        shown = pd.concat([shown, pd.DataFrame(paper)], ignore_index=True).fillna("—")
    return shown


def _parameters_of(model: str) -> int:
    return PARAMETERS[model.split()[-1]]


def _ticks(value: float, _) -> str:
    return f"{value / 1e9:g}B" if value >= 1e9 else f"{value / 1e6:g}M"


def _millions(parameters: float) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"


# %% [markdown]
"""
## Figure
"""


# %%
def figure(frame: pd.DataFrame) -> Figure:
    """Δ loss against parameters: a panel a family, a line a pattern (at most eight).

    Bars are errors over seeds if there are several, else over the evaluation's items.

    Raises:
        ValueError: no model has finished both its baseline's and a sparse cell.
    """
    rows, left_out = _one_variant(table(frame))
    if rows.empty:
        raise ValueError(f"scaling_gap: no model has finished both its {baseline_of(frame)} and a sparse cell")
    names = short_patterns(in_order(frame))
    patterns, left_out = spread_patterns(names, rows, MOST_PATTERNS, left_out)
    looks, marks = style.sequence(patterns), style.markers(patterns)
    families = [family for family in (True, False) if rows["recurrence"].eq(family).any()]
    width = style.COLUMN_WIDTH_IN if len(families) == 1 else style.TEXT_WIDTH_IN
    with style.context():
        drawing = Figure(figsize=(width, 2.2))
        grid = drawing.subplots(1, len(families), squeeze=False)[0]
        for axes, family in zip(grid, families):
            for pattern in patterns:
                line = rows[rows["recurrence"].eq(family) & rows["pattern"].eq(pattern)]
                axes.errorbar(
                    line["parameters"], line["loss_delta"], yerr=_errors(line), elinewidth=0.8,
                    color=looks[pattern].colour, linestyle=looks[pattern].line, marker=marks[pattern],
                    markerfacecolor=looks[pattern].face,
                )  # fmt: skip
            if family and frame.attrs.get("reference") == "paper":
                paper = paper_rows("gap")
                axes.plot([_parameters_of(m) for m in paper["model"]], paper["value"], "*:", color="black", zorder=1)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _is_narrow(axes) else (1,)))
            axes.xaxis.set_major_formatter(FuncFormatter(_ticks))
            axes.minorticks_off()
            axes.set_title(FAMILIES[family])
            axes.set_xlabel("Parameters")
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        grid[0].set_ylabel(f"Sparse − {baseline_of(frame)} loss (nats)")
        handles = [
            Line2D([], [], color=looks[p].colour, linestyle=looks[p].line, marker=marks[p],
                   markerfacecolor=looks[p].face, label=names[p])
            for p in patterns
        ]  # fmt: skip
        if frame.attrs.get("reference") == "paper":
            handles.append(Line2D([], [], color="black", linestyle=":", marker="*", label="RAT+ (paper)"))
        style.legend_below(drawing, handles, most=6, left_out=left_out)
    return drawing


def _errors(rows: pd.DataFrame) -> pd.Series:
    """What the figure's bars show: the error over seeds where there are several, else that over items."""
    return rows["loss_delta_stderr"].fillna(rows["loss_delta_pm"])


def _one_variant(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of the variant that has the most sizes, and its name. A line joins models that differ in size only."""
    sizes = rows.groupby("variant", sort=False)["parameters"].nunique()
    if len(sizes) < 2:
        return rows, ""
    chosen = sizes.idxmax()
    return rows[rows["variant"].eq(chosen)], f"{chosen or 'no other axis'}; other variants: see table"


def _is_narrow(axes) -> bool:
    low, high = axes.get_xlim()
    return high / low < 30


# %% [markdown]
"""
## In the report
"""


# %%
def applies(frame: pd.DataFrame) -> bool:
    """Whether models of one family and variant have two sizes, each with a finished baseline and sparse cell."""
    # Models that share keys and values are smaller for another reason than size.
    alike = frame[frame["kv_heads"].eq(frame["heads"])]
    return _several_sizes(alike)


def _several_sizes(frame: pd.DataFrame) -> bool:
    # Which gaps there are; no errors, since those of a part of the frame would be computed for this alone.
    rows = _sparse(over_seeds(with_loss_delta(in_order(frame)), ["loss", "loss_delta"]))
    return bool(rows.groupby(["recurrence", "variant"])["parameters"].nunique().gt(1).any())


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The table and the figure.

    Raises:
        ValueError: no family has two sizes.
    """
    if not applies(frame):
        folder = frame.attrs["folder"]
        raise ValueError(f"{folder}: no family has two sizes with a finished {baseline_of(frame)} and sparse cell each")
    caption = f"Loss (nats per token) minus that of {baseline_title(frame)} of the same model, by inference pattern."
    data = table(frame)
    notes = loss_delta_notes(frame, data)
    made = Table(NAME, data, summary(frame), caption, notes, names=2, grouped=True)
    return [made, Picture(NAME, figure(frame))]


# %%
if __name__ == "__main__":
    run(contents)
