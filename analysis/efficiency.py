# %% [markdown]
"""
# Efficiency

What do the patterns save in time and memory? Tables and figures from the JSON files of `ratplus bench kernels` and
`ratplus bench model` (`--json FILE`), a file or a folder of them.

- `kernels_table`, `models_table`: one row a measurement, plain values
- `kernels_summary`, `models_summary`: the same rounded, for a reader
- `kernels_figure`: time of every operator against the pattern, all candidates, at its largest shape
- `lengths_figure`: time of our operators against the context length, one line a pattern
- `models_figure`: prefill, decoding and throughput of whole models against the pattern

A black tick is the limit that the device's measured ceilings (a large copy, a large matrix product) set.

Run it as `python -m ratplus.analysis.efficiency bench.json`, with `ratplus bench ... --report FOLDER`, or as a notebook
(with jupytext; set the environment variable RATPLUS_BENCH to the file or folder).
"""

# %%
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ratplus.analysis.draw.efficiency import OURS, case_names, kernels_figure, lengths_figure, models_figure
from ratplus.analysis.draw.output import Picture, write
from ratplus.analysis.draw.tables import Table, number
from ratplus.analysis.frame.bench_results import BenchResult, read_results
from ratplus.analysis.page.notebook import run

NAME = "efficiency"
# Rows of a printed table beyond these are in the CSV file alone.
MOST_ROWS = 120

# %% [markdown]
"""
## Plain values

A row of `kernels_table` is a `KernelRow` (`analysis/frame/bench_results.py`) with its device and two more columns:
`dense_ratio` is its time over that of dense attention at the same shape, of the fastest where several were timed, as
`dense SDPA (cudnn)` and `dense SDPA (flash)` (null where there is none); `limit_fraction` is `limit_ms` over `ms_p50`
(1 is as fast as the ceilings allow). A row of `models_table` is a row of `ratplus bench model`
with its device, `prefill_limit_fraction` and `decode_limit_fraction`.
"""


# %%
def kernels_table(results: list[BenchResult]) -> pd.DataFrame:
    """One row a candidate and case; columns: see above. Empty if no result is of `bench kernels`."""
    rows = _rows(results, "kernels")
    if rows.empty:
        return rows
    dense = rows[rows["candidate"].str.startswith("dense SDPA")]
    # Long dense attention is timed with the dense pattern only, and stands for all patterns of its shape.
    exact = dense.groupby(["device", "op", "shape", "pattern"])["ms_p50"].min().to_dict()
    once = dense.groupby(["device", "op", "shape"])["ms_p50"].min().to_dict()
    baseline = [
        exact.get(key, once.get(key[:3])) for key in rows[["device", "op", "shape", "pattern"]].agg(tuple, axis=1)
    ]
    rows["dense_ratio"] = rows["ms_p50"] / pd.Series(baseline, index=rows.index, dtype="float64")
    rows["limit_fraction"] = rows["limit_ms"] / rows["ms_p50"]
    return rows[[
        "device", "op", "shape", "pattern", "candidate", "ms_p50", "ms_p20", "ms_p80", "repeats", "dense_ratio",
        "limit_ms", "limit_fraction", "bandwidth_fraction", "matmul_fraction", "gb_s", "tflop_s", "peak_bytes",
    ]]  # fmt: skip


def models_table(results: list[BenchResult]) -> pd.DataFrame:
    """One row a model, context, batch and pattern; columns: see above. Empty if no result is of `bench model`."""
    rows = _rows(results, "model")
    if rows.empty:
        return rows
    for name in ("prefill", "decode"):
        rows[f"{name}_limit_fraction"] = rows[f"{name}_limit_ms"] / rows[f"{name}_ms_p50"]
    return rows


def _rows(results: list[BenchResult], benchmark: str) -> pd.DataFrame:
    rows = pd.DataFrame(
        [{"device": result["device"]} | row for result in results if result["benchmark"] == benchmark
         for row in result["rows"]]
    )  # fmt: skip
    # A column of nothing but nulls would be one of objects; only numbers may be null.
    return rows.astype({name: "float64" for name in rows if rows[name].isna().all()})


def skipped(results: list[BenchResult], benchmark: str) -> list[str]:
    """What was not measured and why, one line for each reason."""
    reasons: dict[str, list[str]] = {}
    for result in results:
        if result["benchmark"] != benchmark:
            continue
        for left in result["skipped"]:
            what = " ".join(str(value) for key, value in left.items() if key != "reason")
            reasons.setdefault(left["reason"], []).append(what)
        if not result["complete"]:
            reasons.setdefault("the run was cut off", []).append("everything after the last row")
    return [
        f"Not measured ({reason}): {'; '.join(what[:3])}" + (f"; and {len(what) - 3} more." if len(what) > 3 else ".")
        for reason, what in reasons.items()
    ]


# %% [markdown]
"""
## Tables
"""


# %%
def kernels_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """`kernels_table` rounded, as strings; one row a candidate, grouped by operator and shape."""
    return pd.DataFrame({
        "Operator": rows["op"] + " " + rows["shape"],
        "Pattern": rows["pattern"].replace("-", "—"),
        "Candidate": [f"**{name}**" if name == OURS else name for name in rows["candidate"]],
        "ms": [_three_digits(value) for value in rows["ms_p50"]],
        "p20–p80": [f"{_three_digits(low)}–{_three_digits(high)}" for low, high in zip(rows["ms_p20"], rows["ms_p80"])],
        "× dense": [number(value, 2) for value in rows["dense_ratio"]],
        "Of limit (%)": [number(100 * value, 0) for value in rows["limit_fraction"]],
        "Copy (%)": [number(100 * value, 0) for value in rows["bandwidth_fraction"]],
        "Product (%)": [number(100 * value, 0) for value in rows["matmul_fraction"]],
        "Peak (MiB)": [number(value / 2**20, 1) for value in rows["peak_bytes"]],
    })  # fmt: skip


