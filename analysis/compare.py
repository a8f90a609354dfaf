"""Two sweeps side by side (`ratplus report A B`): two models, or two commits of the code, and what really differs.

Where both evaluations store samples of the same items, the difference is taken item by item and its uncertainty comes
from a paired bootstrap over items; else from the two standard errors, as if the items were different ones, which is
wider than need be. Both speak of the evaluation's noise alone: what another training seed would change is seen only by
sweeps with several seeds.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ratplus.analysis.draw import style
from ratplus.analysis.draw.dilation_axis import DilationAxis
from ratplus.analysis.draw.output import Picture, write
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.aggregate import RUN, first_runs, in_order, run_name, short_patterns
from ratplus.analysis.frame.load import Sweep, evaluations_of, read_sweep
from ratplus.analysis.frame.rows import groups_of, keys_of
from ratplus.analysis.frame.tasks import is_cost, is_share, recorded, result_column
from ratplus.analysis.page.compare import write_compare_page
from ratplus.analysis.paired.bootstrap import BOOTSTRAP, ERRORS, RESAMPLES, holm
from ratplus.analysis.paired.pairs import Pair, difference_of
from ratplus.analysis.paired.samples import asked, joined_items
from ratplus.records.manifest import given_as

# What says which pattern a row is of, and in which order it stands.
NAMES = ("pattern", "pattern_name", "kind", "dilation", "window", "sinks", "kv_read")


class Two:
    """Two sweeps as they were read, `sweeps`, which of their cells belong together, and how they differ.

    What gates look at and what is shown are the same differences, so they are worked out once.
    """

    def __init__(self, first: Sweep, second: Sweep):
        """Raises ValueError where they have no cell in common."""
        self.sweeps = first, second
        self.pairs = join(first.frame, second.frame)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Their `differences`."""
        return differences(*(sweep.frame for sweep in self.sweeps), self.pairs)


def compare(first: Path, second: Path, folder: Path | None = None, two: Two | None = None) -> list[Path]:
    """Write `compare_<second>` (tables, a figure of the loss, a page) into `folder`, else `<first>/report`.

    Returns the paths, the page last.

    Args:
        first, second: the folders.
        folder: where to write.
        two: the two as they were read, if they have been read already.

    Raises:
        ValueError: a folder that is no sweep, or sweeps without a cell in common.
    """
    two = two or Two(read_sweep(first), read_sweep(second))
    sweeps, pairs, rows = two.sweeps, two.pairs, two.rows
    a, b = (sweep.frame for sweep in sweeps)
    if rows.empty and rows.attrs["refused"]:
        raise ValueError(
            f"{given_as(first)} and {given_as(second)}: every result ({', '.join(rows.attrs['refused'][:6])}) was "
            "measured on different prompts or data, so they are not compared"
        )
    if rows.empty:
        raise ValueError(f"{given_as(first)} and {given_as(second)}: no cell that both sweeps have is finished in both")
    name = re.sub(r"[^\w.-]+", "_", Path(os.path.realpath(second)).name)
    folder, name = Path(folder) if folder else Path(first) / "report", f"compare_{name}"
    labels = _names(Path(first), Path(second))
    data = rows.drop(columns=[name for name in NAMES if name != "pattern"])
    said = notes(a, b, pairs, *labels)
    said += [f"{metric}: not compared where prompts or data are different." for metric in rows.attrs["refused"]]
    table = Table(name, data, summary(rows), caption(rows, *labels), said, names=2, grouped=True)
    drawn = [Picture(name, figure(rows, *labels))] if rows["metric"].eq("loss").any() else []
    written = write([table, *drawn], folder)
    pictures = [path for path in written if path.suffix == ".png"]
    page = write_compare_page(folder / f"{name}.html", rows, pictures, table, sweeps, labels)
    return [*written, page]


