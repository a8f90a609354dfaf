"""Rows of the model and trainer benchmarks as lines of fixed width, as they come: a terminal's last page tells all."""

from __future__ import annotations


def model_line(row: dict) -> str:
    """A row of `ratplus.bench.measure`: milliseconds, how many times faster than dense, the share of what is possible.

    Prefill also names torch's kernel that dense layers ran on, and decoding says how it ran.
    """
    prefill = _part(row, "prefill") + f" {row['dense_backend'] or '':<5}"
    return (
        f"{row['pattern']:<16} B{row['batch']:<4} T{row['context']:<6} prefill {prefill} decode {_part(row, 'decode')} "
        f"{row['decode_path'].removeprefix('cuda '):<10} {row['kv_bytes'] / 1e9:7.3f} GB"
    )


def _part(row: dict, name: str) -> str:
    taken, limit, ratio = row[f"{name}_ms_p50"], row[f"{name}_limit_ms"], row[f"{name}_ratio"]
    if taken is None:
        return f"{'-':>9}    {'':>7} {'':>4}"
    faster = "" if ratio is None else f"x{1 / ratio:.2f}"
    possible = "" if limit is None else f"{100 * limit / taken:.0f}%"
    return f"{taken:9.3f} ms {faster:>7} {possible:>4}"


def trainer_line(row: dict) -> str:
    """A row of `ratplus.bench.trainer`."""
    peak, planned = ("-" if x is None else f"{x / 1e9:.2f}" for x in (row["peak_bytes"], row["estimated_bytes"]))
    how = ("compiled" if row["compile"] else "eager") + (" checkpointed" if row["activation_checkpointing"] else "")
    return (
        f"{row['model']:<20} {row['step']:<5} {how:<21} {row['step_ms_p50']:8.1f} ms "
        f"({row['step_ms_p20']:.1f}-{row['step_ms_p80']:.1f}, {row['repeats']}x) "
        f"{row['tokens_per_second']:9.0f} tokens/s MFU {row['mfu']:6.1%}  peak {peak} GB, planned {planned}; "
        f"first step {row['first_step_s']:.1f} s"
    )


def skipped_line(left: dict) -> str:
    """What was not measured, and why."""
    words = [
        key if value is True else str(value) for key, value in left.items() if key != "reason" and value is not False
    ]
    return f"not measured: {' '.join(words)}: {left['reason']}"
