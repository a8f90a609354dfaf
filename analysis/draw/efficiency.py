"""Figures of `analysis/efficiency.py`: times on a logarithmic axis, bars from the 20th to the 80th percentile."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ratplus.analysis.draw import style
from ratplus.pattern import Pattern

OURS = "ours"
DENSE = "D1"
# No figure draws these candidates: they are parts of others.
NOT_DRAWN = ("paper: its block masks alone",)
# Labels of more letters have no room below an axis: they are numbered and spelled out in the legend.
LONGEST_LABEL = 8
# Labels that stand side by side below a panel of a third of the width; more of them are turned.
MOST_ACROSS = 4


def kernels_figure(rows: pd.DataFrame) -> Figure:
    """A panel for each operator at the shape with the most work: time against pattern, a marker for each candidate."""
    rows = rows[~rows["candidate"].isin(NOT_DRAWN)]
    # One colour for what is the same thing in several operators, such as `paper (associative_scan)`; the kernel of
    # dense attention in brackets stays, since two of them are not the same thing.
    short = rows["candidate"].str.replace(r"^(?:(paper)\b.*|(dense SDPA(?: \(\w+\))?).*)", r"\1\2", regex=True)
    rows = rows.assign(candidate=short)
    ops = list(dict.fromkeys(rows["op"]))
    parts = {op: _largest(rows[rows["op"].eq(op)]) for op in ops}
    names = list(dict.fromkeys(name for part in parts.values() for name in part["candidate"]))
    names.sort(key=lambda name: name != OURS)
    looks, shapes = style.looks(names), style.markers(names)
    with style.context():
        columns = 2
        lines = -(-len(ops) // columns)
        drawing = Figure(figsize=(style.TEXT_WIDTH_IN, 0.2 + 1.75 * lines))
        grid = drawing.subplots(lines, columns, squeeze=False).ravel()
        for axes, (op, part) in zip(grid, parts.items()):
            _draw_categories(axes, part, "candidate", names, looks, shapes)
            axes.set_title(f"{op}, {part['shape'].iloc[0]}")
            axes.set_ylabel("ms")
        for axes in grid[len(ops) :]:
            axes.set_visible(False)
        handles = [_handle(name, looks[name], shapes[name]) for name in names]
        style.legend_below(drawing, [*handles, _limit_handle()], most=3)
    return drawing


def lengths_figure(rows: pd.DataFrame) -> Figure | None:
    """A panel for each operator that was timed at several lengths: our time against length, a line for each pattern.

    At the largest d_model, beside the fastest dense attention; None if there is no such operator.
    """
    rows = rows.join(rows["shape"].str.extract(r"B(?P<B>\d+) T(?P<T>\d+) d(?P<d>\d+)").astype("float64"))
    rows = rows[rows["pattern"].ne("-") & rows["d"].eq(rows["d"].max())]
    parts = {}
    for op, part in rows.groupby("op", sort=False):
        if op == "decode":  # where several batches were timed at a length, the one with the most points
            points = part[part["candidate"].eq(OURS)].groupby("B").size()
            part = part[part["B"].eq(points.index[points.eq(points.max())].max())]
        mine = part[part["candidate"].eq(OURS) & part["pattern"].ne(DENSE)]
        dense = part[part["candidate"].str.startswith("dense SDPA")].sort_values("ms_p50").drop_duplicates("T")
        if mine["T"].nunique() > 1:
            parts[op] = (mine, dense)
    if not parts:
        return None
    patterns = _in_order({name for mine, _ in parts.values() for name in mine["pattern"]})
    looks, shapes = style.sequence(patterns), style.markers(patterns)
    with style.context():
        columns = 2
        lines = -(-len(parts) // columns)
        drawing = Figure(figsize=(style.TEXT_WIDTH_IN, 0.2 + 1.9 * lines))
        grid = drawing.subplots(lines, columns, squeeze=False).ravel()
        for axes, (op, (mine, dense)) in zip(grid, parts.items()):
            for name in patterns:
                line = mine[mine["pattern"].eq(name)].sort_values("T")
                _line(axes, line, looks[name], shapes[name])
                axes.plot(line["T"], line["limit_ms"], color=looks[name].colour, linewidth=0.7, linestyle=":")
            dense = dense.sort_values("T")
            axes.plot(dense["T"], dense["ms_p50"], "x--", color="black", linewidth=0.9)
            title = mine["shape"].iloc[0]
            batch = f"B{title.split()[0][1:]}, " if op == "decode" else ""
            axes.set_title(f"{op}, {batch}{title.split()[-1]}")
            axes.set_xscale("log", base=2)
            _log_axis(axes)
            axes.set_xlabel("T (tokens)")
            axes.set_ylabel("ms")
        for axes in grid[len(parts) :]:
            axes.set_visible(False)
        handles = [_handle(name, looks[name], shapes[name], look_line=True) for name in patterns]
        handles.append(
            Line2D([], [], color="black", marker="x", linestyle="--", linewidth=0.9, label="dense attention")
        )
        handles.append(Line2D([], [], color="0.4", linewidth=0.7, linestyle=":", label="limit of the device"))
        style.legend_below(drawing, handles, most=4)
    return drawing


def models_figure(rows: pd.DataFrame) -> Figure:
    """Prefill, decode and throughput against pattern, a row of panels for each context; a marker for each case."""
    rows = rows.assign(case=case_names(rows, context=False), tokens_limit=1e3 * rows["batch"] / rows["decode_limit_ms"])
    cases = list(dict.fromkeys(rows["case"]))
    looks, shapes = style.looks(cases), style.markers(cases)
    contexts = sorted(set(rows["context"]))
    panels = [("prefill_ms_p50", "prefill", "prefill (ms)"), ("decode_ms_p50", "decode", "decode (ms a token)"),
              ("tokens_per_second", None, "tokens a second")]  # fmt: skip
    with style.context():
        drawing = Figure(figsize=(style.TEXT_WIDTH_IN, 0.2 + 2.4 * len(contexts)))
        grid = drawing.subplots(len(contexts), len(panels), squeeze=False)
        for line, context in zip(grid, contexts):
            for axes, (column, name, title) in zip(line, panels):
                part = rows[rows["context"].eq(context) & rows[column].notna()]
                if part.empty:
                    axes.set_visible(False)
                    continue
                low, high = (f"{name}_ms_p20", f"{name}_ms_p80") if name else (column, column)
                part = pd.DataFrame({
                    "pattern": part["pattern"], "case": part["case"], "ms_p50": part[column], "ms_p20": part[low],
                    "ms_p80": part[high], "limit_ms": part[f"{name}_limit_ms" if name else "tokens_limit"],
                })  # fmt: skip
                _draw_categories(axes, part, "case", cases, looks, shapes, _numbered(rows["pattern"]))
                axes.set_title(f"T{context}: {title}")
        handles = [_handle(name, looks[name], shapes[name]) for name in cases]
        style.legend_below(drawing, [*handles, _limit_handle(), *_spelled_out(rows["pattern"])], most=3)
    return drawing


def _largest(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one operator at the shape that has the most patterns; among several such shapes, the most work."""
    shapes = rows.groupby("shape", sort=False)
    work = pd.DataFrame({"patterns": shapes["pattern"].nunique(), "limit_ms": shapes["limit_ms"].max()})
    return rows[rows["shape"].eq(work.sort_values(["patterns", "limit_ms"], kind="stable").index[-1])]


