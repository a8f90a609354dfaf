"""`sweep:` as lists of overrides, and what leaves a cell out: by hand, at the limits, with all kinds of values."""

import pytest

from ratplus.config.cell import Config
from ratplus.config.model import ModelSection
from ratplus.config.pattern import PatternSection
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.grid import MOST_CELLS, excluded, expand, override_value
from ratplus.sweeps.define.mistakes import UsageError


def made(spec, decided=(), given=()) -> list[str]:
    return [" ".join(words) for words in expand(spec, set(decided), set(given))]


def test_grid_zip_points_and_seeds_are_multiplied():
    assert made({}) == [""]
    assert made({"name": "x", "grid": {"a": [1, 2], "b": 3}}) == ["a=1 b=3", "a=2 b=3"]
    assert made({"zip": {"a": [1, 2], "b": ["x", None]}}) == ["a=1 b=x", "a=2 b=null"]
    assert made({"points": [{"a": 1, "b": [2, 3]}, {"c": True}]}) == ["a=1 b=2", "a=1 b=3", "c=true"]
    assert made({"seeds": 2}) == ["seed=0", "seed=1"]
    assert made({"seeds": [5, 7]}) == ["seed=5", "seed=7"]
    whole = {"grid": {"a": [1, 2]}, "zip": {"b": [3, 4]}, "points": [{"c": 5}, {"d": 6}], "seeds": [0]}
    assert made(whole) == [
        f"a={a} b={b} {point} seed=0" for a in (1, 2) for b in (3, 4) for point in ("c=5", "d=6")
    ]  # fmt: skip


def test_what_the_command_line_decides_is_left_out():
    spec = {
        "grid": {"pattern.window": [0, 1], "model": ["m"], "pattern": ["p"]}, "zip": {"pattern.sinks": [1, 2]},
        "points": [{"model.layers": 2, "train.context": 9}],
    }  # fmt: skip
    assert made(spec, decided={"pattern"}) == ["model=m model.layers=2 train.context=9"]
    assert made(spec, decided={"model"}, given={"pattern.window", "pattern"}) == [
        "pattern.sinks=1 train.context=9", "pattern.sinks=2 train.context=9",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"grids": {}}, "sweep.grids: unknown key; allowed: name, grid, zip, points, seeds, exclude"),
        ({"grid": [1]}, "sweep.grid: got [1]; it must be a mapping from keys to values"),
        ({"zip": [1]}, "sweep.zip: got [1]; it must be a mapping"),
        ({"zip": {"a": 1}}, "sweep.zip.a: got 1; it must be a list"),
        ({"zip": {"a": [1], "b": [1, 2]}}, "sweep.zip: paired lists must be equally long; a has 1, b has 2"),
        ({"points": {"a": 1}}, "sweep.points: got {'a': 1}; it must be a list of mappings"),
        ({"points": [{}, 1]}, "sweep.points[1]: got 1; it must be a mapping"),
        *(({"seeds": wrong}, f"sweep.seeds: got {wrong!r}; give how many (1 to 100000) or a list of seeds")
          for wrong in (0, -1, [], "3", 1.5, True, 100_001)),
        ({"grid": {"a": list(range(1000)), "b": list(range(101))}}, "sweep.grid: asks for more than 100,000 cells"),
        ({"grid": {"a": list(range(1000))}, "seeds": 101}, "sweep: asks for 101,000 cells; at most 100,000 are made"),
    ],
)  # fmt: skip
def test_mistakes(spec, line):
    with pytest.raises(UsageError) as caught:
        made(spec)
    assert str(caught.value).startswith(line)


def test_as_many_cells_as_are_allowed():
    assert (
        len(expand({"grid": {"a": list(range(1000)), "b": list(range(MOST_CELLS // 1000))}}, set(), set()))
        == MOST_CELLS
    )
    assert len(expand({"seeds": MOST_CELLS}, set(), set())) == MOST_CELLS
    # Of several choices together, which each are few.
    thousand = {"grid": {"a": list(range(1000))}}
    assert len(expand(thousand | {"seeds": MOST_CELLS // 1000}, set(), set())) == MOST_CELLS
    with pytest.raises(UsageError, match="^sweep: asks for 101,000 cells; at most 100,000 are made at once$"):
        expand(thousand | {"seeds": MOST_CELLS // 1000 + 1}, set(), set())


VALUES = {
    "null": None, "true": True, "false": False, "3": 3, "-0.5": -0.5, "1e-06": 1e-6,
     "[1,null,[true]]": [1, None, [True]],
    "{a:1,b:[x]}": {"a": 1, "b": ["x"]}, "plain/a.b@1%+:-": "plain/a.b@1%+:-", '"a b"': "a b", '"a,b"': "a,b", '""': "",
    '"say \\"hi\\" \\\\"': 'say "hi" \\', '"a=b"': "a=b", '"$x"': "$x",
}  # fmt: skip


@pytest.mark.parametrize("text", VALUES)
def test_values_in_hydras_grammar(text):
    assert override_value(VALUES[text]) == text


@pytest.mark.parametrize(
    "name",
    [
        "a b", 'say "hi" \\', "x,y", "[z]", "a=b", "größe", "语", "1e5", "12e4567", "null", "NULL", "true", "False",
        "3", "-0.50", "1_000", "0012", "inf", "-nan", ".5", "5.", "v1.0", "3d", "1.2.3", "e5", "a/b.c@1%+:-",
    ],
)  # fmt: skip
def test_texts_come_back_from_hydra_as_they_were(name):
    """Also those that look like something else: a model may be called 1e5, and a commit 12e4567."""
    assert compose_one([f"model.name={override_value(name)}"]).config.model.name == name


@pytest.mark.parametrize(
    ("rules", "out"),
    [
        ([], False), ([{"pattern": "wide"}], True), ([{"pattern": ["x", "wide"]}], True), ([{"pattern": "x"}], False),
        ([{"pattern": "wide", "seed": 1}], False), ([{"pattern": "wide", "seed": [0, 1]}], True),
        ([{"seed": 1}, {"pattern.window": 4}], True), ([{"pattern.dilation": [1, 4]}], True),
        ([{"pattern.dilation": [4, 1]}], False), ([{"train.pretrain.arl": False}], True),
        ([{"pattern.window": "4"}], False),
    ],
)  # fmt: skip
def test_a_rule_leaves_out_what_matches_all_of_it(rules, out):
    """A list is a choice of values, or the value itself: a hybrid's dilations."""
    config = Config(model=ModelSection(layers=2), pattern=PatternSection(dilation=[1, 4], window=4))
    assert excluded(rules, config, {"pattern": "wide", "model": "m"}) == out


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({}, "sweep.exclude[0]: got {}; it must be a mapping"), (3, "sweep.exclude[0]: got 3; it must be a mapping"),
        ({"pattern.widow": 1}, "sweep.exclude[0]: pattern.widow: unknown key"), ({"seed.x": 1}, "seed.x: unknown key"),
    ],
)  # fmt: skip
def test_rules_that_are_none(rule, line):
    with pytest.raises(UsageError) as caught:
        excluded([rule], Config(), {})
    assert line in str(caught.value)
