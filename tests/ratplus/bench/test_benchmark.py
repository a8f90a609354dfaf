"""`ratplus bench model` without its command line: rows at a small size, what fits in memory, mistakes."""

import json

import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus, checkpoint
from ratplus.bench import measure as bench_measure
from ratplus.bench import models as benchmark
from ratplus.bench.models import bench_models, subject_of
from ratplus.bench.settings import BenchSettings, split_labels
from ratplus.bench.stopwatch import PARTS, Stopwatch, watched
from ratplus.costs.cost import cost
from ratplus.kernels.bench import timing as bench_timing
from ratplus.kernels.bench.timing import Ceilings


@pytest.fixture(autouse=True)
def _quick_ceilings(monkeypatch):
    monkeypatch.setattr(benchmark, "measure_ceilings", lambda device, dtype: Ceilings(10.0, 0.1))


def settings(**values):
    return BenchSettings(**{
        "patterns": ("D4", "stream-W5", "layers[D1,D4]"), "contexts": (24,), "new_tokens": 3, "repeats": 3,
        "threads": 1, "memory_gb": 0.02,
    } | values)  # fmt: skip


def bench(names=("ratplus-2x32x16",), **values):
    chosen = settings(**values)
    return bench_models([subject_of(name, chosen, 50) for name in names], chosen)


def test_rows_of_two_models():
    saved = []
    chosen = settings(batches=(1, 2))
    subjects = [subject_of(name, chosen, 50) for name in ("ratplus-2x32x16", "attention-2x32x16")]
    result = bench_models(subjects, chosen, save=lambda result: saved.append(json.dumps(result)))
    assert result["complete"]
    assert len(saved) == 2 * 2 + 1
    assert not result["skipped"]
    patterns = ["D1", "D4", "stream-W5", "layers[D1,D4]"]
    assert [row["pattern"] for row in result["rows"]] == patterns * 4
    for row in result["rows"]:
        for name in ("prefill", "decode"):
            assert 0 < row[f"{name}_ms_p20"] <= row[f"{name}_ms_p50"] <= row[f"{name}_ms_p80"]
            assert row[f"{name}_limit_ms"] > 0
            assert row[f"{name}_peak_bytes"] > 0
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["batch"] / row["decode_ms_p50"])
        assert row["decode_path"] == "plain loop"
        dense = next(x for x in result["rows"] if x["pattern"] == "D1" and same(x, row))
        for name in ("prefill", "decode"):
            assert row[f"{name}_ratio"] == pytest.approx(row[f"{name}_ms_p50"] / dense[f"{name}_ms_p50"])
        assert row["kv_ratio"] == pytest.approx(row["kv_bytes"] / dense["kv_bytes"])
        assert (row["state_bytes"] > 0) == row["recurrence"]


def same(a, b):
    return all(a[key] == b[key] for key in ("model", "batch", "context"))


def test_bytes_are_those_of_a_live_cache_and_of_the_formula():
    (row,) = (row for row in bench(batches=(2,))["rows"] if row["pattern"] == "D4")
    model = RATPlus(ModelConfig(vocab_size=50, layers=2, d_model=32, d_head=16, max_len=27))
    cache = model.new_cache(2, Pattern(4), 27)
    assert (row["kv_bytes"], row["state_bytes"]) == (cache.kv_bytes(), cache.state_bytes())
    assert row["kv_bytes_formula"] == 2 * 2 * 2 * Pattern(4).kv_entries(24) * 16 * 2 * 4
    assert row["parameters"] == sum(p.numel() for p in model.parameters())
    left = 20_000_000 - 4 * row["parameters"]
    assert row["max_batch"] == left // (cache.bytes() // 2)


@pytest.mark.parametrize(("tied", "recurrence"), [(True, True), (False, True), (True, False)])
def test_limits_by_hand(tied, recurrence):
    """What the ceilings allow, where the bytes decide and where the products do; two sequences of 24 tokens."""
    config = ModelConfig(50, 3, 32, 8, kv_heads=2, tied=tied, recurrence=recurrence, max_len=27)
    patterns = PatternMap.uniform(Pattern.from_label("top2x4"), 3, 4)
    model, head = RATPlus(config).eval(), 50 * 32
    used = sum(p.numel() for p in model.parameters()) - (0 if tied else head)  # of an embedding, rows alone are read
    spent = cost(patterns, 24, 8, recurrence=recurrence, bytes_per_element=4, kv_heads=2)
    limits = {}
    for ceilings in (Ceilings(1e-6, 1e9), Ceilings(1e9, 1e-9)):  # a byte, or a FLOP, a millisecond
        result = {"rows": [], "skipped": []}
        with torch.inference_mode():
            measuring = bench_measure.Measuring("mine", model, settings(), ceilings, result)
            measuring.at(24, 2, {"top2x4": patterns})
        (row,) = result["rows"]
        assert (row["heads"], row["kv_heads"], row["recurrence"]) == (4, 2, recurrence)
        limits[ceilings.copy_gb_s < 1] = row["prefill_limit_ms"], row["decode_limit_ms"]
    # The state is read and written; of the prompt only the last position has logits.
    read = 4 * used + 2 * (spent.decode_bytes + 2 * spent.state_bytes)
    assert limits[True] == (pytest.approx(4 * used), pytest.approx(read))
    prompt = 2 * 24 * 2 * (used - head) + 2 * 2 * head + 2 * (spent.attention_flops + spent.selection_flops)
    step = 2 * 2 * used + 2 * (spent.decode_flops + spent.decode_selection_flops)
    assert limits[False] == (pytest.approx(prompt), pytest.approx(step))


