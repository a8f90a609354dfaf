"""Fine-tuning on needles: its rows, its place among the stages, and that nothing changes where it is off."""

import json
import os
import shutil
import signal
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ratplus.config.cell import Config, PatternSection
from ratplus.config.data import DataSection, RecallSection
from ratplus.config.eval import NIAH_TASKS, EvalSection, NiahSection
from ratplus.config.model import ModelSection
from ratplus.config.run import LoggerSection, RunSection, TrainerSection
from ratplus.config.train import RecipeSection, SftSection
from ratplus.config.train import TrainSection as Train
from ratplus.data.corpus import open_corpus, write_corpus
from ratplus.data.needles import SHAPES, generate, overlap, training_draft
from ratplus.data.sampling import IGNORE
from ratplus.data.sft import SftBatches, answer_ids, check_split
from ratplus.records.record import read_record
from ratplus.stages.cell import Cell
from ratplus.stages.run_stage import Surroundings
from ratplus.stages.stage_ids import plan
from ratplus.training.errors import Interrupted
from ratplus.training.state import load_state

WORDS = "A plain sentence about nothing much. Another one follows it, longer than the first. And a third. "


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    documents = [(f"d{i}", f"{i}: " + WORDS * 4) for i in range(40)]
    folder = tmp_path_factory.mktemp("corpus")
    return open_corpus(write_corpus(folder, documents, source={"name": "test"}, validation_fraction=0.3))


def split(*tasks, **keys) -> SftSection:
    return SftSection(**{"tasks": [*tasks], "steps": 5, "batch": 4, "items": 6, "template": "short", **keys})


def config_of(section: SftSection, **keys) -> Config:
    return Config(train=Train(context=256, sft=section), data=DataSection(recall=RecallSection(fraction=0)), **keys)


def batches(corpus, section, **keys) -> SftBatches:
    return SftBatches.of(config_of(section, **keys), corpus)


def test_labels_stand_on_the_answer_alone(corpus):
    """Decoding a row's labels gives the answer and end-of-text, and what stands before them the evaluation's prompt."""
    section = split("niah_single_2", "niah_multiquery", "niah_multikey_2", length=240, batch=18)
    rows = batches(corpus, section)
    tokenizer, [(inputs, labels)] = corpus.tokenizer(), rows.train(section, "sft", 0)
    assert inputs.shape == labels.shape == (18, 240)
    numbers = rows.numbers(section, 0)
    assert sorted(numbers) == list(range(18))
    for row, number in enumerate(numbers):
        task, index = section.tasks[number % 3], number // 3
        draft = training_draft(task, index, "short")
        asked = np.flatnonzero(labels[row] != IGNORE)
        assert list(asked) == list(range(asked[0], asked[-1] + 1))
        assert labels[row, asked[-1]] == tokenizer.eos_id
        answer = tokenizer.decode(labels[row, asked].tolist())
        assert answer == " " + ", ".join(draft.answers)
        assert overlap(answer, draft.answers) == 1
        # Each label is the token that comes next, and only padding follows the answer.
        assert (inputs[row, asked[1:]] == labels[row, asked[:-1]]).all()
        assert (inputs[row, asked[-1] + 1 :] == tokenizer.eos_id).all()
        prompt = tokenizer.decode(inputs[row, : asked[0] + 1].tolist())
        assert prompt.endswith(f"\n{draft.query}:")
        assert all(needle in prompt for needle in draft.needles)
        assert ("sentence" in prompt) == (task != "niah_multikey_2")


