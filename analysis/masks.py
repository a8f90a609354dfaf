# %% [markdown]
"""
# What each pattern sees

Pictures of visibility: query position downwards, key position to the right; what a query sees is dark. One picture for
each pattern that any head of the sweep has, and a table of what it keeps. Of a pattern that selects by query it is of a
real row: what its first head saw in the first question of an evaluation (`selection.json`).

- `table`: one row a pattern: pairs that it sees, cache entries
- `figure`: the pictures, cut to a length at which the pattern can be made out

Run it as `python -m ratplus.analysis.masks outputs/demo`, through `ratplus report`, or as a notebook (with jupytext;
set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ratplus.analysis.draw import style
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import in_order
from ratplus.analysis.frame.methods import with_attention
from ratplus.analysis.frame.reads import READ_CAPTION, entries, reads_apart
from ratplus.analysis.frame.selection import mask_of, selections_of
from ratplus.analysis.page.notebook import run
from ratplus.costs.cost import visible_ratio
from ratplus.costs.facts import MIXERS, at_most
from ratplus.costs.selection import forward_is_exact
from ratplus.pattern import Pattern, PatternMap
from ratplus.pattern.fields import STATIC

NAME = "masks"
MOST = 12

# %% [markdown]
"""
## Table
"""


# %%
def patterns(frame: pd.DataFrame) -> list[Pattern]:
    """Every pattern that a head of the sweep has, also inside hybrids, by dilation, window and sinks.

    A model without attention has none.
    """
    shapes = with_attention(frame)[["pattern", "layers", "heads"]].drop_duplicates()
    maps = (PatternMap.from_label(label, int(n), int(heads)) for label, n, heads in shapes.itertuples(index=False))
    found = {pattern for patterns in maps for row in patterns for pattern in row}
    return sorted(found, key=lambda pattern: pattern.sort_key)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a pattern: `pattern`, its three static numbers, `context`, `kv_entries` and `kv_read` of a head (an upper
    bound unless `kv_read_exact`), and `visible_ratio` of a forward (likewise, `visible_exact`)."""
    context = int(frame["context"].max())
    return pd.DataFrame(
        [
            {"pattern": p.label, **{name: getattr(p, name) for name in STATIC}, "context": context,
             "kv_entries": p.kv_entries(context), "kv_read": p.kv_read(context), "kv_read_exact": p.kv_read_exact,
             "visible_ratio": visible_ratio(p, context), "visible_exact": forward_is_exact(p)}
            for p in patterns(frame)
        ]
    ).astype({"dilation": "Int64"})  # fmt: skip


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """The table, rounded."""
    rows = table(frame)
    shown = pd.DataFrame(
        {
            "Pattern": rows["pattern"],
            "Dilation": [number(value, 0) for value in rows["dilation"]],
            "Window": rows["window"].astype(str),
            "Sinks": rows["sinks"].astype(str),
            "KV entries": rows["kv_entries"].astype(str),
        }
    )
    if reads_apart(rows):
        shown["KV read"] = entries(rows["kv_read"], rows["kv_read_exact"])
    pairs = zip(rows["visible_ratio"], rows["visible_exact"])
    shown["Pairs seen (%)"] = [at_most(number(100 * value, 1), exact) for value, exact in pairs]
    return shown


# %% [markdown]
"""
## Figure
"""


# %%
def figure(frame: pd.DataFrame) -> Figure:
    """A picture a pattern, all over the same positions; at most twelve."""
    every, seen = patterns(frame), _seen(frame)
    drawable = [p for p in every if not p.data_dependent or p.label in seen]
    length = _length(drawable, int(frame["context"].max()))
    shown = drawable[:MOST]
    if not shown:
        raise ValueError(f"{NAME}: no finished cell says what its pattern selected, so there is nothing to draw")
    across = min(4 if len(shown) != 3 else 3, len(shown))
    down = -(-len(shown) // across)
    width = style.COLUMN_WIDTH_IN if across < 3 else style.TEXT_WIDTH_IN
    with style.context():
        drawing = Figure(figsize=(width, down * (width / across + 0.1) + 0.3))
        grid = drawing.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for axes, pattern in zip(grid.ravel(), shown):
            picture = seen[pattern.label] if pattern.data_dependent else pattern.visible(length)
            own = min(length, len(picture))  # a real row may be shorter
            axes.imshow(picture[:own, :own], cmap="Greys", vmin=0, vmax=1.25, interpolation="nearest",
                        extent=(0, own, own, 0))  # fmt: skip
            axes.set_xlim(0, length)
            axes.set_ylim(length, 0)
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
        rest = f" (first {len(shown)} of {len(every)} patterns)" if len(every) > len(shown) else ""
        drawing.supxlabel(f"Key position{rest}", fontsize=8)
        drawing.supylabel("Query position", fontsize=8)
    return drawing


def _seen(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """{label: mask} of the patterns whose selection a finished cell has left, of a RAT+ model where there is one."""
    found: dict[str, np.ndarray] = {}
    ordered = frame.sort_values("recurrence", ascending=False, kind="stable")
    for plain in selections_of(ordered).values():
        for label, stored in plain["masks"].items():
            found.setdefault(label, mask_of(stored))
    return found


def _length(every: list[Pattern], context: int) -> int:
    """Room for two blocks of the largest dilation, for the widest window, and for selected blocks beside others; but no
    more than can be made out."""
    wanted = max([64, *(2 * (p.dilation or 1) for p in every), *(3 * p.window // 2 + p.sinks for p in every)])
    wanted = max([wanted, *(2 * p.top * p.block for p in every if p.top), *(p.snap + 32 for p in every if p.snap)])
    return min(1 << (wanted - 1).bit_length(), context, 256)


# %% [markdown]
"""
## In the report
"""


# %%
def applies(frame: pd.DataFrame) -> bool:
    """Whether any cell has attention, and so a pattern."""
    return len(with_attention(frame)) > 0


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The table and the figure."""
    caption = (
        f"Patterns of the sweep's heads. KV entries: cache entries of a head before the step at position "
        f"{int(frame['context'].max())}.{READ_CAPTION if reads_apart(table(frame)) else ''} Pairs seen: of all (query, "
        "key) pairs that dense attention sees."
    )
    alone = dict.fromkeys(in_order(frame[frame["method"].isin(MIXERS)])["model"])
    notes = [f"No attention, and so no pattern: {', '.join(alone)}."] if alone else []
    made = Table(NAME, table(frame), summary(frame), caption, notes)
    drawable = any(not p.data_dependent for p in patterns(frame)) or _seen(frame)
    return [made, Picture(NAME, figure(frame))] if drawable else [made]


# %%
if __name__ == "__main__":
    run(contents)
