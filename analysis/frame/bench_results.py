"""The JSON files of `ratplus bench kernels` and `ratplus bench model` (`--json FILE`), as they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict, get_args, get_type_hints

from ratplus.records.reading import read_json

BENCHMARKS = ("kernels", "model")
_KERNEL_TEXTS, _MODEL_TEXTS = ("op", "shape", "pattern", "candidate"), ("model", "pattern")


class KernelRow(TypedDict):
    """One operator at one shape with one pattern, run by one candidate.

    Attributes:
        op: such as `attention forward`.
        shape: `B<sequences> T<tokens of each> d<channels of all heads>`.
        pattern: its label; `-` where the operator has none.
        candidate: `ours`, `dense SDPA`, or another implementation.
        ms_p50, ms_p20, ms_p80: median, 20th and 80th percentile of the time in milliseconds over `repeats` runs.
        repeats: how often it was timed.
        limit_ms: the least time that the device's measured ceilings allow.
        bandwidth_fraction, matmul_fraction: least bytes and FLOPs by the median time, over the ceilings' rates.
        gb_s, tflop_s: the same as rates.
        peak_bytes: memory of a run beyond its inputs; null where the device does not tell.
    """

    op: str
    shape: str
    pattern: str
    candidate: str
    ms_p50: float
    ms_p20: float
    ms_p80: float
    repeats: int
    limit_ms: float
    bandwidth_fraction: float
    matmul_fraction: float
    gb_s: float
    tflop_s: float
    peak_bytes: int | None


class ModelRow(TypedDict):
    """One model at one context and batch with one pattern; the analysis uses these of its keys.

    Attributes:
        model: its name.
        pattern: its label.
        context, batch: tokens of a sequence, and sequences.
        largest: whether the batch is the largest that the memory holds.
        prefill_ms_p50, decode_ms_p50: median time of the whole prompt and of one token, in milliseconds; null where it
            was not measured. The 20th and 80th percentiles are `..._p20` and `..._p80`.
        prefill_limit_ms, decode_limit_ms: the least time that the ceilings allow; null where they are not known.
        prefill_ratio, decode_ratio, kv_ratio: over the same model's dense pattern, of one sequence.
        tokens_per_second: of decoding, all sequences together.
        kv_bytes, state_bytes: of the keys and values, and of the recurrent state.
        max_batch: sequences whose caches fit in memory.
    """

    model: str
    pattern: str
    context: int
    batch: int
    largest: bool
    prefill_ms_p50: float | None
    prefill_ms_p20: float | None
    prefill_ms_p80: float | None
    decode_ms_p50: float | None
    decode_ms_p20: float | None
    decode_ms_p80: float | None
    prefill_limit_ms: float | None
    decode_limit_ms: float | None
    prefill_ratio: float | None
    decode_ratio: float | None
    kv_ratio: float | None
    tokens_per_second: float | None
    kv_bytes: int
    state_bytes: int
    max_batch: int


class BenchResult(TypedDict):
    """What a file holds.

    Attributes:
        benchmark: which of the two.
        complete: whether the run reached its end.
        device: name of the GPU or processor.
        torch, threads, dtype: version, processor threads and number format of the run.
        rows: the measurements.
        skipped: what was not measured, with a `reason` each.
    """

    benchmark: Literal["kernels", "model"]
    complete: bool
    device: str
    torch: str
    threads: int
    dtype: str
    rows: list[KernelRow] | list[ModelRow]
    skipped: list[dict[str, Any]]


def read_results(path: Path | str) -> list[BenchResult]:
    """The benchmark results of a JSON file, or of every one in a folder (other JSON files there are left alone).

    Raises:
        ValueError: no such file, not a benchmark's, or a folder without one.
    """
    path = Path(path)
    if path.is_dir():
        found = [result for file in sorted(path.glob("*.json")) if (result := _read(file)) is not None]
        if not found:
            raise ValueError(f"{path}: holds no JSON file of `ratplus bench ... --json`")
        return found
    result = _read(path)
    if result is None:
        raise ValueError(f"{path}: not a JSON file of `ratplus bench ... --json`")
    return [result]


def _read(path: Path) -> BenchResult | None:
    """None for a JSON file that holds something else."""
    try:
        result = read_json(path, follow=False)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file or folder; `ratplus bench ... --json {path}` writes it") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    is_result = isinstance(result, dict) and result.get("benchmark") in BENCHMARKS
    if not is_result or not isinstance(result.get("rows"), list):
        return None
    if problem := _misshapen(result):
        raise ValueError(f"{path}: damaged ({problem}); measure it again")
    return result


def _misshapen(result: dict) -> str:
    """What in a benchmark's file is not as `BenchResult` has it; empty if all is."""
    if not isinstance(result.get("device"), str) or not isinstance(result.get("complete"), bool):
        return "device is no text, or complete neither true nor false"
    left = result.get("skipped")
    if not isinstance(left, list) or not all(isinstance(i, dict) and isinstance(i.get("reason"), str) for i in left):
        return "skipped is no list of objects with a reason"
    row_type, texts = (KernelRow, _KERNEL_TEXTS) if result["benchmark"] == "kernels" else (ModelRow, _MODEL_TEXTS)
    hints = get_type_hints(row_type)
    for number, row in enumerate(result["rows"], start=1):
        if not isinstance(row, dict):
            return f"row {number} is a {type(row).__name__}"
        for key in sorted(row_type.__required_keys__):
            if key not in row:
                return f"row {number} has no {key}"
            kinds = (str,) if key in texts else (int, float)
            if type(None) in get_args(hints[key]):
                kinds += (type(None),)
            if not isinstance(row[key], kinds):
                return f"row {number}: {key} is a {type(row[key]).__name__}"
    return ""
