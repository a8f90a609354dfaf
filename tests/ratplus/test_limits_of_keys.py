"""What the keys of each section of a config may be: on its limit a value is taken, beyond it is refused by its name."""

import math
import re
from dataclasses import replace

import pytest

from ratplus.config.cell import Config
from ratplus.config.data import DataSection, RecallSection
from ratplus.config.eval import (
    ClozeSection,
    EfficiencySection,
    EvalSection,
    HarnessSection,
    NiahSection,
    PositionsSection,
)  # fmt: skip
from ratplus.config.model import ModelSection
from ratplus.config.run import LauncherSection, LoggerSection, RunSection, TrainerSection
from ratplus.config.train import RecipeSection, SftSection, TrainSection

INF, NAN = math.inf, math.nan


def recipe_of(stage: str):
    """Makes a TrainSection of which one recipe has the given values."""

    def make(**keys):
        made = TrainSection(context=64)
        section = replace(getattr(made, stage), **keys)
        return getattr(TrainSection(context=64, **{stage: section}), stage)

    return make


SECTIONS = {
    "run": RunSection, "logger": LoggerSection, "launcher": LauncherSection, "trainer": TrainerSection, "": Config,
    "eval": EvalSection, "eval.efficiency": EfficiencySection, "eval.cloze": ClozeSection, "data": DataSection,
    "eval.positions": PositionsSection, "eval.niah": NiahSection, "eval.harness": HarnessSection,
    "data.recall": RecallSection, "train": TrainSection, "train.pretrain": recipe_of("pretrain"),
    "train.adapt": recipe_of("adapt"), "train.sft": recipe_of("sft"), "model": ModelSection,
}  # fmt: skip
ASKED = {"tasks": ["niah_single_1"]}
SLURM = {"kind": "slurm", "workers": None}