@pytest.mark.parametrize("template", ["letters", "short"])
def test_several_questions_about_one_haystack(corpus, template):
    """Each is answered with the value of its key; answers have labels, and end-of-text behind the last one."""
    section = split("niah_multikey_1", template=template, questions=9, length=250, digits=2, batch=6, haystack="noise")
    rows, tokenizer = batches(corpus, section), corpus.tokenizer()
    [(inputs, labels)] = rows.train(section, "sft", 0)
    colon = ": " if template == "short" else ""
    asked = []
    for row, number in enumerate(rows.numbers(section, 0)):
        draft = training_draft("niah_multikey_1", number, template, 2)
        told = {needle[: -len(colon) - 3]: needle[-3:-1] for needle in draft.needles}
        assert [f"{key}{colon}{value}." for key, value in told.items()] == draft.needles
        known = labels[row] != IGNORE
        end = np.flatnonzero(known)[-1]
        assert labels[row, end] == tokenizer.eos_id
        assert (inputs[row, end + 1 :] == tokenizer.eos_id).all()
        text = tokenizer.decode(inputs[row, : end + 1].tolist())
        hay, *lines = text.split("\n")
        assert all(needle in hay for needle in draft.needles)
        keys = [line[: -len(colon) - 2] for line in lines]
        assert [told[key] for key in keys] == [line[-2:] for line in lines]
        assert len(keys) == 9
        assert keys[0] == draft.query
        answers = tokenizer.decode(np.where(known, labels[row], ord("#"))[:end].tolist())
        assert [part for part in answers.split("#") if part] == [f"{colon[1:]}{told[key]}" for key in keys]
        asked.append(keys)
    # Needles are drawn anew: neither in turn, nor the same in every row.
    assert len({tuple(keys[1:]) for keys in asked}) == len(asked)
    assert any(a == b for keys in asked for a, b in pairwise(keys))


def test_an_evaluation_asks_one_question_with_the_letters_of_the_training():
    (item,) = generate("niah_multikey_1", _Bytes(), 1, 120, template="letters")
    key = item.prompt.rpartition("\n")[2]
    assert len(key) == 1
    assert item.reply == item.answers[0]
    assert f"{key}{item.answers[0]}." in item.prompt
    assert item.prompt[slice(*item.places[0])] == item.answers[0]
    (words,) = generate("niah_multikey_1", _Bytes(), 1, 120, template="short")
    assert words.reply == f" {words.answers[0]}"


def test_an_epoch_has_each_item_once(corpus):
    section = split("niah_single_1", "niah_single_3", items=5, batch=4)
    rows = batches(corpus, section)
    numbers = [n for step in range(5) for n in rows.numbers(section, step)]  # two epochs of ten
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))
    assert numbers[:10] != numbers[10:]
    section.order = "ordered"
    assert [n for step in range(5) for n in rows.numbers(section, step)] == [*range(10), *range(10)]
    section.order = "random"
    assert batches(corpus, section, seed=1).numbers(section, 0) != rows.numbers(section, 0)


def test_rows_are_a_function_of_the_step(corpus):
    section = split("niah_single_2", "niah_multikey_1")
    straight, other = batches(corpus, section), batches(corpus, section)
    steps = [straight.train(section, "sft", step) for step in range(4)]
    for step in (3, 0, 2):
        assert all((a == b).all() for a, b in zip(other.train(section, "sft", step)[0], steps[step][0], strict=True))


@pytest.mark.parametrize("task", NIAH_TASKS)
def test_training_never_asks_what_an_evaluation_asks(task):
    """Not one key of one side is the other's, asked for or not, though the words are the same."""
    items = generate(task, _Bytes(), 25, 600, template="short", digits=1)
    drafts = [training_draft(task, index, "short", digits=1) for index in range(25)]
    asked = {
        key for item in items for key in item.prompt.rpartition("\n")[2].strip(":").replace("and ", "").split(", ")
    }
    trained = {needle.partition(":")[0] for draft in drafts for needle in draft.needles}
    assert min(len(asked), len(trained)) >= 24
    assert not asked & trained
    if SHAPES[task].keys == "words":
        words = [{word for key in keys for word in key.split("-")} for keys in (asked, trained)]
        assert words[0] & words[1]
        # By construction, not by luck: an evaluation's key begins with an adjective, a training key ends with one.
        assert not {key.split("-")[0] for key in asked} & {key.split("-")[0] for key in trained}


class _Bytes:
    def encode(self, text):
        return list(text.encode())


