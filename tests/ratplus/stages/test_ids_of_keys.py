"""Which stages get another id when a key is changed: every key of a cell, one by one, and the keys of what is off."""

import copy
from dataclasses import asdict

import pytest

from ratplus.records.record import flatten
from ratplus.stages.stage_ids import LATER_KEYS, plan
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.typed import typed

CORPUS = {"tokenizer": "bytes", "sha256": {"train": "x"}}
# A cell of four stages that uses all there is: no key of it is without effect for want of another.
FULL = asdict(
    compose_one(
        [
            "model.kv_heads=1", "model.gate_bias=-2", "model.recurrence_chunk=64", "model.query_heads=5",
            "model.rope_scaling=llama3", "model.rope_factor=2", "model.rope_original=64", "model.rope_low=1",
            "model.rope_high=4", "pattern.label=D16-W8-I4", "train.pretrain.arl=true", "train.adapt.dense=false",
            "train.pretrain.gate_lr=0.01", "train.pretrain.gate_bias_lr=0.01", "train.adapt.steps=5",
            "train.sft.steps=3", "train.sft.tasks=[niah_single_1]", "train.sft.arl=true", "train.sft.length=400",
            "train.sft.digits=3", "eval.cloze.items=4", "eval.niah.tasks=[niah_single_2]", "eval.niah.digits=3",
            "eval.positions.width=64", "eval.efficiency.enabled=true", "eval.tasks=[piqa]",
        ]
    ).config
)  # fmt: skip
PRETRAIN, ADAPT, SFT, EVALUATE = ("pretrain", "adapt", "sft", "evaluate")
# Where a stage's id is another, so are those of the stages after it.
FROM = {
    PRETRAIN: {PRETRAIN, ADAPT, SFT, EVALUATE}, ADAPT: {ADAPT, SFT, EVALUATE}, SFT: {SFT, EVALUATE},
    EVALUATE: {EVALUATE}, None: set(),
}  # fmt: skip
# The first stage whose result a key decides, by how the key begins; the longest beginning counts.
DECIDES = {
    "model.": PRETRAIN, "model.name": None, "seed": PRETRAIN, "train.context": PRETRAIN, "train.precision": PRETRAIN,
    "train.pretrain.": PRETRAIN, "train.adapt.": ADAPT, "train.sft.": SFT, "train.pretrain.micro_batch": None,
    "train.adapt.micro_batch": None, "train.sft.micro_batch": None, "data.recall.": PRETRAIN, "pattern.": ADAPT,
    "train.adapt.arl_": None,  # adaptation to one pattern has no active recurrence learning
    "eval.": EVALUATE, "eval.batch": None,
    # The corpus is in ids by its content: how it is made and where it lies decides nothing beside that.
    "data.": None, "run.": None, "logger.": None, "launcher.": None, "trainer.": None, "output": None, "retry": None,
    "max_failures": None, "dry_run": None, "objective": None, "sweep": None,
}  # fmt: skip
# Another possible value, where the next number, the other truth value or half of a float is none.
OTHER = {
    "model.d_head": 16, "model.d_model": 192, "model.mixer": None, "model.ffn": "swiglu", "model.ffn_mult": 3,
    "model.ffn_size": 200, "model.rope_scaling": None, "model.d_state": None, "model.init_from": None,
    "model.query_heads": 6, "model.kv_heads": None, "model.recurrence": None, "train.precision": "bf16",
    "train.adapt.arl": None, "train.sft.length": 300, "train.sft.questions": None,
    "train.sft.template": "short", "train.sft.haystack": "noise",
    "train.sft.tasks": ["niah_single_1", "niah_single_2"], "pattern.label": "D16-W8-I3", "eval.tasks": ["arc_easy"],
    "eval.niah.tasks": ["niah_single_1"], "eval.niah.template": "short", "eval.niah.haystack": "noise",
    "eval.harness.truncation": "off", "eval.niah.length": 400, "eval.niah.new_tokens": 40, "eval.harness.limit": 3,
    "eval.harness.fewshot": 2, "eval.harness.max_length": 300, "eval.efficiency.prompt_tokens": 100,
    "eval.cloze.context_tokens": 30, "eval.cloze.continuation_tokens": 7, "data.recall.pairs": 4, "data.recall.keys": 9,
    "data.recall.length": 64, "train.pretrain.sparse": True, "trainer.strategy": None, "trainer.devices": None,
    "trainer.nodes": None, "retry": "none", "logger.wandb": "online",
    "objective": "loss", "model.rope_factor": 4.0, "train.adapt.warmup": 0.1, "run.accelerator": "cpu",
    "data.source": "python_text", "data.split": "file", "data.tokenizer": None,
    **{f"train.{stage}.order": {"ordered": "random", "random": "ordered"}[FULL["train"][stage]["order"]]
       for stage in (PRETRAIN, ADAPT, SFT)},
    **{f"train.{stage}.{key}": None for stage in (PRETRAIN, SFT) for key in ("mixed", "mixed_over")},
    "train.adapt.mixed": ["D1", "D4"], "train.adapt.mixed_over": None, "train.pretrain.dense": None,
    "train.adapt.sparse": None, "train.sft.sparse": None, "train.pretrain.micro_batch": 1,
    "train.adapt.micro_batch": 1, "train.sft.micro_batch": 1,
}  # fmt: skip
# Set by a label here (tests/ratplus/test_pattern_selection.py has every field in label and plain form), or of another
# launcher.
APART = ("pattern.", "launcher.", "logger.tags", "sweep", "run.store")


