# %% [markdown]
"""
# Adaptation curves

How quickly does a pretrained model get used to a pattern? Training loss against adaptation tokens, a line for each
pattern and a panel for each model, from the `curve.csv` of the adapt stages.

- `table`: one row a logged step of each model and pattern, mean over seeds
- `summary`: one row a model and pattern: loss at the first and last logged step, tokens until half of the way was done
- `figure`: the curves

Run it as `python -m ratplus.analysis.adaptation_curves outputs/demo`, through `ratplus report`, or as a notebook (with
jupytext; set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ratplus.analysis.draw import style
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import first_runs, in_order, run_name, short_patterns, spread_patterns
from ratplus.analysis.frame.curves import curve_of
from ratplus.analysis.frame.rows import groups_of, keys_of
from ratplus.analysis.page.notebook import run
from ratplus.records.curve import MOST_ROWS as CURVE_ROWS

NAME = "adaptation_curves"
_LOG = logging.getLogger(__name__)
MOST_RUNS, MOST_PATTERNS = 4, 12
# Rows of all curves together, of which each cell has its share, and the least that a share is.
MOST_ROWS, LEAST_SHARE = 2_000_000, 1_000

# %% [markdown]
"""
## Tables

The loss is that of the training batches, so a line wiggles with them; all patterns saw the same.
"""


# %%
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each model, variant, pattern and logged step: `run`, `pattern`, `step`, `tokens`, `loss`, `seeds`.

    Of very long curves these are some of the steps, and a line in the log says which.
    """
    columns = {name: [] for name in ("run", "pattern", "seed", "step", "tokens", "loss")}
    cells = in_order(frame).drop_duplicates("adapt")
    cells = cells[cells["adapt"].notna()]
    share = min(CURVE_ROWS, max(LEAST_SHARE, MOST_ROWS // max(1, len(cells))))
    folder = Path(frame.attrs["folder"]) / "adapt"
    for model, variant, pattern, seed, stage in keys_of(cells, ["model", "variant", "pattern", "seed", "adapt"]):
        curve = curve_of(folder / stage, share, _LOG.warning)
        if not {"step", "tokens", "loss"} <= curve.keys():
            continue
        for name, value in (("run", run_name(model, variant)), ("pattern", pattern), ("seed", seed)):
            columns[name] += [value] * len(curve["step"])
        for name in ("step", "tokens", "loss"):
            columns[name].append(curve[name])
    numbers = {name: np.concatenate(columns[name]) for name in ("step", "tokens", "loss") if columns[name]}
    steps = pd.DataFrame(columns | numbers).groupby(["run", "pattern", "step"], sort=False)
    # Seeds that stopped early would bend the mean: it is taken where all that have a curve have a value.
    mean = steps.agg(tokens=("tokens", "mean"), loss=("loss", "mean"), seeds=("seed", "size")).reset_index()
    most = mean.groupby(["run", "pattern"])["seeds"].transform("max")
    return mean[mean["seeds"].eq(most)].reset_index(drop=True)


def summary(frame: pd.DataFrame, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a model and pattern, rounded; `rows` is the frame's `table`, if it is at hand."""
    rows, names = table(frame) if rows is None else rows, short_patterns(in_order(frame))
    shown = []
    for (name, pattern), curve in groups_of(rows, ["run", "pattern"]):
        first, last = curve["loss"].iloc[0], curve["loss"].iloc[-1]
        # The first step at which half of the whole fall was done; a curve that does not fall has none.
        below = curve["loss"] <= (first + last) / 2
        half = curve["tokens"][below].iloc[0] if last < first and below.any() else np.nan
        shown.append(
            [name, names[pattern], number(first, 3), number(last, 3), number(half, 0),
             number(curve["tokens"].iloc[-1], 0)]
        )  # fmt: skip
    return pd.DataFrame(shown, columns=["Model", "Pattern", "First loss", "Last loss", "Tokens to half", "Tokens"])


# %% [markdown]
"""
## Figure

Dark lines are small dilations, light ones large; streaming and hybrids follow.
"""


# %%
def figure(frame: pd.DataFrame, rows: pd.DataFrame | None = None) -> Figure:
    """Loss against adaptation tokens, a panel a model (the first four), a line a pattern; `rows` as of `summary`.

    Raises:
        ValueError: no adapt stage has left a curve.
    """
    rows, left_out = first_runs(table(frame) if rows is None else rows, MOST_RUNS)
    if rows.empty:
        raise ValueError("adaptation_curves: no adapt stage has left a curve")
    names = short_patterns(in_order(frame))
    patterns, left_out = spread_patterns(names, rows, MOST_PATTERNS, left_out)
    looks = style.sequence(patterns)
    runs = list(dict.fromkeys(rows["run"]))
    across = min(2, len(runs))
    down = -(-len(runs) // across)
    width = style.COLUMN_WIDTH_IN if across == 1 else style.TEXT_WIDTH_IN
    with style.context():
        drawing = Figure(figsize=(width, 0.3 + 2.0 * down))
        grid = drawing.subplots(down, across, squeeze=False, sharex=True).ravel()
        unit, title = _unit(rows["tokens"].max())
        for axes, name in zip(grid, runs):
            for pattern in patterns:
                curve = rows[rows["run"].eq(name) & rows["pattern"].eq(pattern) & np.isfinite(rows["loss"])]
                axes.plot(curve["tokens"] / unit, curve["loss"], color=looks[pattern].colour,
                          linestyle=looks[pattern].line, linewidth=1.0)  # fmt: skip
            axes.set_title(name)
            axes.set_xlim(left=0)
        for axes in grid[len(runs) :]:
            axes.set_axis_off()
        for axes in grid[::across]:
            axes.set_ylabel("Training loss (nats)")
        for axes in grid[len(runs) - across : len(runs)]:
            axes.set_xlabel(f"Adaptation tokens{title}")
        handles = [
            Line2D([], [], color=looks[pattern].colour, linestyle=looks[pattern].line, label=names[pattern])
            for pattern in patterns
        ]
        style.legend_below(drawing, handles, most=6, left_out=left_out)
    return drawing


def _unit(largest: float) -> tuple[float, str]:
    for unit, title in ((1e9, " (billions)"), (1e6, " (millions)"), (1e3, " (thousands)")):
        if largest >= unit:
            return unit, title
    return 1, ""


# %% [markdown]
"""
## In the report
"""


# %%
def applies(frame: pd.DataFrame) -> bool:
    """Whether any adapt stage has left a curve."""
    folder = Path(frame.attrs["folder"]) / "adapt"
    # Without adaptation (steps=0) there is a file without rows.
    return any(curve_of(folder / name, LEAST_SHARE) for name in frame["adapt"].dropna().unique())


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The table and the figure.

    Raises:
        ValueError: no adapt stage has left a curve.
    """
    rows = table(frame)
    if rows.empty:
        raise ValueError("adaptation_curves: no adapt stage has left a curve")
    caption = (
        "Adaptation to each pattern: training loss (nats per token) at the first and the last logged step, and the "
        "tokens after which half of that way was done."
    )
    made = Table(NAME, rows, summary(frame, rows), caption, names=2, grouped=True)
    return [made, Picture(NAME, figure(frame, rows))]


# %%
if __name__ == "__main__":
    run(contents)
