"""A section of one of our own files without Hydra is what Hydra composes; whatever is less simple is left to Hydra."""

from pathlib import Path

import pytest
from hydra import compose as by_hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ratplus.sweeps.define import shipped_group
from ratplus.sweeps.define.compose import compose_one, hydra_session
from ratplus.sweeps.define.set_values import copied, with_values
from ratplus.sweeps.define.shipped_group import shipped_section
from ratplus.sweeps.define.typed import SECTIONS

CONF = Path(__file__).parents[3] / "conf"
CHOICES = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name in SECTIONS)


def section_by_hydra(group: str, choice: str, *words: str) -> dict:
    with hydra_session():
        return OmegaConf.to_container(by_hydra("config", overrides=[f"{group}={choice}", *words]))[group]


@pytest.mark.parametrize(
    ("group", "choice"), [("data", "text"), ("train", "paper_3b_200b"), ("model", "attention_nano")]
)
def test_it_is_what_hydra_composes(group, choice):
    found = shipped_section(group, choice, None)
    assert found == section_by_hydra(group, choice)
    assert list(found) == list(section_by_hydra(group, choice))


@pytest.mark.slow
@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_each_is_what_hydra_composes(group, choice):
    assert shipped_section(group, choice, None) == section_by_hydra(group, choice)
    if CHOICES.index((group, choice)) == [name for name, _ in CHOICES].index(group):  # one of each group
        for path in (CONF / "experiment").glob("*.yaml"):
            found = shipped_section(group, choice, path.stem)
            assert found in (None, section_by_hydra(group, choice, f"experiment={path.stem}"))


def test_every_shipped_choice_is_simple_enough():
    assert len(CHOICES) > 60
    assert [word for word in CHOICES if shipped_section(*word, None) is None] == []


def test_an_experiment_that_touches_the_section_is_left_to_hydra():
    assert shipped_section("train", "tiny", "smoke") is None
    assert shipped_section("model", "ratplus_nano", "smoke") == shipped_section("model", "ratplus_nano", None)
    assert shipped_section("train", "tiny", "no_such_experiment") is None
    # It says train.context=128, whichever recipe is chosen.
    assert compose_one(["experiment=smoke", "train=20m"]).config.train.context == 128


@pytest.mark.parametrize(
    "text",
    [
        None,
        "- 4\n",
        "# @package _global_\npattern: {dilation: 4}\n",
        "defaults: [dense]\ndilation: 4\n",
        "defaults: [gone, _self_]\ndilation: 4\n",
        "defaults: [mine, _self_]\ndilation: 4\n",
        "defaults: [{override /model: ratplus_nano}, _self_]\ndilation: 4\n",
        "defaults: _self_\ndilation: 4\n",
        "dilaton: 4\n",
    ],
)
def test_other_files_are_left_to_hydra(tmp_path, monkeypatch, text):
    (tmp_path / "pattern").mkdir()
    (tmp_path / "pattern" / "dense.yaml").write_text("window: 2\n")
    if text is not None:
        (tmp_path / "pattern" / "mine.yaml").write_text(text)
    monkeypatch.setattr(shipped_group.conf, "__path__", [str(tmp_path)])
    assert shipped_section("pattern", "mine", None) is None
    (tmp_path / "pattern" / "mine.yaml").write_text("defaults: [_self_, dense]\nwindow: 4\ndilation: 3e0\n")
    found = shipped_section("pattern", "mine", None)
    assert (found["window"], found["dilation"]) == (2, 3.0)  # what stands last wins


SECTION = {
    "a": {"n": 1, "deep": {"x": None, "y": [1, {"z": 2}]}},
    "b": {"of": "${a.n}", "text": "n is ${a.n}", "whole": "${a.deep}"},
    "c": {"alone": [1, 2], "name": "a"},
}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a.n=7"],
        ["a.n=7", "a.n=null"],
        ["c.alone=[3,[4,null]]", "c.name='quoted ${a.n}'"],
        ["c.name=${b.of}"],
        ["a.deep=null", "a.deep.x=3"],
        ["a.deep={x:5}", "a.n=2"],
        ["a.deep.y=[]", "d=1"],
        ["a.n.m=1"],
        ["c.name='${a.${c.name}}'", "c.name=n"],
        ["b.of=3e-3", "b.text=true", "c.more=x"],
        ["e.f.g=1"],
    ],
)
def test_values_are_set_and_referred_to_as_by_omegaconf(words):
    values = [OverridesParser.create().parse_overrides([word])[0] for word in words]
    expected = OmegaConf.create(SECTION)
    for value in values:
        OmegaConf.update(expected, value.key_or_group, value.value())
    expected, before, known = OmegaConf.to_container(expected, resolve=True), copied(SECTION), {}
    for _ in range(2):  # the second time from what is known
        found = with_values(SECTION, values, known)
        assert found == expected
        assert list(found) == list(expected)
        assert before == SECTION
        found["a"], found["c"]["alone"] = None, "changed by the caller"
