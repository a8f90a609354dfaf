# %% [markdown]
"""
# Loss and recall by position

Does a model still work beyond the context that it was trained for? Held-out loss and recall against the position in the
context, and recall against the distance to what is asked for, from cells evaluated with `eval=positions`. A column of
panels for each pattern, a colour for each way to scale the rotary positions, the trained context marked.

- `table`: one row a model, pattern and bin, mean over seeds
- `summary`: one row a model and pattern: loss and recall within the trained context and in each doubling beyond it
- `figure`: all of it against position and distance

Run it as `python -m ratplus.analysis.positions outputs/long_context`, through `ratplus report`, or as a notebook (with
jupytext; set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ratplus.analysis.draw import style
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import (
    RUN,
    first_runs,
    in_order,
    over_seeds,
    short_patterns,
    spread_patterns,
    unfinished,
)
from ratplus.analysis.frame.rows import groups_of, rows_of
from ratplus.analysis.page.notebook import run
from ratplus.records.record import RecordError, read_record

NAME = "positions"
MOST_RUNS, MOST_PATTERNS = 8, 3
METRIC = re.compile(r"(loss_at|recall_at|recall_over)_(\d+)_(\d+)")
# For each measure: its name, scale and the label of its axis, in the order of the panels.
MEASURES = (
    ("loss_at", 1, "Held-out loss\n(nats per token)"),
    ("recall_at", 100, "Recall (%)"),
    ("recall_over", 100, "Recall (%)"),
)

# %% [markdown]
"""
## Tables

`recall_at` is of rows as short as those trained, which stand late in the context: only their position is new.
`recall_over` is of rows as long as the context, by the distance between the question and what it asks for.
"""


# %%
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each run, pattern and bin: `measure`, `low`, `high`, `value`, `value_stderr`, `trained`, `rope`.

    `rope` is how positions are scaled, `rest` what else was varied, `trained` the context of the pretraining.
    """
    measures = [measure for measure, *_ in MEASURES]
    matches = [match for match in map(METRIC.fullmatch, frame.attrs["metrics"]) if match]
    bins = sorted((measures.index(match[1]), int(match[2]), int(match[3]), match[0]) for match in matches)
    cells = in_order(frame)
    trained, names = _trained(cells, Path(frame.attrs["folder"])), _names(cells, frame.attrs["axes"])
    rows = []
    for mean in over_seeds(cells, [name for *_, name in bins]).to_dict("records"):
        run_key = tuple(mean[key] for key in RUN)
        cell = {key: mean[key] for key in ("run", *RUN, "pattern")} | names[run_key]
        cell |= {"context": mean["context"], "trained": trained[run_key]}
        for measure, low, high, name in bins:
            if not pd.isna(mean[name]):
                value = {"value": mean[name], "value_stderr": mean[f"{name}_stderr"], "seeds": mean["done"]}
                rows.append(cell | {"measure": measures[measure], "low": low, "high": high} | value)
    columns = ["run", *RUN, "pattern", "rope", "rest", "context", "trained", "measure", "low", "high", "value"]
    return pd.DataFrame(rows, columns=[*columns, "value_stderr", "seeds"])


def _trained(cells: pd.DataFrame, folder: Path) -> dict[tuple, float]:
    """{run: context that its weights were trained for}: what its pretraining's record says, else the cell's own."""
    known = {}
    for key, own in groups_of(cells, RUN):
        known[key] = float(own["context"].iloc[0])
        for name in own["pretrain"].dropna().unique():
            try:
                record = read_record(folder / "pretrain" / name) or {}
            except RecordError:
                continue
            trained = (record.get("metrics") or {}).get("trained_context")
            known[key] = float(trained["value"]) if trained else known[key]
    return known


def _names(cells: pd.DataFrame, axes: list[str]) -> dict[tuple, dict[str, str]]:
    """{run: {"rope": how its positions are scaled, "rest": in what else it differs from others}}."""
    several = cells["model"].nunique() > 1
    names = {}
    for key, own in groups_of(cells, RUN):
        first = own.iloc[0]
        rest = [key[0]] if several else []
        for axis in (axis for axis in axes if not axis.startswith("model.rope_")):
            value = f"{first[axis]:g}" if isinstance(first[axis], float) else str(first[axis])
            rest.append(f"{axis.removeprefix('train.')}={value}")
        names[key] = {"rope": first["rope"] or "as trained", "rest": ", ".join(rest)}
    return names


def spans(rows: pd.DataFrame) -> list[tuple[int, int]]:
    """Stretches of positions for a table: the trained context, then each doubling of it. They end where bins do."""
    ends = sorted({*rows["high"]})
    context, first = ends[-1], rows["trained"].min()
    wanted = [first * 2**i for i in range(32)] if first < context else [context / 8, context / 4, context / 2]
    edges = [0, *(end for end in ends if end in wanted and end < context), context]
    return list(pairwise(edges))


