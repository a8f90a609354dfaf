# %% [markdown]
"""
# What each pattern sees

Pictures of visibility: query position downwards, key position to the right; what a query sees is dark. One picture for
each pattern that any head of the sweep has, and a table of what it keeps.

- `table`: one row a pattern: pairs that it sees, cache entries
- `figure`: the pictures, cut to a length at which the pattern can be made out

Run it as `python -m ratplus.analysis.masks outputs/demo`, through `ratplus report`, or as a notebook (with jupytext;
set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

import re

import pandas as pd
from matplotlib.figure import Figure

from ratplus.analysis.draw import style
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.notebook import run
from ratplus.costs.cost import attention_flops_ratio
from ratplus.pattern import Pattern

NAME = "masks"
MOST = 12
_PATTERN = re.compile(r"(?:D\d+|stream)(?:-W\d+)?(?:-I\d+)?")

# %% [markdown]
"""
## Table
"""


# %%
def patterns(frame: pd.DataFrame) -> list[Pattern]:
    """Every pattern that a head of the sweep has, also inside hybrids, by dilation, window and sinks."""
    # A map's label spells out the patterns of its heads.
    labels = {text for label in frame["pattern"].unique() for text in _PATTERN.findall(label)}
    return sorted((Pattern.from_label(text) for text in labels), key=lambda pattern: pattern.sort_key)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a pattern: `pattern`, its three numbers, `context`, `kv_entries` of a head, `visible_ratio`."""
    context = int(frame["context"].max())
    return pd.DataFrame(
        [
            {"pattern": p.label, **p.to_dict(), "context": context, "kv_entries": p.kv_entries(context),
             "visible_ratio": attention_flops_ratio(p, context)}
            for p in patterns(frame)
        ]
    ).astype({"dilation": "Int64"})  # fmt: skip


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """The table, rounded."""
    rows = table(frame)
    return pd.DataFrame(
        {
            "Pattern": rows["pattern"],
            "Dilation": [number(value, 0) for value in rows["dilation"]],
            "Window": rows["window"].astype(str),
            "Sinks": rows["sinks"].astype(str),
            "KV entries": rows["kv_entries"].astype(str),
            "Pairs seen (%)": [number(100 * value, 1) for value in rows["visible_ratio"]],
        }
    )


# %% [markdown]
"""
## Figure
"""


# %%
def figure(frame: pd.DataFrame) -> Figure:
    """A picture a pattern, all over the same positions; at most twelve."""
    every = patterns(frame)
    length = _length(every, int(frame["context"].max()))
    shown = every[:MOST]
    across = min(4 if len(shown) != 3 else 3, len(shown))
    down = -(-len(shown) // across)
    width = style.COLUMN_WIDTH_IN if across < 3 else style.TEXT_WIDTH_IN
    with style.context():
        drawing = Figure(figsize=(width, down * (width / across + 0.1) + 0.3))
        grid = drawing.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for axes, pattern in zip(grid.ravel(), shown):
            axes.imshow(pattern.visible(length), cmap="Greys", vmin=0, vmax=1.25, interpolation="nearest",
                        extent=(0, length, length, 0))  # fmt: skip
            axes.grid(False)
            axes.plot([0, length], [0, length], color="0.6", linewidth=0.5)
            axes.set_title(pattern.label)
            axes.set_xticks([0, length // 2, length])
            axes.set_yticks([0, length // 2, length])
        for axes in grid.ravel()[len(shown) :]:
            axes.set_axis_off()
        for axes in grid.ravel()[max(0, len(shown) - across) : len(shown)]:
            axes.tick_params(labelbottom=True)
            labels = axes.get_xticklabels()  # else those of neighbours touch
            labels[0].set_horizontalalignment("left")
            labels[-1].set_horizontalalignment("right")
        rest = f" (first {MOST} of {len(every)} patterns)" if len(every) > MOST else ""
        drawing.supxlabel(f"Key position{rest}", fontsize=8)
        drawing.supylabel("Query position", fontsize=8)
    return drawing


def _length(every: list[Pattern], context: int) -> int:
    """Room for two blocks of the largest dilation and for the widest window, but no more than can be made out."""
    wanted = max([64, *(2 * (p.dilation or 1) for p in every), *(3 * p.window // 2 + p.sinks for p in every)])
    return min(1 << (wanted - 1).bit_length(), context, 256)


# %% [markdown]
"""
## In the report
"""


# %%
def applies(frame: pd.DataFrame) -> bool:
    """Whether the sweep has any cell."""
    return len(frame) > 0


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The table and the figure."""
    caption = (
        f"Patterns of the sweep's heads. KV entries: cache entries of a head before the step at position "
        f"{int(frame['context'].max())}. Pairs seen: of all (query, key) pairs that dense attention sees."
    )
    return [Table(NAME, table(frame), summary(frame), caption), Picture(NAME, figure(frame))]


# %%
if __name__ == "__main__":
    run(contents)
