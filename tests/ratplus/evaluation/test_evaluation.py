"""Metrics against direct computations."""

import math
import os
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from ratplus.config.eval import NIAH_TASKS
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.evaluation.metrics import clustered_mean, perplexity
from ratplus.evaluation.suites import _distance_bins, _recall_metrics


def test_mean_and_standard_error_of_equal_rows():
    """With equal counts the clustered error is the ordinary error of the row means."""
    rows = np.random.default_rng(0).normal(size=(20, 8))
    metric = clustered_mean(rows.sum(axis=1), [8] * 20)
    assert metric["value"] == pytest.approx(rows.mean())
    assert metric["stderr"] == pytest.approx(rows.mean(axis=1).std(ddof=1) / math.sqrt(20))
    assert metric["count"] == 160


def test_rows_of_unequal_size_and_the_spread_it_predicts():
    draw = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(400):
        counts = draw.integers(1, 10, 40)
        offsets = draw.normal(size=40)
        sums = [draw.normal(offset, 1, n).sum() for offset, n in zip(offsets, counts)]
        metric = clustered_mean(sums, counts)
        means.append(metric["value"])
        errors.append(metric["stderr"])
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_empty_and_single_rows():
    assert math.isnan(clustered_mean([], [])["value"])
    assert clustered_mean([3.0, 0.0], [2, 0]) == {"value": 1.5, "stderr": None, "count": 2}


def test_perplexity():
    found = perplexity({"value": 2.0, "stderr": 0.1, "count": 5})
    assert (found["value"], found["stderr"], found["count"]) == (
        pytest.approx(math.e**2),
        pytest.approx(0.1 * math.e**2),
        5,
    )
    assert perplexity({"value": 2.0, "stderr": None, "count": 1})["stderr"] is None
    assert perplexity({"value": 1e4, "stderr": None, "count": 5})["value"] == math.inf


def test_recall_by_distance():
    labels = np.full((2, 8), -100)
    labels[:, 4:] = 1
    distances = np.array([[0, 0, 0, 0, 1, 2, 3, 4], [0, 0, 0, 0, 4, 5, 6, 7]])
    correct = np.zeros((2, 8), dtype=bool)
    correct[:, 4:6] = True
    metrics = _recall_metrics([(None, correct)], labels, distances)
    assert metrics["recall_accuracy"]["value"] == 0.5
    assert _distance_bins(8) == [(1, 8)]
    assert _distance_bins(128) == [(1, 32), (32, 64), (64, 128)]
    assert metrics["recall_accuracy_1_8"]["count"] == 8


def test_a_distance_at_a_border_belongs_to_the_bin_that_begins_there():
    labels, distances, correct = np.full((1, 64), -100), np.zeros((1, 64), int), np.zeros((1, 64), bool)
    labels[0, 40:42], distances[0, 40:42], correct[0, 40] = 1, (31, 32), True
    metrics = _recall_metrics([(None, correct)], labels, distances)
    found = {name: (metric["value"], metric["count"]) for name, metric in metrics.items()}
    assert found == {
        "recall_accuracy": (0.5, 2), "recall_accuracy_1_32": (1.0, 1), "recall_accuracy_32_64": (0.0, 1),
    }  # fmt: skip


def test_batch_size_never_changes_a_score():
    from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
    from ratplus.evaluation.suites import _score

    model = RATPlus(ModelConfig(11, 2, 16, 8, max_len=16))
    model.reset_parameters(0, 0.3)
    x = np.random.default_rng(0).integers(0, 11, (6, 16))
    patterns = PatternMap.uniform(Pattern(4, 2), 2, 2)
    whole = _score(model, patterns, x, x)[0]
    single = np.concatenate([_score(model, patterns, x[i : i + 1], x[i : i + 1])[0] for i in range(6)])
    np.testing.assert_allclose(whole, single, atol=1e-5)
    with torch.no_grad():
        direct = -torch.log_softmax(model(torch.from_numpy(x), patterns), -1).gather(-1, torch.from_numpy(x)[..., None])
    np.testing.assert_allclose(whole, direct[..., 0].numpy(), atol=1e-5)


