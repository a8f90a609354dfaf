"""Steps between the loaded frame and a table or figure: order, difference to the dense cell, mean over seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from ratplus.analysis.frame.rows import first_seen, keys_of

# Cells of one run differ in pattern and seed alone; `variant` holds whatever else the sweep varied.
RUN = ["model", "variant"]
GROUP = [*RUN, "pattern"]
# What `in_order` looks at.
_ORDERED = [*GROUP, "kind", "dilation", "window", "sinks", "kv_read", "seed"]
# Kinds of patterns that choose what they read by query, or what they keep by the prompt.
SELECTING = ("topk", "quest", "random", "snapkv")
# Where no seed of a row has finished, the row has the most serious status of its seeds: the first of these.
_UNFINISHED = ("damaged", "failed", "running", "missing")
_STATUSES = ("done", *_UNFINISHED)


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Cells by model and variant (as the sweep lists them), then pattern, then seed.

    Patterns stand by dilation, window and sinks, as `Pattern.sort_key` has it. Streaming patterns follow all dilations,
    then those that select by query, method by method, by what they read; hybrids come last, in the sweep's order.
    """
    selects = frame["kind"].isin(SELECTING).to_numpy()
    # The same selection with another static part is another method.
    kinds = frame.loc[selects, ["kind", "dilation", "window", "sinks"]].astype("string").fillna("")
    methods = np.full(len(frame), -1)
    methods[selects] = first_seen(keys_of(kinds, list(kinds)))
    keys = pd.DataFrame(
        {
            "run": first_seen(keys_of(frame, RUN)),
            "hybrid": frame["kind"].eq("hybrid").to_numpy(),
            "method": methods,
            "read": frame["kv_read"].where(selects, -1).to_numpy(),
            "dilation": frame["dilation"].astype("Float64").fillna(np.inf).to_numpy(),
            "window": frame["window"].fillna(0).to_numpy(),
            "sinks": frame["sinks"].fillna(0).to_numpy(),
            "pattern": first_seen(keys_of(frame, ["pattern"])),
            "seed": frame["seed"].fillna(-1).to_numpy(),
        }
    )
    order = keys.sort_values(list(keys), kind="stable").index.to_numpy()
    return frame.iloc[order].reset_index(drop=True)


