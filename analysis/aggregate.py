"""Steps between the loaded frame and a table or figure: order, difference to the dense cell, mean over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd

# Cells that differ in the seed alone share these; `variant` holds whatever else a sweep varied.
RUN = ["model", "variant"]
GROUP = [*RUN, "pattern"]
# The most serious first: what a row without any finished seed says.
_UNFINISHED = ("damaged", "failed", "running", "missing")


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Cells by model and variant (as the sweep lists them), then pattern, then seed.

    Patterns by dilation, window, sinks, as `Pattern.sort_key` has it; streaming after all dilations, hybrids last.
    """
    runs = {run: rank for rank, run in enumerate(frame[RUN].drop_duplicates().itertuples(index=False, name=None))}
    keys = pd.DataFrame(
        {
            "run": [runs[run] for run in frame[RUN].itertuples(index=False, name=None)],
            "hybrid": frame["kind"].eq("hybrid").to_numpy(),
            "dilation": frame["dilation"].astype("Float64").fillna(np.inf).to_numpy(),
            "window": frame["window"].fillna(0).to_numpy(),
            "sinks": frame["sinks"].fillna(0).to_numpy(),
            "pattern": frame["pattern"].to_numpy(),
            "seed": frame["seed"].fillna(-1).to_numpy(),
        }
    )
    order = keys.sort_values(list(keys), kind="stable").index.to_numpy()
    return frame.iloc[order].reset_index(drop=True)


def with_loss_delta(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `loss_delta`, the loss minus that of the finished dense cell of the same model, variant and seed.

    The column stands behind `loss_stderr`; null where there is no such dense cell.
    """
    keys = [*RUN, "seed"]
    dense = frame[frame["kind"].eq("dense") & frame["status"].eq("done")]
    # D1 with a window is dense too; the plain one is the reference where both were run.
    dense = in_order(dense).drop_duplicates(keys)[[*keys, "loss"]].rename(columns={"loss": "dense"})
    joined = frame[keys].merge(dense, on=keys, how="left")
    frame = frame.copy()
    place = list(frame.columns).index("loss_stderr") + 1
    frame.insert(place, "loss_delta", frame["loss"].to_numpy() - joined["dense"].to_numpy())
    return frame


def over_seeds(frame: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """One row per model, variant and pattern, in the frame's order, with the mean of each metric over finished seeds.

    Adds `cells` (seeds asked for), `done` (seeds finished) and, for each metric, `<name>_stderr`: the standard error
    of the mean over seeds if two or more have a value, else the evaluation's own.
    """
    groups = frame.groupby(GROUP, sort=False, dropna=False)
    same = ["recurrence", "pattern_name", "kind", "dilation", "window", "sinks", "context", "kv_entries", "kv_bytes"]
    rows = groups[[*same, "attention_flops_ratio"]].first()
    rows["cells"] = groups.size()
    rows["done"] = groups["status"].agg(lambda states: int(states.eq("done").sum()))
    rows["status"] = groups["status"].agg(_joint_status)
    for name in metrics:
        finite = frame[name].where(frame["status"].eq("done"))
        values = finite.groupby([frame[key] for key in GROUP], sort=False, dropna=False)
        count = values.count()
        own = groups[f"{name}_stderr"].first() if f"{name}_stderr" in frame else np.nan
        rows[name] = values.mean()
        with np.errstate(invalid="ignore"):  # an infinite loss has no spread
            rows[f"{name}_stderr"] = (values.std(ddof=1) / np.sqrt(count)).where(count > 1, own)
    return rows.reset_index()


def _joint_status(states: pd.Series) -> str:
    present = set(states)
    if "done" in present:
        return "done"
    return next(state for state in _UNFINISHED if state in present)


def run_name(model: str, variant: str) -> str:
    """What a reader calls a run: the model, and what else was varied."""
    return f"{model}, {variant}" if variant else model


def progress(frame: pd.DataFrame) -> str:
    """`14 of 16 cells finished (1 failed, 1 missing)`."""
    counts = frame["status"].value_counts()
    rest = ", ".join(f"{counts[status]} {status}" for status in _UNFINISHED if status in counts)
    return f"{counts.get('done', 0)} of {len(frame)} cells finished" + (f" ({rest})" if rest else "")
