"""Which model a search is of: a stage by its id or folder, or a model folder with words for its data."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ratplus import ModelConfig, RATPlus
from ratplus.checkpoint import save
from ratplus.config.search import SearchSection
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.runner import searched_model
from ratplus.sweeps.runner.searched_model import locate

TINY = ["data=text", "data.path=text.txt", "data.recall.fraction=0", "eval.recall_rows=0"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model of 96 tokens and a text of bytes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some words of a text. " * 200)
    save(RATPlus(ModelConfig(257, 2, 16, 8, max_len=96)), tmp_path / "model", ByteTokenizer())
    return tmp_path


def section(model: str, **keys) -> SearchSection:
    return SearchSection(model=model, **keys)


@pytest.mark.parametrize(("words", "context"), [([], 96), (["train.context=32"], 32), (["data.root=other"], 96)])
def test_a_model_folder_is_read_as_long_as_it_can_be(place, words, context):
    """Unless a word says less; words on other keys change nothing of that."""
    found = locate(section("model"), [*TINY, *words])
    assert (found.name, found.folder, found.recall) == ("model", Path("model"), None)
    assert (found.config.train.context, found.shape.max_len, found.shape.vocab_size) == (context, context, 257)
    assert found.weights == json.loads((place / "model" / "config.json").read_text())["sha256"]


def test_the_recall_task_is_that_of_the_data(place):
    words = ["data=text", "data.path=text.txt", "data.recall.length=32", "data.recall.keys=4", "data.recall.pairs=4"]
    with pytest.raises(ValueError, match="the model has a vocabulary of 257, the data one of "):
        locate(section("model"), words)


@pytest.mark.parametrize("model", ["nowhere", "0123456789abc", "ABC", "x/y"])
def test_no_folder_and_no_id(place, model):
    with pytest.raises(UsageError, match=rf"^model={model}: no such folder, and not an id of a stage$"):
        locate(section(model), [])


def test_a_folder_without_a_model(place):
    (place / "empty").mkdir()
    with pytest.raises(UsageError, match=r"^model: .*empty: no checkpoint here"):
        locate(section("empty"), [])


# ---- stages --------------------------------------------------------------------------------------------------------

IDS = {"pretrain": "aaaa00000000", "adapt": "bbbb00000000", "evaluate": "cccc00000000"}


@pytest.fixture
def sweep(place, monkeypatch):
    """A sweep of one cell, of which adaptation left the weights."""
    cell = {"id": IDS["evaluate"], "stages": IDS, "config": {}, "corpus": {"name": "text"}}
    folder = place / "sweeps" / "one"
    for stage, identity in IDS.items():
        (folder / stage / identity).mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"cells": [cell]}))
    config = SimpleNamespace(
        model=SimpleNamespace(name="tiny"), data=SimpleNamespace(recall=SimpleNamespace(fraction=0.0))
    )
    monkeypatch.setattr(searched_model, "read_manifest", lambda path: json.loads((path / "sweep.json").read_text()))
    monkeypatch.setattr(searched_model, "read_facts", lambda path: ("shape", f"weights of {path.name}"))
    monkeypatch.setattr(searched_model, "cell_config", lambda entry: entry["config"])
    monkeypatch.setattr(searched_model, "typed", lambda plain: config)
    monkeypatch.setattr(searched_model, "made_corpus", lambda data, corpus: corpus)
    return folder


@pytest.mark.parametrize(
    ("stage", "found"), [("pretrain", "pretrain"), ("adapt", "adapt"), ("evaluate", "adapt")]
)  # an evaluation's weights are those that it evaluated
def test_a_stage_by_its_folder(sweep, stage, found):
    got = locate(section(str(sweep / stage / IDS[stage])), [])
    assert (got.name, got.folder) == (f"tiny-{found}-{IDS[found]}", sweep / found / IDS[found])
    assert (got.weights, got.corpus) == (f"weights of {IDS[found]}", {"name": "text"})


def test_a_stage_by_its_id(sweep, monkeypatch):
    asked = []

    def find(*words):
        asked.append(words)
        return sweep, "evaluate", IDS["evaluate"]

    monkeypatch.setattr(searched_model, "find_stage", find)
    assert locate(section("cccc", sweep="sweeps/one"), []).folder == sweep / "adapt" / IDS["adapt"]
    assert asked == [("cccc", "sweeps/one", "search", "give another folder with sweep=")]


def test_what_a_stage_s_sweep_decides_is_no_word(sweep):
    model = str(sweep / "adapt" / IDS["adapt"])
    with pytest.raises(UsageError, match=r"^search: data=text: model=.* is a stage of .*/one, whose config says what"):
        locate(section(model), ["data=text"])
    (sweep / "adapt" / "dddd00000000").mkdir()
    with pytest.raises(UsageError, match=r"dddd00000000: .*sweep.json knows no such stage$"):
        locate(section(str(sweep / "adapt" / "dddd00000000")), [])


def test_a_folder_of_another_name_beside_a_manifest_is_a_model_folder(sweep):
    save(RATPlus(ModelConfig(257, 1, 16, 8, max_len=64)), sweep / "models" / "own", ByteTokenizer())
    assert locate(section(str(sweep / "models" / "own")), TINY).name == "own"


def test_weights_or_texts_that_are_not_there(sweep, monkeypatch):
    from ratplus.checkpoint.facts import CheckpointError
    from ratplus.data.corpus import CorpusError

    def refuse(error):
        def refused(*_):
            raise error

        return refused

    model = str(sweep / "adapt" / IDS["adapt"])
    monkeypatch.setattr(searched_model, "made_corpus", refuse(CorpusError("gone")))
    with pytest.raises(UsageError, match=r"^model=.*: gone$"):
        locate(section(model), [])
    monkeypatch.setattr(searched_model, "read_facts", refuse(CheckpointError("none there")))
    with pytest.raises(UsageError, match=r"^model=.*: no trained model yet: none there$"):
        locate(section(model), [])
