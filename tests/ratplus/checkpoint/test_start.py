"""Whether given weights fit a cell: shape, context and vocabulary of an imported model and of one of our own."""

import json

import pytest

from ratplus import ModelConfig, RATPlus
from ratplus.checkpoint import save
from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.start import adds_recurrence, vocabulary_of, weights_of
from ratplus.config.cell import Config
from ratplus.config.data import DataSection, RecallSection
from ratplus.config.eval import EvalSection
from ratplus.config.model import ModelSection
from ratplus.config.train import RecipeSection, TrainSection

SHAPE = dict(layers=2, d_model=16, d_head=8)


@pytest.fixture
def made(tmp_path):
    """A model of 40 rows that reads 32 tokens; with a family and a tokenizer of so many ids if these are given."""

    def make(family: str | None = None, ids: int | None = None, **shape):
        folder = save(RATPlus(ModelConfig(40, **SHAPE | {"max_len": 32} | shape)), tmp_path / "model")
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | ({"family": family} if family else {})))
        if ids is not None:
            vocabulary = {"model": {"vocab": {f"t{i}": i for i in range(ids)}}}
            (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
        return folder

    return make


def asked(folder, text_vocab: int = 40, symbols: int = 0, context: int = 32, tokenizer: str | None = None, **shape):
    section = ModelSection(**SHAPE | shape, init_from=str(folder))
    recipe = RecipeSection(arl=False)
    train = TrainSection(context=context, pretrain=recipe, adapt=recipe)
    data = DataSection(tokenizer=tokenizer, recall=RecallSection(fraction=0.5 if symbols else 0.0, length=16, pairs=4))
    config = Config(model=section, train=train, data=data, eval=EvalSection(recall_rows=0))
    return weights_of(config, text_vocab, text_vocab + symbols)


def test_weights_of_the_same_shape(made):
    folder = made()
    assert asked(folder) == (json.loads((folder / "config.json").read_text())["sha256"], 40)
    assert asked(folder, context=64)[1] == 40, "of a model of our own, positions are no matter"
    with pytest.raises(CheckpointError, match=r"it needs model\.layers=2 \(not 3\); or leave out model="):
        asked(folder, layers=3)
    with pytest.raises(CheckpointError, match=r"the model has a vocabulary of 40, the data one of 39; use the data"):
        asked(folder, text_vocab=39)
    with pytest.raises(CheckpointError, match=r"model\.init_from: .*nowhere: no checkpoint here"):
        asked(folder.parent / "nowhere")


def test_the_context_of_an_imported_model(made):
    folder = made("llama", ids=40)
    assert asked(folder, context=32)
    with pytest.raises(CheckpointError, match=r"takes at most 32 tokens; .*rope_factor=1\.5 model\.rope_original=32"):
        asked(folder, context=48)
    assert asked(folder, context=48, rope_scaling="yarn", rope_factor=1.5, rope_original=32)


@pytest.mark.parametrize(
    ("family", "ids", "data", "fits"),
    [
        # Ids of the texts, symbols of the recall task besides, data.tokenizer.
        (None, None, (40, 0, None), True), (None, None, (30, 10, None), True), (None, None, (30, 0, None), False),
        (None, 30, (30, 0, None), False),  # our own models have no rows that pad
        ("llama", 30, (30, 0, None), True), ("llama", 30, (30, 10, None), True), ("llama", 30, (30, 11, None), False),
        ("llama", 30, (29, 0, None), False), ("llama", 30, (31, 0, None), False),
        ("llama", None, (30, 0, "given.json"), True), ("llama", None, (30, 0, "bytes"), False),
        ("llama", None, (30, 0, None), False), ("llama", None, (41, 0, "given.json"), False),
    ],
)  # fmt: skip
def test_vocabularies_that_fit(made, family, ids, data, fits):
    folder = made(family, ids)
    text, symbols, tokenizer = data
    if fits:
        assert asked(folder, text, symbols, tokenizer=tokenizer)[1] == 40
        return
    with pytest.raises(CheckpointError) as refused:
        asked(folder, text, symbols, tokenizer=tokenizer)
    told = str(refused.value)
    assert f"vocabulary of 40{' (its tokenizer 30 ids)' if family and ids else ''}, the data one of" in told
    assert (f"use data.tokenizer={folder}" in told) == (family is not None and ids is not None)
    assert ("data.recall.fraction=0 leaves out" in told) == (symbols > 0)


def test_ids_that_an_imported_model_reads(made):
    assert vocabulary_of(made()) is None
    assert vocabulary_of(made("llama")) == 40
    assert vocabulary_of(made("llama", ids=30)) == 30


@pytest.mark.parametrize(
    ("found", "wanted", "bias", "adds"),
    [(False, True, -2.0, True), (False, True, None, False), (True, True, -2.0, False), (False, False, None, False)],
)
def test_when_a_recurrence_is_added(made, found, wanted, bias, adds):
    there = ModelConfig(40, **SHAPE, recurrence=found, gate_bias=bias if found else None)
    here = ModelConfig(40, **SHAPE, recurrence=wanted, gate_bias=bias)
    assert adds_recurrence(there, here) == adds
    if not found and wanted:
        folder = made(recurrence=False)
        if adds:
            assert asked(folder, recurrence=True, gate_bias=bias)[1] == 40
        else:
            with pytest.raises(CheckpointError, match=r"give the bias at which they start, such as model.gate_bias=-2"):
                asked(folder, recurrence=True)