def join(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Places (`a`, `b`) in the two frames of cells with the same model, variant, pattern and seed.

    If they have no model and variant in common, but each has only one, cells with the same pattern and seed.
    """
    keys = [*RUN, "pattern", "seed"]
    if not set(a[RUN].itertuples(index=False, name=None)) & set(b[RUN].itertuples(index=False, name=None)):
        runs = [sorted({run_name(*run) for run in f[RUN].itertuples(index=False, name=None)}) for f in (a, b)]
        if len(runs[0]) != 1 or len(runs[1]) != 1:
            models = " and ".join(", ".join(names[:6]) for names in runs)
            raise ValueError(
                f"the two sweeps have no model in common ({models}); two different models are compared where each "
                "sweep has only one"
            )
        keys = ["pattern", "seed"]
    ours = a[keys].assign(a=range(len(a)))
    theirs = b[keys].assign(b=range(len(b)))
    pairs = ours.merge(theirs, on=keys, how="inner")[["a", "b"]]
    if pairs.empty:
        raise ValueError("the two sweeps have no pattern and seed in common, so there is nothing to compare")
    return pairs


def differences(a: pd.DataFrame, b: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """One row a pair of runs, pattern and metric: values, difference (second minus first) and how sure it is.

    Columns: run_a, run_b, pattern, metric, seeds, a, b, difference, stderr, low, high (95 %), p (two-sided, of no
    difference), p_holm (for all patterns of a metric together, Holm), method, items. Pairs that were asked different
    prompts or data are left out of a metric, and `attrs["refused"]` names it.
    """
    names = [name for name in a.attrs["metrics"] if name in b.attrs["metrics"] and not is_cost(name)]
    done = a["status"].eq("done").to_numpy()[pairs["a"]] & b["status"].eq("done").to_numpy()[pairs["b"]]
    ours = a.iloc[pairs["a"][done]].reset_index(drop=True)
    theirs = b.iloc[pairs["b"][done]].reset_index(drop=True)
    # As plain columns: to look up single values of a frame takes most of the time where there are thousands of rows.
    numbers = {
        name: np.array([[side[column].to_numpy(dtype=np.float64) for side in (ours, theirs)]
                        for column in (name, f"{name}_stderr")])
        for name in names
    }  # fmt: skip
    runs = [[run_name(*run) for run in keys_of(side, RUN)] for side in (ours, theirs)]
    facts = [dict(zip(NAMES, row)) for row in keys_of(ours, list(NAMES))]
    places_of = [[_place(frame, cell) for cell in side["cell"]] for frame, side in ((a, ours), (b, theirs))]
    rows, refused = [], []
    for _, own in in_order(ours.assign(at=range(len(ours)))).groupby([*RUN, "pattern"], sort=False)["at"]:
        at = list(own)
        places = [(places_of[0][p], places_of[1][p]) for p in at]
        found = [(joined_items(*first), joined_items(*second)) for first, second in places]
        for name in names:
            values, errors = np.ascontiguousarray(numbers[name][:, :, at])
            if not np.isfinite(values).all():
                continue
            stored = recorded(name)
            samples = [(first.get(stored), second.get(stored)) for first, second in found]
            if any(not _asked_alike(stored, *both) for both in zip(samples, places)):
                refused.append(name)  # they would differ because of what was asked
                continue
            rows.append(
                {
                    "run_a": runs[0][at[0]], "run_b": runs[1][at[0]], **facts[at[0]],
                    "metric": name, "seeds": len(at), "a": values[0].mean(), "b": values[1].mean(),
                    **difference_of(values, errors, samples),
                }
            )  # fmt: skip
    columns = ["run_a", "run_b", *NAMES, "metric", "seeds",
               "a", "b", "difference", "stderr", "low", "high", "p", "p_holm", "method", "items"]  # fmt: skip
    frame = pd.DataFrame(rows, columns=[c for c in columns if c != "p_holm"])
    frame.insert(columns.index("p_holm"), "p_holm", frame.groupby("metric", sort=False)["p"].transform(holm))
    frame = frame.astype({"dilation": "Int64"})
    frame.attrs["refused"] = list(dict.fromkeys(refused))
    return frame


def _place(frame: pd.DataFrame, cell: str) -> tuple[Path, tuple[str, ...]]:
    return Path(frame.attrs["folder"]), evaluations_of(frame, cell)


def _asked_alike(metric: str, samples: Pair, places: tuple) -> bool:
    """Whether a metric of two cells was measured on the same prompts or data."""
    first, second = samples
    if first is not None and second is not None and first.of == second.of:
        return True
    return asked(*places[0], metric) == asked(*places[1], metric)


# ---- what is shown ----


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a pair of runs and pattern: of the loss and of each total, both values and the difference, rounded."""
    names = short_patterns(rows)
    shares = {
        name: is_share(result_column(name).measure, [*own["a"], *own["b"]])
        for name, own in groups_of(rows, "metric")
        if name != "perplexity" and not result_column(name).part
    }
    lines = []
    for (run_a, run_b, pattern), part in groups_of(rows, ["run_a", "run_b", "pattern"]):
        line = {"Model": run_a if run_a == run_b else f"{run_a} → {run_b}", "Pattern": names[pattern]}
        values = part.set_index("metric")
        for name, share in shares.items():
            scale, digits, unit = (100, 1, " (%)") if share else (1, 3, "")
            title = name.replace("_", " ").capitalize() + unit
            if name not in values.index:
                line |= {title: "—", f"Δ {title}": "—"}
                continue
            one = values.loc[name]
            line[title] = f"{number(one['a'] * scale, digits)} → {number(one['b'] * scale, digits)}"
            change = number(one["difference"] * scale, digits, one["stderr"] * scale)
            line[f"Δ {title}"] = f"**{change}**" if one["p_holm"] < 0.05 else change
        lines.append(line)
    return pd.DataFrame(lines)


def caption(rows: pd.DataFrame, first: str, second: str) -> str:
    """What is compared, and how sure it is."""
    methods = rows["method"].value_counts()
    how = " and ".join(
        {BOOTSTRAP: f"a paired bootstrap over the items of both evaluations ({RESAMPLES} resamples)",
         ERRORS: "the standard errors of the two evaluations, unpaired, where samples are not stored"}[method]
        for method in methods.index
    )  # fmt: skip
    return (
        f"Sweep {second} against sweep {first}: values as first → second; Δ: second minus first ± its standard error, "
        f"from {how}. Bold: p < 0.05 after Holm's adjustment over all patterns of a metric. Differences between "
        "training seeds are not part of it."
    )


def notes(a: pd.DataFrame, b: pd.DataFrame, pairs: pd.DataFrame, first: str, second: str) -> list[str]:
    """How many cells stand in one sweep only, or have no result."""
    lines = []
    for frame, places, name in ((a, pairs["a"], first), (b, pairs["b"], second)):
        alone = len(frame) - places.nunique()
        if alone:
            lines.append(f"{alone} of {len(frame)} cells stand in {name} only.")
        unfinished = frame.iloc[places.unique()]["status"].ne("done").sum()
        if unfinished:
            lines.append(f"{unfinished} of the cells in common have no result in {name}.")
    return lines


def figure(rows: pd.DataFrame, first: str, second: str) -> Figure:
    """Difference in loss by pattern, with 95 % intervals, a line a model (the first five)."""
    rows = rows[rows["metric"].eq("loss")].assign(run=lambda r: r["run_a"])
    rows, left_out = first_runs(rows, 5)
    looks, axis = style.looks(list(dict.fromkeys(rows["run"]))), DilationAxis(rows)
    marks = style.markers(list(looks))
    with style.context():
        drawing = Figure(figsize=(style.COLUMN_WIDTH_IN, 2.1))
        axes = drawing.subplots()
        axes.axhline(0, color="0.4", linewidth=0.7, zorder=1)
        for name, own in rows.groupby("run", sort=False):
            # Side by side: intervals of equal length would hide each other.
            aside = 2 ** (0.16 * (list(looks).index(name) - (len(looks) - 1) / 2))
            look, own = looks[name], own.assign(x=np.array(axis.positions(own)) * aside).sort_values("x")
            plain = own["kind"].isin(["dense", "dilated"])
            for part, line in ((own[plain], look.line), (own[~plain], "none")):
                spread = [part["difference"] - part["low"], part["high"] - part["difference"]]
                axes.errorbar(
                    part["x"], part["difference"], yerr=None if pd.isna(spread[0]).all() else spread, elinewidth=0.8,
                    linestyle=line, color=look.colour, markerfacecolor=look.face, marker=marks[name],
                    label=name if line != "none" else None,
                )  # fmt: skip
        axis.draw([axes])
        axes.set_xlabel(axis.title)
        axes.set_ylabel(f"Δ loss (nats):\n{second} − {first}")
        handles = axes.get_legend_handles_labels()[0]
        names = short_patterns(rows)
        for label, short in axis.others.items():
            handles.append(Line2D([], [], linestyle="none", label=f"{short}: {names[label]}"))
        style.legend_below(drawing, handles, left_out=left_out)
    return drawing


def _names(first: Path, second: Path) -> tuple[str, str]:
    """The folders' names; with their parents if these are the same."""
    a, b = Path(os.path.realpath(first)), Path(os.path.realpath(second))
    return (a.name, b.name) if a.name != b.name else (f"{a.parent.name}/{a.name}", f"{b.parent.name}/{b.name}")