def test_positions_without_a_label_score_nothing():
    from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
    from ratplus.evaluation.suites import _of_text, _score

    model = RATPlus(ModelConfig(11, 1, 16, 8, max_len=16))
    model.reset_parameters(0, 0.3)
    x = np.random.default_rng(0).integers(0, 11, (6, 16))
    with torch.no_grad():
        likeliest = model(torch.from_numpy(x)).argmax(-1).numpy()
    asked = np.random.default_rng(1).random((6, 16)) < 0.5
    labels = np.where(asked, likeliest, -100)
    loss, correct = _score(model, PatternMap.uniform(Pattern(), 1, 2), x, labels)
    np.testing.assert_array_equal(correct, asked)
    assert (loss[~asked] == 0).all()
    assert (loss[asked] > 0).all()
    metrics, samples, _ = _of_text([(loss, correct)], labels)
    assert (metrics["next_token_accuracy"]["value"], metrics["loss"]["count"]) == (1.0, asked.sum())
    assert [row["count"] for row in samples] == asked.sum(axis=1).tolist()


# ---- cloze --------------------------------------------------------------------------------------------------------


def stream(tokens: int = 6000) -> np.ndarray:
    """Text in which four letters follow each other by a rule, with an end-of-text (9) now and then."""
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 4, tokens)
    ids[::500] = 9
    return ids.astype(np.uint16)


def test_cloze_questions():
    from ratplus.config.eval import CHOICES
    from ratplus.evaluation.cloze import questions

    text = stream()
    asked = questions(text, 9, 40, 12, 5)
    assert asked == questions(text, 9, 40, 12, 5)
    assert asked[:10] != questions(text, 9, 10, 12, 5, seed=1)
    assert len(asked) == 40
    assert {q.answer for q in asked} == set(range(CHOICES))
    whole = ",".join(map(str, text.tolist()))
    for q in asked:
        assert len(q.context) == 12
        assert len(set(q.choices)) == CHOICES
        assert 9 not in (*q.context, *sum(q.choices, ()))
        joined = [",".join(map(str, q.context + choice)) in whole for choice in q.choices]
        assert joined.index(True) == q.answer
        # Each of the others also follows the context's last token somewhere, so that token alone gives nothing away.
        for choice in q.choices:
            assert ",".join(map(str, (q.context[-1], *choice))) in whole


def test_choices_of_a_cloze_question_differ_where_the_text_repeats_itself():
    from ratplus.config.eval import CHOICES
    from ratplus.evaluation.cloze import questions

    # Of one token there are eight continuations, so that another place often goes on in the same way.
    asked = questions(np.random.default_rng(0).integers(0, 8, 4000), 9, 60, 6, 1)
    assert all(len(set(q.choices)) == CHOICES for q in asked)


def test_cloze_needs_enough_text():
    from ratplus.evaluation.cloze import questions

    with pytest.raises(ValueError, match="eval.cloze.items: got 9, but the held-out text of 40 tokens gives only"):
        questions(stream(40), 9, 9, 12, 5)


def test_cloze_scores():
    """A score is what the context adds to the sum of log-probabilities, both from direct calls of the model."""
    from ratplus import ModelConfig, Pattern, RATPlus
    from ratplus.evaluation.cloze import evaluate_cloze, questions
    from ratplus.evaluation.scoring import Scorer

    asked = questions(stream(), 9, 12, 12, 5)
    model = RATPlus(ModelConfig(10, 2, 32, 16, max_len=17))
    model.reset_parameters(0, 0.3)
    metrics, samples, facts = evaluate_cloze(Scorer(model, Pattern(4), 16), asked)
    right = []
    for question, sample in zip(asked, samples, strict=True):
        rows = torch.tensor([question.context + choice for choice in question.choices])
        with torch.no_grad():
            given, alone = (
                model(part, Pattern(4)).log_softmax(-1)[:, -6:-1].gather(-1, rows[:, 12:, None]).sum((1, 2))
                for part in (rows, rows[:, 11:])
            )
        scores = (given - alone).tolist()
        others = [x for i, x in enumerate(scores) if i != question.answer]
        assert sample["margin"] == pytest.approx(scores[question.answer] - max(others), abs=1e-4)
        assert abs(sample["margin"]) > 1e-3  # so that rounding does not decide who is right
        right.append(int(np.argmax(scores)) == question.answer)
    assert 0 < sum(right) < 12
    assert [sample["accuracy"] for sample in samples] == [float(one) for one in right]
    assert metrics["cloze_accuracy"]["value"] == pytest.approx(sum(right) / 12)
    assert metrics["cloze_accuracy"]["count"] == facts["cloze"]["samples"] == 12


