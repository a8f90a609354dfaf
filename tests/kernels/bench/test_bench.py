"""The operator benchmark: its output at a small size, and that peers compute the same thing."""

import json
import time
from dataclasses import replace

import pytest
import torch
from helpers import projections, rope_tables

from ratplus import Pattern
from ratplus.kernels import dilated_attention, gated_scan
from ratplus.kernels.attention.patterns import HeadPattern
from ratplus.kernels.attention.reference import visible_mask
from ratplus.kernels.bench import block_cases
from ratplus.kernels.bench import cases as bench_cases
from ratplus.kernels.bench import peers as bench_peers
from ratplus.kernels.bench import run as bench
from ratplus.kernels.bench import timing as bench_timing
from ratplus.kernels.bench.timing import Ceilings, Times

SMALL = bench_cases.Shapes(
    d_models=(32,), d_head=16, tokens=64, lengths=(64,), patterns=((1, 0, 0), (4, 3, 2), (None, 5, 1)),
    decode_batches=(2,), backward_lengths=(64,), peer_lengths=(64,), peer_patterns=((4, 3, 2),), peer_d_models=(32,),
    repeats=3, selections=(), device="cpu", dtype=torch.float32,
)  # fmt: skip
SMALL_CPU = replace(
    bench_cases.CPU_SHAPES, d_models=(32,), d_head=16, tokens=64, lengths=(64,), decode_batches=(2,)
)  # fmt: skip
ROW = {
    "op", "shape", "pattern", "candidate", "ms_p50", "ms_p20", "ms_p80", "repeats", "gb_s", "tflop_s",
    "bandwidth_fraction", "matmul_fraction", "limit_ms", "peak_bytes",
}  # fmt: skip


def check_rows(result):
    json.dumps(result)
    assert result["complete"]
    for row in result["rows"]:
        assert set(row) == ROW
        assert 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert row["repeats"] >= 2
        best = max(row["bandwidth_fraction"], row["matmul_fraction"])
        assert row["limit_ms"] / row["ms_p50"] == pytest.approx(best)
        assert row["peak_bytes"] > 0 or "copy_" in row["candidate"]


def test_what_the_cpu_is_timed_at():
    result = bench.bench_ops(replace(SMALL_CPU, repeats=2), threads=1)
    check_rows(result)
    assert result["threads"] == 1
    seen = {(row["op"], row["pattern"], row["candidate"]) for row in result["rows"]}
    for baseline in ("ours", "copy_ of the same bytes", "clone of the same bytes"):
        assert ("scan forward", "-", baseline) in seen
    for pattern in ("D1", "D16", "D64", "D16-W256", "stream-W256-I4", "top8x64", "quest16x64", "D64-top8x64"):
        for op, dense in (("attention forward", "dense SDPA"), ("decode", "dense SDPA, one query")):
            assert {(op, pattern, "ours"), (op, pattern, dense)} <= seen
    assert not result["skipped"]
    assert {row["shape"] for row in result["rows"] if row["op"] == "scan forward"} == {"B1 T64 d32", "B4 T64 d32"}


def test_work_of_selected_blocks_is_what_the_masks_show():
    for static, top, block, score in (
        ((None, 0, 0), 3, 4, "mean"),
        ((2, 0, 0), 2, 8, "bounds"),
        ((4, 0, 0), 3, 4, "mean"),
    ):
        selection = bench_cases.Selection(static, top, block, score)
        q, k = torch.randn(2, 1, 40, 8)
        mask = Pattern.from_label(selection.label).visible_from(q.numpy(), k.numpy())[0]
        assert [block_cases.selected_pairs(t, selection) for t in range(40)] == mask.sum(axis=1).tolist()


def test_more_is_never_said_to_be_read_than_there_is():
    """Window, sinks and dilated keys may lie in chosen blocks: then the count is a bound, at most all keys."""
    for static, top, block in (((4, 3, 2), 3, 8), ((3, 0, 0), 2, 8), ((None, 5, 1), 3, 4), ((2, 60, 0), 2, 8)):
        selection = bench_cases.Selection(static, top, block, "mean")
        q, k = torch.randn(2, 1, 40, 8)
        seen = Pattern.from_label(selection.label).visible_from(q.numpy(), k.numpy())[0].sum(axis=1)
        bounds = [block_cases.selected_pairs(t, selection) for t in range(40)]
        assert all(t + 1 >= bound >= n for t, (bound, n) in enumerate(zip(bounds, seen)))
        assert bounds[39] < 40 or static[1] == 60


