"""Times the eager operators on this machine beside dense attention and a plain copy.

Candidates and baseline take turns in one process, so that a machine that slows down slows both.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ratplus.kernels import decode_attention, dilated_attention, gated_scan
from ratplus.kernels.decode.layout import slot_count

HEADS, D_HEAD, LENGTH = 16, 64, 4096
PATTERNS = {"D16-W256": (16, 256, 0), "D64": (64, 0, 0), "D16": (16, 0, 0), "stream-W256-I4": (None, 256, 4)}


@dataclass(frozen=True)
class _Case:
    op: str
    shape: str
    pattern: str
    baseline: str
    run: Callable[[], object]
    run_baseline: Callable[[], object]


def bench_cpu_ops(threads: int | None = None, repeats: int = 7) -> list[dict]:
    """Milliseconds of every eager operator, float32, T = 4096, 16 heads of 64.

    threads: PyTorch threads while measuring (None: as they are). Each dict holds op, shape, pattern, ms_p50, ms_p20,
    ms_p80, baseline (what it is compared with, with its own median) and ratio = median / baseline's median.
    """
    if repeats < 1:
        raise ValueError(f"bench_cpu_ops: repeats is {repeats}; it must be at least 1")
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return [_measure(case, repeats) for case in (*_scan_cases(), *_attention_cases(), *_decode_cases())]
    finally:
        torch.set_num_threads(before)


def interleaved(functions: list[Callable[[], object]], repeats: int) -> list[Tensor]:
    """Seconds of every call, one tensor [repeats] a function; the functions take turns, after one warm-up round."""
    for function in functions:
        function()
    seconds = torch.empty(len(functions), repeats, dtype=torch.float64)
    for repeat in range(repeats):
        for index, function in enumerate(functions):
            start = time.perf_counter()
            function()
            seconds[index, repeat] = time.perf_counter() - start
    return list(seconds)


def _measure(case: _Case, repeats: int) -> dict:
    ours, theirs = (1e3 * seconds for seconds in interleaved([case.run, case.run_baseline], repeats))
    p20, p50, p80 = (round(float(ours.quantile(q)), 3) for q in (0.2, 0.5, 0.8))
    baseline_ms = float(theirs.median())
    return {
        "op": case.op,
        "shape": case.shape,
        "pattern": case.pattern,
        "ms_p50": p50,
        "ms_p20": p20,
        "ms_p80": p80,
        "baseline": f"{case.baseline}: {baseline_ms:.3f} ms",
        "ratio": round(p50 / baseline_ms, 3),
    }


def _views(batch: int, parts: int) -> list[Tensor]:
    """`parts` views [B, H, T, d] of one projection, as a model has them."""
    z = torch.randn(batch, LENGTH, parts * HEADS * D_HEAD)
    return [x.unflatten(-1, (HEADS, D_HEAD)).transpose(1, 2) for x in z.chunk(parts, dim=-1)]


def _scan_cases():
    """The recurrence reads logit, k, v and writes two tensors: a copy that moves as many bytes is its floor.

    A result needs fresh memory, which costs about as much as filling it; `clone` pays for that too, `copy_` doesn't.
    """
    for batch in (1, 4):
        logit, k, v = _views(batch, 3)
        source = torch.randn(5 * k.numel() // 2)
        target = torch.empty_like(source)
        shape = f"B{batch} H{HEADS} T{LENGTH} d{D_HEAD}"

        def run(logit=logit, k=k, v=v):
            return gated_scan(logit, k, v)

        yield _Case("gated_scan", shape, "-", "clone of the same bytes", run, source.clone)
        yield _Case("gated_scan", shape, "-", "copy_ of the same bytes", run, lambda t=target, s=source: t.copy_(s))


def _attention_cases():
    q, k, v = _views(1, 3)
    for name, pattern in PATTERNS.items():
        yield _Case(
            "dilated_attention",
            f"B1 H{HEADS} T{LENGTH} d{D_HEAD}",
            name,
            "dense causal SDPA",
            lambda pattern=pattern: dilated_attention(q, k, v, *pattern),
            lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        )


def _decode_cases():
    """The last step of a sequence of LENGTH tokens, for 8 sequences; dense attention reads every token."""
    batch = 8
    q, k, v, logit = (torch.randn(batch, HEADS, D_HEAD) for _ in range(4))
    dense_k, dense_v = (torch.randn(batch, HEADS, LENGTH, D_HEAD) for _ in range(2))
    positions = torch.full((batch,), LENGTH - 1)
    for name, (dilation, window, sinks) in PATTERNS.items():
        slots = HEADS * slot_count(dilation, window, sinks, LENGTH)
        keys, values = (torch.randn(batch, slots, D_HEAD) for _ in range(2))
        state = tuple(torch.zeros(batch, HEADS, D_HEAD) for _ in range(2))

        def run(keys=keys, values=values, state=state, pattern=(dilation, window, sinks)):
            return decode_attention(q, k, v, logit, keys, values, state, positions, *pattern)

        yield _Case(
            "decode_attention",
            f"B{batch} H{HEADS} t{LENGTH - 1} d{D_HEAD}",
            name,
            "dense SDPA, one query",
            run,
            lambda: F.scaled_dot_product_attention(q.unsqueeze(2), dense_k, dense_v),
        )