def test_of_free_memory_and_what_is_given_the_less_counts(monkeypatch):
    model = RATPlus(ModelConfig(50, 1, 32, 8))
    weights = 4 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(bench_measure, "available_memory_bytes", lambda device: 5_000_000)
    for given, free in ((None, 5_000_000), (0.004, 4_000_000 - weights), (0.1, 5_000_000), (1e-6, 0)):
        assert bench_measure.Measuring("mine", model, settings(memory_gb=given), None, {}).free == free


def test_the_largest_batch_and_what_does_not_fit():
    result = bench(batches=("max", 30), memory_gb=0.3, patterns=("D4",))
    largest = {row["pattern"]: row for row in result["rows"] if row["largest"]}
    assert set(largest) == {"D1", "D4"}
    assert all(row["batch"] == min(4096, int(0.85 * row["max_batch"])) for row in largest.values())
    assert all(row["prefill_ms_p50"] is None for row in largest.values())
    assert not any("prefill of" in left["reason"] and left["batch"] != 30 for left in result["skipped"])
    # Beside weights of 0.11 MB: 30 dense caches of 14 kB are too many, 30 sparse ones of 4 kB are not.
    small = bench(batches=(30,), memory_gb=0.45e-3, patterns=("D4",))
    (left,) = [row for row in small["skipped"] if row["pattern"] == "D1"]
    assert "GB a sequence" in left["reason"]
    (row,) = small["rows"]
    assert (row["pattern"], row["decode_ratio"]) == ("D4", None)


def test_ratios_of_different_batches_are_of_one_sequence():
    dense, sparse = bench(batches=("max",), memory_gb=0.002, patterns=("D4",))["rows"]
    assert dense["batch"] < sparse["batch"] < 4096
    for ratio, key in (("kv_ratio", "kv_bytes"), ("decode_ratio", "decode_ms_p50")):
        assert dense[ratio] == 1
        assert sparse[ratio] == pytest.approx(sparse[key] / sparse["batch"] / (dense[key] / dense["batch"]))


def test_caches_that_do_not_fit_together_are_measured_apart(monkeypatch):
    groups = []
    measure = bench_measure.Measuring._measure
    monkeypatch.setattr(
        bench_measure.Measuring, "_measure",
        lambda self, group, context: groups.append([e.label for e in group]) or measure(self, group, context),
    )  # fmt: skip
    result = bench(batches=(20,), memory_gb=0.7e-3, patterns=("D4", "layers[D1,D4]"))
    assert len(groups) > 1
    assert [label for group in groups for label in group] == ["D1", "D4", "layers[D1,D4]"]
    assert [row["decode_ratio"] is None for row in result["rows"]] == [False] * 3


def test_long_prefill_is_left_out():
    result = bench(prefill_tokens=10)
    assert all(row["prefill_ms_p50"] is None and row["decode_ms_p50"] > 0 for row in result["rows"])
    assert result["skipped"][0]["reason"] == "prefill of 24 tokens is more than --prefill-tokens 10"