# Section, key: values that are taken, values that are not, what is said of them; other values of the section.
LIMITS: dict[tuple[str, str], tuple] = {
    ("run", "accelerator"): (("auto", "cpu", "cuda"), ("gpu", ""), "allowed: auto, cpu, cuda"),
    ("run", "threads"): ((None, 1), (0, -1), "it must be ≥ 1 or null"),
    ("run", "store"): ((None, "a"), ("", "a\nb"), "it must be the name of a folder, without control characters"),
    ("run", "checkpoint_seconds"): ((0, 0.5), (-0.1, INF, NAN), "it must be ≥ 0"),
    ("run", "log_every"): ((1,), (0,), "it must be ≥ 1"),
    ("run", "nonfinite_steps"): ((1,), (0,), "it must be ≥ 1"),
    ("logger", "wandb"): (("offline", "online", "none"), ("off",), "allowed: offline, online, none"),
    ("logger", "project"): (
        ("a", "a" * 128, "a-b_c d"), ("", "a" * 129, *(f"a{c}" for c in "/\\#?%:")), "it must have 1 to 128 characters",
    ),
    ("logger", "tags"): (([], ["a", "a" * 64]), (["a", ""], ["a" * 65]), "a W&B tag has 1 to 64 characters"),
    ("launcher", "kind"): (("local", "ray"), ("pbs",), "allowed: local, slurm, ray"),
    ("launcher", "workers"): ((1, 9), (None, 0), ""),
    ("launcher", "threads"): ((1, None), (0,), "it must be ≥ 1"),
    ("launcher", "gpus"): ((0, None), (-1,), "it must be ≥ 0"),
    ("launcher", "cpus"): ((1, None), (0,), "it must be ≥ 1", SLURM),
    ("launcher", "cluster"): (("slurm", "local"), ("pbs",), "allowed: slurm, local", SLURM),
    ("launcher", "minutes"): ((3,), (0,), "it must be ≥ 1", SLURM),
    ("launcher", "requeues"): ((0,), (-1,), "it must be ≥ 0", SLURM),
    ("launcher", "grace_seconds"): ((10, 299), (9, 300, 301), "it must be", SLURM | {"minutes": 5}),
    ("launcher", "memory_gb"): ((None, 0.1), (0.09, 0, INF), "it must be ≥ 0.1", SLURM),
    ("launcher", "array_size"): ((1,), (0,), "it must be ≥ 1", SLURM),
    ("trainer", "strategy"): (("single", "ddp", "fsdp"), ("dp",), "allowed: single, ddp, fsdp"),
    ("trainer", "devices"): ((1, 8), (0,), "it must be ≥ 1", {"strategy": "ddp"}),
    ("trainer", "nodes"): ((1, 8), (0,), "it must be ≥ 1", {"strategy": "fsdp"}),
    ("eval", "text_rows"): ((0,), (-1,), "it must be ≥ 0"),
    ("eval", "recall_rows"): ((0,), (-1,), "it must be ≥ 0"),
    ("eval", "batch"): ((1,), (0,), "it must be ≥ 1"),
    ("eval", "tasks"): (
        ([], ["arc_easy"], [{"task": "a", "limit": 1}]), ([""], [3], [{}], ["a", {"limit": 1}], [{"task": ""}]),
        "give a task's name, a YAML file's path or {task: name, ...}",
    ),
    ("eval.efficiency", "batch"): ((1,), (0,), "it must be ≥ 1"),
    ("eval.efficiency", "prompt_tokens"): ((1, None), (0,), "it must be ≥ 1"),
    ("eval.efficiency", "new_tokens"): ((3,), (2,), "it must be ≥ 3"),
    ("eval.efficiency", "repeats"): ((3,), (2,), "it must be ≥ 3"),
    ("eval.efficiency", "memory_gb"): ((1e-9,), (0, -1.0, INF, NAN), "it must be > 0"),
    ("eval.cloze", "items"): ((0,), (-1,), "it must be ≥ 0"),
    ("eval.cloze", "context_tokens"): ((1, None), (0,), "it must be ≥ 1"),
    ("eval.cloze", "continuation_tokens"): ((1, None), (0,), "it must be ≥ 1"),
    ("eval.positions", "width"): ((0, 1), (-1,), "it must be ≥ 0"),
    ("eval.niah", "tasks"): ((["niah_single_1", "niah_multiquery"],), (["niah_single_4"],), "allowed: niah_single_1, "),
    ("eval.niah", "samples"): ((1,), (0,), "it must be ≥ 1"),
    ("eval.niah", "length"): ((16, None), (15,), "it must be ≥ 16"),
    ("eval.niah", "new_tokens"): ((1, None), (0,), "it must be ≥ 1"),
    ("eval.niah", "digits"): ((1, None), (0,), "it must be ≥ 1"),
    ("eval.niah", "seed"): ((0,), (-1,), "it must be ≥ 0"),
    ("eval.niah", "template"): (("ruler", "short", "letters"), ("long",), "allowed: ruler, short, letters"),
    ("eval.niah", "haystack"): (("held_out", "noise"), ("train",), "allowed: held_out, noise"),
    ("eval.harness", "limit"): ((1, None), (0,), "it must be ≥ 1"),
    ("eval.harness", "fewshot"): ((0, None), (-1,), "it must be ≥ 0"),
    ("eval.harness", "max_length"): ((2, None), (1,), "it must be ≥ 2"),
    ("eval.harness", "truncation"): (("left", "middle", "off"), ("right",), "allowed: left, middle, off"),
    ("data.recall", "fraction"): ((0, 0.5, 1), (-0.1, 1.1, NAN), "it must be between 0 and 1"),
    ("data.recall", "keys"): ((8,), (0,), "it must be ≥ 1"),
    ("data.recall", "values"): ((1,), (0,), "it must be ≥ 1"),
    ("data.recall", "pairs"): ((1, 5), (0, 6), "", {"keys": 5}),
    ("data.recall", "length"): ((10, 11), (0, 8, 9), "", {"keys": 5, "pairs": 5}),
    ("data", "lossy"): ((0, 0.001, 1), (-0.1, 1.1, NAN), "it must be from 0 to 1"),
    ("data", "longest_mib"): ((1, 1024), (0, 1025), "it must be from 1 to 1024"),
    ("data", "split"): (("hash", "file"), ("random",), "allowed: hash, file"),
    ("data", "eos"): ((None, 0, "</s>"), (-1, 1.5, True), "it must be a token, or an id ≥ 0"),
    ("data", "bos"): ((None, True, 0, "<s>"), (-1, 1.5, False), "it must be true, a token, an id ≥ 0, or null"),
    ("data", "validation_fraction"): ((0.001, 0.999), (0, 1, -0.1, 1.1, NAN), ""),
    ("data", "validation_files"): ((1,), (0,), "it must be ≥ 1"),
    ("data", "workers"): ((1, None), (0,), "it must be ≥ 1"),
    ("data", "source"): (("pydocs",), ("web",), "allowed: pydocs, python_text, text, files, hub, bin, prepared"),
    ("train", "context"): ((2, 1 << 24), (1, (1 << 24) + 1), "it must be"),
    ("train", "precision"): (("float32", "bf16"), ("float16", "fp16"), "allowed: float32, bf16"),
    ("train.adapt", "mixed_over"): (("layers", "heads"), ("all",), "allowed: layers, heads", {"mixed": ["D1", "D4"]}),
    ("train.adapt", "mixed"): (
        ([], ["D1", "D4"], ["D1", "D4", "D16-W2", "stream-W5"], ["top2x8", "top2x16"]),
        (["D4"], ["D4", "D4"], ["D1", "D4", "D1"]), "",
    ),
    ("train.sft", "tasks"): ((["niah_single_1"],), (["niah_single_1"] * 2, ["x"]), "", {"steps": 3}),
    ("train.sft", "items"): ((1,), (0,), "it must be ≥ 1"),
    ("train.sft", "length"): ((16, 64, None), (15, 65), "it must be"),
    ("train.sft", "questions"): ((1, 2), (0,), "it must be ≥ 1"),
    ("train.sft", "digits"): ((1, None), (0,), "it must be ≥ 1"),
    ("train.sft", "seed"): ((0,), (-1,), "it must be ≥ 0"),
    ("train.sft", "template"): (("ruler", "short", "letters"), ("long",), "allowed: ruler, short, letters"),
    ("train.sft", "haystack"): (("train", "noise"), ("held_out",), "allowed: train, noise"),
    ("", "retry"): (("all", "failed", "none"), ("some",), "allowed: all, failed, none"),
    ("", "max_failures"): ((None, 1), (0,), "it must be ≥ 1, or null"),
    ("", "seed"): ((0, 2**31 - 1), (-1, 2**31), "it must be between 0 and 2147483647"),
    ("", "objective"): (
        (None, "loss", ["loss", "flops"]), ([], "", [""], ["loss", "loss"], [3], 3), "it must be the name of a result",
    ),
    ("model", "init_std"): ((1e-9,), (0, -1.0, INF), "it must be > 0"),
}  # fmt: skip
# Of every recipe.
for _stage in ("pretrain", "adapt", "sft"):
    LIMITS |= {
        (f"train.{_stage}", "steps"): ((0, 1), (-1,), "it must be ≥ 0", ASKED if _stage == "sft" else {}),
        (f"train.{_stage}", "batch"): ((1,), (0,), "it must be ≥ 1"),
        (f"train.{_stage}", "weight_decay"): ((0, 0.1), (-0.1, INF), "it must be ≥ 0"),
        (f"train.{_stage}", "micro_batch"): ((None, 1, 2, 6), (0, 4, 12, -1), "it must divide train.", {"batch": 6}),
        (f"train.{_stage}", "lr"): ((1e-9, 0.5), (0, -1e-3, INF), "it must be > 0", {"lr_min": 0}),
        (f"train.{_stage}", "lr_min"): ((0, 0.25), (-0.1, 0.26), "it must be between 0 and lr=0.25", {"lr": 0.25}),
        (f"train.{_stage}", "warmup"): ((0, 0.99), (-0.1, 1, 1.5), "it is a fraction of the steps: 0 ≤ warmup < 1"),
        (f"train.{_stage}", "beta1"): ((0, 0.999), (-0.1, 1), "it must be in [0, 1)"),
        (f"train.{_stage}", "beta2"): ((0, 0.999), (-0.1, 1), "it must be in [0, 1)"),
        (f"train.{_stage}", "clip"): ((1e-9,), (0, -1.0, INF), "it must be > 0"),
        (f"train.{_stage}", "gate_lr"): ((None, 1e-9), (0, -1.0, INF), "it must be > 0, or null"),
        (f"train.{_stage}", "gate_bias_lr"): ((None, 1e-9), (0, -1.0, INF), "it must be > 0, or null"),
        (f"train.{_stage}", "order"): (("ordered", "random"), ("shuffled",), "allowed: ordered, random"),
        (f"train.{_stage}", "arl_dilation"): ((None, 1, 64), (0, -1, 1.5), ""),
        (f"train.{_stage}", "arl_window"): ((0, 9), (-1,), ""),
        (f"train.{_stage}", "arl_sinks"): ((0, 9), (-1,), ""),
    }  # fmt: skip


