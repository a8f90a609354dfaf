# %% [markdown]
"""
# Which layers and heads need to be dense

The loss when only one layer, only one head, or only one head of one layer is sparse; and the other way round, when only
it is dense. From a sweep's cells whose patterns differ from the rest in exactly one place: see `sweep=hybrid_layers`.

- `table`: one row a cell of that kind: which place, which pattern, what it costs
- `figure`: heat maps, layers downwards and heads to the right; `all` is a whole layer or a head of every layer

Run it as `python -m ratplus.analysis.sensitivity outputs/demo`, through `ratplus report`, or as a notebook (with
jupytext; set the environment variable RATPLUS_SWEEP to the sweep folder).
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
from ratplus.analysis.frame.aggregate import error_source, in_order, over_seeds, with_loss_delta
from ratplus.analysis.frame.rows import rows_of
from ratplus.analysis.page.notebook import run
from ratplus.analysis.paired.differences import baseline_of, baseline_title, loss_delta_notes, rows_with_deltas
from ratplus.analysis.paired.ties import delta_texts
from ratplus.pattern import Pattern, PatternMap

NAME = "sensitivity"
MOST_PANELS = 4
# A heat map with more cells a side than this has no room for numbers in them.
MOST_WITH_NUMBERS = 8

# %% [markdown]
"""
## Table

`only` is `sparse` or `dense`: what the one place is, the rest being the other. `layer` and `head` count from 0; null
stands for all of them.
"""


# %%
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a model and pattern: `run`, `only`, `sparse` (a label), `layer`, `head`, `loss`, `loss_delta`, errors.

    `loss_delta_pm` is the error over the evaluation's items, `loss_delta_stderr` that over seeds.
    """
    return _odd_places(rows_with_deltas(frame, []))


