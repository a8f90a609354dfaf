# %% [markdown]
"""
# What each part is for

The recurrence, active recurrence learning (ARL, with its D*), and the adaptation, each on and off: loss by pattern for
every combination that a sweep has (`sweep=ablation`). Any other axis of the sweep becomes a column too.

- `table`: one row a combination and pattern
- `summary`: one row a combination, patterns as columns
- `gaps`: the same with what each pattern loses against dense, with its error
- `figure`: loss against dilation, a line a combination; adapted and switched without adaptation side by side

Run it as `python -m ratplus.analysis.ablation outputs/ablation`, through `ratplus report`, or as a notebook (with
jupytext; set the environment variable RATPLUS_SWEEP to the sweep folder).
"""

# %%
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ratplus.analysis.draw import style
from ratplus.analysis.draw.dilation_axis import DilationAxis
from ratplus.analysis.draw.output import Picture
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import RUN, error_source, in_order, run_name, short_patterns
from ratplus.analysis.page.notebook import run
from ratplus.analysis.paired.differences import baseline_title, loss_delta_notes, rows_with_deltas
from ratplus.analysis.paired.ties import delta_texts

NAME = "ablation"
GAPS = "ablation_gaps"
ARL, DILATION, STEPS = "train.pretrain.arl", "train.pretrain.arl_dilation", "train.adapt.steps"
SPARSE = "train.pretrain.sparse"
TITLES = {SPARSE: "From scratch", "model.recurrence_chunk": "Restart every"}
MOST_LINES = 10

# %% [markdown]
"""
## Tables

`recurrence`, `arl` (`off`, or its D*) and `adapted` say what was on; they are null where the sweep does not vary it.
"""


# %%
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a combination and pattern: what was on, `pattern`, `loss`, `loss_delta`, `perplexity`, errors, seeds.

    `loss_delta` is to the baseline of the same combination; `loss_delta_pm` is its error over the evaluation's items,
    `loss_delta_stderr` that over seeds.
    """
    cells = in_order(frame)
    rows = rows_with_deltas(frame, ["perplexity", "recall_accuracy"])
    axes = cells.drop_duplicates(RUN).set_index(RUN)[cells.attrs["axes"]]
    of_row = axes.reindex(pd.MultiIndex.from_frame(rows[RUN])).reset_index(drop=True)
    rows["arl"] = [_arl(values) for values in of_row.to_dict("records")]
    if STEPS in of_row:
        rows["adapted"] = of_row[STEPS].astype("float64").gt(0)
        rows["adaptation_steps"] = of_row[STEPS]
    else:
        rows["adapted"] = None
    for name in _others(frame):
        rows[f"axis:{name}" if name in rows else name] = of_row[name]
    # Two numbers of steps are two combinations, not two points of one line.
    rows["several_steps"] = STEPS in of_row and rows["adaptation_steps"][rows["adapted"]].nunique() > 1
    rows["combination"] = [_combination(rows.loc[place]) for place in rows.index]
    return rows.drop(columns=["pattern_name", "attention_flops"])


def _others(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.attrs["axes"] if name not in (ARL, DILATION, STEPS)]


def _arl(axes: dict) -> str | None:
    if ARL not in axes:
        # The sweep trains with ARL only, at several dilations, or varies neither.
        return f"D* = {axes[DILATION]:g}" if DILATION in axes and not pd.isna(axes[DILATION]) else None
    if not axes[ARL] or pd.isna(axes[ARL]):
        return "off"
    return f"D* = {axes[DILATION]:g}" if DILATION in axes and not pd.isna(axes[DILATION]) else "on"


def _combination(row: pd.Series) -> str:
    """The name of a line: everything but the adaptation, which has panels of its own."""
    name = row["model"]
    if not pd.isna(row["arl"]):
        name += ", no ARL" if row["arl"] == "off" else f", ARL {row['arl']}".replace("ARL on", "ARL")
    rest = [part for part in str(row["variant"]).split(", ") if not _has_a_name(part)]
    if row.get("several_steps") and row["adapted"]:
        rest.append(f"{STEPS}={row['adaptation_steps']:g}")
    return run_name(name, ", ".join(rest))


def _has_a_name(part: str) -> bool:
    return part.partition("=")[0] in (ARL, DILATION, STEPS)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a combination: what is on, and the loss under each pattern."""
    rows = table(frame)
    return _by_pattern(frame, rows, [_loss(row) for _, row in rows.iterrows()])


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a combination: what is on, and what each pattern loses against the baseline of the same combination."""
    rows = table(frame)
    texts = pd.Series(delta_texts(rows, "loss", 1, 3), index=rows.index)
    known = rows["loss_delta"].notna() & rows["loss_delta"].ne(0)
    return _by_pattern(frame, rows[known], list(texts[known]))


def _by_pattern(frame: pd.DataFrame, rows: pd.DataFrame, texts: list[str]) -> pd.DataFrame:
    """One row a combination of `rows`, a column for each of their patterns, and in it the row's text."""
    rows = rows.assign(text=texts)
    known = set(rows["pattern"])
    names = {pattern: title for pattern, title in short_patterns(in_order(frame)).items() if pattern in known}
    lines = []
    for _, part in rows.groupby(RUN, sort=False):
        first = part.iloc[0]
        arl = "?" if pd.isna(first["arl"]) else first["arl"]
        line = {"Model": first["model"], "Recurrence": "✓" if first["recurrence"] else "–", "ARL": arl}
        if STEPS in frame.attrs["axes"]:
            several = first["several_steps"] and first["adapted"]
            line["Adapted"] = f"{first['adaptation_steps']:g} steps" if several else "✓" if first["adapted"] else "–"
        for name in _others(frame):
            value = first[f"axis:{name}" if f"axis:{name}" in part else name]
            line[TITLES.get(name, name)] = "–" if pd.isna(value) else f"{value:g}" if _is_number(value) else str(value)
        if (rows["cells"] > 1).any():
            line["Seeds"] = str(part["done"].max())
        for pattern, title in names.items():
            found = part[part["pattern"].eq(pattern)]
            line[title] = found["text"].iloc[0] if len(found) else "—"
        lines.append(line)
    shown = pd.DataFrame(lines)
    return shown.drop(columns="ARL") if len(shown) and shown["ARL"].eq("?").all() else shown


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _loss(row: pd.Series) -> str:
    if row["status"] != "done":
        return f"**{row['status']}**"
    return number(row["loss"], 3, row["loss_stderr"]) if not pd.isna(row["loss"]) else "NaN"