def test_a_model_to_which_all_choices_are_equal_knows_no_cloze_answer():
    from ratplus import ModelConfig, RATPlus
    from ratplus.evaluation.cloze import evaluate_cloze, questions
    from ratplus.evaluation.scoring import Scorer

    model = RATPlus(ModelConfig(10, 1, 16, 16, max_len=17))
    model.reset_parameters(0, 0.0)
    metrics, samples, _ = evaluate_cloze(Scorer(model), questions(stream(), 9, 12, 12, 5))
    assert metrics["cloze_accuracy"]["value"] == 0.0
    assert {sample["margin"] for sample in samples} == {0.0}


# ---- needles in a haystack ----------------------------------------------------------------------------------------

PROSE = "It was a dark night. The wind blew. Nobody came! Was there a light? " * 200


@pytest.mark.parametrize("task", NIAH_TASKS)
def test_needles(task):
    from ratplus.data.needles import SHAPES, generate

    shape, tokenizer = SHAPES[task], ByteTokenizer()
    items = generate(task, tokenizer, 4, 1500, haystack=PROSE)
    assert items == generate(task, tokenizer, 4, 1500, haystack=PROSE)
    assert items[:2] == generate(task, tokenizer, 2, 1500, haystack=PROSE, new_tokens=items[0].new_tokens)
    assert items != generate(task, tokenizer, 4, 1500, haystack=PROSE, seed=1)
    for item in items:
        length = len(tokenizer.encode(item.prompt)) + item.new_tokens
        assert 1500 - 200 < length <= 1500
        assert len(item.answers) == shape.asked * shape.values_each == len(item.depths)
        for answer in item.answers:
            assert item.prompt.count(answer) == 1
        assert ("wind" in item.prompt) == (shape.haystack == "free")
        if shape.haystack == "needles":
            assert item.prompt.count("One of the special magic") >= 6
    assert len({item.answers for item in items}) == 4


def test_needles_lie_at_their_depth():
    from ratplus.data.needles import generate

    for item in generate("niah_single_2", ByteTokenizer(), 30, 4000, haystack=PROSE):
        start, end = item.prompt.index("afterwards.\n"), item.prompt.rindex("\nWhat")
        at = (item.prompt.index(item.answers[0]) - start) / (end - start)
        assert at == pytest.approx(item.depths[0], abs=0.05)


@pytest.mark.parametrize("task", ["niah_multikey_1", "niah_multivalue", "niah_multiquery"])
def test_each_of_several_needles_lies_at_its_depth(task):
    """A depth counts sentences of the haystack; the other needles are none of them."""
    from ratplus.data.needles import generate

    asked = 0
    for item in generate(task, ByteTokenizer(), 20, 4000, haystack=" ".join(f"Line {i}!" for i in range(9000))):
        lines = [match.start() for match in re.finditer("Line [0-9]+!", item.prompt)]
        for answer, depth in zip(item.answers, item.depths, strict=True):
            before = sum(start < item.prompt.index(answer) for start in lines)
            assert before == round(depth * len(lines))
            asked += 1
        assert len(lines) > 100
    assert asked == 20 * (1 if task == "niah_multikey_1" else 4)


def test_every_depth_of_a_needle_is_in_one_bin():
    """Also the haystack's end, which is at 100 percent."""
    from ratplus.data.needles import DEPTHS
    from ratplus.evaluation.niah import DEPTH_BINS

    for place in range(DEPTHS):
        percent = 100 * (place / (DEPTHS - 1))
        assert sum(low <= percent < high for low, high in DEPTH_BINS) == 1


