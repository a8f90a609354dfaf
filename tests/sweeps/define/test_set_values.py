"""Values of words and what is referred to, as OmegaConf sets and resolves them."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ratplus.sweeps.define.set_values import copied, with_values

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
