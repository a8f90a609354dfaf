"""All that is shown of benchmark results, of two sweeps side by side and of several in one table: see seen.py."""

from __future__ import annotations

import numpy as np
import pytest
from seen import check

from ratplus.analysis import compare, efficiency
from ratplus.analysis.frame.load import read_sweep
from ratplus.analysis.paired.ranking import ranking
from ratplus.pattern import Pattern
from ratplus.records.samples import write_samples

ITEMS = np.array([1.0, 1.5, 2.0, 2.5] * 4)


pytestmark = pytest.mark.usefixtures("quick")


def kernel_row(op, shape, pattern, candidate, ms, limit=0.5, peak=1 << 20) -> dict:
    return {
        "op": op, "shape": shape, "pattern": pattern, "candidate": candidate, "ms_p50": ms, "ms_p20": ms / 2,
        "ms_p80": 1.25 * ms, "repeats": 7, "gb_s": 10.0, "tflop_s": 1.0, "bandwidth_fraction": 0.25,
        "matmul_fraction": limit / ms, "limit_ms": limit, "peak_bytes": peak,
    }  # fmt: skip


def kernels() -> dict:
    """Attention at two lengths and two widths, decoding with two batches, a scan; rows not in the order of patterns."""
    rows = []
    for length in (1024, 4096):
        for pattern, share in (("D16", 4), ("D1", 1), ("layers[D1,D64]", 2), ("stream-W64-I4", 8)):
            rows.append(kernel_row("attention forward", f"B1 T{length} d64", pattern, "ours", length / 64 / share))
        rows += [
            kernel_row("attention forward", f"B1 T{length} d64", "D1", f"dense SDPA ({name})", length / 64 * times)
            for name, times in (("flash", 2), ("cudnn", 1.5))
        ]
        rows.append(kernel_row("attention forward", f"B1 T{length} d64", "D1", "paper: its block masks alone", 0.25))
        rows += [kernel_row("decode", f"B{b} T{length} d64", p, "ours", b * length / 2**16 * (1 + rank / 4), 0.01, None)
                 for b in (1, 8) for rank, p in enumerate(("D64", "D4", "D1")) if (b, p) != (1, "D4")]  # fmt: skip
        rows.append(kernel_row("decode", f"B8 T{length} d64", "D1", "dense SDPA", length / 2**13, 0.01))
    rows.append(kernel_row("attention forward", "B1 T1024 d32", "D1", "ours", 100.0))
    rows += [kernel_row("scan forward", "B1 T4096 d64", "-", name, ms, 0.125)
             for name, ms in (("paper (associative_scan)", 8.0), ("ours", 1.0))]  # fmt: skip
    skipped = [{"op": "decode", "shape": f"B{n}", "reason": "too large"} for n in (16, 32, 64)]
    return {
        "benchmark": "kernels", "complete": True, "device": "CPU X", "torch": "2.0", "threads": 1, "dtype": "float32",
        "rows": rows, "skipped": [*skipped, {"op": "scan", "reason": "no kernel"}],
    }  # fmt: skip


def models() -> dict:
    rows = []
    for model in ("ratplus_tiny", "attention_tiny"):
        for context in (4096, 512):
            for batch, largest in ((1, False), (8, True)):
                for rank, pattern in enumerate(("D64", "D1", "layers[D1,D64]")):
                    prefill = None if largest else 16.0 / (rank + 1)
                    decode = batch * (1.0 + rank) * context / 512
                    rows.append({
                        "model": model, "pattern": pattern, "batch": batch, "context": context, "largest": largest,
                        "prefill_ms_p50": prefill, "prefill_ms_p20": prefill and prefill / 2,
                        "prefill_ms_p80": prefill and prefill * 1.5, "decode_ms_p50": decode,
                        "decode_ms_p20": decode / 2, "decode_ms_p80": decode * 1.25,
                        "tokens_per_second": 123456.7 * batch / decode, "kv_bytes": 3 << (18 + rank),
                        "state_bytes": 1536, "max_batch": 12345, "prefill_limit_ms": None if largest else 1.0,
                        "decode_limit_ms": batch / 4, "prefill_ratio": None if largest else 1 / (rank + 1),
                        "decode_ratio": 0.125 * (rank + 1), "kv_ratio": 0.0625 * (rank + 1),
                    })  # fmt: skip
    return kernels() | {"benchmark": "model", "device": "NVIDIA Y", "rows": rows, "skipped": [], "complete": False}


