"""The operator benchmark: our kernels beside dense attention, plain copies and, on CUDA, other formulations.

One schema for both devices. Candidates take turns in one process; ceilings (a large copy, a large matrix product) are
measured in the same run, and results are fractions of these, not of a data sheet.
"""

import time
from collections.abc import Callable, Iterable
from itertools import chain

import torch

from ratplus.kernels.bench.block_cases import block_plans
from ratplus.kernels.bench.cases import Case, Plan, Shapes, plans, reason
from ratplus.kernels.bench.timing import Ceilings, check_device, device_name, interleaved, measure_ceilings, peak_bytes


def bench_ops(
    shapes: Shapes,
    *,
    threads: int | None = None,
    seconds: float | None = None,
    ceilings: Ceilings | None = None,
    only: Callable[[Plan], bool] = lambda plan: True,
    found: Iterable[Plan] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    on_row: Callable[[dict], None] = lambda row: None,
    save: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Measure everything that `shapes` names, as JSON-ready data.

    Args:
        threads: PyTorch threads while measuring (None: as they are).
        seconds: no case is begun after so many; those left out are listed under `skipped`.
        ceilings: those that a part of the same run measured already (None: measured here).
        found: the plans (None: all that `shapes` names).
        only: which of them are measured.
        progress: told each case before it is measured.
        on_row: given each row, and each entry of `skipped`, when it is known.
        save: given what there is after each case, so that a kill loses one case at most.

    Returns {"benchmark": "kernels", "complete", "device", "torch", "threads", "dtype", "date", "ceilings", "rows",
    "skipped"}. A row: op, shape, pattern, candidate, ms_p50, ms_p20, ms_p80, repeats, gb_s, tflop_s (least bytes and
    FLOPs of the operation by the median), bandwidth_fraction, matmul_fraction (those over the ceilings), limit_ms (what
    the ceilings allow), peak_bytes (memory at the call's peak beyond its inputs).

    Raises:
        ValueError: a device that isn't there, or repeats below 1.
    """
    check_device(shapes.device)
    if shapes.repeats < 1:
        raise ValueError(f"repeats: got {shapes.repeats}; it must be ≥ 1")
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        ceilings = ceilings or measure_ceilings(shapes.device, shapes.dtype, small=shapes.tokens < 1024)
        found = chain(plans(shapes), block_plans(shapes)) if found is None else found
        return _bench(shapes, ceilings, seconds, filter(only, found), progress, on_row, save)
    finally:
        torch.set_num_threads(before)


def _bench(
    shapes: Shapes, ceilings: Ceilings, seconds: float | None, found: Iterable[Plan], progress: Callable,
    on_row: Callable, save: Callable,
) -> dict:  # fmt: skip
    started = time.monotonic()
    result = {
        "benchmark": "kernels",
        "complete": False,
        "device": device_name(shapes.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": str(shapes.dtype).removeprefix("torch."),
        "date": time.strftime("%Y-%m-%d"),
        "ceilings": vars(ceilings),
        "rows": [],
        "skipped": [],
    }
    for plan in found:
        if seconds is not None and time.monotonic() - started > seconds:
            head = {"op": plan.op, "shape": plan.shape, "pattern": plan.pattern}
            result["skipped"].append(head | {"candidate": "all", "reason": f"the {seconds:g} s were used up"})
            continue
        progress(f"{plan.op} {plan.shape} {plan.pattern}")
        known = len(result["rows"]), len(result["skipped"])
        _measure(plan, shapes, ceilings, result)
        for row in (*result["rows"][known[0] :], *result["skipped"][known[1] :]):
            on_row(row)
        if shapes.device == "cuda":
            torch.cuda.synchronize()  # an error that kills the device must stop us here, not spoil later figures
            torch.cuda.empty_cache()
        save(result)
    result["complete"] = True
    save(result)
    return result


def _measure(plan: Plan, shapes: Shapes, ceilings: Ceilings, result: dict) -> None:
    try:
        cases = plan.cases()
        while (case := next(cases, None)) is not None:
            head = {"op": case.op, "shape": case.shape, "pattern": case.pattern}
            runs = list(case.candidates.values())
            # Every candidate has run once already, and so is warm.
            times = interleaved(runs, shapes.device, shapes.repeats, shapes.budget_s, warm=False) if runs else []
            for name, run, measured in zip(case.candidates, runs, times):
                result["rows"].append(head | _figures(case, name, measured, ceilings, peak_bytes(run, shapes.device)))
            result["skipped"] += [head | {"candidate": name, "reason": text} for name, text in case.skipped.items()]
            del case, runs  # their tensors must go before the next case's are made
    except torch.OutOfMemoryError as error:
        head = {"op": plan.op, "shape": plan.shape, "pattern": plan.pattern}
        result["skipped"].append(head | {"candidate": "all", "reason": reason(error)})


def _figures(case: Case, candidate: str, times, ceilings: Ceilings, peak: int) -> dict:
    gb_s, tflop_s = case.least_bytes / times.p50 / 1e6, case.flops / times.p50 / 1e9
    return {
        "candidate": candidate,
        "ms_p50": times.p50,
        "ms_p20": times.p20,
        "ms_p80": times.p80,
        "repeats": times.repeats,
        "gb_s": gb_s,
        "tflop_s": tflop_s,
        "bandwidth_fraction": gb_s / ceilings.copy_gb_s,
        "matmul_fraction": tflop_s / ceilings.matmul_tflop_s,
        "limit_ms": ceilings.limit_ms(case.least_bytes, case.flops),
        "peak_bytes": peak,
    }
