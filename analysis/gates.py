"""Gates for continuous integration: `ratplus report A B --fail 'recall_accuracy<-2pt@p0.05' --fail 'decode_ms>5%'`.

A gate is a result or measured time, `<` or `>`, and how much it may fall or rise from the first sweep to another: a
number, percentage points of a share (`pt`) or percent of the first value (`%`). With `@p0.05` it fails only where the
difference is certain at that level (after Holm's adjustment over all patterns).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ratplus.analysis.compare import Two
from ratplus.analysis.draw.tables import number
from ratplus.analysis.frame.aggregate import RUN, run_name
from ratplus.analysis.frame.load import read_sweep
from ratplus.analysis.frame.rows import groups_of
from ratplus.analysis.frame.tasks import is_cost, is_share, result_column
from ratplus.analysis.paired.several import result_named

_GATE = re.compile(
    r"\s*(?P<name>[^<>@]+?)\s*(?P<sign>[<>])\s*(?P<number>[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)\s*(?P<unit>pt|%)?"
    r"\s*(@\s*p\s*=?\s*(?P<p>\d*\.?\d+))?\s*"
)


@dataclass(frozen=True)
class Gate:
    """One `--fail`: `text` as given; `name` of a result; `rises` for `>`; `limit` in `unit`; `p`, or None."""

    text: str
    name: str
    rises: bool
    limit: float
    unit: str
    p: float | None


@dataclass(frozen=True)
class Verdict:
    """What a gate says of two sweeps: its text as given, whether it failed, and the line that tells."""

    gate: str
    failed: bool
    line: str


def parse_gate(text: str) -> Gate:
    """A gate from its text.

    Raises:
        ValueError: it is none; one line with an example.
    """
    found = _GATE.fullmatch(text)
    if found is None:
        raise ValueError(
            f"--fail: got {text!r}; write a result, < or >, a number with pt or %, and perhaps a level, such as "
            "'recall_accuracy<-2pt@p0.05' or 'decode_ms>5%'"
        )
    p = float(found["p"]) if found["p"] else None
    if p is not None and not 0 < p < 1:
        raise ValueError(f"--fail: got {text!r}; the level behind @p lies between 0 and 1, such as @p0.05")
    limit = float(found["number"])
    return Gate(text.strip(), found["name"], found["sign"] == ">", limit, found["unit"] or "", p)


def check(first: Path, second: Path, gates: Sequence[Gate], two: Two | None = None) -> list[Verdict]:
    """What each gate says of the second sweep against the first.

    Args:
        first, second: the folders.
        gates: what to look at.
        two: the two as they were read, if they have been read already.

    Raises:
        ValueError: a name that is not known, a unit or level that does not suit it, or nothing to check it on: a gate
            that looks at nothing must not pass.
    """
    two = two or Two(read_sweep(first), read_sweep(second))
    a, b = (sweep.frame for sweep in two.sweeps)
    verdicts = []
    for gate in gates:
        column = result_named(gate.name, a, f"--fail {gate.text!r}")
        result_named(column.removeprefix("timing:"), b, f"--fail {gate.text!r} in {second}")
        measured = column.startswith("timing:") or is_cost(column)
        if measured:
            if gate.p is not None:
                raise ValueError(f"--fail {gate.text!r}: {column} has no items, so no p; leave out @p")
            checked = _of_costs(a, b, two.pairs, column)
        else:
            checked = two.rows[two.rows["metric"].eq(column)]
            if checked.empty and column in two.rows.attrs["refused"]:
                raise ValueError(f"--fail {gate.text!r}: the sweeps were asked different prompts or data, so no gate")
        if checked.empty:
            raise ValueError(f"--fail {gate.text!r}: no cell that both sweeps have has {column} in both")
        share = not measured and is_share(result_column(column).measure, [*checked["a"], *checked["b"]])
        if gate.unit == "pt" and not share:
            raise ValueError(f"--fail {gate.text!r}: pt are percentage points, but {column} is no share; use %")
        verdicts.append(_verdict(gate, checked, share))
    return verdicts


def _of_costs(a: pd.DataFrame, b: pd.DataFrame, pairs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means over seeds of a time or count in both sweeps; a row a run and pattern."""
    ours, theirs = (frame.iloc[pairs[side]].reset_index(drop=True) for side, frame in (("a", a), ("b", b)))
    both = ours[[*RUN, "pattern"]].assign(
        a=ours[column].astype("float64"), b=theirs[column].astype("float64"),
        done=ours["status"].eq("done") & theirs["status"].eq("done"),
    )  # fmt: skip
    both = both[both["done"] & np.isfinite(both["a"]) & np.isfinite(both["b"])]
    rows = [
        {"run_a": run_name(model, variant), "pattern": pattern, "a": own["a"].mean(), "b": own["b"].mean()}
        for (model, variant, pattern), own in groups_of(both, [*RUN, "pattern"])
    ]
    frame = pd.DataFrame(rows, columns=["run_a", "pattern", "a", "b"])
    return frame.assign(difference=frame["b"] - frame["a"], stderr=np.nan, p_holm=np.nan)


def _verdict(gate: Gate, rows: pd.DataFrame, share: bool) -> Verdict:
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = {"pt": 100.0, "%": 100.0 / rows["a"].abs(), "": 1.0}[gate.unit]
        change = rows["difference"] * scale
    beyond = change > gate.limit if gate.rises else change < gate.limit
    unsure = pd.Series(False, index=rows.index)
    if gate.p is not None:
        unsure = beyond & rows["p_holm"].isna()
        beyond &= rows["p_holm"] < gate.p
    of = f"{len(rows)} {'pattern' if len(rows) == 1 else 'patterns'}"
    pool = change[beyond] if beyond.any() else change.dropna()
    worst = rows.loc[pool.idxmax() if gate.rises else pool.idxmin()] if len(pool) else rows.iloc[0]
    tell = _told(worst, share, gate, float(change.get(worst.name, np.nan)))
    if beyond.any():
        return Verdict(gate.text, True, f"FAIL {gate.text}: {int(beyond.sum())} of {of}; worst: {tell}")
    rest = f"; {int(unsure.sum())} beyond it have no p" if unsure.any() else ""
    return Verdict(gate.text, False, f"ok   {gate.text}: none of {of}; nearest: {tell}{rest}")


def _told(row: pd.Series, share: bool, gate: Gate, change: float) -> str:
    factor, digits, unit = (100, 1, " %") if share else (1, 3, "")
    values = " → ".join(number(row[side] * factor, digits) for side in ("a", "b"))
    text = f"{row['run_a']} {row['pattern']}, {values}{unit}"
    amount = number(row["difference"] * factor, digits, row["stderr"] * factor)
    parts = [f"Δ {amount}"] if gate.unit != "%" else [f"Δ {number(change, 1)} %"]
    if gate.p is not None and not pd.isna(row["p_holm"]):
        parts.append(f"p {row['p_holm']:.2g}")
    return f"{text} ({', '.join(parts)})"