def test_seen_of_benchmarks():
    twice = kernels() | {
        "torch": "2.1",
        "threads": 2,
        "rows": [],
        "skipped": [{"op": "decode", "shape": "B128", "reason": "too large"}],
    }
    check("efficiency", *efficiency._contents([kernels(), twice, models()]))


def test_seen_of_benchmarks_of_many_patterns_at_one_length():
    """More patterns than stand side by side, and times far apart."""
    rows = [kernel_row("attention forward", "B1 T64 d64", f"D{2**i}", "ours", 4.0**i, 2.0**i) for i in range(9)]
    many = models()["rows"][:1]
    many = [many[0] | {"pattern": f"D{2**i}"} for i in range(5)]
    results = [kernels() | {"rows": rows, "skipped": []}, models() | {"rows": many, "complete": True}]
    check("efficiency_of_many", *[part for part in efficiency._contents(results) if hasattr(part, "figure")])


def add(sweep, model, pattern, change, spread=0.0, *, recall=None, stored=True, **options) -> None:
    values = ITEMS + change + spread * np.array([-1.0, 1.0] * 8)
    metrics = {"loss": (float(values.mean()), 0.125)} | ({} if recall is None else {"recall_accuracy": (recall, 0.05)})
    metrics |= {"perplexity": (float(np.exp(values.mean())), 0.5), "decode_kv_bytes": 100.0}
    cell = sweep.add(model, pattern, metrics, **options)
    if stored and options.get("status", "done") == "done":
        samples = [{"task": "loss", "id": i, "loss": float(value)} for i, value in enumerate(values)]
        write_samples(sweep.path / "evaluate" / cell["id"], samples)


@pytest.fixture
def two(sweep, tmp_path):
    """Two sweeps: D4 gets worse for certain, D16 perhaps better, streaming has no samples; cells of one only."""
    other = type(sweep)(tmp_path / "outputs" / "other")
    for number, folder in enumerate((sweep, other)):
        for model in ("ratplus_tiny", "attention_tiny"):
            for seed in (0, 1):
                add(folder, model, Pattern(16), 0.5 - number / 64, number / 16, seed=seed, recall=0.5)
                add(folder, model, Pattern(1), 0.0, seed=seed, recall=1.0 - number / 4)
                add(folder, model, Pattern(4), 0.25 + number / 8, number / 64, seed=seed, recall=0.75)
        add(folder, "ratplus_tiny", Pattern(None, 64), 0.5 + number, stored=False)
        add(folder, "ratplus_tiny", Pattern(8), 0.5, status="failed" if number else "done")
    add(sweep, "ratplus_tiny", Pattern(64), 1.0)
    add(sweep, "ratplus_tiny", Pattern(128), 1.0)
    add(other, "other_tiny", Pattern(1), 1.0)
    return sweep.write(), other.write("other")


def test_seen_of_two_sweeps(two):
    both = compare.Two(*map(read_sweep, two))
    rows, pairs = both.rows, both.pairs
    a, b = (sweep.frame for sweep in both.sweeps)
    check("compare", rows, compare.summary(rows), compare.caption(rows, "one", "other"),
          "\n".join(compare.notes(a, b, pairs, "one", "other")), compare.figure(rows, "one", "other"))  # fmt: skip


def test_seen_of_several_sweeps_in_one_table(two):
    check("ranking", ranking(two))
