"""Times the operators beside their peers, and beside what the device can do at best, in one process.

Candidates take turns, so that clocks and temperature change for all of them alike. Ceilings (copy bandwidth, bf16
matrix product) are measured in the same run: results are fractions of these, not of a data sheet.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ratplus.kernels.bench_cases import Case, Run, Shapes, cases

QUANTILES = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)


def bench_gpu_ops(shapes: Shapes | None = None, progress: Callable[[str], None] = lambda text: None) -> dict:
    """Everything, as JSON-ready data: {"device", "ceilings", "rows", "skipped"}.

    A row: op, shape, pattern, candidate, ms_p50, ms_p20, ms_p80, gb_s, tflop_s, bandwidth_fraction, matmul_fraction and
    peak_bytes (memory beyond the inputs). "ours" is one of the candidates of every case.
    Raises ValueError where CUDA is asked for and missing.
    """
    shapes = shapes or Shapes()
    if shapes.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here; `ratplus bench` times the CPU path")
    ceilings = measure_ceilings(shapes)
    rows, skipped = [], []
    for case in cases(shapes):
        progress(f"{case.op} {case.shape} {case.pattern}")
        names, runs = list(case.candidates), list(case.candidates.values())
        for name, run, times in zip(names, runs, interleaved_ms(runs, shapes)):
            rows.append(_row(case, name, times, ceilings, _peak_bytes(run, shapes)))
        head = {"op": case.op, "shape": case.shape, "pattern": case.pattern}
        skipped += [head | {"candidate": name, "reason": reason} for name, reason in case.skipped.items()]
    name = torch.cuda.get_device_name() if shapes.device == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "ceilings": ceilings, "rows": rows, "skipped": skipped}


def interleaved_ms(runs: list[Run], shapes: Shapes) -> list[list[float]]:
    """Milliseconds of each call, one list a candidate; CUDA events around calls that find a cold L2 cache."""
    if shapes.device != "cuda":
        times = [[] for _ in runs]
        for _ in range(shapes.repeats):
            for index, run in enumerate(runs):
                start = time.perf_counter()
                run()
                times[index].append(1e3 * (time.perf_counter() - start))
        return times
    flush = torch.empty(64 << 20, dtype=torch.int32, device="cuda")
    events = [[[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(shapes.repeats)] for _ in runs]
    for repeat in range(shapes.repeats):
        for index, run in enumerate(runs):
            flush.zero_()
            events[index][repeat][0].record()
            run()
            events[index][repeat][1].record()
    torch.cuda.synchronize()
    return [[start.elapsed_time(end) for start, end in of_one] for of_one in events]


def measure_ceilings(shapes: Shapes) -> dict:
    """copy_gb_s: bytes read and written by a large copy; matmul_tflop_s: a large product in the benchmark's dtype."""
    large = shapes.device == "cuda"
    source = torch.randn(1 << (29 if large else 16), device=shapes.device).to(shapes.dtype)
    target = torch.empty_like(source)
    n = 8192 if large else 64
    a, b = (torch.randn(n, n, device=shapes.device).to(shapes.dtype) for _ in range(2))
    copy_ms, product_ms = map(min, interleaved_ms([lambda: target.copy_(source), lambda: a @ b], shapes))
    moved = 2 * source.numel() * source.element_size()
    return {"copy_gb_s": moved / copy_ms / 1e6, "matmul_tflop_s": 2 * n**3 / product_ms / 1e9}


def _row(case: Case, candidate: str, times: list[float], ceilings: dict, peak_bytes: int) -> dict:
    p20, p50, p80 = torch.tensor(times, dtype=torch.float64).quantile(QUANTILES).tolist()
    gb_s, tflop_s = case.least_bytes / p50 / 1e6, case.flops / p50 / 1e9
    return {
        "op": case.op,
        "shape": case.shape,
        "pattern": case.pattern,
        "candidate": candidate,
        "ms_p50": p50,
        "ms_p20": p20,
        "ms_p80": p80,
        "gb_s": gb_s,
        "tflop_s": tflop_s,
        "bandwidth_fraction": gb_s / ceilings["copy_gb_s"],
        "matmul_fraction": tflop_s / ceilings["matmul_tflop_s"],
        "peak_bytes": peak_bytes,
    }


def _peak_bytes(run: Run, shapes: Shapes) -> int:
    """Memory that one call needs at its peak beyond what is allocated already; 0 off CUDA."""
    if shapes.device != "cuda":
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def main(path: str) -> None:
    """Run everything on this machine's GPU and write it to `path` as JSON, whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    result = bench_gpu_ops(progress=lambda text: print(text, flush=True)) | {"date": time.strftime("%Y-%m-%d")}
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(target)
    print(target)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except ValueError as error:
        sys.exit(f"error: {error}")