def summary(frame: pd.DataFrame, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a model and pattern, rounded; means over bins, by their width. `rows` is the frame's `table`."""
    cells = in_order(frame)
    rows, short, names = (
        table(frame) if rows is None else rows,
        short_patterns(cells),
        _names(cells, frame.attrs["axes"]),
    )
    at = rows[rows["measure"].ne("recall_over")]
    shown = []
    for cell in rows_of(over_seeds(cells, [])):
        name = names[cell.model, cell.variant]
        line = {"Model": ", ".join(part for part in name.values() if part), "Pattern": short[cell.pattern]}
        own = at[at["run"].eq(cell.run) & at["pattern"].eq(cell.pattern)]
        first = len(line)
        for measure, scale, title, digits in (("loss_at", 1, "Loss", 3), ("recall_at", 100, "Recall (%)", 1)):
            if measure in set(at["measure"]):
                of_measure = own[own["measure"].eq(measure)]
                for low, high in spans(at):
                    line[f"{title} {low}–{high - 1}"] = number(_mean(of_measure, low, high) * scale, digits)
        if cell.status != "done":
            line[list(line)[first]] = f"**{cell.status}**"
        shown.append(line)
    return pd.DataFrame(shown)


def _mean(rows: pd.DataFrame, low: int, high: int) -> float:
    inside = rows[rows["low"].ge(low) & rows["high"].le(high)]
    width = inside["high"] - inside["low"]
    return float((inside["value"] * width).sum() / width.sum()) if len(inside) else np.nan


# %% [markdown]
"""
## Figure

A colour for each way to scale positions, a line style for whatever else was varied, a column of panels a pattern.
Points stand in the middle of their bins. The dotted vertical line is the context of the pretraining.
"""


# %%
def figure(frame: pd.DataFrame, rows: pd.DataFrame | None = None) -> Figure:
    """Loss and recall against position, recall against distance; at most 3 patterns and 8 runs. `rows` as of `summary`.

    Raises:
        ValueError: no finished cell was evaluated by position.
    """
    rows, left_out = first_runs(table(frame) if rows is None else rows, MOST_RUNS)
    if rows.empty:
        raise ValueError("positions: no finished cell was evaluated by position")
    names = short_patterns(in_order(frame))
    patterns, left_out = spread_patterns(names, rows, MOST_PATTERNS, left_out)
    measures = [measure for measure in MEASURES if measure[0] in set(rows["measure"])]
    # Where only something else than the scaling was varied, that has the colours.
    varied = ["rope", "rest"] if rows["rope"].nunique() > 1 else ["rest", "rope"]
    rows = rows.rename(columns=dict(zip(varied, ("colour", "line"))))
    looks, lines = (style.looks(list(dict.fromkeys(rows[name]))) for name in ("colour", "line"))
    width = style.COLUMN_WIDTH_IN if len(patterns) == 1 else style.TEXT_WIDTH_IN
    with style.context():
        drawing = Figure(figsize=(width, 0.3 + 1.65 * len(measures)))
        grid = drawing.subplots(len(measures), len(patterns), squeeze=False, sharex="row", sharey="row")
        for line, (measure, scale, title) in zip(grid, measures):
            for axes, pattern in zip(line, patterns):
                own = rows[rows["pattern"].eq(pattern) & rows["measure"].eq(measure)]
                _panel(axes, own, measure, scale, looks, lines)
            line[0].set_ylabel(title)
        for axes, pattern in zip(grid[0], patterns):
            axes.set_title(names[pattern])
        drawing.align_ylabels(grid[:, 0])
        style.legend_below(drawing, _legend(rows, looks, lines), most=4, left_out=left_out)
    return drawing


def _panel(axes, rows: pd.DataFrame, measure: str, scale: float, looks: dict, lines: dict) -> None:
    over = measure == "recall_over"
    for (colour, line), own in rows[np.isfinite(rows["value"])].groupby(["colour", "line"], sort=False):
        x = np.sqrt(own["low"] * own["high"]) if over else (own["low"] + own["high"]) / 2
        look = looks[colour]
        axes.errorbar(
            x, own["value"] * scale, yerr=own["value_stderr"] * scale, color=look.colour, linestyle=lines[line].line,
            marker="o", markersize=2.5, markerfacecolor=look.face, linewidth=1.0, elinewidth=0.7,
        )  # fmt: skip
    if over:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(left=0)
        for trained in sorted({t for t, c in zip(rows["trained"], rows["context"]) if t < c}):
            axes.axvline(trained, color="0.4", linewidth=0.8, linestyle=(0, (1, 1.6)), zorder=0)
    if measure != "loss_at":
        axes.set_ylim(0, 104)
    axes.set_xlabel("Distance (tokens)" if over else "Position (tokens)")


def _legend(rows: pd.DataFrame, looks: dict, lines: dict) -> list[Line2D]:
    handles = [
        Line2D([], [], color=look.colour, marker="o", markersize=2.5, markerfacecolor=look.face, label=name)
        for name, look in looks.items()
    ]
    if len(lines) > 1:
        handles += [Line2D([], [], color="0.4", linestyle=look.line, label=name) for name, look in lines.items()]
    if (rows["trained"] < rows["context"]).any():
        trained = " or ".join(f"{length:g}" for length in sorted(rows["trained"].unique()))
        handles.append(Line2D([], [], color="0.4", linewidth=0.8, linestyle=(0, (1, 1.6)), label=f"trained: {trained}"))
    return handles


# %% [markdown]
"""
## In the report
"""


# %%
def applies(frame: pd.DataFrame) -> bool:
    """Whether any finished cell was evaluated by position."""
    return any(METRIC.fullmatch(name) and frame[name].notna().any() for name in frame.attrs["metrics"])


def caption(rows: pd.DataFrame) -> str:
    """What the columns of `summary` mean."""
    trained = " or ".join(f"{t:g}" for t in sorted(rows["trained"].unique()))
    return (
        f"Held-out loss (nats per token) and recall by position in the context; pretrained at {trained} tokens. "
        "Recall: rows as short as those trained, standing at these positions."
    )


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The table and the figure.

    Raises:
        ValueError: no finished cell was evaluated by position.
    """
    rows = table(frame)
    if rows.empty:
        raise ValueError("positions: no finished cell was evaluated by position")
    made = Table(NAME, rows, summary(frame, rows), caption(rows), unfinished(frame), names=2, grouped=True)
    return [made, Picture(NAME, figure(frame, rows))]


# %%
if __name__ == "__main__":
    run(contents)