def test_digits():
    (item,) = generate("niah_single_1", _Bytes(), 1, 200, template="short", digits=2)
    assert len(item.answers[0]) == 2
    assert generate("niah_single_1", _Bytes(), 3, 200, template="short") == generate(
        "niah_single_1", _Bytes(), 3, 200, template="short", digits=4
    )
    assert "digits" not in EvalSection(niah=NiahSection(["niah_single_1"])).science(64)["niah"]
    assert EvalSection(niah=NiahSection(["niah_single_1"], digits=4)).science(64)["niah"]["digits"] == 4


class _Joining:
    """A tokenizer that joins a prompt's colon with a blank that follows it."""

    eos_id = 0

    def encode(self, text):
        return [1 if part == "\0" else ord(part) for part in text.replace(": ", "\0")]


def test_an_answer_follows_the_prompt_as_the_evaluation_reads_it():
    tokenizer = _Joining()
    prompt = tokenizer.encode("a:")
    assert answer_ids(_Bytes(), "a:", list(b"a:"), " 12") == list(b" 12")
    joined = tokenizer.encode("a: 1")
    assert joined[: len(prompt)] != prompt
    assert answer_ids(tokenizer, "a:", prompt, " 1") == tokenizer.encode(" 1")


class _Beginning(_Joining):
    """The same, with a token that begins every text."""

    bos_id = 2

    def encode(self, text):
        return [self.bos_id, *super().encode(text)]


def test_the_token_that_begins_a_text_stands_before_no_answer():
    tokenizer = _Beginning()
    assert answer_ids(tokenizer, "a:", tokenizer.encode("a:"), " 1") == [ord(" "), ord("1")]
    assert answer_ids(tokenizer, "a", tokenizer.encode("a"), " 1") == [ord(" "), ord("1")]
    # Nor before any of the further questions about a haystack, or its answer.
    corpus = SimpleNamespace(tokenizer=_Beginning, train=np.zeros(0, dtype=np.uint16))
    section = split("niah_multikey_1", questions=3, length=250, haystack="noise")
    [(inputs, labels)] = batches(corpus, section).train(section, "sft", 0)
    assert (inputs[:, 0] == 2).all()
    assert (inputs[:, 1:] != 2).all()
    assert (labels != 2).all()


# ---- ids ----


def of(section: SftSection | None = None, **keys) -> tuple:
    train = Train(context=256) if section is None else Train(context=256, sft=section)
    return plan(Config(train=train, **keys), {"sha256": "0"}, 257)


def test_without_steps_there_is_no_trace():
    """Whatever else `train.sft` says, the other stages' ids are those of a cell that has never heard of it."""
    plain = of()
    assert [stage.name for stage in plain] == ["pretrain", "adapt", "evaluate"]
    assert plain.trained is plain.adapt
    assert [stage.id for stage in of(split("niah_single_1", steps=0, lr=1e-3))] == [stage.id for stage in plain]
    assert "sft" not in json.dumps([stage.config for stage in plain])
    # From before there was such a stage; the evaluation's since version 2 of its needles.
    asked = of(eval=EvalSection(niah=NiahSection(["niah_single_1"])))
    assert [stage.id for stage in asked] == ["f82df6b4623f", "47cfa04ce296", "128374a5ba61"]


def test_the_chain_of_ids():
    section = split("niah_single_1")
    plain, fine = of(), of(section)
    assert [stage.name for stage in fine] == ["pretrain", "adapt", "sft", "evaluate"]
    assert [fine.pretrain.id, fine.adapt.id] == [plain.pretrain.id, plain.adapt.id]
    assert (fine.sft.parent, fine.evaluate.parent, fine.trained) == (fine.adapt.id, fine.sft.id, fine.sft)
    changes = dict(tasks=["niah_single_2"], items=7, length=200, template="ruler", haystack="noise", digits=2, seed=1,
                   lr=2e-5, order="ordered", arl=True, steps=6)  # fmt: skip
    ids = {of(split(**{"tasks": ["niah_single_1"], k: v})).sft.id for k, v in changes.items()}
    assert "questions" not in fine.sft.config["recipe"]  # it came later; one is what every row asked before
    several = [of(split("niah_multikey_1", questions=count)).sft.id for count in (1, 2, 3)]
    assert len({*several}) == 3
    assert several[0] == of(split("niah_multikey_1")).sft.id
    assert len(ids | {fine.sft.id}) == len(changes) + 1
    same = dict(length=256, micro_batch=2, arl_dilation=16)
    assert {of(split("niah_single_1", **{k: v})).sft.id for k, v in same.items()} == {fine.sft.id}


