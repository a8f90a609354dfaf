"""Mixed adaptation: which maps its steps draw, whose stage it is, and what it refuses."""

from contextlib import nullcontext

import pytest
import torch

from ratplus.config.cell import Config
from ratplus.config.model import ModelConfig
from ratplus.config.train import RecipeSection, TrainSection
from ratplus.costs.budget import stage_flops
from ratplus.model import RATPlus
from ratplus.stages.stage_ids import plan
from ratplus.training.mixed import MixedPatterns
from ratplus.training.step import TrainingModule

GROUPED = ModelConfig(vocab_size=20, layers=3, d_model=32, d_head=8, kv_heads=2, max_len=16)
LABELS = ["D1", "D4", "D16-W64"]


def test_maps_are_drawn_by_seed_and_step():
    mixed = MixedPatterns.of(LABELS, "heads", GROUPED, seed=1)
    maps = [mixed.at(step) for step in range(60)]
    assert maps == [MixedPatterns.of(LABELS, "heads", GROUPED, seed=1).at(step) for step in range(60)]
    assert len(set(maps)) > 50
    assert maps[0] != MixedPatterns.of(LABELS, "heads", GROUPED, seed=2).at(0)
    counts = dict.fromkeys(LABELS, 0)
    for patterns in maps:
        for row in patterns.per_kv_head(2):  # heads that share keys have one pattern
            for pattern in row:
                counts[pattern.label] += 1
    assert all(80 < count < 160 for count in counts.values()), counts
    by_layers = MixedPatterns.of(LABELS, "layers", GROUPED, seed=1)
    assert all(len(set(row)) == 1 for step in range(20) for row in by_layers.at(step))


def test_each_step_trains_with_its_own_map(monkeypatch):
    model = RATPlus(GROUPED)
    mixed = MixedPatterns.of(LABELS, "layers", GROUPED, seed=0)
    module = TrainingModule(model, RecipeSection(steps=3, batch=2), mixed)
    seen = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x, patterns: seen.append(patterns) or forward(x, patterns))
    monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
    optimizer = module.configure_optimizers()
    monkeypatch.setattr(module, "_gradients_summed", lambda now: nullcontext())
    monkeypatch.setattr(module, "optimizers", lambda: optimizer)
    tokens = torch.zeros(2, 16, dtype=torch.int64).numpy()
    for step in (0, 1, 2):
        module.training_step((step, [(torch.from_numpy(tokens), torch.from_numpy(tokens))]), 0)
    assert seen == [mixed.at(step) for step in (0, 1, 2)]


def cell(pattern: int, **adapt) -> Config:
    config = Config(train=TrainSection(adapt=RecipeSection(order="random", warmup=0.0, **adapt)))
    config.pattern.dilation = pattern
    return config


def test_all_cells_share_a_mixed_adaptation_and_other_ids_stay():
    identity = {"tokenizer": "bytes", "sha256": {}}
    plain = [plan(cell(d), identity, 257) for d in (4, 16)]
    assert "mixed" not in plain[0].adapt.config["recipe"]
    assert plain[0].adapt.id != plain[1].adapt.id
    mixed = [plan(cell(d, mixed=LABELS), identity, 257) for d in (4, 16)]
    assert mixed[0].adapt.id == mixed[1].adapt.id != plain[0].adapt.id
    assert mixed[0].evaluate.id != mixed[1].evaluate.id
    assert plan(cell(4, mixed=LABELS[:2]), identity, 257).adapt.id != mixed[0].adapt.id
    assert plan(cell(4, mixed=LABELS, mixed_over="heads"), identity, 257).adapt.id != mixed[0].adapt.id


def test_its_flops_lie_between_those_of_its_patterns():
    low, high = (stage_flops(cell(d), 257)["adapt"] for d in (64, 1))
    assert low < stage_flops(cell(1, mixed=["D1", "D64"]), 257)["adapt"] < high


@pytest.mark.parametrize(
    ("adapt", "line"),
    [
        ({"mixed": ["D1"]}, "train.adapt.mixed: got \\['D1'\\]; give at least two patterns"),
        ({"mixed": ["D1", "dilated"]}, "train.adapt.mixed: pattern 'dilated': not a label"),
        ({"mixed": ["D1", "snap64x8"]}, "train.adapt.mixed: got 'snap64x8'; what it shows depends on where"),
        ({"mixed": LABELS, "dense": True}, "train.adapt.dense: got True"),
        ({"mixed": LABELS, "mixed_over": "rows"}, "train.adapt.mixed_over: got 'rows'"),
        ({"mixed_over": "heads"}, "train.adapt.mixed_over: got 'heads'; it means nothing without"),
        ({"mixed": ["top2x8", "top2x16"], "mixed_over": "heads"}, "one block length"),
    ],
)
def test_what_cannot_be_mixed(adapt, line):
    with pytest.raises(ValueError, match=line):
        cell(4, **adapt)


def test_only_adaptation_mixes():
    with pytest.raises(ValueError, match="train.pretrain.mixed: .* adaptation alone"):
        TrainSection(pretrain=RecipeSection(mixed=LABELS))