def test_a_batch_has_about_as_many_tokens_and_one_sequence_at_least():
    assert [bench_cases.batch_of(SMALL, length) for length in (1, 16, 33, 64, 65, 1000)] == [64, 4, 1, 1, 1, 1]


@pytest.mark.parametrize(("dtype", "item"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_least_work_of_each_operation(dtype, item):
    """Of three sequences of 64 tokens and 32 channels: tensors read and written once, and visible pairs."""
    shapes = replace(SMALL, dtype=dtype, peer_lengths=(64,))
    tensor, pattern = 3 * 64 * 32 * item, (4, 3, 2)
    pairs = 4.0 * 3 * 32 * bench_cases.visible_pairs(64, *pattern)
    cases = [
        *bench_cases._scan_cases(replace(shapes, peer_lengths=()), 32, 64, 3, "s"),
        *bench_cases._attention_cases(shapes, 32, 64, 3, pattern, "s"),
        *bench_cases._decode_cases(shapes, 32, 64, 3, pattern, "s"),
    ]
    # A step reads what the slots of two heads hold; its token in five vectors, and two states read and written.
    read = 2 * 3 * 16 * item * 2 * (2 + 3 + 1 + 64 // 4)
    assert {case.op: (case.least_bytes, case.flops) for case in cases} == {
        "scan forward": (5 * tensor, 0), "scan backward": (10 * tensor, 0), "attention forward": (4 * tensor, pairs),
        "recurrence and attention": (5 * tensor, pairs), "attention backward": (8 * tensor, 2.5 * pairs),
        "decode": (read + 3 * 32 * (5 * item + 4 * 4), 2 * read / item),
    }  # fmt: skip


@pytest.mark.parametrize(("score", "top", "metadata"), [("mean", 3, 4), ("bounds", 3, 8), ("bounds", 9, 0)])
def test_least_work_of_selected_blocks(score, top, metadata):
    """Metadata of all eight blocks, in float32, is read only where there are more than may be chosen."""
    selection = bench_cases.Selection((None, 0, 0), top, 8, score)
    shapes = replace(SMALL, selections=(selection,))
    pairs = [block_cases.selected_pairs(t, selection) for t in range(64)]
    (forward,) = block_cases.block_attention_cases(shapes, 32, 64, 3, selection, "s")
    assert (forward.least_bytes, forward.flops) == (4 * 3 * 64 * 32 * 4, 4.0 * 3 * 32 * sum(pairs))
    (step,) = block_cases.block_decode_cases(shapes, 32, 64, 3, selection, "s")
    assert pairs[-1] == 8 * min(top, 8)
    assert step.flops == 4.0 * 3 * 32 * pairs[-1]
    assert step.least_bytes == 3 * 32 * (2 * 4 * pairs[-1] + 8 * metadata + 5 * 4 + 16)


def test_repeats_must_be_positive():
    with pytest.raises(ValueError, match="repeats: got 0"):
        bench.bench_ops(replace(bench_cases.CPU_SHAPES, repeats=0))


def test_gpu_benchmark_at_a_small_size_on_the_cpu():
    """Every case, candidate and figure, with peers that run without a GPU; the others are named with a reason."""
    saved = []
    result = bench.bench_ops(SMALL, save=lambda result: saved.append((result["complete"], len(result["rows"]))))
    check_rows(result)
    assert saved == sorted(saved)  # it only grows, and is complete at the end alone
    assert saved[-1] == (True, len(result["rows"]))
    seen = {(row["op"], row["candidate"]) for row in result["rows"]}
    for op in ("scan forward", "scan backward", "attention forward", "attention backward", "decode"):
        assert (op, "ours") in seen
    assert ("recurrence and attention", "paper") in seen
    assert ("attention forward", "FlexAttention, one mask") in seen
    reasons = {row["candidate"]: row["reason"] for row in result["skipped"]}
    assert reasons["paper (two FlexAttention passes)"].startswith("NotImplementedError: FlexAttention")
    assert all(reasons.values())


def test_long_dense_attention_is_timed_once():
    result = bench.bench_ops(replace(SMALL, dense_beside_flops=1.0, peer_lengths=(), decode_batches=()))
    dense = {row["pattern"] for row in result["rows"] if row["candidate"] == "dense SDPA"}
    ours = {row["pattern"] for row in result["rows"] if row["candidate"] == "ours"} - {"-"}
    assert dense == {"D1"}
    assert ours == {"D4-W3-I2", "stream-W5-I1"}
    reasons = {(row["candidate"], row["pattern"]) for row in result["skipped"]}
    assert {("ours", "D1"), ("dense SDPA", "D4-W3-I2")} <= reasons


def test_used_up_seconds_leave_the_rest_out_by_name(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(bench.time, "monotonic", lambda: next(clock))
    result = bench.bench_ops(replace(SMALL, peer_lengths=()), seconds=2.5)
    assert {row["op"] for row in result["rows"]} == {"scan forward", "scan backward", "attention forward",
                                                     "attention backward"}  # fmt: skip
    left = [(row["op"], row["pattern"], row["candidate"]) for row in result["skipped"]]
    assert left[0] == ("attention", "D4-W3-I2", "all")
    assert left[-1] == ("decode", "stream-W5-I1", "all")
    assert result["skipped"][-1]["reason"] == "the 2.5 s were used up"


def test_a_time_budget_cuts_repeats_and_candidates_take_turns():
    calls = []

    def slow():
        calls.append("slow")
        time.sleep(0.02)

    slow_times, quick_times = bench_timing.interleaved([slow, lambda: calls.append("quick")], "cpu", 8, 0.1)
    assert (quick_times.repeats, 3 <= slow_times.repeats <= 5) == (8, True)
    assert slow_times.p20 >= 20 > quick_times.p80
    # A warm-up and a probe each, then turns, and at last those of the quick one alone.
    assert calls[:6] == ["slow", "quick"] * 3
    assert calls[-3:] == ["quick"] * 3
    assert calls.count("slow") == 2 + slow_times.repeats
    (few,) = bench_timing.interleaved([lambda: time.sleep(0.01)], "cpu", 50, 1e-6)
    assert few.repeats == bench_timing.LEAST_REPEATS


def test_what_comes_before_a_call_is_not_timed():
    (times,) = bench_timing.interleaved([lambda: None], "cpu", 3, 1.0, before=[lambda: time.sleep(0.01)])
    assert times.p80 < 5


def test_quantiles_and_limits():
    times = Times.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert (times.p20, times.p50, times.p80, times.repeats) == (2.0, 3.5, 5.0, 6)
    assert times.over(2) == Times(1.0, 1.75, 2.5, 6)
    ceilings = Ceilings(copy_gb_s=100.0, matmul_tflop_s=1.0)
    assert ceilings.limit_ms(1e9, 1e9) == pytest.approx(10.0)  # bound by memory
    assert ceilings.limit_ms(1e6, 5e10) == pytest.approx(50.0)  # by arithmetic


def test_a_system_that_does_not_tell_its_memory_decodes_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_timing, "_MEMORY_FACTS", str(tmp_path / "meminfo"))
    assert bench_timing.available_memory_bytes("cpu") is None
    (case,) = bench_cases._decode_cases(SMALL, 32, 64, 2, (4, 3, 2), "a shape")
    assert list(case.candidates) == ["ours", "dense SDPA, one query"]
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:       1 kB\n")
    assert bench_timing.available_memory_bytes("cpu") == 1024
    (case,) = bench_cases._decode_cases(SMALL, 32, 64, 2, (4, 3, 2), "a shape")
    assert case.skipped.keys() == {"ours", "dense SDPA, one query"}


def test_peak_memory_of_a_call():
    x = torch.zeros(1000, 1000)
    assert bench_timing.peak_bytes(lambda: x + 1, "cpu") == pytest.approx(4e6, rel=0.01)
    assert bench_timing.peak_bytes(lambda: (x + 1).mul(2), "cpu") == pytest.approx(8e6, rel=0.01)
    assert bench_timing.peak_bytes(lambda: x.add_(1), "cpu") < 1000


def test_labels_are_those_of_patterns():
    for pattern in ((1, 0, 0), (16, 256, 4), (None, 256, 4), (None, 0, 3), (64, 0, 0)):
        assert bench_cases.label(pattern) == Pattern(*pattern).label


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
    for pattern in ((1, 0, 0), (4, 3, 2), (16, 0, 17), (8, 70, 0), (None, 9, 2)):
        seen = visible_mask(HeadPattern(pattern[0] or -1, *pattern[1:]), 64)
        assert bench_cases.visible_pairs(64, *pattern) == int(seen.sum())