def test_seconds(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(benchmark.time, "monotonic", lambda: next(clock))
    result = bench(batches=(1, 2, 3), seconds=15)
    assert {row["batch"] for row in result["rows"]} == {1}
    assert [(row["batch"], row["reason"]) for row in result["skipped"]] == [
        (2, "the 15 s were used up"), (3, "the 15 s were used up"),
    ]  # fmt: skip


def test_running_out_of_memory_loses_that_case_only(monkeypatch):
    def out_of_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory\nmore")

    before = bench_measure.interleaved
    calls = iter([out_of_memory])
    monkeypatch.setattr(bench_measure, "interleaved", lambda *a, **k: next(calls, before)(*a, **k))
    result = bench(batches=(1, 2))
    assert {row["batch"] for row in result["rows"]} == {2}
    assert result["skipped"][0]["reason"] == "out of memory: CUDA out of memory"
    assert len(result["skipped"]) == 4


def test_a_saved_model_and_the_module_as_a_script(tmp_path, capsys, monkeypatch):
    model = RATPlus(ModelConfig(vocab_size=50, layers=2, d_model=32, d_head=16, max_len=64))
    checkpoint.save(model, tmp_path / "mine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # the CPU is asked for all the same
    benchmark.main([
        str(tmp_path / "b.json"), str(tmp_path / "mine"), "--pattern", "D16,layers[D1,D4]", "--context", "20",
        "--new-tokens", "3", "--repeats", "3", "--device", "cpu", "--threads", "1", "--memory-gb", "0.01",
    ])  # fmt: skip
    result = json.loads((tmp_path / "b.json").read_text())
    assert [(row["model"], row["pattern"]) for row in result["rows"]] == [
        ("mine", "D1"), ("mine", "D16"), ("mine", "layers[D1,D4]"),
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "b.json")
    with pytest.raises(ValueError, match="mine: takes 64 tokens; --context 100 and --new-tokens 16 need 116"):
        benchmark.main([str(tmp_path / "c.json"), str(tmp_path / "mine"), "--context", "100", "--device", "cpu"])
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batches": (0,)}, "--batch: got 0; it must be ≥ 1"),
        ({"contexts": (8, 0)}, "--context: got 0"),
        ({"new_tokens": 2}, "--new-tokens: got 2; it must be ≥ 3"),
        ({"threads": 0}, "--threads: got 0"),
        ({"memory_gb": -1.0}, "--memory-gb: got -1.0"),
        ({"dtype": "int8"}, "--dtype: got int8; allowed: float32, bfloat16"),
        ({"patterns": ("D16", "x")}, "pattern 'x': not a label"),
        ({"patterns": ("layers[D1,D1,D1]",)}, r"names 3 layers, but the model has 2"),
        ({"device": "tpu"}, "--device: got 'tpu'"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(ValueError, match=message):
        bench(**values)


def test_a_model_must_take_the_new_tokens_too():
    for most in (26, 27):
        config = ModelConfig(50, 2, 32, 16, max_len=most)
        subjects = [benchmark.Subject("mine", config, lambda: pytest.fail("made"))]
        if most == 27:
            benchmark.check(subjects, settings())
        else:
            with pytest.raises(ValueError, match="mine: takes 26 tokens; --context 24 and --new-tokens 3 need 27"):
                benchmark.check(subjects, settings())


def test_names_that_are_no_models():
    with pytest.raises(ValueError, match="nothing: no such model; give a folder"):
        bench(["nothing"])
    with pytest.raises(ValueError, match="model.d_model: got 33"):
        bench(["ratplus-2x33x16"])


def test_labels_with_brackets_are_not_split():
    assert split_labels("D16, layers[D1,D64x2],heads[D1,D4],stream") == [
        "D16", "layers[D1,D64x2]", "heads[D1,D4]", "stream",
    ]  # fmt: skip


def test_free_memory_is_told():
    assert bench_timing.available_memory_bytes("cpu") > 10_000_000


def test_memory_that_the_system_does_not_tell_must_be_given(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_timing, "_MEMORY_FACTS", str(tmp_path / "none"))
    (row, *_) = bench(patterns=("D4",), batches=(1,))["rows"]
    assert row["max_batch"] > 0
    with pytest.raises(ValueError, match="doesn't tell how much memory is free; give --memory-gb"):
        bench(patterns=("D4",), batches=(1,), memory_gb=None)


def test_a_model_without_attention_takes_none_of_the_default_patterns():
    config = ModelConfig(50, 1, 32, 16, recurrence=False, mixer="mamba2")
    subject = benchmark.Subject("mamba2", config, lambda: RATPlus(config))
    assert list(subject.maps(BenchSettings().patterns)) == ["D1"]
    with pytest.raises(ValueError, match="mamba2"):
        subject.maps(("D4",))


def test_times_between_marks_add_up_to_a_lap():
    watch, times = Stopwatch("cpu"), iter([9.0, 1.0, 1.5, 3.5, 3.75, 7.0])
    watch.clock = lambda: next(times)
    watch.mark("dense")  # not on: no look at the clock
    watch.lap()
    watch.on = True
    watch.lap()  # nothing was marked
    assert (watch.laps, next(times)) == ([], 9.0)
    for part in ("other", "dense", "scan", "dense"):
        watch.mark(part)
    watch.lap()
    (lap,) = watch.laps
    assert list(lap) == list(PARTS)
    assert {part: ms for part, ms in lap.items() if ms} == {"other": 500.0, "dense": 5250.0, "scan": 250.0}


@pytest.mark.parametrize("mixer", ["mamba2", "gated_deltanet"])
def test_the_time_of_a_mixer_is_a_part_of_a_step(mixer):
    from ratplus.model import state_mixer

    model = RATPlus(ModelConfig(50, 1, 32, 16, recurrence=False, mixer=mixer))
    before = state_mixer.ssd, state_mixer.gated_delta_rule, state_mixer.StateMixer._convolve
    watch = Stopwatch("cpu")
    watch.on = True
    named = []
    watch.mark = lambda part: named.append(part)
    with watched(model, watch):
        model(torch.zeros(1, 70, dtype=torch.int64)).sum().backward()
    # Convolution and recurrence, forward and backward.
    assert named.count("mixer") == 4
    assert not {"scan", "attention"} & set(named)
    assert before == (state_mixer.ssd, state_mixer.gated_delta_rule, state_mixer.StateMixer._convolve)
    assert all(parameter.grad is not None for parameter in model.parameters())