def models_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """`models_table` rounded, as strings; one row a pattern, grouped by model, context and batch."""
    return pd.DataFrame({
        "Model": case_names(rows),
        "Pattern": rows["pattern"],
        "Batch": rows["batch"].astype(str),
        "Prefill (ms)": [_three_digits(value) for value in rows["prefill_ms_p50"]],
        "Prefill × dense": [number(value, 2) for value in rows["prefill_ratio"]],
        "Decode (ms)": [_three_digits(value) for value in rows["decode_ms_p50"]],
        "Decode × dense": [number(value, 2) for value in rows["decode_ratio"]],
        "Of limit (%)": [number(100 * value, 0) for value in rows["decode_limit_fraction"]],
        "Tokens/s": ["—" if pd.isna(value) else f"{value:,.0f}" for value in rows["tokens_per_second"]],
        "KV (MiB)": [_three_digits(value / 2**20) for value in rows["kv_bytes"]],
        "KV × dense": [number(value, 3) for value in rows["kv_ratio"]],
        "State (KiB)": [number(value / 1024, 1) for value in rows["state_bytes"]],
        "Most seq.": [f"{value:,}" for value in rows["max_batch"]],
    })  # fmt: skip


def kernels_caption(results: list[BenchResult]) -> str:
    """What the columns of `kernels_summary` mean."""
    return (
        f"Operators on {_machines(results, 'kernels')}. ms: median. × dense: time over that of the fastest dense "
        "attention at the same shape. Of limit: the time that the ceilings allow over the time taken. Copy, product: "
        "least bytes and FLOPs by the time, over a large copy's and a large matrix product's rate in the same run. "
        "Peak: memory beyond the inputs. B: sequences, T: tokens of each, d: channels of all heads."
    )


def models_caption(results: list[BenchResult]) -> str:
    """What the columns of `models_summary` mean."""
    return (
        f"Whole models on {_machines(results, 'model')}. Prefill: of the context; decode: a token at that context "
        "(medians). × dense: over the same model's dense pattern, of one sequence. Of limit: the time that the "
        "measured ceilings allow for weights and cache over the time taken. KV: bytes of key and value slots; "
        "state: of the recurrence. Most seq.: sequences whose caches fit in memory."
    )


def _machines(results: list[BenchResult], benchmark: str) -> str:
    def one(result: BenchResult) -> str:
        threads = "" if "NVIDIA" in result["device"] else f", {result['threads']} thread{'s'[: result['threads'] > 1]}"
        return f"{result['device']} ({result['dtype']}{threads}, torch {result['torch']})"

    return " and ".join(dict.fromkeys(one(result) for result in results if result["benchmark"] == benchmark))


def _three_digits(value: float) -> str:
    """A number ≥ 0 rounded to three significant digits, not into its whole part."""
    if pd.isna(value):
        return "—"
    return number(value, max(0, 2 - int(np.floor(np.log10(value))))) if value > 0 else "0"


# %% [markdown]
"""
## In the report
"""


# %%
def applies(path: Path) -> bool:
    """Whether there is a folder for benchmark results; where none is in it, `contents` says so."""
    return path.is_dir()


def contents(path: Path) -> list[Table | Picture]:
    """`efficiency_kernels`, `efficiency_lengths` and `efficiency_models`, as far as they were measured.

    Args:
        path: a JSON file of `ratplus bench ... --json`, or a folder of them.

    Raises:
        ValueError: no such file, or nothing was measured at all.
    """
    return _contents(read_results(path))


def write_results(results: list[BenchResult], folder: Path) -> list[Path]:
    """Write the same of results that are at hand into `folder`; returns the paths."""
    return write(_contents(results), folder)


def _contents(results: list[BenchResult]) -> list[Table | Picture]:
    kernels, models = kernels_table(results), models_table(results)
    if kernels.empty and models.empty:
        raise ValueError("nothing was measured, so there is nothing to show; the JSON file's `skipped` says why")
    made: list[Table | Picture] = []
    if not kernels.empty:
        notes, shown = skipped(results, "kernels"), kernels_summary(kernels)
        if len(shown) > MOST_ROWS:
            notes.insert(0, f"{len(shown) - MOST_ROWS} more rows: see the CSV file.")
        text, name = kernels_caption(results), f"{NAME}_kernels"
        made += [
            Table(name, kernels, shown.head(MOST_ROWS), text, notes, names=3, grouped=True),
            Picture(name, kernels_figure(kernels)),
        ]
        if (drawing := lengths_figure(kernels)) is not None:
            made.append(Picture(f"{NAME}_lengths", drawing))
    if not models.empty:
        text, name, notes = models_caption(results), f"{NAME}_models", skipped(results, "model")
        made += [
            Table(name, models, models_summary(models), text, notes, names=2, grouped=True),
            Picture(name, models_figure(models)),
        ]
    return made


# %%
if __name__ == "__main__":
    what = "JSON file of `ratplus bench ... --json`, or a folder of them"
    run(contents, read=Path, what=what, variable="RATPLUS_BENCH", default="outputs/bench")
