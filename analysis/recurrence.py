# %% [markdown]
"""
# What the recurrence does

The L2 norm of its output over time, how open its gates are, and how long it remembers, per layer and head: what active
recurrence learning (ARL) changed. From the `gates.json` that `ratplus report FOLDER --gates` measures once beside each
evaluation of a model with recurrence.

- `table`: one row a cell, layer and head
- `summary`: one row a model and layer
- `figure`: norm over time and memory per layer and head, a row a model or variant
- `schemes`, `schemes_figure`: where a sweep has models whose recurrence starts anew every so many tokens
  (`model.recurrence_chunk`), the norm over time of each beside that of the full sequence

Run it as `python -m ratplus.analysis.recurrence outputs/demo`, through `ratplus report`, or as a notebook (with
jupytext; set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

import re

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ratplus.analysis.draw import style
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import first_runs, in_order, run_name
from ratplus.analysis.frame.beside import read_beside
from ratplus.analysis.frame.rows import groups_of, rows_of
from ratplus.analysis.page.notebook import run
from ratplus.pattern import is_whole

NAME = "recurrence"
GATES_FILE = "gates.json"
MOST_NUMBERS = 1_000_000  # of a statistic
FORMAT = 1
MOST_RUNS = 4
SCHEMES = "recurrence_schemes"
_CHUNK = re.compile(r"(?:^|, )model\.recurrence_chunk=[^,]*")

# %% [markdown]
"""
## Tables

`memory_tokens` is the mean age of what the state holds: with a constant gate g it is g / (1 − g).
"""


# %%
def gates_of(frame: pd.DataFrame) -> dict[str, dict]:
    """{cell id: its gates.json} of the finished cells that have one; one of another format is left out, with a line."""
    return read_beside(frame, GATES_FILE, FORMAT, _check)


def _check(gates: dict) -> None:
    if problem := _misshapen(gates):
        raise ValueError(problem)


def _misshapen(gates: dict) -> str:
    """What in a gates.json is not as `ratplus.evaluation.gates` writes it; empty if all is."""
    layers, heads, positions = len(gates["gate_mean"]), len(gates["gate_mean"][0]), len(gates["positions"])
    if layers * max(heads, positions) > MOST_NUMBERS or not (layers and heads and positions):
        return f"{layers} layers of {heads} heads at {positions} positions"
    widths = dict.fromkeys(("gate_mean", "gate_p10", "gate_p90", "memory_tokens"), heads)
    widths |= dict.fromkeys(("key_norm", "value_norm"), positions)
    for name, width in widths.items():
        if len(gates[name]) != layers or any(not _are_numbers(row, width) for row in gates[name]):
            return f"{name} is no list of {layers} lists of {width} numbers"
    if not _are_numbers(gates["positions"], positions):
        return "positions are no numbers"
    chunk = gates.get("recurrence_chunk")
    return "" if chunk is None or is_whole(chunk) else "recurrence_chunk is no whole number"


def _are_numbers(values, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(isinstance(v, (int, float)) for v in values)


def table(frame: pd.DataFrame, gates: dict[str, dict] | None = None) -> pd.DataFrame:
    """One row a cell, layer and head: `run`, `pattern`, `seed`, `layer`, `head`, gate statistics, `memory_tokens`.

    `gates` is `gates_of(frame)`, if it is at hand.
    """
    gates, rows = gates_of(frame) if gates is None else gates, []
    for cell in rows_of(in_order(frame)):
        if cell.cell not in gates:
            continue
        own = gates[cell.cell]
        for layer, heads in enumerate(own["memory_tokens"]):
            for head, memory in enumerate(heads):
                numbers = {name: own[name][layer][head] for name in ("gate_mean", "gate_p10", "gate_p90")}
                rows.append(
                    {"run": run_name(cell.model, cell.variant), "pattern": cell.pattern, "seed": cell.seed,
                     "layer": layer, "head": head, **numbers, "memory_tokens": memory}
                )  # fmt: skip
    columns = ["run", "pattern", "seed", "layer", "head", "gate_mean", "gate_p10", "gate_p90", "memory_tokens"]
    return pd.DataFrame(rows, columns=columns)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each model, pattern and layer of a `table`: means over heads and seeds, and the longest memory."""
    groups = rows.groupby(["run", "pattern", "layer"], sort=False)
    rows = groups.agg(
        mean=("gate_mean", "mean"), low=("gate_p10", "mean"), high=("gate_p90", "mean"),
        memory=("memory_tokens", "mean"), longest=("memory_tokens", "max"),
    ).reset_index()  # fmt: skip
    shown = pd.DataFrame({"Model": rows["run"], "Pattern": rows["pattern"], "Layer": rows["layer"].astype(str)})
    for title, name, digits in (
        ("Gate", "mean", 3), ("10 %", "low", 3), ("90 %", "high", 3), ("Memory (tokens)", "memory", 1),
        ("Longest head", "longest", 1),
    ):  # fmt: skip
        shown[title] = [number(value, digits) for value in rows[name]]
    return shown


