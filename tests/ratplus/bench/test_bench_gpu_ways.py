"""What the benchmarks do for a GPU, on a CPU: dense attention by kernel, trainer settings with a limit, no Hydra."""

import json
import subprocess
import sys
import time

import pytest
import torch

from ratplus import Pattern, PatternMap
from ratplus.bench import dense as bench_dense
from ratplus.bench import measure as bench_measure
from ratplus.bench import models as benchmark
from ratplus.bench import trainer as bench_trainer
from ratplus.bench.lines import model_line, skipped_line
from ratplus.bench.settings import BenchSettings
from ratplus.config.train import RecipeSection
from ratplus.kernels.bench import backends as bench_backends
from ratplus.kernels.bench.timing import Ceilings, Times

QUICK = ["--batch", "2", "--context", "32", "--repeats", "3", "--device", "cpu", "--vocab-size", "50"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for module in (benchmark, bench_trainer):
        monkeypatch.setattr(module, "measure_ceilings", lambda device, dtype: Ceilings(10.0, 0.1))


def test_which_maps_have_dense_layers():
    dense, sparse = Pattern(), Pattern(16)
    assert bench_dense.has_dense_layers(PatternMap.uniform(dense, 2, 2), 100)
    assert bench_dense.has_dense_layers(PatternMap.per_layer([sparse, dense], 2), 100)
    assert bench_dense.has_dense_layers(PatternMap.uniform(Pattern(16, 99), 2, 2), 100)
    assert not bench_dense.has_dense_layers(PatternMap.uniform(Pattern(16, 98), 2, 2), 100)
    assert not bench_dense.has_dense_layers(PatternMap.per_head([dense, sparse], 2), 100)


def test_kernels_that_do_not_run_are_named_and_running_out_of_memory_is_no_reason():
    def run():
        q = torch.randn(1, 2, 8, 16)
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)

    working, refused = bench_backends.usable(run, list(bench_backends.BACKENDS))
    assert working == ["flash"]  # a CPU has that one, and no cuDNN
    assert list(refused) == ["cudnn"]
    assert "\n" not in refused["cudnn"]

    def too_much():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        bench_backends.usable(too_much, ["cudnn"])


@pytest.mark.parametrize(("number", "text"), [(91300, "9.13.0"), (8907, "8.9.7"), (90100, "9.1.0")])
def test_cudnn_version(monkeypatch, number, text):
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: number)
    assert bench_backends.cudnn_version() == text


def test_the_row_of_dense_layers_is_of_the_faster_kernel(monkeypatch):
    """As on a GPU: each of torch's kernels is timed, the faster one is the row, and both are in it."""
    monkeypatch.setattr(bench_measure, "usable", lambda run, names: run() or (list(names), {}))
    on = []
    monkeypatch.setattr(bench_measure, "dense_on", lambda name: on.append(name) or bench_backends.dense_on(None))
    subject = benchmark.subject_of("ratplus-2x32x16", BenchSettings(contexts=(24,)), 50)
    settings = BenchSettings(contexts=(24,), new_tokens=3, repeats=3, memory_gb=0.02)
    result = {"rows": [], "skipped": []}
    with torch.inference_mode():
        measuring = bench_measure.Measuring("mine", subject.make().eval(), settings, Ceilings(10.0, 0.1), result)
        object.__setattr__(settings, "device", "cuda")
        fake = {"peak_bytes": lambda run, device: (run() and None) or 5, "interleaved": _in_order}
        for name, function in fake.items():
            monkeypatch.setattr(bench_measure, name, function)
        runs = [(_entry(measuring, label), lambda: on.append("run")) for label in ("D1", "D4")]
        found = measuring._prompts(runs, 24, {})
    assert (found["D1"].backend, found["D1"].times.p50, found["D1"].each_ms) == (
        "cudnn",
        1.0,
        {"cudnn": 1.0, "flash": 2.0},
    )
    assert (found["D4"].backend, found["D4"].times.p50, found["D4"].each_ms) == (None, 3.0, {})
    assert {"cudnn", "flash", None} <= set(on)


def _in_order(runs, before, **_):
    for ready, run in zip(before, runs):
        ready()
        run()
    return [Times(i + 1.0, i + 1.0, i + 1.0, 3) for i in range(len(runs))]


def _entry(measuring, label):
    patterns = PatternMap.from_label(label, 2, 2)
    made = bench_measure._Entry(label, patterns, 1, 1, 1, False)
    made.hold(measuring.model, 30)
    return made