def _draw_categories(
    axes: Axes,
    rows: pd.DataFrame,
    by: str,
    names: list[str],
    looks: dict,
    shapes: dict,
    numbers: dict[str, str] | None = None,
) -> None:
    """Markers for each name, side by side above each pattern, and a tick at each one's limit.

    `numbers`: in narrow panels, what stands for labels that are too long.
    """
    narrow, numbers = numbers is not None, numbers or {}
    order = _in_order(set(rows["pattern"]))
    here = [name for name in names if name in set(rows[by])]
    spread = np.linspace(-0.32, 0.32, len(here)) if len(here) > 1 else [0.0]
    for name, shift in zip(here, spread):
        part = rows[rows[by].eq(name)]
        x = [order.index(pattern) + shift for pattern in part["pattern"]]
        spans = [part["ms_p50"] - part["ms_p20"], part["ms_p80"] - part["ms_p50"]]
        look = looks[name]
        axes.errorbar(
            x, part["ms_p50"], yerr=spans, linestyle="none", marker=shapes[name], color=look.colour,
            markerfacecolor=look.face, markeredgecolor=look.colour, markersize=3.6, elinewidth=0.8, zorder=3,
        )  # fmt: skip
        axes.scatter(x, part["limit_ms"], marker="_", color="black", s=22, linewidths=0.9, zorder=2)
    _log_axis(axes)
    axes.set_xlim(-0.5, len(order) - 0.5)
    labels = ["all patterns" if pattern == "-" else numbers.get(pattern, pattern) for pattern in order]
    if len(order) > (MOST_ACROSS if narrow else 2 * MOST_ACROSS):
        axes.set_xticks(range(len(order)), labels, rotation=90)
    else:
        axes.set_xticks(range(len(order)), [label.replace("-", "\n") for label in labels])
    for edge in range(1, len(order)):
        axes.axvline(edge - 0.5, color="0.9", linewidth=0.5, zorder=0)


