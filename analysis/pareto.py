# %% [markdown]
"""
# Quality against cost

Which pattern do I take? Loss (and recall accuracy and needles found, where the sweep measured them) of every model and
pattern against what it costs: bytes of the decode cache, the entries of it that a decoding step reads (where some
pattern reads less than it holds), attention FLOPs of a forward and, if the cells were timed (`eval=efficiency`),
milliseconds a decoded token. A point is worth taking if no other of the sweep is both better and cheaper: those points
are joined by the frontier.

- `table`: one row a model and pattern, with its costs and whether it stands on each frontier
- `figure`: a panel for each cost, at the width of a page

Run it as `python -m ratplus.analysis.pareto outputs/demo`, through `ratplus report`, or as a notebook (with jupytext;
set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from ratplus.analysis.draw import style
from ratplus.analysis.draw.labels import place_labels
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import error_source, first_runs, in_order, sharing, short_patterns
from ratplus.analysis.frame.averages import averaged, mean_of, suites_of
from ratplus.analysis.frame.methods import needs_methods
from ratplus.analysis.frame.reads import READ_CAPTION, entries, reads_apart
from ratplus.analysis.page.notebook import run
from ratplus.analysis.paired.differences import baseline_title, loss_delta_notes, rows_with_deltas
from ratplus.analysis.paired.ties import delta_texts
from ratplus.costs.facts import at_most
from ratplus.pattern import PatternMap

NAME = "pareto"
TIME = "timing:decode_ms_per_token"
# For each cost: its column, the title of its axis, and the scale of its values.
COSTS = (
    ("kv_bytes", "KV cache of a sequence (KiB)", 1 / 1024),
    ("kv_read", "KV entries read a step and head", 1),
    ("attention_flops", "Attention MFLOPs of a forward", 1e-6),
    (TIME, "Decode time (ms a token)", 1),
)
NEEDLES = "needles"  # mean over the needle tasks of a cell: methods without a loss are compared by it
# For each quality: its column, the title of its axis, the scale of its values, and whether less is better.
QUALITIES = (
    ("loss", "Held-out loss (nats)", 1, True),
    ("recall_accuracy", "Recall accuracy (%)", 100, False),
    (NEEDLES, "Needles found (%)", 100, False),
)
MOST_RUNS = 5

# %% [markdown]
"""
## Table

One row a model and pattern, mean over seeds. `frontier_<cost>` is true where no other row has a lower loss at no more
cost, or the same loss for less; `frontier_<cost>_needles`, where needles were asked for, likewise by the share found.
"""


# %%
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a model and pattern with a finite quality: costs, quality, Δ, `frontier_{kv,read,flops,ms}`."""
    frame = _with_needles(frame)
    timed = [TIME] if TIME in frame else []
    qualities = [name for name, *_ in QUALITIES if name in frame]
    rows = rows_with_deltas(frame, [*qualities[1:], *timed])
    rows = rows[np.isfinite(rows[qualities].astype("float64")).any(axis=1)].reset_index(drop=True)
    apart = reads_apart(rows)
    for metric, end in (("loss", ""), *([(NEEDLES, "_needles")] if NEEDLES in frame else [])):
        for short, (cost, *_) in zip(("kv", "read", "flops", "ms"), COSTS):
            if cost in rows and (apart or short != "read"):
                rows[f"frontier_{short}{end}"] = frontier(rows[cost], rows[metric], lower=metric == "loss")
    return rows.drop(columns=["status", "pattern_name"])


