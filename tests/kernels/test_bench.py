"""The operator benchmark: shape of its output at a small size."""

import pytest

from ratplus.kernels import bench


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