@pytest.mark.parametrize(("section", "key"), LIMITS)
def test_values_on_a_limit_and_beyond_it(section, key):
    fine, wrong, said, *others = LIMITS[section, key]
    given = others[0] if others else {}
    make, name = SECTIONS[section], f"{section}.{key}".lstrip(".")
    for value in fine:
        assert getattr(make(**given | {key: value}), key) == value
    for value in wrong:
        with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
            make(**given | {key: value})
        named = {"data.recall.length": "data.recall.pairs" if value else name}.get(name, name)  # no room for its pairs
        assert re.match(rf"{re.escape(named)}: got ", str(caught.value)), str(caught.value)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("local", "cpus", 2), ("local", "address", "auto"), ("local", "partition", "a"), ("local", "minutes", 61),
        ("local", "wait", True), ("local", "setup", ["a"]), ("local", "sbatch", {"a": 1}), ("ray", "minutes", 61),
        ("ray", "cluster", "local"), ("ray", "qos", "a"), ("slurm", "address", "auto"),
    ],
)  # fmt: skip
def test_a_key_of_another_launcher(kind, key, value):
    with pytest.raises(ValueError, match=rf"^launcher.{key}: got .*; launcher={kind} has no such key; allowed: "):
        LauncherSection(kind=kind, **{key: value})