def _with_needles(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `needles` and its standard error, if any finished cell was asked for needles."""
    tasks = suites_of(frame).get("niah")
    if not tasks:
        return frame
    frame = frame.copy()
    frame[NEEDLES], frame[f"{NEEDLES}_stderr"] = mean_of(frame, averaged(tasks))
    return frame


def frontier(costs: pd.Series, values: pd.Series, lower: bool = True) -> pd.Series:
    """True for each row that no other beats: at most its cost and at least its quality, better in one of them."""
    costs = costs.astype("float64")
    values = (values if lower else -values).astype("float64")
    best = pd.Series(False, index=costs.index)
    reached, last = np.inf, None
    known = costs.notna() & np.isfinite(values)
    for place in pd.DataFrame({"cost": costs, "value": values})[known].sort_values(["cost", "value"]).index:
        # Neither of two rows that are equal in both beats the other.
        same = last is not None and costs[place] == costs[last] and values[place] == values[last]
        if values[place] < reached or same:
            best[place], reached, last = True, values[place], place
    return best


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows on any frontier, cheapest cache first, rounded."""
    rows = table(frame)
    names, methods = short_patterns(in_order(frame)), needs_methods(rows)
    marks = [name for name in rows if name.startswith("frontier_")]
    rows = rows[rows[marks].any(axis=1)].sort_values(["kv_bytes", "loss"])
    shown = pd.DataFrame({"Model": rows["run"], "Pattern": rows["pattern"].map(names)})
    if methods:
        shown.insert(1, "Method", rows["method"])
    if rows["kv_heads"].ne(rows["heads"]).any():
        shown["KV heads"] = [f"{held} of {heads}" for held, heads in zip(rows["kv_heads"], rows["heads"])]
    shown["KV cache (KiB)"] = [number(value / 1024, 1) for value in rows["kv_bytes"]]
    if "frontier_read" in rows:
        shown["KV read"] = entries(rows["kv_read"], rows["kv_read_exact"])
    ratios = zip(rows["attention_flops_ratio"], rows["flops_exact"])
    shown["FLOPs"] = [at_most(number(value, 3), exact) for value, exact in ratios]
    if TIME in rows:
        shown["ms/token"] = [number(*pair) for pair in zip(rows[TIME], [3] * len(rows))]
    if np.isfinite(rows["loss"]).any():
        shown["Loss"] = [number(value, 3, error) for value, error in zip(rows["loss"], rows["loss_stderr"])]
    if rows["loss_delta"].notna().any():
        shown["Δ loss"] = delta_texts(rows, "loss", 1, 3)
    if rows["recall_accuracy"].notna().any():
        shown["Recall (%)"] = [number(value * 100, 1) for value in rows["recall_accuracy"]]
    if NEEDLES in rows:
        pairs = zip(rows[NEEDLES] * 100, rows[f"{NEEDLES}_stderr"] * 100)
        shown["Needles (%)"] = [number(value, 1, error) for value, error in pairs]
    titles = {"kv": "KV", "read": "read", "flops": "FLOPs", "ms": "ms"}
    for title, end in (("Best for", ""), ("Best for (needles)", "_needles")):
        own = {name: f"frontier_{name}{end}" for name in titles if f"frontier_{name}{end}" in rows}
        if own:
            shown[title] = [", ".join(titles[m] for m in own if row[own[m]]) for _, row in rows.iterrows()]
    return shown


# %% [markdown]
"""
## Figure

A model has a colour and a marker. Its frontier is drawn as steps: at most this loss for at least this cost. Points that
another pattern of the same model beats are small and pale. Labels stand where there is room; the table has all. Models
whose heads share keys and values, the other way to a smaller cache, are runs of their own, labelled `GQA-2` (two heads
of keys) or `MQA` (one).
"""


# %%
def figure(frame: pd.DataFrame) -> Figure:
    """Quality (rows) against costs (columns), with each model's frontier.

    Raises:
        ValueError: no finished cell has a finite quality.
    """
    rows, left_out = first_runs(table(frame), MOST_RUNS)
    if rows.empty:
        raise ValueError("pareto: no finished cell has a finite loss or another quality, so there is nothing to draw")
    names = list(dict.fromkeys(rows["run"]))
    looks, marks = style.looks(names), style.markers(names)
    labels = short_patterns(in_order(frame), longest=14)
    costs = [cost for cost in COSTS if cost[0] in rows and rows[cost[0]].notna().any()]
    costs = [cost for cost in costs if cost[0] != "kv_read" or reads_apart(rows)]
    qualities = [quality for quality in QUALITIES if quality[0] in rows and rows[quality[0]].notna().any()]
    with style.context():
        drawing = Figure(figsize=(style.TEXT_WIDTH_IN, 0.3 + 1.95 * len(qualities)))
        grid = drawing.subplots(len(qualities), len(costs), sharex="col", sharey="row", squeeze=False)
        points: dict[Axes, list] = {}
        for row, (metric, title, scale, lower) in enumerate(qualities):
            for column, (cost, cost_title, cost_scale) in enumerate(costs):
                axes = grid[row][column]
                points[axes] = []
                for name in names:
                    own = rows[rows["run"].eq(name) & rows[metric].notna() & rows[cost].notna()]
                    if own.empty:
                        continue  # this model was asked for other results
                    xs, ys = own[cost].astype("float64") * cost_scale, own[metric] * scale
                    best = frontier(own[cost], own[metric], lower)
                    _draw(axes, xs, ys, best, looks[name], marks[name])
                    shared = [sharing(*pair) for pair in zip(own["heads"], own["kv_heads"])]
                    texts = own["pattern"].map(labels) + [f" {word}" if word else "" for word in shared]
                    points[axes] += zip(xs, ys, texts.where(best, ""))
                if cost != TIME:
                    axes.set_xscale("log", base=2)
                    axes.xaxis.set_major_formatter("{x:g}")
                    axes.xaxis.set_major_locator(_power_of_two_ticks(rows[cost].astype("float64") * cost_scale))
                    axes.minorticks_off()
                axes.margins(x=0.12, y=0.12)
                if row == len(qualities) - 1:
                    axes.set_xlabel(cost_title)
            grid[row][0].set_ylabel(title)
        handles = [
            Line2D([], [], color=looks[n].colour, linestyle=looks[n].line, marker=marks[n],
                   markerfacecolor=looks[n].face, label=n)
            for n in names
        ]  # fmt: skip
        style.legend_below(drawing, handles, left_out=left_out)
        place_labels(points)
    return drawing


def _draw(axes: Axes, xs: pd.Series, ys: pd.Series, best: pd.Series, look: style.Look, marker: str) -> None:
    """One model in one panel: frontier as steps through its best points, the others small and pale."""
    order = xs[best].sort_values(kind="stable").index
    axes.plot(xs[order], ys[order], drawstyle="steps-post", color=look.colour, linestyle=look.line, linewidth=0.9)
    colours: dict[str, Any] = {
        "color": look.colour,
        "markerfacecolor": look.face,
        "linestyle": "none",
        "marker": marker,
    }
    axes.plot(xs[best], ys[best], zorder=3, **colours)
    axes.plot(xs[~best], ys[~best], alpha=0.45, markersize=2.6, zorder=2, **colours)


def _power_of_two_ticks(values: pd.Series) -> FixedLocator:
    """Ticks at powers of two, at most five of them."""
    values = values[values > 0]  # no attention at all costs nothing, which has no place on a logarithmic axis
    if values.empty:
        return FixedLocator([1.0])
    low, high = np.floor(np.log2(values.min())), np.ceil(np.log2(values.max()))
    every = max(1, int(np.ceil((high - low) / 4)))
    return FixedLocator([2.0**power for power in np.arange(low, high + 1, every)])


# %% [markdown]
"""
## In the report
"""


# %%
def caption(frame: pd.DataFrame) -> str:
    """What the columns of `summary` mean."""
    read = READ_CAPTION.replace("those of them", "cache entries of a head") if reads_apart(frame) else ""
    return (
        "Patterns that no other of the sweep beats: a lower loss (nats per token) at no more cost"
        f"{', or more needles found' if NEEDLES in _with_needles(frame) else ''}. KV cache: bfloat16 "
        "keys and values and the float32 recurrent state of one sequence at the context length."
        f"{read} FLOPs: attention FLOPs relative to dense. KV heads: of keys and values, where heads share them. "
        "ms/token: as measured on the cells' machine. Best for: the costs whose frontier it is on. ± of the loss: the "
        f"standard error {error_source(frame)}. Δ loss: difference to {baseline_title(frame)} of the same model."
    )


def without_loss(frame: pd.DataFrame) -> list[str]:
    """Why some patterns of finished cells stand on no frontier of the loss, in a line; none if all have one."""
    lost = frame[frame["status"].eq("done") & frame["loss"].isna()]
    shapes = lost[["pattern", "layers", "heads"]].drop_duplicates().itertuples(index=False)
    labels = [
        label for label, layers, heads in shapes
        if any(p.needs_prompt for row in PatternMap.from_label(label, int(layers), int(heads)) for p in row)
    ]  # fmt: skip
    if not labels:
        return []
    names = short_patterns(in_order(frame))
    return [
        f"No loss, and so on no frontier of it: {', '.join(names[label] for label in labels)}. What these show depends "
        "on where a prompt ends; they are compared by needles."
    ]


def applies(frame: pd.DataFrame) -> bool:
    """Whether at least two finished cells have a finite loss, or two were asked for needles."""
    done, found = frame["status"].eq("done"), _with_needles(frame)
    measured = [np.isfinite(found[name].astype("float64")) for name in ("loss", NEEDLES) if name in found]
    return any((values & done).sum() > 1 for values in measured)


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The table and the figure."""
    data, shown = table(frame), summary(frame)
    notes = loss_delta_notes(frame, data) if "Δ loss" in shown else []
    names = 3 if "Method" in shown else 2
    made = Table(NAME, data, shown, caption(frame), [*notes, *without_loss(frame)], names=names)
    return [made, Picture(NAME, figure(frame))]


# %%
if __name__ == "__main__":
    run(contents)