def with_loss_delta(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `loss_delta`, the loss minus that of the finished dense cell of the same model, variant and seed.

    The column stands behind `loss_stderr`; it is null where there is no such dense cell.
    """
    places = reference_places(frame, reference_cells(frame, frame.attrs.get("baseline") or "dense"))
    frame = frame.copy()
    place = list(frame.columns).index("loss_stderr") + 1
    frame.insert(place, "loss_delta", deltas_to(frame, "loss", places))
    return frame


def reference_places(frame: pd.DataFrame, cells: dict[tuple, str]) -> np.ndarray:
    """For each row the number of its reference's row in the same frame; −1 if that is not there.

    Args:
        cells: of `reference_cells`.
    """
    places = {cell: place for place, (cell,) in enumerate(keys_of(frame, ["cell"]))}
    return np.array([places.get(cells.get(key, ""), -1) for key in keys_of(frame, [*RUN, "seed"])], dtype=np.int64)


def deltas_to(frame: pd.DataFrame, name: str, places: np.ndarray) -> np.ndarray:
    """A result of each row minus that of its reference: as `with_loss_delta`, of any result.

    Args:
        places: of `reference_places`.
    """
    values = frame[name].to_numpy(dtype=np.float64)
    # One NaN behind all values: place −1 is no reference.
    with np.errstate(invalid="ignore"):
        return values - np.append(values, np.nan)[places]


def reference_cells(frame: pd.DataFrame, baseline: str = "dense") -> dict[tuple, str]:
    """{(model, variant, seed): id of the finished cell that others of these are compared with}.

    Args:
        baseline: "dense", or a pattern by its label or the name of its config group.
    """
    frame = frame[[*_ORDERED, "pattern_name", "status", "cell"]]  # pandas would step through thousands of results
    named = frame["kind"] if baseline == "dense" else frame["pattern"]
    chosen = named.eq(baseline)
    if not chosen.any():
        chosen = frame["pattern_name"].eq(baseline)
    cells = frame[chosen & frame["status"].eq("done")]
    # D1 with a window is dense too. Where a sweep has both, plain D1 is the reference.
    cells = in_order(cells).drop_duplicates([*RUN, "seed"])
    return dict(zip(keys_of(cells, [*RUN, "seed"]), cells["cell"]))


def over_seeds(frame: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """One row per model, variant and pattern, in the frame's order, with the mean of each metric over finished seeds.

    Adds `run` (the name of model and variant), `cells` (seeds asked for), `done` (seeds finished) and, for each metric,
    `<name>_stderr`: the standard error of the mean over seeds if two or more have a value, else the evaluation's own.
    """
    # Groups are numbered once: to compare three texts of every row for every metric takes long.
    number = np.array(first_seen(keys_of(frame, GROUP)), dtype=np.int64)
    groups = frame.groupby(number)
    done = frame["status"].eq("done")
    same = ["recurrence", "pattern_name", "kind", "dilation", "window", "sinks", "context", "kv_entries", "kv_bytes"]
    same += ["layers", "heads", "kv_heads", "parameters", "attention_flops", "attention_flops_ratio"]
    same += ["method", "kv_read", "kv_read_exact", "flops_exact"]
    rows: pd.DataFrame = frame[[*GROUP, *same]].groupby(number).first()
    rows["cells"] = groups.size()
    rows["done"] = done.groupby(number).sum()
    rows["status"] = frame["status"].map(_STATUSES.index).groupby(number).min().map(_STATUSES.__getitem__)
    means = _means(frame, list(dict.fromkeys(metrics)), done, number)
    # All at once: pandas warns of a frame that grew by a hundred columns one by one, as those of eval=ruler are.
    rows = pd.concat([rows.drop(columns=[*means], errors="ignore"), pd.DataFrame(means, index=rows.index)], axis=1)
    rows = rows.reset_index(drop=True)
    rows.insert(0, "run", [run_name(*run) for run in keys_of(rows, RUN)])
    return rows


def _means(frame: pd.DataFrame, names: list[str], done: pd.Series, number: np.ndarray) -> dict[str, pd.Series]:
    """Means over finished seeds and their standard errors, all columns of one type at once: there may be thousands."""
    means: dict[str, pd.Series] = {}
    frame = frame[[*names, *(error for name in names if (error := f"{name}_stderr") in frame and error not in names)]]
    frame.attrs = {}  # pandas would copy them with each of thousands of columns
    kinds = dict(zip(frame.columns, frame.dtypes))
    for kind in dict.fromkeys(kinds[name] for name in names):
        alike = [name for name in names if kinds[name] == kind]
        values = frame[alike]
        finished = values.where(pd.DataFrame({name: done for name in alike})).groupby(number)
        # A finished seed without a number (it diverged) leaves the mean without one: never the mean of the others.
        lost = values.isna().mul(done, axis=0).groupby(number).any()
        count = finished.count()
        mean = finished.mean().mask(lost)
        with np.errstate(invalid="ignore"):  # an infinite loss has no spread
            spread = finished.std(ddof=1) / np.sqrt(count)
        errors = [f"{name}_stderr" for name in alike if f"{name}_stderr" in frame]
        own = frame[errors].groupby(number).first()
        for name in alike:
            means[name] = mean[name]
            error = f"{name}_stderr"
            means[error] = spread[name].where(count[name] > 1, own.get(error, np.nan))
    return {name: means[name] for metric in names for name in (metric, f"{metric}_stderr")}


def run_name(model: str, variant: str) -> str:
    """What a reader calls a run: the model, and what else was varied: `attention_tiny, adapt.steps=0`.

    Keys are written without their group. A key whose value is null is left out: the run has none, unlike the others.
    """
    shown = [part for part in variant.split(", ") if part and not part.endswith("=None")]
    return ", ".join([model, *(re.sub(r"^(model|train|data|eval)\.", "", part) for part in shown)])


def sharing(heads: int, kv_heads: int) -> str:
    """How a model's query heads share keys and values: `GQA-2` for two heads of keys, `MQA` for one, else empty."""
    if kv_heads == heads:
        return ""
    return "MQA" if kv_heads == 1 else f"GQA-{kv_heads}"


def first_runs(rows: pd.DataFrame, most: int) -> tuple[pd.DataFrame, str]:
    """The rows of at most `most` runs, and a line that says so if there are more: a figure has room for few.

    Each model's first variants are kept.
    """
    names = list(dict.fromkeys(rows["run"]))
    if len(names) <= most:
        return rows, ""
    models = [name.partition(", ")[0] for name in names]
    # Each model's first variant, then each one's second, and so on: no model crowds the others out.
    turns = sorted(range(len(names)), key=lambda i: models[:i].count(models[i]))
    kept = {names[i] for i in turns[:most]}
    return rows[rows["run"].isin(kept)], f"{most} of {len(names)} models and variants; all: see table"


def spread_patterns(names: Iterable[str], rows: pd.DataFrame, most: int, left_out: str) -> tuple[list[str], str]:
    """At most `most` patterns of `rows`, spread evenly, and the line in which a figure says what it leaves out.

    Args:
        names: patterns in their order.
        rows: rows with a `pattern`.
        most: how many patterns the figure has room for.
        left_out: what the line says already.
    """
    known = set(rows["pattern"])
    patterns = [pattern for pattern in names if pattern in known]
    if len(patterns) <= most:
        return patterns, left_out
    kept = np.linspace(0, len(patterns) - 1, most).round().astype(int)
    sentences = [left_out, f"{most} of {len(patterns)} patterns; all: see table"]
    return [patterns[place] for place in kept], "; ".join(filter(None, sentences))


def progress(frame: pd.DataFrame) -> str:
    """`14 of 16 cells finished (1 failed, 1 missing)`."""
    counts = frame["status"].value_counts()
    rest = ", ".join(f"{counts[status]} {status}" for status in _UNFINISHED if status in counts)
    return f"{counts.get('done', 0)} of {len(frame)} cells finished" + (f" ({rest})" if rest else "")


def unfinished(frame: pd.DataFrame) -> list[str]:
    """The line under a table that says how many cells have a result; none where all have."""
    return [] if frame["status"].eq("done").all() else [f"{progress(frame)}."]


def first_problem(frame: pd.DataFrame) -> str:
    """`; 2 cells are damaged or failed, the first one: evaluate/...`, for an error about results that are not there."""
    wrong = frame.loc[frame["status"].isin(["damaged", "failed"]), "error"]
    if wrong.empty:
        return ""
    return (
        f"; {len(wrong)} {'cells are' if len(wrong) > 1 else 'cell is'} damaged or failed, the first: {wrong.iloc[0]}"
    )


def error_source(frame: pd.DataFrame) -> str:
    """What the standard errors of `over_seeds` are of, for a caption."""
    seeds = frame.groupby(GROUP).size().max()
    return f"over {seeds} seeds (of the evaluation where one has finished)" if seeds > 1 else "of the evaluation"


def short_patterns(rows: pd.DataFrame, longest: int = 28) -> dict[str, str]:
    """{pattern label: the same or, if it is longer than `longest`, the name of its config group}, all different.

    The label of a map that differs in many places is as long as the model is deep: no column of a table has that room.
    """
    named = rows.drop_duplicates("pattern")
    short: dict[str, str] = {}
    for label, name in zip(named["pattern"], named["pattern_name"]):
        base = text = label if len(label) <= longest else name or "hybrid"
        number = 1
        while text in short.values():
            number += 1
            text = f"{base} {number}"
        short[label] = text
    return short
