"""Evaluation by position: numbers against a plain count, rows where they should stand, ids, and what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.config.cell import Config
from ratplus.config.data import DataSection, RecallSection
from ratplus.config.eval import ClozeSection, EvalSection, PositionsSection
from ratplus.config.model import ModelSection
from ratplus.config.train import TrainSection
from ratplus.costs.budget import evaluation_rows
from ratplus.data.batches import Batches
from ratplus.data.recall import RecallTask
from ratplus.data.sampling import IGNORE
from ratplus.evaluation.checks import check_suites
from ratplus.evaluation.positions import recall_rows
from ratplus.evaluation.suites import evaluate_suites
from ratplus.stages.stage_ids import plan

EOS, TEXT = 9, 10
TASK = RecallTask(TEXT, length=16, keys=3, values=4, pairs=3)


def batches(context: int = 48) -> Batches:
    text = np.random.default_rng(0).integers(0, TEXT, 4000).astype(np.uint16)
    return Batches(SimpleNamespace(validation=text, eos_id=EOS), TASK, 0.5, context, 0)


def test_metrics_against_a_plain_count():
    data = batches()
    model = RATPlus(ModelConfig(TASK.vocab_size, 2, 16, 8, max_len=48))
    model.reset_parameters(0, std=0.3)
    patterns = PatternMap.uniform(Pattern(4, 2), 2, 2)
    section = EvalSection(text_rows=5, recall_rows=4, batch=3, positions=PositionsSection(width=20))
    told = []
    found = evaluate_suites(model, patterns, data, section, lambda done, total: told.append((done, total))).metrics
    plain = evaluate_suites(model, patterns, data, EvalSection(text_rows=5, recall_rows=4, batch=3)).metrics
    assert {name: value for name, value in found.items() if name in plain} == plain
    bins = [(0, 20), (20, 40), (40, 48)]
    expected = {f"{kind}_at_{low}_{high}" for kind in ("loss", "recall") for low, high in bins}
    assert found.keys() - plain.keys() == expected | {"recall_over_1_24", "recall_over_24_48"}
    assert told[-1][0] == told[-1][1] == 5 + 4 + 3 * 4 + 4

    inputs, labels = data.held_out_text(5)
    with torch.no_grad():
        loss = F.cross_entropy(
            model(torch.tensor(inputs), patterns).transpose(1, 2), torch.tensor(labels), ignore_index=IGNORE,
            reduction="none",
        )  # fmt: skip
    for low, high in bins:
        here = labels[:, low:high] != IGNORE
        metric = found[f"loss_at_{low}_{high}"]
        assert metric["value"] == pytest.approx(loss[:, low:high].numpy()[here].mean(), abs=1e-5)
        assert metric["count"] == here.sum()
        assert metric["stderr"] > 0
    # Of the last bin's rows, which have answers from position 40 on: a token at a time, as a user would read them.
    sets = {tuple(rows.bins): rows for rows in recall_rows(data, 4, bins, [(1, 24)])}
    late = sets[((40, 48),)]
    right = []
    for tokens, wanted in zip(late.inputs, late.labels):
        with torch.no_grad():
            answers = model(torch.tensor(tokens)[None], patterns)[0].argmax(-1).numpy()
        right += (answers == wanted)[40:].tolist()
    assert found["recall_at_40_48"]["value"] == pytest.approx(np.mean(right))
    assert found["recall_at_40_48"]["count"] == len(right) == 4 * 8


def test_recall_rows_stand_where_they_should():
    data = batches()
    short = data.held_out_recall(4)
    sets = recall_rows(data, 4, [(0, 12), (12, 24), (24, 36), (36, 48)], [(1, 24), (24, 48)])
    assert [rows.name for rows in sets] == ["recall_at"] * 3 + ["recall_over"]  # none ends before it has begun
    for rows, (low, high) in zip(sets, [(12, 24), (24, 36), (36, 48)]):
        assert rows.inputs.shape == rows.labels.shape == (4, high)
        assert np.array_equal(rows.inputs[:, -16:], short[0])
        assert (rows.inputs[:, :-16] == TEXT).all()  # filler
        assert np.array_equal(rows.labels[:, -8:], short[1][:, -8:])
        assert (rows.labels[:, :low] == IGNORE).all()
    far = sets[-1]
    assert far.inputs.shape == (4, 48)
    assert far.places.max() > 24
    # A symbol stands where the distance says, and it is the one that holds the answer.
    row, query = np.argwhere(far.labels != IGNORE)[-1]
    symbol = far.inputs[row, query - far.places[row, query]] - TEXT - 1
    assert symbol % TASK.values == far.labels[row, query] - (TEXT + 1 + TASK.keys * TASK.values + TASK.keys)
    assert symbol // TASK.values == far.inputs[row, query] - (TEXT + 1 + TASK.keys * TASK.values)
    assert recall_rows(batches(16), 4, [(0, 8), (8, 16)], [])[-1].name == "recall_at"  # no row is longer than trained
    assert not recall_rows(data, 4, [], [])


def test_answers_that_are_right_count_as_right():
    (rows,) = recall_rows(batches(24), 4, [(0, 24)], [(1, 24)])[:1]
    correct = rows.labels != IGNORE
    assert rows.metrics(correct)["recall_at_0_24"]["value"] == 1
    correct[:2] = False
    assert rows.metrics(correct)["recall_at_0_24"]["value"] == 0.5


def test_ids_know_nothing_of_what_is_off():
    assert "positions" not in EvalSection().science(512)
    asked = EvalSection(positions=PositionsSection(width=256)).science(512)
    assert asked["positions"] == {"version": 1, "width": 256}
    rope = {"rope_scaling", "rope_factor", "rope_original"}
    before = plan(Config(), {"corpus": "x"}, 257)
    assert not rope & before.pretrain.config["model"].keys()
    scaled = ModelSection(rope_scaling="yarn", rope_factor=2.0, rope_original=256)
    after = plan(Config(model=scaled), {"corpus": "x"}, 257)
    assert rope < after.pretrain.config["model"].keys()
    assert before.pretrain.id != after.pretrain.id


def test_the_budget_counts_its_rows():
    evaluation = EvalSection(text_rows=2, recall_rows=3, cloze=ClozeSection(items=0))
    data = DataSection(recall=RecallSection(length=32, pairs=4))
    config = Config(train=TrainSection(context=64), data=data, eval=evaluation)
    before = evaluation_rows(config)
    config.eval.positions.width = 16
    assert evaluation_rows(config) == [*before, (3, 32), (3, 48), (3, 64), (3, 64)]
    config.data.recall.length = 64  # as long as the context: one bin has its end, and no row goes over it
    assert evaluation_rows(config) == [(2, 64), (3, 64), (3, 64)]
    data = replace(batches(64), recall=replace(TASK, length=64))
    sets = recall_rows(data, 3, config.eval.positions.bins(64), [(1, 64)])
    assert [rows.inputs.shape for rows in sets] == [(3, 64)]


@pytest.mark.parametrize(("width", "told"), [(-1, "it must be ≥ 0"), (3, r"between 8 \(64 bins\)"), (513, "and 512")])
def test_widths_that_do_not_fit(width, told):
    with pytest.raises(ValueError, match=rf"eval\.positions\.width: got {width}; .*{told}"):
        Config(eval=EvalSection(positions=PositionsSection(width=width)))


@pytest.mark.parametrize(("width", "bins"), [(8, 64), (511, 2), (512, 1)])
def test_the_narrowest_and_the_widest_bins(width, bins):
    found = Config(eval=EvalSection(positions=PositionsSection(width=width))).eval.positions.bins(512)
    assert (len(found), found[0], found[-1]) == (bins, (0, width), ((bins - 1) * width, 512))


def test_held_out_text_that_is_too_short_is_told_before_training():
    config = Config(eval=EvalSection(positions=PositionsSection(width=256)))
    with pytest.raises(ValueError, match=r"has only 512 tokens, too few for one row of train\.context=512; give more"):
        check_suites(config, SimpleNamespace(validation=np.zeros(512), eos_id=EOS))
    check_suites(config, SimpleNamespace(validation=np.zeros(513), eos_id=EOS))