def _log_axis(axes: Axes) -> None:
    """Logarithmic, with plain numbers; where it spans little, numbers between the powers of ten as well."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_locator(LogLocator(base=10, numticks=8))
    axes.yaxis.set_major_formatter(plain if low > 1e-3 and high < 1e4 else axes.yaxis.get_major_formatter())
    axes.yaxis.set_minor_locator(LogLocator(base=10, subs=(2, 5), numticks=16))
    axes.yaxis.set_minor_formatter(plain if high / low < 30 else NullFormatter())


def _numbered(patterns: pd.Series) -> dict[str, str]:
    """Short names of the patterns whose label has no room below an axis."""
    long = [label for label in _in_order(set(patterns)) if max(map(len, label.split("-"))) > LONGEST_LABEL]
    return {label: f"H{number + 1}" for number, label in enumerate(long)}


def _spelled_out(patterns: pd.Series) -> list[Line2D]:
    """Legend entries that say what the short names stand for."""
    return [Line2D([], [], linestyle="none", label=f"{short}: {label}") for label, short in _numbered(patterns).items()]


def _line(axes: Axes, rows: pd.DataFrame, look: style.Look, shape: str) -> None:
    spans = [rows["ms_p50"] - rows["ms_p20"], rows["ms_p80"] - rows["ms_p50"]]
    axes.errorbar(
        rows["T"], rows["ms_p50"], yerr=spans, linestyle=look.line, marker=shape, color=look.colour,
        markerfacecolor=look.face, markeredgecolor=look.colour, elinewidth=0.8, zorder=3,
    )  # fmt: skip


def _handle(name: str, look: style.Look, shape: str, look_line: bool = False) -> Line2D:
    return Line2D(
        [], [], color=look.colour, marker=shape, markerfacecolor=look.face, markersize=3.6, label=name,
        linestyle=look.line if look_line else "none",
    )  # fmt: skip


def _limit_handle() -> Line2D:
    return Line2D([], [], color="black", marker="_", linestyle="none", label="limit of the device")


def _in_order(labels: set[str]) -> list[str]:
    """Dense first, then by dilation, streaming and hybrids last."""

    def key(label: str) -> tuple:
        try:
            return (0, *Pattern.from_label(label).sort_key)
        except ValueError:
            return (1, label)

    return sorted(labels, key=key)


def case_names(rows: pd.DataFrame, context: bool = True) -> list[str]:
    """What was measured in each row, but for the pattern (and the context, if that is said elsewhere)."""
    columns = (rows["model"], rows["context"], rows["batch"], rows["largest"])
    return [
        f"{model}{f' T{length}' if context else ''} {'largest batch' if largest else f'B{batch}'}"
        for model, length, batch, largest in zip(*columns)
    ]