# ---- mistakes ----


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(steps=3), r"train.sft.tasks: got \[\]; train.sft.steps=3 needs some to train on: niah_single_1, "),
        (dict(tasks=["niah_single_9"]), "train.sft.tasks: got 'niah_single_9'; allowed: niah_single_1, "),
        (dict(tasks=["niah_single_1"] * 2), "train.sft.tasks: .* name each task once"),
        (dict(length=512), "train.sft.length: got 512; it must be ≤ train.context=256"),
        (dict(items=0), "train.sft.items: got 0; it must be ≥ 1"),
        (dict(digits=0), "train.sft.digits: got 0; it must be ≥ 1"),
        (dict(template="long"), "train.sft.template: got 'long'; allowed: ruler, short, letters"),
        (dict(questions=0), "train.sft.questions: got 0; it must be ≥ 1"),
        (
            dict(tasks=["niah_multikey_1", "niah_multivalue"], questions=2),
            r"train.sft.questions: got 2; more than one needs .* \(niah_multikey_1\), not niah_multivalue$",
        ),
        (dict(haystack="held_out"), "train.sft.haystack: got 'held_out'; allowed: train, noise"),
        (dict(sparse=True), "train.sft.sparse: got True; fine-tuning trains the cell's pattern anyway"),
        (dict(lr=0.0), "train.sft.lr: got 0.0; it must be > 0"),
        (dict(arl_dilation=-2), "train.sft.arl_dilation: got -2"),
    ],
)
def test_impossible_values(keys, message):
    with pytest.raises(ValueError, match=message):
        Train(context=256, sft=SftSection(**keys))


def test_questions_that_do_not_fit(corpus):
    config = config_of(split("niah_single_1", "niah_multikey_3", length=120))
    with pytest.raises(
        ValueError, match=r"train.sft.length: got 120, but niah_multikey_3 needs 1\d\d tokens .*; give more$"
    ):
        check_split(config, corpus)
    config = config_of(split("niah_multikey_1", length=120, template="letters", questions=40))
    with pytest.raises(ValueError, match=r"got 120, but niah_multikey_1 needs 1\d\d tokens .*; give more$"):
        check_split(config, corpus)
    config = config_of(split("niah_single_1", template="ruler"))
    with pytest.raises(ValueError, match=r"take the few words of train.sft.template=short$"):
        check_split(config, corpus)


# ---- stages ----


def cell_config(place, steps=4, **keys) -> Config:
    recipe = dict(steps=2, batch=2)
    (place / "text.txt").write_text("\n\n".join(f"{i}. {WORDS * 5}" for i in range(60)))
    return Config(
        model=ModelSection(layers=1, d_model=16, d_head=16),
        data=DataSection("text", str(place / "text.txt"), root=str(place / "data"), validation_fraction=0.5,
                         recall=RecallSection(fraction=0)),
        train=Train(context=128, pretrain=RecipeSection(**recipe), adapt=RecipeSection(**recipe),
                    sft=split("niah_single_1", steps=steps, batch=2, lr=1e-2, arl=True, arl_dilation=8, **keys)),
        eval=EvalSection(text_rows=2, batch=4, niah=NiahSection(["niah_single_1"], 4, template="short", digits=2)),
        pattern=PatternSection(dilation=4),
        run=RunSection(threads=1, accelerator="cpu", checkpoint_seconds=0.0, log_every=1),
        logger=LoggerSection(wandb="none"),
    )  # fmt: skip


