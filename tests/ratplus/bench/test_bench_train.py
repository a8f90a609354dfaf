"""Rows of `ratplus bench train` from given times: turns, peers without recurrence, tokens, FLOPs, shares of parts."""

import pytest
import torch

from ratplus import ModelConfig
from ratplus.bench import train as bench_train
from ratplus.bench.models import Subject
from ratplus.bench.settings import BenchSettings
from ratplus.bench.stopwatch import PARTS
from ratplus.config.train import RecipeSection
from ratplus.costs.budget import forward_flops, parameters
from ratplus.costs.memory import training_memory
from ratplus.kernels.bench.timing import Ceilings

SHAPE = dict(vocab_size=700, layers=2, d_model=32, d_head=8, max_len=256)
RATPLUS = ModelConfig(**SHAPE, gate_bias=-1.0)
ALONE = ModelConfig(**SHAPE, recurrence=False)


def subject(name: str, config: ModelConfig) -> Subject:
    return Subject(name, config, lambda: None)


@pytest.fixture
def bench(monkeypatch):
    """`bench(subjects, times, ...)`: the result, where every turn of (model, step) takes these milliseconds."""
    monkeypatch.setattr(bench_train, "measure_ceilings", lambda device, dtype: Ceilings(10.0, 0.5))

    def run(subjects, times, **settings):
        turns = []

        def turn(candidate, _settings):
            key = (candidate.subject.name, candidate.step)
            turns.append(key)
            if times[key] is None:
                raise torch.OutOfMemoryError("CUDA out of memory\nmore")
            candidate.steps_ms += [times[key]] * 3
            candidate.steps_cpu_ms += [times[key] / 2] * 3
            candidate.parts_ms.append(dict.fromkeys(PARTS, 0.0) | {"dense": 6.0, "data": 2.0})
            candidate.peak = 77

        monkeypatch.setattr(bench_train, "_turn", turn)
        given = BenchSettings(**{"contexts": (256,), "batches": (4,), "repeats": 5, "threads": 1} | settings)
        return bench_train.bench_training(subjects, given), turns

    return run


def test_rows_by_hand(bench):
    times = {("r", "ARL"): 40.0, ("r", "plain"): 20.0, ("r without recurrence", "plain"): 10.0}
    result, turns = bench([subject("r", RATPLUS)], times)
    assert turns == list(times) * 2  # models take turns; three steps each are too few for five repeats
    rows = {(row["model"], row["step"]): row for row in result["rows"]}
    assert list(rows) == list(times)
    assert [row["arl_cost"] for row in rows.values()] == [4.0, 2.0, None]
    assert [row["arl_cost_cpu"] for row in rows.values()] == [4.0, 2.0, None]
    for (name, step), row in rows.items():
        config = RATPLUS if name == "r" else ALONE
        # Half of the tokens in recall rows of 128.
        passes = [None] + [RecipeSection(arl=True).arl_pattern] * (step == "ARL")
        flops = 3 * sum(2 * forward_flops(config, p, 256) + 4 * forward_flops(config, p, 128) for p in passes)
        seconds = times[name, step] / 1e3
        assert (row["tokens"], row["batch"], row["context"], row["repeats"]) == (1024, 4, 256, 6)
        assert row["tokens_per_second"] == pytest.approx(1024 / seconds)
        assert row["mfu"] == pytest.approx(flops / seconds / 0.5e12)
        assert row["step_cpu_ms_p50"] == times[name, step] / 2
        assert row["dense_ms"] == pytest.approx(0.75 * times[name, step])
        assert sum(row[f"{part}_ms"] for part in PARTS) == pytest.approx(row["step_ms_p50"])
        assert (row["data_share"], row["peak_bytes"], row["parameters"]) == (0.25, 77, parameters(config))
        assert row["estimated_bytes"] == training_memory(config, parameters(config), 1024, "float32").total


def test_turns_end_with_the_repeats_or_the_time(bench):
    times = {("a", "plain"): 10.0, ("b", "plain"): 900.0}
    subjects = [subject("a", ALONE), subject("b", ModelConfig(**SHAPE | {"layers": 1}, recurrence=False))]
    result, turns = bench(subjects, times, repeats=9, budget_s=2.0)
    assert [turns.count(key) for key in times] == [3, 1]
    assert [row["repeats"] for row in result["rows"]] == [9, 3]
    assert all(row["arl_cost"] is None for row in result["rows"])


def test_a_peer_is_added_once_and_only_where_there_is_none(bench):
    times = {(name, step): 1.0 for name in ("r", "s", "a", "s without recurrence") for step in ("ARL", "plain")}
    deeper = ModelConfig(**SHAPE | {"layers": 3})
    subjects = [subject("r", RATPLUS), subject("a", ALONE), subject("s", deeper)]
    rows = bench(subjects, times)[0]["rows"]
    assert list(dict.fromkeys(row["model"] for row in rows)) == ["r", "a", "s", "s without recurrence"]
    assert [(row["model"], row["step"]) for row in rows][:3] == [("r", "ARL"), ("r", "plain"), ("a", "plain")]


def test_a_model_that_runs_out_of_memory_costs_its_own_rows_alone(bench):
    times = {("r", "ARL"): None, ("r", "plain"): 20.0, ("r without recurrence", "plain"): 10.0}
    result, _ = bench([subject("r", RATPLUS)], times)
    assert [(row["step"], row["arl_cost"]) for row in result["rows"]] == [("plain", 2.0), ("plain", None)]
    (left,) = result["skipped"]
    assert (left["model"], left["step"], left["reason"]) == ("r", "ARL", "out of memory: CUDA out of memory")


@pytest.mark.parametrize(
    ("vocab", "context", "text", "recall"),
    [(700, 128, 619, True), (700, 127, 700, False), (82, 128, 82, False), (83, 128, 2, True)],
)
def test_random_batches_have_recall_where_it_fits(tmp_path, vocab, context, text, recall):
    task = bench_train.RecallTask.of(bench_train.RECALL, 0)
    assert (task.length, task.vocab_size) == (128, 81)
    batches = bench_train.random_batches(vocab, context, tmp_path)
    assert (batches.corpus.vocab_size, batches.recall is not None) == (text, recall)
    assert batches.vocab_size == vocab
    assert int(batches.corpus.train[:1000].max()) < text
    assert bench_train.random_batches(vocab, context, tmp_path, with_recall=False).recall is None


def test_what_cannot_be_measured(bench):
    for settings, line in (
        ({"batches": ("max",)}, "--batch: got max; bench train takes whole numbers"),
        ({"contexts": (1, 64)}, "--context: got 1; it must be ≥ 2"),
        ({"contexts": (64, 257)}, "--context: got 257, but r takes at most 256 tokens"),
    ):
        with pytest.raises(ValueError, match=line):
            bench([subject("r", RATPLUS)], {}, **settings)
