"""Parameters and FLOPs in closed form, against real models and torch's own count."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.config.cell import Config
from ratplus.costs.budget import forward_flops, parameters, stage_flops, trained_patterns, training_flops
from ratplus.costs.cost import attention_flops, recurrence_flops
from ratplus.sweeps.define.compose import compose_one

SHAPES = [
    dict(layers=2, d_model=64, d_head=16),
    dict(layers=3, d_model=96, d_head=32, recurrence=False),
    dict(layers=1, d_model=32, d_head=32, output_gate=False, ffn_mult=2),
    dict(layers=2, d_model=64, d_head=16, kv_heads=2),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_of_real_models(shape):
    config = ModelConfig(vocab_size=101, **shape)
    assert parameters(config) == sum(p.numel() for p in RATPlus(config).parameters())


@pytest.mark.parametrize(
    ("layers", "d_model", "recurrence", "count"),
    [
        (24, 2048, True, 1_474_922_496), (28, 2560, True, 2_651_077_120), (32, 4096, True, 7_647_531_008),
        (24, 2048, False, 1_374_259_200), (32, 4096, False, 7_110_660_096),
    ],
)  # fmt: skip
def test_parameters_of_the_papers_models(layers, d_model, recurrence, count):
    config = ModelConfig(vocab_size=32000, layers=layers, d_model=d_model, d_head=128, recurrence=recurrence)
    assert parameters(config) == count
    with torch.device("meta"):
        assert sum(p.numel() for p in RATPlus(config).parameters()) == count


@pytest.mark.parametrize("shape", SHAPES)
def test_matrix_products_are_torchs(shape):
    """Torch's counter sees the matrix products; it does not look into the CPU's dense attention."""
    config = ModelConfig(vocab_size=101, **shape)
    model, length = RATPlus(config), 32
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long))
    heads = config.layers * config.heads
    ours = forward_flops(config, None, length)
    ours -= heads * attention_flops(Pattern(), length, config.d_head)
    ours -= recurrence_flops(length, config.d_head, config.layers * config.key_heads) if config.recurrence else 0
    assert counter.get_total_flops() == ours


def test_backward_is_twice_the_forward():
    config = ModelConfig(vocab_size=101, **SHAPES[1])
    model, tokens = RATPlus(config), torch.zeros(1, 1, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with counter:
        model(tokens).sum().backward()
    assert counter.get_total_flops() == pytest.approx(3 * forward_flops(config, None, 1), rel=0.01)


LLAMA = dict(query_heads=6, kv_heads=3, ffn="swiglu", ffn_size=20, recurrence=False)


@pytest.mark.parametrize(
    "more",
    [
        {}, {"qk_norm": True}, {"qkv_bias": True}, {"out_bias": True}, {"tied": False}, {"ffn": "gelu"},
        {"output_gate": False}, {"recurrence": True}, {"recurrence": True, "gate_bias": -2.0},
    ],
)  # fmt: skip
def test_parameters_of_every_part(more):
    """Three layers of 16 channels whose six heads of queries are wider than that, and share three of keys."""
    config = ModelConfig(vocab_size=101, layers=3, d_model=16, d_head=4, **LLAMA | more)
    assert parameters(config) == sum(p.numel() for p in RATPlus(config).parameters())


def test_what_each_stage_trains_with():
    def patterns(*words: str) -> dict[str, str | None]:
        config = compose_one([*words, "pattern.dilation=16"]).config
        return {stage: found and found.label for stage, found in trained_patterns(config).items()}

    sft = ["train.sft.steps=3", "train.sft.tasks=[niah_single_1]"]
    assert patterns() == {"pretrain": None, "adapt": "D16"}
    assert patterns("train.pretrain.sparse=true", "train.pretrain.arl=false")["pretrain"] == "D16"
    assert patterns("train.adapt.dense=true") == {"pretrain": None, "adapt": None}
    assert patterns("train.adapt.steps=0") == {"pretrain": None}
    assert patterns(*sft)["sft"] == "D16"
    assert patterns(*sft, "train.sft.dense=true")["sft"] is None
    # Of mixed patterns the one that holds most, else the first.
    assert patterns("train.adapt.mixed=[D4,D64]")["adapt"] == "D4"
    assert patterns("train.adapt.mixed=[D4,top2x16,top3x16]")["adapt"] == "top2x16"


def test_rows_of_fine_tuning_are_its_own():
    words = [
        "train.sft.steps=3",
        "train.sft.tasks=[niah_single_1]",
        "train.sft.batch=5",
        "pattern.dilation=16",
        "train.context=512",
    ]
    for length in (None, 100):
        config = compose_one(words).config
        config.train.sft.length = length
        model = config.model.build(257, 512)
        each = forward_flops(model, Pattern(16), length or 512)
        assert stage_flops(config, 257)["sft"] == 3 * 3 * 5 * each


def test_mixed_training_costs_the_mean_of_its_patterns():
    config = compose_one(["train.adapt.mixed=[D1,D16,D64]", "data.recall.fraction=0"]).config
    model = config.model.build(257, 512)
    each = [forward_flops(model, Pattern(d), 512) for d in (1, 16, 64)]
    recipe = config.train.adapt
    assert stage_flops(config, 257)["adapt"] == 3 * recipe.steps * recipe.batch * sum(each) // 3


def test_mixed_training_holds_as_much_as_its_pattern_that_selects():
    """The plan's estimate is of one map: a pattern that selects blocks, of the model's own layers and heads."""
    words = ["data.recall.fraction=0", "train.adapt.mixed=[D4,D64-top4x16,top2x16]"]
    found = trained_patterns(compose_one(words).config)["adapt"]
    assert found == PatternMap.uniform(Pattern.from_label("D64-top4x16"), 4, 3)
    plain = trained_patterns(compose_one([words[0], "train.adapt.mixed=[D4,D64]"]).config)["adapt"]
    assert plain == PatternMap.uniform(Pattern(4), 4, 3)


def test_stages_of_a_cell():
    words = ["data.recall.fraction=0", "train.pretrain.arl=false", "pattern.dilation=16", "eval.cloze.items=0"]
    config: Config = compose_one(words).config
    model = config.model.build(257, 512)
    flops = stage_flops(config, 257)
    sparse, dense = forward_flops(model, Pattern(16), 512), forward_flops(model, None, 512)
    assert sparse < dense
    assert flops == {"pretrain": 3 * 320 * 8 * dense, "adapt": 3 * 40 * 8 * sparse, "evaluate": 128 * sparse}
    both = compose_one([*words[:1], "pattern.dilation=16"]).config
    arl = training_flops(both, both.train.pretrain, None, model)
    assert arl == 3 * 320 * 8 * (dense + forward_flops(model, Pattern(64), 512))
    inference = compose_one([*words, "train.adapt.dense=true"]).config
    assert stage_flops(inference, 257)["adapt"] == 3 * 40 * 8 * dense
    scratch = compose_one([*words, "train.pretrain.sparse=true"]).config
    assert stage_flops(scratch, 257)["pretrain"] == 3 * 320 * 8 * sparse
    # Half of the tokens in recall rows of 128: shorter rows attend to less.
    mixed = stage_flops(compose_one(words[1:]).config, 257)
    short = forward_flops(model, Pattern(16), 128)
    assert mixed["adapt"] == 3 * 40 * (4 * sparse + 16 * short)
    assert mixed["evaluate"] == 128 * sparse + 64 * short
    # Four choices a question, each after 64 tokens and after one; needles as long as they are asked for.
    asked = ["eval.cloze.items=10", "eval.niah.tasks=[niah_single_1,niah_multikey_2]", "eval.niah.samples=5",
             "eval.niah.length=500"]  # fmt: skip
    more = stage_flops(compose_one([*words[:3], *asked]).config, 257)["evaluate"] - flops["evaluate"]
    given, alone, needles = (forward_flops(model, Pattern(16), length) for length in (64 + 16, 1 + 16, 500))
    assert more == 40 * (given + alone) + 2 * 5 * needles
    # Of lm-eval's tasks: so many items of each, as long as they may be; nothing where there is no limit.
    asked = ["eval=harness", *words, "eval.tasks=[piqa,arc_easy]", "eval.harness.max_length=100"]
    limited = stage_flops(compose_one([*asked, "eval.harness.limit=7"]).config, 257)["evaluate"]
    assert limited - flops["evaluate"] == 2 * 7 * forward_flops(model, Pattern(16), 100)
    assert stage_flops(compose_one(asked).config, 257)["evaluate"] == flops["evaluate"]