def test_four_stages_and_an_interruption(tmp_path):
    """The record chain, and the same bits after a stop in the middle of the fine-tuning."""
    config = cell_config(tmp_path)
    straight = Cell(config, Surroundings(tmp_path / "straight"))
    record = straight.run()
    for stage in (straight.plan.adapt, straight.plan.sft, straight.plan.evaluate):
        found = read_record(stage.folder(tmp_path / "straight"))
        assert (found["status"], found["stage"], found["parent"]) == ("done", stage.name, stage.parent)
    assert "niah_single_1_overlap" in record["metrics"]
    fine = read_record(straight.plan.sft.folder(tmp_path / "straight"))
    assert {"train_loss", "train_arl_loss", "parameters"} <= set(fine["metrics"])
    assert fine["metrics"]["train_loss"]["count"] == 2 * len(" 1234$")  # labels of the last step

    def stop(stage, done, _total, _numbers):
        if (stage, done) == ("sft", 2):
            os.kill(os.getpid(), signal.SIGTERM)

    resumed = Cell(config, Surroundings(tmp_path / "resumed", progress=stop))
    with pytest.raises(Interrupted):
        resumed.run()
    folder = resumed.plan.sft.folder(tmp_path / "resumed")
    assert load_state(folder, resumed.plan.sft.id)["step"] == 2
    again = Cell(config, Surroundings(tmp_path / "resumed")).run()
    assert again["metrics"] == record["metrics"]
    assert read_record(folder)["timing"]["resumed_at_step"] == 2
    first = straight.plan.sft.folder(tmp_path / "straight")
    assert (folder / "curve.csv").read_text() == (first / "curve.csv").read_text()
    assert (folder / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    rows = (folder / "curve.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in rows] == ["tokens", *(str(n * 2 * 128) for n in range(1, 5))]


def test_micro_batches_of_answers_add_up(tmp_path, corpus):
    """A step in parts has the gradient of the whole, though rows have labels of different number."""
    from ratplus import ModelConfig, RATPlus
    from ratplus.training.run import train
    from ratplus.training.spec import Run

    ends = []
    for micro in (None, 1):
        section = split("niah_single_2", "niah_multiquery", steps=2, micro_batch=micro, length=200, lr=1e-3)
        model = RATPlus(ModelConfig(257, 1, 16, 8, max_len=200))
        model.reset_parameters(0, 0.2)
        folder = tmp_path / str(micro)
        folder.mkdir()
        run = RunSection(accelerator="cpu", checkpoint_seconds=60.0)
        train(model, Run("sft", "s", section, batches(corpus, section), run=run), folder)
        ends.append(model.state_dict())
    assert ends[0].keys() == ends[1].keys() != set()
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-4) for name in ends[0])


def test_nothing_is_trained_for_questions_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="train.sft.length: got 60, but niah_single_1 needs"):
        Cell(cell_config(tmp_path, length=60, digits=30), Surroundings(tmp_path / "sweep")).run()
    assert not (tmp_path / "sweep" / "pretrain").exists()
    with pytest.raises(ValueError, match="train.sft.steps: got 0, so there is no stage `sft`"):
        Cell(cell_config(tmp_path, steps=0), Surroundings(tmp_path / "sweep")).run("sft")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_share_the_rows(tmp_path, strategy):
    """Two ranks end in the weights of one, under the same id."""
    from safetensors.torch import load_file

    config = cell_config(tmp_path)
    alone = Cell(config, Surroundings(tmp_path / "alone"))
    alone.run("sft")
    for stage in ("pretrain", "adapt"):
        shutil.copytree(tmp_path / "alone" / stage, tmp_path / "shared" / stage)
    config.trainer = TrainerSection(strategy, devices=2)
    shared = Cell(config, Surroundings(tmp_path / "shared"))
    shared.run("sft")
    ends = [cell.plan.sft.folder(tmp_path / name) for cell, name in ((alone, "alone"), (shared, "shared"))]
    weights = [load_file(folder / "model.safetensors") for folder in ends]
    assert ends[0].name == ends[1].name
    assert weights[0].keys() == weights[1].keys() != set()
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])