def test_needle_scores():
    from ratplus.data.needles import overlap, substring

    assert overlap(" 12, 34", ["12", "34"]) == substring("it is 12 and 34", ["12", "34"]) == 1
    assert overlap("it is 12", ["12"]) == 0
    assert overlap("12, 34, 99", ["12", "34"]) == 1  # what else is said costs nothing
    assert overlap("12", ["12", "34"]) == 0.5
    assert overlap("12,99", ["12", "34"]) == substring("x12", ["12", "34"]) == 0.5


def test_needles_without_room():
    from ratplus.data.needles import generate

    with pytest.raises(
        ValueError, match="niah.length: got 200, but niah_single_1 needs [0-9]+ tokens .*template=short"
    ):
        generate("niah_single_1", ByteTokenizer(), 1, 200)
    assert generate("niah_single_1", ByteTokenizer(), 1, 200, template="short")


@pytest.mark.parametrize("task", NIAH_TASKS)
def test_the_look_before_training_says_what_making_the_items_would_say(task):
    from ratplus.config.eval import NiahSection
    from ratplus.data.needles import check_section, section_items

    section, refused = NiahSection([task], 3), []
    for length in (100, 300, 500, 700, 2000):
        said = []
        for ask in (check_section, lambda *asked: section_items(*asked, haystack=None)):
            try:
                ask(section, ByteTokenizer(), length)
                said.append(None)
            except ValueError as error:
                said.append(str(error))
        assert said[0] == said[1]
        refused.append(said[0] is not None)
    assert refused[0]
    assert not refused[-1]


def test_items_are_made_with_all_settings_of_their_section():
    from ratplus.config.eval import NiahSection
    from ratplus.data.needles import generate, section_items

    settings = {"new_tokens": 31, "template": "short", "digits": 3, "seed": 5}
    asked = NiahSection(["niah_single_2", "niah_multikey_1"], 3, length=400, **settings)
    for section, length in ((asked, 400), (replace(asked, length=None), 500)):
        found = section_items(section, ByteTokenizer(), 500, PROSE)
        assert found == {
            task: generate(task, ByteTokenizer(), 3, length, haystack=PROSE, **settings) for task in section.tasks
        }
        for item in found["niah_single_2"]:
            assert item.new_tokens == 31
            assert length - 31 - 40 < len(item.prompt.encode()) <= length - 31  # as many sentences as fit


def test_answers_of_a_task_have_the_room_that_the_longest_needs(monkeypatch):
    from ratplus import ModelConfig, RATPlus
    from ratplus.data.needles import Item
    from ratplus.evaluation import niah as niah_suite
    from ratplus.evaluation.scoring import Scorer

    rooms, told = [], []

    def texts(scorer, tokenizer, prompts, how, progress):
        rooms.append(how.max_new_tokens)
        progress(len(prompts))
        return ["1"] * len(prompts)

    monkeypatch.setattr(niah_suite, "generate_texts", texts)
    tasks = {
        name: [Item("x", ("1", "2"), (0.1, 0.9), room, ((0, 1),) * 2) for room in asked]
        for name, asked in (("a", (3, 9, 4)), ("b", (5,)))
    }
    scorer = Scorer(RATPlus(ModelConfig(257, 1, 16, 16, max_len=30)))
    metrics, samples, facts = niah_suite.evaluate_niah(
        scorer, ByteTokenizer(), tasks, lambda done, total: told.append((done, total))
    )
    assert rooms == [9, 5]
    assert told == [(3, 4), (4, 4)]
    assert [(row["task"], row["id"]) for row in samples] == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert {task: fact["samples"] for task, fact in facts.items()} == {"a": 3, "b": 1}
    assert set(metrics) == {"a_overlap", "a_substring", "b_overlap", "b_substring"}  # no depth of two needles
    assert metrics["a_overlap"] == {"value": 0.5, "stderr": 0.0, "count": 3}