def test_ways_of_training(monkeypatch, tmp_path, capsys):
    """Every way has its row and line; what takes too long or can't compile is named."""
    monkeypatch.setattr("ratplus.training.blocks.BACKEND", "aot_eager")
    monkeypatch.setattr(bench_trainer, "check_compiler", lambda trainer, device: None)
    trained, module = [], bench_trainer.TrainingModule
    monkeypatch.setattr(
        bench_trainer, "TrainingModule", lambda *given, **more: trained.append(more["arl"]) or module(*given, **more)
    )
    bench_trainer.main([str(tmp_path / "t.json"), "ratplus-1x32x16", *QUICK, "--limit", "120"])
    assert trained == [RecipeSection(arl=True).arl_pattern] * 4
    result = json.loads((tmp_path / "t.json").read_text())
    assert result["complete"]
    assert [(row["compile"], row["activation_checkpointing"]) for row in result["rows"]] == list(bench_trainer.WAYS)
    for row in result["rows"]:
        assert (row["step"], row["tokens"], row["repeats"], row["peak_bytes"]) == ("ARL", 64, 3, None)
        assert row["tokens_per_second"] == pytest.approx(64e3 / row["step_ms_p50"])
        assert row["mfu"] > 0
        assert row["first_step_s"] > 0
    estimates = [row["estimated_bytes"] for row in result["rows"]]
    assert estimates[:2] == estimates[2:]
    assert estimates[0] != estimates[1]  # checkpointing counts; at this size it does not save anything
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "compiled checkpointed" in lines[3]
    assert lines[-1] == str(tmp_path / "t.json")


def test_the_150m_model_is_the_default():
    subject = benchmark.subject_of(bench_trainer.MODEL, BenchSettings(contexts=(bench_trainer.CONTEXT,)))
    with torch.device("meta"):
        model = benchmark.RATPlus(subject.config)
    assert sum(p.numel() for p in model.parameters()) == 148_462_848


def test_what_takes_too_long_is_named(monkeypatch, tmp_path, capsys):
    def slow(self, batch, index):
        time.sleep(60)

    monkeypatch.setattr(bench_trainer.TrainingModule, "training_step", slow)
    monkeypatch.setattr(bench_trainer, "WAYS", ((False, True),))
    started = time.monotonic()
    bench_trainer.main([str(tmp_path / "t.json"), "attention-1x32x16", *QUICK, "--limit", "1.5"])
    assert time.monotonic() - started < 30
    line, _ = capsys.readouterr().out.splitlines()
    assert line == (
        "not measured: attention-1x32x16 plain activation_checkpointing 2 32: took more than 1.5 s, after 0 steps"
    )
    assert skipped_line(json.loads((tmp_path / "t.json").read_text())["skipped"][0]) == line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "0"], "--limit: got 0"), (["--batch", "0"], "--batch: got 0"),
        (["--dtype", "x"], "--dtype: got x"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        bench_trainer.main([str(tmp_path / "t.json"), "--device", "cpu", *words])
    assert not list(tmp_path.iterdir())


def test_a_line_of_what_was_not_measured_has_no_zeros():
    row = {
        "pattern": "D16", "batch": 1, "context": 8, "dense_backend": None, "prefill_ms_p50": None,
        "prefill_limit_ms": None, "prefill_ratio": None, "decode_ms_p50": 2.0, "decode_limit_ms": 1.0,
        "decode_ratio": 0.25, "decode_path": "cuda graph", "kv_bytes": 5e9,
    }  # fmt: skip
    line = model_line(row)
    assert line.split() == [
        "D16",
        "B1",
        "T8",
        "prefill",
        "-",
        *["decode", "2.000", "ms", "x4.00", "50%", "graph", "5.000", "GB"],
    ]


def test_both_modules_run_without_hydra_and_wandb(tmp_path):
    """What a GPU machine may lack must not be imported by what runs there."""
    words = ["--context", "20", "--new-tokens", "3", "--repeats", "3", "--device", "cpu", "--memory-gb", "0.01"]
    code = f"""
import sys
for name in ("hydra", "omegaconf", "wandb", "pytest_mpl", "jinja2"):
    sys.modules[name] = None
from ratplus.bench import trainer as bench_trainer, models as benchmark
benchmark.main([{str(tmp_path / "m.json")!r}, "ratplus-1x32x16", "--pattern", "D4", *{words!r}])
bench_trainer.WAYS = ((False, False),)
bench_trainer.main([{str(tmp_path / "t.json")!r}, "ratplus-1x32x16", *{QUICK!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["D1", "D4"]
    assert all(len(line) < 180 for line in lines[:-1])