def changed(config: dict, **given) -> dict:
    """The config with other values, by their whole keys with `__` for a dot."""
    config = copy.deepcopy(config)
    for name, value in given.items():
        *sections, key = name.split("__")
        place = config
        for section in sections:
            place = place[section]
        place[key] = value
    return config


def ids(config: dict, vocab: int = 257, corpus: dict = CORPUS) -> dict[str, str]:
    return {stage.name: stage.id for stage in plan(typed(config), corpus, vocab)}


def another(key: str, value):
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2
    if key.endswith("_lr"):
        return 0.005
    return 2 if value is None else f"{value}x"


KEYS = [
    key for key, value in flatten(FULL).items()
    if (key == "pattern.label" or not key.startswith(APART)) and another(key, value) is not None
]  # fmt: skip


@pytest.fixture(scope="module")
def before():
    return ids(FULL)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_changes_the_ids_of_what_it_decides_and_no_other(key, before):
    after = ids(changed(FULL, **{key.replace(".", "__"): another(key, flatten(FULL)[key])}))
    first = DECIDES[max((start for start in DECIDES if key.startswith(start)), key=len)]
    assert {stage for stage in before if before[stage] != after[stage]} == FROM[first]


def test_no_key_is_forgotten_here():
    """Every key is changed above, or stands in OTHER without a value since no other is possible in such a cell."""
    left = {key for key in flatten(FULL) if not key.startswith(APART)} - set(KEYS)
    assert left == {key for key, value in OTHER.items() if value is None and key in flatten(FULL)} - {"pattern.label"}
    assert len(KEYS) > 120


def test_questions_of_a_row_decide_the_fine_tuning():
    several = changed(FULL, train__sft__tasks=["niah_multikey_1"])
    one, two = ids(several), ids(changed(several, train__sft__questions=2))
    assert {stage for stage in one if one[stage] != two[stage]} == FROM[SFT]


def test_what_the_data_are_and_how_many_ids_they_have_is_in_all_ids(before):
    for other in (ids(FULL, vocab=300), ids(FULL, corpus={**CORPUS, "sha256": {"train": "y"}})):
        assert not set(other.values()) & set(before.values())


OFF = {
    "data.recall.": {"data__recall__fraction": 0.0}, "eval.cloze.": {"eval__cloze__items": 0},
    "eval.niah.": {"eval__niah__tasks": []}, "eval.harness.": {"eval__tasks": []},
    "eval.efficiency.": {"eval__efficiency__enabled": False}, "train.sft.": {"train__sft__steps": 0},
    "train.pretrain.arl_": {"train__pretrain__arl": False}, "train.sft.arl_": {"train__sft__arl": False},
    "train.pretrain.gate_": {"model__recurrence": False, "model__gate_bias": None, "model__recurrence_chunk": None,
                             "train__pretrain__arl": False},
    "train.pretrain.gate_bias_lr": {"model__gate_bias": None},
}  # fmt: skip
SWITCHES = ("fraction", "items", "tasks", "enabled", "steps", "arl")


@pytest.mark.parametrize("start", OFF)
def test_what_is_off_is_in_no_id(start):
    off = changed(FULL, **OFF[start])
    before, tried = ids(off), 0
    for key, value in flatten(off).items():
        given = another(key, value)
        switch = key.rpartition(".")[2] in SWITCHES and key != "train.sft.items"
        if not key.startswith(start) or given is None or switch:
            continue
        assert ids(changed(off, **{key.replace(".", "__"): given})) == before, key
        tried += 1
    assert tried >= 1
    assert ids(FULL) != before


def test_a_key_that_came_later_is_left_out_at_the_value_that_all_had_before():
    """Else the ids of older folders would be others; and no other value may be left out."""
    plain = asdict(compose_one([]).config)
    shape = plan(typed(plain), CORPUS, 257).pretrain.config["model"]
    assert not shape.keys() & LATER_KEYS.keys()
    assert shape.keys() == {
        "layers", "d_model", "d_head", "recurrence", "output_gate", "ffn_mult", "rope_base", "norm_eps", "init_std",
        "vocab_size",
    }  # fmt: skip
    recipe = plan(typed(plain), CORPUS, 257).adapt.config["recipe"]
    assert not recipe.keys() & {"sparse", "dense", "mixed", "mixed_over", "gate_lr", "gate_bias_lr", "arl_dilation"}
    assert recipe["micro_batch"] == recipe["batch"]


def test_ids_of_a_cell_that_uses_all_there_is_stay(before):
    """Recorded on 2026-11-27. Another id means that every folder of before is trained again: then say why here."""
    assert before == {
        "pretrain": "69e836e6e618", "adapt": "9b6fe4ee95d2", "sft": "7583e5b0b018", "evaluate": "d6e53573a5ff",
    }  # fmt: skip
    short = changed(FULL, train__sft__length=None, eval__niah__length=None, eval__harness__max_length=None)
    assert ids(short) == ids(
        changed(FULL, train__sft__length=512, eval__niah__length=512, eval__harness__max_length=512)
    )
    cloze = {"eval__cloze__context_tokens": 64, "eval__cloze__continuation_tokens": 16}
    assert ids(changed(FULL, **cloze)) == before, "what null takes is in the id, not that it was null"