def test_needle_suite_reads_the_models_answers(monkeypatch):
    from ratplus import ModelConfig, RATPlus
    from ratplus.data.needles import generate
    from ratplus.evaluation import niah as niah_suite
    from ratplus.evaluation.scoring import Scorer

    model = RATPlus(ModelConfig(257, 1, 16, 16, max_len=300))
    items = generate("niah_single_1", ByteTokenizer(), 6, 300, template="short")
    told = []

    def texts(scorer, tokenizer, prompts, how, progress):
        assert prompts == [tokenizer.encode(item.prompt) for item in items]
        assert how.until == ("\n",)
        told.extend(prompts)
        return [f" {item.answers[0]}" if i < 3 else f"x{item.answers[0]}" for i, item in enumerate(items)]

    monkeypatch.setattr(niah_suite, "generate_texts", texts)
    metrics, samples, facts = niah_suite.evaluate_niah(Scorer(model), ByteTokenizer(), {"niah_single_1": items})
    assert metrics["niah_single_1_overlap"]["value"] == 0.5
    assert metrics["niah_single_1_substring"]["value"] == 1.0
    for score, right in (("overlap", 3), ("substring", 6)):
        by_depth = [v for k, v in metrics.items() if k.startswith(f"niah_single_1_{score}_")]
        assert sum(v["count"] for v in by_depth) == 6
        assert sum(v["count"] * v["value"] for v in by_depth) == pytest.approx(right)
    assert [row["overlap"] for row in samples] == [1, 1, 1, 0, 0, 0]
    assert facts["niah_single_1"]["samples"] == len(told) == 6


# ---- as a stage ---------------------------------------------------------------------------------------------------


def test_what_is_off_does_not_enter_an_id():
    from ratplus.config.cell import Config
    from ratplus.config.eval import ClozeSection, EvalSection, HarnessSection, NiahSection

    plain = EvalSection().science(64)
    assert plain == {"text_rows": 128, "recall_rows": 64}
    assert EvalSection(niah=NiahSection(samples=3), harness=HarnessSection(limit=2)).science(64) == plain
    on = EvalSection(cloze=ClozeSection(8), niah=NiahSection(["niah_single_1"]), tasks=["piqa"]).science(64)
    assert on["cloze"] == {"version": 2, "items": 8, "context": 32, "continuation": 16}
    assert on["niah"]["version"] == 2  # 1 had no substring by depth, and is another id
    assert on["niah"]["length"] == on["harness"]["max_length"] == 64
    with pytest.raises(ValueError, match="eval.niah.tasks: got 'niah_4'; allowed: niah_single_1, "):
        NiahSection(["niah_4"])
    with pytest.raises(ValueError, match="eval.harness.truncation: got 'right'; allowed: left, middle, off"):
        HarnessSection(truncation="right")
    with pytest.raises(ValueError, match="eval.tasks: got {'name': 'x'}; give a task's name"):
        EvalSection(tasks=[{"name": "x"}])
    with pytest.raises(ValueError, match="eval.cloze.context_tokens: got 510; with 16 tokens of continuation"):
        Config(eval=EvalSection(cloze=ClozeSection(8, 510)))
    with pytest.raises(ValueError, match="eval.niah.length: got 1024; it must be ≤ train.context=512"):
        Config(eval=EvalSection(niah=NiahSection(length=1024)))


def test_a_local_yaml_enters_an_id_by_its_content(tmp_path):
    from ratplus.config.eval import EvalSection

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.yaml").write_text("task: own\n")
    ids = [EvalSection(tasks=[str(tmp_path / folder / "own.yaml")]).science(64) for folder in ("a", "b")]
    assert ids[0] == ids[1]
    (tmp_path / "b" / "own.yaml").write_text("task: own # changed\n")
    assert EvalSection(tasks=[str(tmp_path / "b" / "own.yaml")]).science(64) != ids[0]
    with pytest.raises(ValueError, match="no.yaml: cannot be read"):
        EvalSection(tasks=[str(tmp_path / "no.yaml")]).science(64)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ValueError, match="pipe.yaml: cannot be read .not a plain file"):
        EvalSection(tasks=[str(tmp_path / "pipe.yaml")]).science(64)


