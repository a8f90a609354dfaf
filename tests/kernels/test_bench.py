"""The operator benchmarks, CPU and GPU: their output at a small size, and that peers compute the same thing."""

import json

import pytest
import torch
from helpers import projections, rope_tables

from ratplus.kernels import bench, bench_cases, bench_gpu, bench_peers, dilated_attention, gated_scan
from ratplus.kernels.attention.patterns import HeadPattern
from ratplus.kernels.attention.reference import visible_mask


def test_every_operator_is_measured_beside_a_baseline(monkeypatch):
    monkeypatch.setattr(bench, "LENGTH", 128)
    monkeypatch.setattr(bench, "HEADS", 2)
    rows = bench.bench_cpu_ops(threads=1, repeats=2)
    assert {row["op"] for row in rows} == {"gated_scan", "dilated_attention", "decode_attention"}
    for row in rows:
        assert set(row) == {"op", "shape", "pattern", "ms_p50", "ms_p20", "ms_p80", "baseline", "ratio"}
        assert 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert row["ratio"] > 0


def test_repeats_must_be_positive():
    with pytest.raises(ValueError, match="repeats is 0"):
        bench.bench_cpu_ops(repeats=0)


def test_gpu_benchmark_at_a_small_size_on_the_cpu():
    """Every case, candidate and figure, with peers that run without a GPU; the others are named with a reason."""
    shapes = bench_cases.Shapes(
        d_models=(32,), d_head=16, tokens=64, lengths=(64,), patterns=((1, 0, 0), (4, 3, 2)), decode_batches=(2,),
        repeats=2, device="cpu", dtype=torch.float32,
    )  # fmt: skip
    result = bench_gpu.bench_gpu_ops(shapes)
    json.dumps(result)
    seen = {(row["op"], row["candidate"]) for row in result["rows"]}
    for op in ("scan forward", "scan backward", "attention forward", "attention backward", "decode"):
        assert (op, "ours") in seen
    assert ("recurrence and attention", "paper") in seen
    for row in result["rows"]:
        assert 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert row["gb_s"] > 0
    assert all(row["reason"] for row in result["skipped"])


def test_peers_compute_the_same():
    torch.manual_seed(0)
    logit, q, k, v = projections(1, 2, 64, 16, parts=4)
    tables = rope_tables(torch.arange(64), 16)
    k_tilde, v_tilde, _ = gated_scan(logit, k, v, rope=tables)
    for x, y in zip(bench_peers.paper_scan(logit, k, v, *tables), (k_tilde, v_tilde)):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    for pattern in ((4, 3, 2), (16, 0, 0), (8, 5, 9)):
        expected = dilated_attention(q, k, v, *pattern)
        for peer in (bench_peers.PaperAttention, bench_peers.OneMaskAttention):
            actual = peer(*pattern, 64, "cpu", False)(q, k, v)
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_pairs_are_counted_as_the_mask_shows_them():
    for pattern in ((1, 0, 0), (4, 3, 2), (16, 0, 17), (8, 70, 0)):
        assert bench_cases._pairs(64, *pattern) == int(visible_mask(HeadPattern(*pattern), 64).sum())
