"""What two cells of a folder may differ in, which axes they get, and what a manifest keeps when cells join: by hand."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ratplus.records.manifest import read_manifest
from ratplus.records.record import ForeignRecord, RecordError
from ratplus.sweeps.define import manifest
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.manifest import (
    add_cells,
    add_suites,
    cell_config,
    check_cells,
    check_records,
    entry_of,
    name_axes,
    planned_stages,
    science,
)
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.typed import typed

CORPUS = {"tokenizer": "bytes", "train": "t", "validation": "v"}


def cell(*words: str, axes: tuple[str, ...] = (), corpus: dict | None = None) -> dict:
    """The manifest entry of a cell, as planning makes it of an opened corpus."""
    composed = compose_one(["model=ratplus_nano", "data.recall.fraction=0", *words])
    config = composed.config
    plan = planned_stages(config, corpus or CORPUS, 257)
    return entry_of(replace(composed, axes=list(axes)), plan, corpus or CORPUS)


@pytest.fixture(scope="module")
def kept():
    """Cells of patterns, seeds and learning rates, by their words."""
    words = ("", "pattern.dilation=4", "seed=1", "train.adapt.lr=0.5", "model=attention_nano", "eval.batch=3",
             "data.root=elsewhere", "train.adapt.micro_batch=2")  # fmt: skip
    return {one: cell(*([one] if one else [])) for one in words}


@pytest.fixture
def made(kept):
    return copy.deepcopy(kept)


def test_values_that_decide_a_result(made):
    plain = science(made[""])
    assert plain["corpus.train"] == "t"
    assert plain["train.pretrain.arl"] == "as the model"
    assert not any(key.startswith("pattern.") or key.endswith(".micro_batch") for key in plain)
    hidden = ("seed", "eval.batch", "data.root", "data.path", "data.source", "data.workers", "data.lossy",
              "data.longest_mib", "model.name")  # fmt: skip
    assert not set(hidden) & plain.keys()
    for words in ("pattern.dilation=4", "seed=1", "eval.batch=3", "data.root=elsewhere", "train.adapt.micro_batch=2"):
        assert science(made[words]) == plain, words
    assert {k for k, v in science(made["train.adapt.lr=0.5"]).items() if v != plain[k]} == {"train.adapt.lr"}
    old = copy.deepcopy(made[""])
    del old["config"]["train"]["adapt"]["lr"]
    assert science(old).keys() == plain.keys(), "a key that an older version had not has today's default"


def test_axes_are_what_cells_of_one_name_differ_in(made):
    plain, rate = made[""], made["train.adapt.lr=0.5"]
    name_axes([plain, made["pattern.dilation=4"], made["seed=1"], made["model=attention_nano"]])
    assert [one["axes"] for one in made.values() if "axes" in one][:4] == [{}] * 4
    name_axes([plain, rate, made["seed=1"]])
    assert [one["axes"] for one in (plain, rate, made["seed=1"])] == [
        {"train.adapt.lr": plain["config"]["train"]["adapt"]["lr"]}, {"train.adapt.lr": 0.5},
        {"train.adapt.lr": plain["config"]["train"]["adapt"]["lr"]},
    ]  # fmt: skip
    taught, untaught = cell(), cell("train.pretrain.arl=false")
    name_axes([taught, untaught])
    assert taught["axes"]["train.pretrain.arl"] is True
    assert untaught["axes"]["train.pretrain.arl"] is False
    assert list(taught["axes"]) == sorted(taught["axes"])
    assert not any(key.startswith("train.pretrain.arl_") for key in untaught["axes"])


@pytest.mark.parametrize(
    ("words", "axes"),
    [
        (["", "data.workers=2 data.lossy=0.5 data.longest_mib=5 model.name=m"], set()),
        (["", "train.adapt.lr=0.5", "train.context=32"], {"train.adapt.lr", "train.context"}),
        (["", "train.pretrain.micro_batch=1"], set()),
        (["", "train.pretrain.arl_dilation=16"], {"train.pretrain.arl_dilation"}),
        # Of other models, seeds and patterns the keys may differ as they like.
        (["model=attention_tiny train.adapt.lr=0.5", ""], set()),
        (["seed=1 train.adapt.lr=0.5", ""], set()),
        (["pattern=D4 train.adapt.lr=0.5", ""], set()),
    ],
)
def test_keys_that_are_axes_and_keys_that_are_none(words, axes):
    cells = [cell(*line.split()) for line in words]
    if "model.name" in words[1]:
        cells[1]["model"] = cells[0]["model"]  # a name alone makes no other model here
    name_axes(cells)
    assert [set(one["axes"]) for one in cells] == [axes] * len(cells)


def test_without_active_recurrence_learning_its_settings_are_no_axes():
    """It is that of the model unless it is set by hand; an axis shows what it is."""
    words = ("train.pretrain.arl_dilation=16", "train.pretrain.arl_dilation=64", "train.pretrain.arl=false")
    cells = [cell(word) for word in words]
    name_axes(cells)
    both = ["train.pretrain.arl", "train.pretrain.arl_dilation"]
    assert [list(one["axes"]) for one in cells] == [both, both, both[:1]]
    assert [one["axes"][both[0]] for one in cells] == [True, True, False]
    assert [science(one)[both[0]] for one in cells] == ["as the model", "as the model", False]


def test_the_config_of_a_cell_of_a_manifest(made):
    found = cell_config(made[""])
    assert "vocab_size" not in found["model"]
    assert typed(found).model.name == "ratplus_nano"
    assert made[""]["config"]["model"]["vocab_size"] == 257
    assert set(made[""]["run"]) == {"run", "logger", "launcher", "trainer"}
    assert made[""]["id"] == made[""]["stages"]["evaluate"]
    assert found["launcher"] == made[""]["run"]["launcher"]


def test_symbols_of_recall_are_no_vocabulary_of_the_text():
    """So that the ids are those of a corpus that was opened."""
    with_recall = compose_one(["model=ratplus_nano"]).config
    without = compose_one(["model=ratplus_nano", "data.recall.fraction=0"]).config
    given: list = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "plan", lambda config, corpus, vocab: given.append(vocab))
        planned_stages(with_recall, CORPUS, 300)
        planned_stages(without, CORPUS, 300)
    assert given[1] == 300
    assert given[0] == 300 - manifest.RecallTask.of(with_recall.data.recall, 0).vocab_size < 300


# ---- the file -----------------------------------------------------------------------------------------------------


def test_cells_join_in_their_order_and_keep_what_they_were_asked(tmp_path, made):
    folder = tmp_path / "new" / "x"
    first, second = made["pattern.dilation=4"], made[""]
    add_cells(folder, "x", [first])
    text = (folder / "sweep.json").read_text()
    content = json.loads(text)
    assert text == json.dumps(content, indent=1) + "\n"
    assert (content["format"], content["name"], [one["id"] for one in content["cells"]]) == (1, "x", [first["id"]])
    assert content["cells"][0]["axes"] == {}
    added = {"id": "0" * 12, "suite": "ruler", "eval": {}}
    add_suites(folder, {first["id"]: added, "unknown": added})
    add_suites(folder, {first["id"]: added | {"suite": "the same id"}})
    add_suites(folder, {first["id"]: added | {"id": "1" * 12}})
    assert read_manifest(folder)["cells"][0]["added"] == [added, added | {"id": "1" * 12}]
    add_cells(folder, "x", [second, made["pattern.dilation=4"]])
    cells = read_manifest(folder)["cells"]
    assert [one["id"] for one in cells] == [first["id"], second["id"]]
    assert [len(one.get("added", [])) for one in cells] == [2, 0]
    assert [one["id"] for one in check_cells(folder, [first])] == [first["id"], second["id"]]
    assert check_cells(tmp_path / "none", [first]) == []


def test_a_folder_that_cannot_be_written(tmp_path, made):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"^output=.*file/x: cannot be written \(Not a directory\)$"):
        add_cells(tmp_path / "file" / "x", "x", [made[""]])


def test_a_cell_of_an_older_version_is_replaced_by_todays(tmp_path, made, capsys):
    old = made[""]
    old["id"] = old["stages"]["evaluate"] = "f" * 12
    add_cells(tmp_path, "x", [old, made["pattern.dilation=4"]])
    assert capsys.readouterr().err == ""
    today = cell()
    add_cells(tmp_path, "x", [today])
    assert [one["id"] for one in read_manifest(tmp_path)["cells"]] == [made["pattern.dilation=4"]["id"], today["id"]]
    assert capsys.readouterr().err == (
        "1 cells of this folder have other ids in this version and are run anew; their old records stay, but are no "
        "longer reported\n"
    )


def test_cells_of_another_config_are_refused_unless_that_is_an_axis(tmp_path, made):
    add_cells(tmp_path, "x", [made[""]])
    for words in ("pattern.dilation=4", "seed=1", "model=attention_nano"):
        add_cells(tmp_path, "x", [made[words]])
    before = made[""]["config"]["train"]["adapt"]["lr"]
    with pytest.raises(UsageError) as told:
        add_cells(tmp_path, "x", [made["train.adapt.lr=0.5"]])
    assert str(told.value) == (
        f"{tmp_path}: holds cells with train.adapt.lr={before}, this call asks for train.adapt.lr=0.5; choose another "
        "folder with output=..., or make it an axis of the sweep"
    )
    other = cell(corpus=CORPUS | {"train": "another"})
    with pytest.raises(UsageError, match="holds cells with corpus.train=t, this call asks for corpus.train=another"):
        add_cells(tmp_path, "x", [other])
    assert len(read_manifest(tmp_path)["cells"]) == 4
    for axis in ("train.adapt.lr", "train.adapt", "train"):
        swept = cell("train.adapt.lr=0.5", axes=(axis,))
        assert swept["swept"] == [axis]
        check_cells(tmp_path, [swept])
    with pytest.raises(UsageError, match="train.adapt.lr"):
        check_cells(tmp_path, [cell("train.adapt.lr=0.5", axes=("train.adapt.l", "adapt", "train.adapt.lr.x"))])


def test_a_record_in_a_folder_without_a_manifest(tmp_path, made):
    first = made[""]
    for name, fine in ((first["stages"]["adapt"], True), ("0" * 12, False)):
        place = tmp_path / name / "adapt" / name
        place.mkdir(parents=True)
        (place / "record.json").write_text("{}")
        if fine:
            check_cells(tmp_path / name, [first])
        else:
            with pytest.raises(UsageError) as told:
                check_cells(tmp_path / name, [first])
            assert str(told.value) == (
                f"{place / 'record.json'}: a record of another config, in a folder without sweep.json; choose another "
                "folder with output=..."
            )
            (tmp_path / name / "sweep.json").write_text(json.dumps({"format": 1, "name": "x", "cells": [first]}))
            check_cells(tmp_path / name, [first])


def test_foreign_records_are_refused_and_damaged_ones_are_not(tmp_path, monkeypatch):
    looked: list = []
    errors: dict = {}

    def read_record(place):
        looked.append(place)
        if place in errors:
            raise errors[place]

    monkeypatch.setattr(manifest, "read_record", read_record)
    entries = [
        {"stages": {"pretrain": "p", "evaluate": "a"}},
        {"stages": {"pretrain": "p", "sft": "s", "evaluate": "b"}},
    ]
    errors[tmp_path / "pretrain" / "p"] = RecordError("damaged")
    check_records(tmp_path, entries)
    assert sorted(map(str, looked)) == sorted(
        str(tmp_path / p) for p in ("pretrain/p", "sft/s", "evaluate/a", "evaluate/b")
    )
    errors[tmp_path / "evaluate" / "b"] = ForeignRecord("of another id")
    with pytest.raises(ForeignRecord):
        check_records(tmp_path, entries)


def test_suites_are_checked_once_for_each_text_and_evaluation(monkeypatch):
    checked, opened = [], []

    def corpus_of(data):
        opened.append(data.path)
        return SimpleNamespace(train=range(1000), validation=range(1000), identity=CORPUS, vocab_size=256, folder="f")

    monkeypatch.setattr(manifest, "corpus_of", corpus_of)
    monkeypatch.setattr(manifest, "check_suites", lambda config, corpus: checked.append(config.eval.text_rows))
    words = ["model=ratplus_nano", "train.context=256"]
    cells = [
        compose_one([*words, *more])
        for more in ([], ["seed=1"], ["eval.text_rows=3"], ["train.context=128"], ["data.path=x"],
                     ["data.recall.fraction=0"], ["train.sft.steps=5", "train.sft.tasks=[niah_single_1]"])
    ]  # fmt: skip
    assert len(manifest.plan_cells(cells)) == 7
    usual = cells[0].config.eval.text_rows
    assert opened == [None, "x"], "the recall task is no part of the text"
    assert checked == [usual, 3, usual, usual, usual]


# ---- folders of sweeps --------------------------------------------------------------------------------------------


def composed(output: str | None, sweep: dict | None) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(output=output, sweep=sweep))


@pytest.mark.parametrize(
    ("sweep", "output", "folder"),
    [
        (None, None, "outputs/adhoc"), ({}, None, "outputs/adhoc"), ({"name": None}, None, "outputs/adhoc"),
        ({"name": ""}, None, "outputs/adhoc"), ({"name": "a b"}, None, "outputs/a b"),
        ({"name": "a.b c"}, None, "outputs/a.b c"), ({"name": "x"}, "there/y", "there/y"), (None, "y", "y"),
    ],
)  # fmt: skip
def test_the_folder_of_a_sweep(sweep, output, folder):
    cells = [composed(output, sweep), composed(output, sweep)]
    assert str(manifest.sweep_folder(cells)) == folder
    with pytest.raises(UsageError, match=r"^output: one sweep has one folder; give a single value$"):
        manifest.sweep_folder([*cells, composed("elsewhere", sweep)])


@pytest.mark.parametrize("name", [5, "a\nb", ".", "..", "a/b", "a\\b", ["x"]])
def test_names_that_are_no_folder(name):
    with pytest.raises(UsageError) as told:
        manifest.sweep_folder([composed(None, {"name": name})])
    assert str(told.value) == (
        f"sweep.name: got {name!r}; it names a folder of outputs/, so it is one plain word without /"
    )


@pytest.mark.parametrize("output", ["a\tb", "a\nb"])
def test_an_output_that_is_no_line(output):
    with pytest.raises(UsageError, match="output: got 'a..b'; a folder's name has no control characters"):
        manifest.sweep_folder([composed(output, None)])