def test_suites_of_a_cell(tmp_path):
    """Metrics, samples beside the record, and versions and hashes of the prompts in it."""
    from ratplus.config.cell import Config
    from ratplus.config.data import DataSection, RecallSection
    from ratplus.config.eval import ClozeSection, EvalSection, NiahSection
    from ratplus.config.model import ModelSection
    from ratplus.config.run import LoggerSection, RunSection  # fmt: skip
    from ratplus.config.train import RecipeSection, TrainSection
    from ratplus.records.samples import read_samples
    from ratplus.stages.cell import Cell
    from ratplus.stages.run_stage import Surroundings

    (tmp_path / "text.txt").write_text("\n\n".join(f"{i}. {PROSE[i : i + 700]}" for i in range(60)))
    recipe = dict(steps=1, batch=2)
    config = Config(
        model=ModelSection(layers=1, d_model=16, d_head=16),
        data=DataSection("text", str(tmp_path / "text.txt"), root=str(tmp_path / "data"),
                         validation_fraction=0.5, recall=RecallSection(length=32)),
        train=TrainSection(context=128, pretrain=RecipeSection(**recipe), adapt=RecipeSection(**recipe)),
        eval=EvalSection(text_rows=4, recall_rows=4, batch=4, cloze=ClozeSection(8),
                         niah=NiahSection(["niah_single_1"], 2, template="short")),
        run=RunSection(threads=1, accelerator="cpu"),
        logger=LoggerSection(wandb="none"),
    )  # fmt: skip
    cell = Cell(config, Surroundings(tmp_path / "sweep"))
    record = cell.run()
    assert {"loss", "recall_accuracy", "cloze_accuracy", "niah_single_1_overlap"} <= set(record["metrics"])
    assert record["provenance"]["tasks"]["cloze"]["version"] == 2
    samples = read_samples(cell.plan.evaluate.folder(tmp_path / "sweep"))
    counts = dict(Counter(row["task"] for row in samples))
    assert counts == {"loss": 4, "recall": 4, "cloze": 8, "niah_single_1": 2}
    right = [row["accuracy"] for row in samples if row["task"] == "cloze"]
    assert sum(right) / 8 == record["metrics"]["cloze_accuracy"]["value"]

    config.eval.niah.length = 40
    with pytest.raises(ValueError, match="eval.niah.length: got 40, but niah_single_1 needs"):
        Cell(config, Surroundings(tmp_path / "sweep")).run()
    config.eval.niah.length, config.eval.cloze.items = None, 100_000
    with pytest.raises(ValueError, match="eval.cloze.items: got 100000, but the held-out text of [0-9]+ tokens gives"):
        Cell(config, Surroundings(tmp_path / "untrained")).run()
    assert not (tmp_path / "untrained" / "pretrain").exists()


@pytest.mark.slow
def test_many_patterns_cost_little_more_than_their_forward_passes(tmp_path, monkeypatch):
    """Twenty cells of the tiny model on cloze and recall: at most 1.5 times the time inside the model."""
    import time

    from ratplus import Pattern, PatternMap, RATPlus
    from ratplus.config.cell import Config
    from ratplus.config.data import DataSection
    from ratplus.config.eval import ClozeSection, EvalSection
    from ratplus.config.model import ModelSection
    from ratplus.data.batches import Batches
    from ratplus.data.corpus import open_corpus
    from ratplus.data.sources import prepare
    from ratplus.evaluation.suites import evaluate_suites

    config = Config(data=DataSection(root=str(tmp_path)))
    batches = Batches.of(config, open_corpus(prepare(config.data)))
    model = RATPlus(ModelSection(layers=4, d_model=96, d_head=32).build(batches.vocab_size, 512))
    inside = 0.0

    def timed(work):
        def call(*arguments, **options):
            nonlocal inside
            started = time.perf_counter()
            result = work(*arguments, **options)
            inside += time.perf_counter() - started
            return result

        return call

    monkeypatch.setattr(RATPlus, "forward", timed(RATPlus.forward))
    monkeypatch.setattr(RATPlus, "prefill", timed(RATPlus.prefill))
    asked = EvalSection(text_rows=1, recall_rows=64, cloze=ClozeSection(128))
    started = time.perf_counter()
    for dilation in (1, 2, 4, 8, 16, 32, 64, 128, 256, None):
        for window in (0, 64):
            patterns = PatternMap.uniform(Pattern(dilation, window), 4, 3)
            assert "cloze_accuracy" in evaluate_suites(model, patterns, batches, asked).metrics
    assert time.perf_counter() - started <= 1.5 * inside