def test_keys_that_several_launchers_have():
    assert LauncherSection(kind="ray", workers=None, cpus=2, address="a:1", gpus=1, threads=None).cpus == 2
    own = {"cpus": 2, "partition": "a", "account": "b", "qos": "c", "constraint": "d", "wait": True, "setup": ["x"]}
    assert LauncherSection(kind="slurm", workers=None, sbatch={"mail-type": "END", "a_1": 3}, **own).qos == "c"


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint"])
def test_no_line_of_a_job_becomes_two(key):
    with pytest.raises(ValueError, match=rf"^launcher.{key}: got .*; control characters and line breaks"):
        LauncherSection(kind="slurm", **{key: "a\n#SBATCH --exclusive"})


@pytest.mark.parametrize(("option", "value"), [("1a", 1), ("a b", 1), ("", 1), ("a=b", 1), ("a", "x\ny"), ("a\n", 1)])
def test_options_of_sbatch(option, value):
    with pytest.raises(ValueError, match=r"^launcher.sbatch"):
        LauncherSection(kind="slurm", sbatch={"good": 1, option: value})


@pytest.mark.parametrize("name", ["devices", "nodes"])
def test_several_ranks_need_a_strategy(name):
    with pytest.raises(ValueError, match=rf"^trainer.{name}: got 2; more than one needs trainer=ddp or trainer=fsdp$"):
        TrainerSection(**{name: 2})


@pytest.mark.parametrize(
    ("context", "width", "good"),
    [(64, 1, True), (65, 1, False), (65, 2, True), (128, 2, True), (129, 2, False), (64, 64, True), (64, 65, False),
     (64, 0, True)],
)  # fmt: skip
def test_positions_are_at_most_64_bins(context, width, good):
    section = PositionsSection(width)
    if not good:
        with pytest.raises(ValueError, match=r"^eval.positions.width: got .*\(64 bins\) and "):
            section.check(context)
        return
    section.check(context)
    bins = section.bins(context)
    assert len(bins) <= 64
    assert [i for low, high in bins for i in range(low, high)] == (list(range(context)) if width else [])


@pytest.mark.parametrize(
    ("context", "given", "shape"),
    [(512, {}, (64, 16)), (128, {}, (64, 16)), (126, {}, (63, 16)), (63, {}, (31, 15)), (2, {}, (1, 1)),
     (1, {}, (1, 1)), (512, {"context_tokens": 5}, (5, 16)), (512, {"continuation_tokens": 7}, (64, 7))],
)  # fmt: skip
def test_tokens_of_a_cloze_question(context, given, shape):
    assert ClozeSection(**given).shape(context) == shape


def test_tokens_of_a_timed_prompt():
    assert EfficiencySection(new_tokens=16).prompt(512) == 496
    assert EfficiencySection(new_tokens=16, prompt_tokens=5).prompt(512) == 5


