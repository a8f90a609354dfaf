"""Figures of a pattern search: the frontier, what each layer and head got, and predicted beside measured damage."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ratplus.analysis.draw import style

_SEARCHED, _UNIFORM, _RANDOM = "#004488", "#555555", "#c99700"
_MOST_WITH_NAMES = 12
_AXES = {"kv": "Keys and values held", "read": "Bytes read in a step", "flops": "Attention FLOPs",
         "latency": "Predicted time of a step"}  # fmt: skip
MOST_MAPS = 4


def frontier(result: dict, kind: str) -> Figure:
    """Damage (and each group's Δ loss) against cost, budgets of one kind: uniform line, random band, searched points.

    Error bars are paired 95% intervals; 0 is the dense model.
    """
    budgets = [b for b in result["budgets"] if b["kind"] == kind]
    groups = [None, *result["groups"]] if len(result["groups"]) > 1 else [None]
    with style.context():
        width = style.TEXT_WIDTH_IN if len(groups) > 1 else style.COLUMN_WIDTH_IN
        drawing = Figure(figsize=(width, 2.3))
        every = drawing.subplots(1, len(groups), squeeze=False).ravel()
        for axes, group in zip(every, groups):
            _frontier(axes, result, budgets, kind, group)
            axes.set_title("Damage" if group is None else f"Δ loss of {group}")
        every[0].set_ylabel("Damage to dense (nats)")
        handles = [
            Line2D([], [], color=_UNIFORM, marker="s", markersize=4, label="Uniform patterns"),
            Line2D([], [], color=_SEARCHED, marker="o", linestyle="none", label="Searched, 95% interval"),
        ]
        if any(b["random"] for b in budgets):
            handles.append(Patch(color=_RANDOM, alpha=0.35, label="Random hybrids, 5% to 95%"))
        style.legend_below(drawing, handles, most=3)
    return drawing


def _frontier(axes, result: dict, budgets: list[dict], kind: str, group: str | None) -> None:
    def value(row: dict) -> dict:
        return row["damage"] if group is None else row["groups"][group]

    line = sorted((row["costs"][kind], value(row)["mean"]) for row in result["uniform"])
    axes.plot(*zip(*line), color=_UNIFORM, marker="s", markersize=4, zorder=2)
    for budget in budgets:
        if budget["random"]:
            cost = float(np.median([row["costs"][kind] for row in budget["random"]]))
            low, high = np.quantile([value(row)["mean"] for row in budget["random"]], [0.05, 0.95])
            axes.plot(
                [cost, cost], [low, high], color=_RANDOM, alpha=0.35, linewidth=7, solid_capstyle="butt", zorder=1
            )
        winner = budget["winner"]
        at, estimate = winner["costs"][kind], value(winner)
        bars = [[estimate["mean"] - estimate["low"]], [estimate["high"] - estimate["mean"]]]
        axes.errorbar([at], [estimate["mean"]], yerr=bars, fmt="o", color=_SEARCHED, capsize=2, zorder=3)
    axes.axhline(0, color="black", linewidth=0.6, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xlabel(f"{_AXES[kind]} (share)")


def choices(result: dict) -> Figure:
    """What each layer (downwards) and head of keys (to the right) got, a panel for each of the first budgets."""
    budgets = result["budgets"][:MOST_MAPS]
    names = result["candidates"]
    with style.context():
        across = min(2, len(budgets))
        down = -(-len(budgets) // across)
        layers, heads = len(budgets[0]["cells"]), len(budgets[0]["cells"][0])
        height = max(1.5, 0.2 * layers + 0.8)
        drawing = Figure(figsize=(style.COLUMN_WIDTH_IN if across == 1 else style.TEXT_WIDTH_IN, height * down))
        grid = drawing.subplots(down, across, squeeze=False).ravel()
        for axes, budget in zip(grid, budgets):
            place = np.array([[names.index(label) for label in row] for row in budget["cells"]])
            axes.imshow(len(names) - 1 - place, cmap=style.SHADES, vmin=0, vmax=max(1, len(names) - 1), aspect="auto")
            axes.grid(False)
            axes.set_title(budget["budget"])
            axes.set_ylabel("Layer")
            axes.set_xlabel("Head of keys")
            for set_ticks, count in ((axes.set_yticks, layers), (axes.set_xticks, heads)):
                set_ticks(range(0, count, -(-count // 12)))
            if heads <= _MOST_WITH_NAMES / 2 and layers <= 2 * _MOST_WITH_NAMES:
                for (row, column), index in np.ndenumerate(place):
                    dark = index < len(names) / 2
                    axes.text(column, row, names[index], ha="center", va="center", fontsize=6,
                              color="white" if dark else "black")  # fmt: skip
        for axes in grid[len(budgets) :]:
            axes.set_axis_off()
        shades = style.SHADES(np.linspace(1, 0, len(names)))
        left_out = f"{len(budgets)} of {len(result['budgets'])} budgets" if len(result["budgets"]) > MOST_MAPS else ""
        handles = [Patch(color=tuple(shade), label=name) for name, shade in zip(names, shades)]
        style.legend_below(drawing, handles, most=5, left_out=left_out)
    return drawing


def prediction(result: dict) -> Figure:
    """Damage that single substitutions add up to, against what was measured on the test split."""
    pairs = [pair for budget in result["budgets"] for pair in budget["predicted"]]
    with style.context():
        drawing = Figure(figsize=(style.COLUMN_WIDTH_IN, 2.6))
        axes = drawing.subplots()
        for searched, colour, marker, label in (
            (False, _RANDOM, "s", "Baselines and random"), (True, _SEARCHED, "o", "Searched")
        ):  # fmt: skip
            some = [(p["predicted"], p["measured"]) for p in pairs if p["searched"] == searched]
            if some:
                axes.plot(*zip(*some), marker, color=colour, markersize=4, label=label)
        ends = [v for pair in pairs for v in (pair["predicted"], pair["measured"])]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="black", linewidth=0.6, linestyle=":")
        axes.set_xlabel("Predicted: sum of single changes (nats)")
        axes.set_ylabel("Measured (nats)")
        axes.legend()
    return drawing