# %% [markdown]
"""
## Figure

Each model is shown by its cell that is closest to dense, with its first seed: that is what pretraining left.
"""


# %%
def figure(frame: pd.DataFrame, gates: dict[str, dict] | None = None) -> Figure:
    """Norm of the recurrent values over time, a line a layer, and memory per layer and head; at most four models.

    Raises:
        ValueError: no cell has been measured.
    """
    gates = gates_of(frame) if gates is None else gates
    cells = in_order(frame)
    cells = cells[cells["cell"].isin(gates)].drop_duplicates(["model", "variant"])
    names = [run_name(*names) for names in zip(cells["model"], cells["variant"])]
    cells, left_out = first_runs(cells.assign(run=names), MOST_RUNS)
    if cells.empty:
        raise ValueError("recurrence: no cell has a gates.json; measure them with `ratplus report FOLDER --gates`")
    memories = np.concatenate([np.ravel(gates[cell]["memory_tokens"]) for cell in cells["cell"]])
    least, most_tokens = max(memories.min(), 0.05), max(memories.max(), 0.1)
    scale = LogNorm(least, most_tokens)
    with style.context():
        drawing = Figure(figsize=(style.TEXT_WIDTH_IN, 0.35 + 1.55 * len(cells)))
        grid = drawing.subplots(len(cells), 2, squeeze=False, width_ratios=[1.6, 1])
        for (left, right), cell in zip(grid, rows_of(cells)):
            own = gates[cell.cell]
            looks = style.sequence(list(range(len(own["value_norm"]))))
            for layer, norms in enumerate(own["value_norm"]):
                left.plot(own["positions"], norms, color=looks[layer].colour, linestyle=looks[layer].line)
            left.set_ylabel("‖recurrent value‖")
            left.set_title(f"{cell.run}, {cell.pattern}")
            image = _heat_map(right, np.array(own["memory_tokens"]), scale)
        grid[-1][0].set_xlabel("Position (tokens)")
        grid[-1][1].set_xlabel("Head")
        bar = drawing.colorbar(image, ax=list(grid[:, 1]), pad=0.03)
        bar.set_label("Memory (tokens)")
        ticks = [2.0**power for power in range(-4, 17) if least <= 2.0**power <= most_tokens]
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks], minor=False)
        bar.ax.minorticks_off()
        most = max(len(gates[cell]["value_norm"]) for cell in cells["cell"])
        looks = style.sequence(list(range(most)))
        every = -(-most // 12)
        handles = [
            Line2D([], [], color=looks[i].colour, linestyle=looks[i].line, label=f"layer {i}")
            for i in range(0, most, every)
        ]
        style.legend_below(drawing, handles, most=6, left_out=left_out)
    return drawing


def _heat_map(axes, memory_LH: np.ndarray, scale: LogNorm):
    image = axes.imshow(memory_LH, cmap=style.SHADES, norm=scale, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.set_ylabel("Layer")
    for count, set_ticks in zip(memory_LH.shape, (axes.set_yticks, axes.set_xticks)):
        set_ticks(range(0, count, -(-count // 8)))
    if max(memory_LH.shape) <= 8:
        for (row, column), value in np.ndenumerate(memory_LH):
            dark = scale(value) > 0.55
            axes.text(column, row, number(value, 1), ha="center", va="center", fontsize=7,
                      color="white" if dark else "black")  # fmt: skip
    return image


# %% [markdown]
"""
## Schemes

Models that differ in `model.recurrence_chunk` alone, each under the pattern that is closest to dense. A state that
starts anew every L tokens never holds more than L of them: its norm is a saw of period L.
"""


# %%
def schemes(frame: pd.DataFrame, gates: dict[str, dict] | None = None) -> pd.DataFrame:
    """One row a model, scheme and position: `run`, `chunk` (null: full sequence), `position`, `norm`, `seeds`.

    `norm` is the L2 norm of the recurrent value, mean over rows, heads, layers and seeds. Empty unless a model has two
    schemes.
    """
    gates, rows = gates_of(frame) if gates is None else gates, []
    for cell in rows_of(in_order(frame)):
        if cell.cell in gates:
            own = gates[cell.cell]
            name, chunk = run_name(cell.model, _CHUNK.sub("", cell.variant).lstrip(", ")), own.get("recurrence_chunk")
            norms = np.mean(own["value_norm"], axis=0)
            rows += [(name, chunk, cell.pattern, p, norm) for p, norm in zip(own["positions"], norms)]
    found = pd.DataFrame(rows, columns=["run", "chunk", "pattern", "position", "norm"])
    found["chunk"] = found["chunk"].astype("Int64")
    several = found.groupby("run")["chunk"].transform(lambda chunks: chunks.nunique(dropna=False)).gt(1)
    found = found[several.astype(bool)]
    # Each scheme is shown under its first pattern, which is the densest.
    kept = found.groupby(["run", "chunk"], dropna=False)["pattern"].transform("first")
    groups = found[found["pattern"].eq(kept)].groupby(
        ["run", "chunk", "pattern", "position"], sort=False, dropna=False
    )  # fmt: skip
    return groups["norm"].agg(norm="mean", seeds="size").reset_index()


def schemes_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each model and scheme of `schemes`: mean, least and most norm in the second half of the context."""
    shown = []
    for (name, chunk, pattern), own in groups_of(rows, ["run", "chunk", "pattern"], dropna=False):
        late = own.loc[own["position"].ge(own["position"].max() / 2), "norm"]
        values = {title: number(value, 3) for title, value in
                  (("Mean norm", late.mean()), ("Least", late.min()), ("Most", late.max()))}  # fmt: skip
        shown.append({"Model": name, "Recurrence": _scheme(chunk), "Pattern": pattern, **values})
    return pd.DataFrame(shown)


def schemes_figure(rows: pd.DataFrame) -> Figure:
    """The norm over time of the rows of `schemes`: a line a scheme, a panel for each of the first four models."""
    names = list(dict.fromkeys(rows["run"]))
    kept = names[:MOST_RUNS]
    looks = style.sequence(list(dict.fromkeys(rows["chunk"].map(_scheme))))
    with style.context():
        drawing = Figure(figsize=(style.COLUMN_WIDTH_IN, 0.35 + 1.55 * len(kept)))
        for axes, name in zip(drawing.subplots(len(kept), sharex=True, squeeze=False)[:, 0], kept):
            for chunk, own in rows[rows["run"].eq(name)].groupby("chunk", sort=False, dropna=False):
                look = looks[_scheme(chunk)]
                axes.plot(own["position"], own["norm"], color=look.colour, linestyle=look.line, linewidth=0.9)
            axes.set_title(name)
            axes.set_ylabel("‖recurrent value‖")
        axes.set_xlabel("Position (tokens)")
        handles = [Line2D([], [], color=look.colour, linestyle=look.line, label=text) for text, look in looks.items()]
        left_out = f"{len(kept)} of {len(names)} models; all: see CSV" if len(kept) < len(names) else ""
        style.legend_below(drawing, handles, left_out=left_out)
    return drawing


def _scheme(chunk) -> str:
    return "full sequence" if pd.isna(chunk) else f"starts anew every {chunk}"


# %% [markdown]
"""
## In the report
"""


# %%
def applies(frame: pd.DataFrame) -> bool:
    """Whether any cell's gates have been measured."""
    return bool(gates_of(frame))


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The table and the figure; those of the schemes too, if a model has several.

    Raises:
        ValueError: no cell's gates have been measured.
    """
    gates = gates_of(frame)
    if not gates:
        folder = frame.attrs["folder"]
        raise ValueError(f"{folder}: no cell has a gates.json; measure them with `ratplus report {folder} --gates`")
    caption = (
        "Gates of the recurrence by layer, mean over heads: mean, 10th and 90th percentile, and memory, the mean age "
        "in tokens of what the state holds in the second half of the context."
    )
    rows = table(frame, gates)
    made = [Table(NAME, rows, summary(rows), caption, names=3, grouped=True), Picture(NAME, figure(frame, gates))]
    rows = schemes(frame, gates)
    if rows.empty:
        return made
    caption = (
        "L2 norm of the recurrence's output in the second half of the context, mean over rows, heads and layers, where "
        "the recurrence runs over the full sequence and where it starts anew every so many tokens."
    )
    made.append(Table(SCHEMES, rows, schemes_summary(rows), caption, names=3, grouped=True))
    return [*made, Picture(SCHEMES, schemes_figure(rows))]


# %%
if __name__ == "__main__":
    run(contents)