def cell(**keys):
    """A cell of 64 tokens with other sections."""
    given = {
        "train": TrainSection(context=64, pretrain=RecipeSection(arl=False)),
        "data": DataSection(recall=RecallSection(length=64)),
    }  # fmt: skip
    return Config(**given | keys)


@pytest.mark.parametrize(
    ("key", "fine", "wrong"),
    [
        ("data.recall.length", {"data": DataSection(recall=RecallSection(length=64))},
         {"data": DataSection(recall=RecallSection(length=65))}),
        ("eval.niah.length", {"eval": EvalSection(niah=NiahSection(length=64))},
         {"eval": EvalSection(niah=NiahSection(length=65))}),
        ("eval.harness.max_length", {"eval": EvalSection(harness=HarnessSection(max_length=64))},
         {"eval": EvalSection(harness=HarnessSection(max_length=65))}),
        ("eval.cloze.context_tokens", {"eval": EvalSection(cloze=ClozeSection(1, 48, 16))},
         {"eval": EvalSection(cloze=ClozeSection(1, 49, 16))}),
        ("eval.efficiency.prompt_tokens", {"eval": EvalSection(efficiency=EfficiencySection(True, 1, 48, 16))},
         {"eval": EvalSection(efficiency=EfficiencySection(True, 1, 49, 16))}),
        ("eval.efficiency.prompt_tokens", {"eval": EvalSection(efficiency=EfficiencySection(True, 1, None, 63))},
         {"eval": EvalSection(efficiency=EfficiencySection(True, 1, None, 64))}),
        ("eval.positions.width", {"eval": EvalSection(positions=PositionsSection(64))},
         {"eval": EvalSection(positions=PositionsSection(65))}),
    ],
)  # fmt: skip
def test_what_must_fit_the_context(key, fine, wrong):
    cell(**fine)
    with pytest.raises(ValueError, match=rf"^{re.escape(key)}: got "):
        cell(**wrong)


def test_what_is_off_need_not_fit_the_context():
    cell(data=DataSection(recall=RecallSection(fraction=0, length=65)))
    cell(eval=EvalSection(cloze=ClozeSection(0, 64, 64), efficiency=EfficiencySection(False, 1, 64, 64)))


@pytest.mark.parametrize(
    ("stage", "keys", "said"),
    [
        ("adapt", {"sparse": True}, "train.adapt.sparse: got True; adaptation trains the cell's pattern anyway"),
        ("adapt", {"arl": True}, "train.adapt.arl: got True; adaptation trains one pattern alone"),
        ("adapt", {"mixed_over": "heads"}, "train.adapt.mixed_over: got 'heads'; it means nothing without"),
        ("adapt", {"mixed": ["D1", "D4"], "dense": True}, "train.adapt.dense: got True; train.adapt.mixed says what"),
        ("adapt", {"mixed": ["D1", "snap64"]}, "train.adapt.mixed: "),
        ("adapt", {"mixed": ["top2x8", "top2x16"], "mixed_over": "heads"}, "heads of one layer need one block length"),
        ("pretrain", {"mixed": ["D1", "D4"]}, "train.pretrain.mixed: got ['D1', 'D4']; adaptation alone mixes"),
        ("pretrain", {"dense": True}, "train.pretrain.dense: got True; pretraining is dense unless"),
        ("sft", {"mixed": ["D1", "D4"]}, "train.sft.mixed: got ['D1', 'D4']; adaptation alone mixes"),
        ("sft", {"sparse": True}, "train.sft.sparse: got True; fine-tuning trains the cell's pattern anyway"),
        ("sft", {"steps": 1}, "train.sft.tasks: got []; train.sft.steps=1 needs some to train on"),
        ("sft", {"tasks": ["niah_single_1"], "questions": 2}, "train.sft.questions: got 2; more than one needs tasks"),
    ],
)
def test_what_a_recipe_of_a_stage_may_not_say(stage, keys, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        recipe_of(stage)(**keys)


def test_what_a_recipe_of_a_stage_may_say():
    assert recipe_of("adapt")(arl=True, dense=True).arl
    assert recipe_of("pretrain")(arl=True, sparse=True).sparse
    assert recipe_of("sft")(tasks=["niah_multikey_1"], questions=5, steps=2).questions == 5
    assert isinstance(recipe_of("sft")(), SftSection)