def _odd_places(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows a model and pattern, those with one odd place, and which."""
    rows = rows[rows["kind"].eq("hybrid")].reset_index(drop=True)
    places = [single(row.pattern, int(row.layers), int(row.heads)) or {} for row in rows.itertuples()]
    found = pd.DataFrame(places, columns=["only", "sparse", "layer", "head"], index=rows.index)
    values = ["loss", "loss_stderr", "loss_delta", "loss_delta_pm", "loss_delta_p", "loss_delta_stderr"]
    values = [name for name in (*values, "status", "done") if name in rows]
    rows = rows[["run", "model", "variant", "pattern", "layers", "heads"]].join(found).join(rows[values])
    return rows[rows["only"].notna()].astype({"layer": "Int64", "head": "Int64"}).reset_index(drop=True)


def single(label: str, layers: int, heads: int) -> dict | None:
    """Which one place a map differs in from dense (`only` sparse) or from one sparse pattern (`only` dense), if so."""
    rows = _rows(label, layers, heads)
    if rows is None:
        return None
    kinds = {pattern for row in rows for pattern in row}
    sparse = [pattern for pattern in kinds if not Pattern.from_label(pattern).dense]
    if len(kinds) != 2 or len(sparse) != 1:
        return None
    is_sparse = np.array([[pattern == sparse[0] for pattern in row] for row in rows])
    for only, odd in (("sparse", is_sparse), ("dense", ~is_sparse)):
        across, down = odd.any(axis=1), odd.any(axis=0)
        place = {"only": only, "sparse": sparse[0], "layer": int(across.argmax()), "head": int(down.argmax())}
        if odd.sum() == 1 and layers > 1 and heads > 1:
            return place
        if across.sum() == 1 and odd[across].all() and layers > 1:
            return place | {"head": None}
        if down.sum() == 1 and odd[:, down].all() and heads > 1:
            return place | {"layer": None}
    return None


def _rows(label: str, layers: int, heads: int) -> list[list[str]] | None:
    """Labels of a map's patterns, [layers][heads]; None for a uniform one."""
    patterns = PatternMap.from_label(label, layers, heads)
    return None if patterns.is_uniform else [[p.label for p in row] for row in patterns]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """The table, rounded, worst first within a model."""
    # Without a dense cell there is no Δ, and the loss says what is worst.
    by = ["run", "only", "sparse", "loss_delta", "loss"]
    rows = table(frame).sort_values(by, ascending=[True, False, True, False, False])
    return pd.DataFrame(
        {
            "Model": rows["run"],
            "Place": [_place(row) for row in rows.itertuples()],
            "Rest": ["dense" if only == "sparse" else pattern for only, pattern in zip(rows["only"], rows["sparse"])],
            "Loss": [
                f"**{row.status}**" if row.status != "done" else number(row.loss, 3, row.loss_stderr)
                for row in rows_of(rows)
            ],
            "Δ loss": delta_texts(rows, "loss", 1, 3),
        }
    )


def _place(row) -> str:
    where = " ".join(
        f"{name} {value}" for name, value in (("layer", row.layer), ("head", row.head)) if not pd.isna(value)
    )
    return f"{where}: {row.sparse if row.only == 'sparse' else 'dense'}"


# %% [markdown]
"""
## Figure

Darker is worse. White with a cross: a cell of the sweep without a result. Empty: not in the sweep.
"""


# %%
def figure(frame: pd.DataFrame) -> Figure:
    """A heat map for each model, kind of place and pattern (the first four): Δ loss, or loss where none is dense.

    Raises:
        ValueError: no finished cell differs in one place.
    """
    rows = table(frame)
    panels = list(rows[np.isfinite(rows["loss"])].groupby(["run", "only", "sparse"], sort=False))
    left_out = f"{MOST_PANELS} of {len(panels)} heat maps; all: see table" if len(panels) > MOST_PANELS else ""
    panels = panels[:MOST_PANELS]
    if not panels:
        raise ValueError("sensitivity: no finished cell has exactly one sparse (or one dense) layer or head")
    metric = "loss_delta" if rows["loss_delta"].notna().any() else "loss"
    with style.context():
        across = min(2, len(panels))
        down = -(-len(panels) // across)
        shapes = [_grid(rows, key, metric)[0].shape for key, _ in panels]
        height = max(0.22 * max(rows_ for rows_, _ in shapes) + 0.75, 1.6)
        width = style.COLUMN_WIDTH_IN if across == 1 else style.TEXT_WIDTH_IN
        drawing = Figure(figsize=(width, height * down))
        grid = drawing.subplots(down, across, squeeze=False).ravel()
        shown = [rows.loc[part.index, metric] for _, part in panels]
        scale = Normalize(min(0, *(v.min() for v in shown)), max(v.max() for v in shown))
        for axes, (key, _) in zip(grid, panels):
            image = _draw(axes, *_grid(rows, key, metric), scale)
            name, only, pattern = key
            axes.set_title(f"{name}\nonly this place {pattern if only == 'sparse' else f'dense, rest {pattern}'}")
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        bar = drawing.colorbar(image, ax=list(grid), shrink=0.9, pad=0.02)
        bar.set_label(f"Δ loss to {baseline_of(frame)} (nats)" if metric == "loss_delta" else "Loss (nats)")
        bar.outline.set_linewidth(0.6)
        if left_out:
            style.legend_below(drawing, [], left_out=left_out)
    return drawing


def _grid(rows: pd.DataFrame, key: tuple, metric: str) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """(values, whether the sweep has that cell, row names, column names); the last row and column are `all`."""
    run_, only, pattern = key
    part = rows[rows["run"].eq(run_) & rows["only"].eq(only) & rows["sparse"].eq(pattern)]
    layers, heads = int(part["layers"].iloc[0]), int(part["heads"].iloc[0])
    values = np.full((layers + 1, heads + 1), np.nan)
    asked = np.zeros_like(values, dtype=bool)
    for row in part.itertuples():
        at = (layers if pd.isna(row.layer) else row.layer, heads if pd.isna(row.head) else row.head)
        values[at], asked[at] = getattr(row, metric), True
    # Rows and columns that the sweep has not asked for are left out: whole layers need no columns for heads.
    with_row, with_column = np.asarray(asked.any(axis=1)), np.asarray(asked.any(axis=0))
    keep_rows = with_row if part["layer"].isna().all() else np.append([True] * layers, asked[layers].any())
    keep_columns = with_column if part["head"].isna().all() else np.append([True] * heads, asked[:, heads].any())
    names = [*map(str, range(layers)), "all"], [*map(str, range(heads)), "all"]
    row_names = [name for name, keep in zip(names[0], keep_rows) if keep]
    column_names = [name for name, keep in zip(names[1], keep_columns) if keep]
    return values[keep_rows][:, keep_columns], asked[keep_rows][:, keep_columns], row_names, column_names


def _draw(axes, values: np.ndarray, asked: np.ndarray, row_names: list[str], column_names: list[str], scale):
    image = axes.imshow(values, cmap=style.SHADES, norm=scale, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.set_facecolor("white")
    for names, set_ticks in ((row_names, axes.set_yticks), (column_names, axes.set_xticks)):
        every = -(-len(names) // 12)
        set_ticks(range(0, len(names), every), names[::every])
    axes.set_ylabel("Layer")
    axes.set_xlabel("Head")
    for (row, column), there in np.ndenumerate(asked):
        value = values[row, column]
        if there and not np.isfinite(value):
            axes.plot(column, row, "x", color="0.3")
        elif there and max(values.shape) <= MOST_WITH_NUMBERS:
            dark = scale(value) > 0.55
            axes.text(column, row, number(value, 3), ha="center", va="center", fontsize=7,
                      color="white" if dark else "black")  # fmt: skip
    return image


# %% [markdown]
"""
## In the report
"""


# %%
def applies(frame: pd.DataFrame) -> bool:
    """Whether finished cells of one model have the same odd pattern in at least two places: layers, heads or both."""
    done = frame[frame["kind"].eq("hybrid") & np.isfinite(frame["loss"])]
    if done.empty:
        return False
    # Without errors, since those of a part of the frame would be computed for this alone.
    rows = _odd_places(over_seeds(with_loss_delta(in_order(done)), ["loss", "loss_delta"]))
    return bool(rows.groupby(["run", "only", "sparse"]).size().gt(1).any())


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The table and the figure.

    Raises:
        ValueError: no model has such cells in two places.
    """
    if not applies(frame):
        folder = frame.attrs["folder"]
        raise ValueError(
            f"{folder}: no model has finished cells with one sparse (or one dense) layer or head in two places"
        )
    caption = (
        "Loss (nats per token) when one place of the model has another pattern than the rest; layers and heads count "
        f"from 0, worst first; ± is the standard error {error_source(frame)}. Δ loss: difference to "
        f"{baseline_title(frame)} of the same model."
    )
    data = table(frame)
    made = Table(NAME, data, summary(frame), caption, loss_delta_notes(frame, data), names=3, grouped=True)
    return [made, Picture(NAME, figure(frame))]


# %%
if __name__ == "__main__":
    run(contents)