# %% [markdown]
"""
## Figure
"""


# %%
def figure(frame: pd.DataFrame) -> Figure:
    """Loss against dilation, a line a combination (at most ten); a panel for adapted and one for not adapted.

    Raises:
        ValueError: no finished cell has a finite loss.
    """
    rows = table(frame)
    rows = rows[np.isfinite(rows["loss"])]
    if rows.empty:
        raise ValueError("ablation: no finished cell has a finite loss, so there is nothing to draw")
    lines = list(dict.fromkeys(rows["combination"]))
    left_out = f"{MOST_LINES} of {len(lines)} combinations; all: see table" if len(lines) > MOST_LINES else ""
    lines = lines[:MOST_LINES]
    looks, marks = _looks(lines), style.markers(lines)
    panels = [("Adapted", True), ("Switched without adaptation", False)]
    panels = [(title, on) for title, on in panels if rows["adapted"].eq(on).any()] or [("", None)]
    axis = DilationAxis(rows)
    width = style.COLUMN_WIDTH_IN if len(panels) == 1 else style.TEXT_WIDTH_IN
    with style.context():
        drawing = Figure(figsize=(width, 2.3))
        grid = drawing.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, on) in zip(grid, panels):
            here = rows if on is None else rows[rows["adapted"].eq(on)]
            for line in lines:
                own = here[here["combination"].eq(line)]
                own = own.assign(x=axis.positions(own)).sort_values("x")
                dotted = own["kind"].isin(["dense", "dilated"])
                colours = {"color": looks[line].colour, "markerfacecolor": looks[line].face, "marker": marks[line]}
                axes.errorbar(own["x"][dotted], own["loss"][dotted], yerr=own["loss_stderr"][dotted], elinewidth=0.8,
                              linestyle=looks[line].line, **colours)  # fmt: skip
                axes.errorbar(own["x"][~dotted], own["loss"][~dotted], yerr=own["loss_stderr"][~dotted],
                              elinewidth=0.8, linestyle="none", **colours)  # fmt: skip
            axes.set_title(title)
            axis.draw([axes])
            axes.set_xlabel(axis.title)
        grid[0].set_ylabel("Held-out loss (nats)")
        handles = [
            Line2D([], [], color=looks[n].colour, linestyle=looks[n].line, marker=marks[n],
                   markerfacecolor=looks[n].face, label=n)
            for n in lines
        ]  # fmt: skip
        style.legend_below(drawing, handles, most=3 if len(panels) > 1 else 2, left_out=left_out)
    return drawing


def _looks(lines: list[str]) -> dict:
    return style.looks(lines) if len(lines) <= 5 else style.sequence(lines)


# %% [markdown]
"""
## In the report
"""


# %%
def applies(frame: pd.DataFrame) -> bool:
    """Whether the sweep varies ARL, its length, the steps of adaptation, or training from scratch."""
    known = [name for name in (ARL, DILATION, STEPS, SPARSE) if name in frame.attrs["axes"]]
    return any(frame[name].dropna().nunique() > 1 for name in known)


def contents(frame: pd.DataFrame) -> list[Table | Picture]:
    """The tables of losses and of gaps to dense and, if any cell has a finite loss, the figure.

    Raises:
        ValueError: the sweep varies nothing of all this.
    """
    if not applies(frame):
        raise ValueError(f"{frame.attrs['folder']}: varies neither {ARL}, {DILATION}, {STEPS} nor {SPARSE}")
    shown = summary(frame)
    caption = (
        "Held-out loss (nats per token) by inference pattern, with the recurrence, active recurrence learning (ARL; D* "
        f"is the dilation it trains with) and the adaptation on or off; ± is the standard error {error_source(frame)}."
    )
    data = table(frame)
    made: list[Table | Picture] = [Table(NAME, data, shown, caption, names=_names(frame, shown), grouped=True)]
    differences = gaps(frame)
    if len(differences):
        caption = (
            f"What a pattern costs: its held-out loss (nats per token) minus that of {baseline_title(frame)} of the "
            "same combination; rows as in the table of losses."
        )
        notes = loss_delta_notes(frame, data)
        data = data[["combination", *RUN, "pattern", *(name for name in data if name.startswith("loss_delta"))]]
        made.append(Table(GAPS, data, differences, caption, notes, names=_names(frame, differences), grouped=True))
    return [*made, Picture(NAME, figure(frame))] if np.isfinite(frame["loss"]).any() else made


def _names(frame: pd.DataFrame, shown: pd.DataFrame) -> int:
    return 1 + sum(name in shown for name in ("Recurrence", "ARL", "Adapted", "Seeds")) + len(_others(frame))


# %%
if __name__ == "__main__":
    run(contents)
