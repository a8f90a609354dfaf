"""What Hydra and OmegaConf say in one line, commands that make a cell again, and shapes of the grid: case by case."""

from dataclasses import asdict

import pytest
from omegaconf.errors import OmegaConfBaseException

from ratplus.records.record import flatten
from ratplus.sweeps.define import grid, key_reference, reproduce
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.hydra_errors import omegaconf_line
from ratplus.sweeps.define.mistakes import UsageError

# ---- what Hydra and OmegaConf say -----------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["a/b=[1]", "pattern/x=1"])
def test_a_key_with_a_slash_is_a_group_of_hydras(word):
    with pytest.raises(UsageError) as told:
        compose_one([word])
    key = word.partition("=")[0]
    assert str(told.value) == f"{word}: {key} takes the name of one choice, or {{key: value}}"


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("Key 'x' not in 'Y'", None, "Key 'x' not in 'Y'"), ("Key 'layrs' not in 'Y'", "model",
                                                             "model.layrs: unknown key; did you mean model.layers?"),
        ("Key 'layrs' not in 'Y'", "model.layrs", "model.layrs: unknown key; did you mean model.layers?"),
        ("odd\nmore", "model", "model: odd"), ("odd", None, "odd"),
        ("Value 'x' of type 'str' could not be converted to Integer", "k", "k: got 'x'; it must be a whole number"),
        ("Value 'x' of type 'str' could not be converted to Float", "k", "k: got 'x'; it must be a number"),
        ("Value 'x' of type 'str' could not be converted to Boolean", "k", "k: got 'x'; it must be true or false"),
        ("Value 'x' of type 'str' could not be converted to Path", "k", "k: got 'x'; it must be Path"),
        ("Value 'x' is not a valid bool (type str)", "k", "k: got 'x'; it must be true or false"),
        ("Cannot convert 'ListConfig' to string: '[1]'", "k",
         "k: got a list ([1]); it must be one text, quoted if it holds brackets: 'k=\"...\"'"),
        ("Cannot convert 'DictConfig' to string: '{}'", "k",
         "k: got a mapping ({}); it must be one text, quoted if it holds brackets: 'k=\"...\"'"),
        ("Cannot convert 'Odd' to string: 'x'", "k",
         "k: got Odd (x); it must be one text, quoted if it holds brackets: 'k=\"...\"'"),
    ],
)  # fmt: skip
def test_an_error_of_omegaconf_in_one_line(text, key, line):
    error = OmegaConfBaseException(text)
    error.full_key = key
    assert omegaconf_line(error) == line


# ---- the command that makes a cell again --------------------------------------------------------------------------


def entry(*words: str, **changes) -> dict:
    """A manifest entry of a cell, as far as its command needs it; `changes` are to flat keys of its config."""
    config = asdict(compose_one(list(words)).config)
    config["model"]["vocab_size"] = 99
    for key, value in changes.items():
        *parents, name = key.split("__")
        section = config
        for parent in parents:
            section = section[parent]
        section[name] = value
    science = {key: value for key, value in config.items() if key not in reproduce.RUNTIME}
    return {"id": "i" * 12, "config": science}


def test_a_command_names_what_differs_from_the_defaults_and_composes_to_it():
    made = entry("model=ratplus_nano", "train.context=128", "data=text", "data.path='/a b/c'", "pattern.dilation=16")
    line = reproduce.command(made, "evaluate", "out put", threads=3)
    assert line.startswith("ratplus evaluate model=ratplus_nano data=text 'data.path=\"/a b/c\"' ")
    assert line.endswith(" run.threads=3 'output=\"out put\"'")
    assert set(line.split()) >= {"train.context=128", "pattern.dilation=16"}
    assert "vocab_size" not in line
    assert "run.threads" not in reproduce.command(made, "adapt", "x")
    assert reproduce.command(made, "adapt", "x").startswith("ratplus adapt ")
    assert reproduce.differences(made) == []


def test_a_command_as_long_as_a_shell_takes_and_one_longer(monkeypatch):
    made = entry("model=ratplus_nano")
    length = len(reproduce.command(made, "evaluate", "x"))
    monkeypatch.setattr(reproduce, "_LONGEST", length)
    assert len(reproduce.command(made, "evaluate", "x")) == length
    monkeypatch.setattr(reproduce, "_LONGEST", length - 1)
    with pytest.raises(UsageError, match=f"makes a command of {length:,} characters; no shell takes it"):
        reproduce.command(made, "evaluate", "x")


@pytest.mark.parametrize(
    ("key", "value"), [("hydra", 1), ("hydra__job", 1), ("Upper", 1), ("a b", 1), ("seed", "${x}")]
)
def test_a_strangers_keys_are_no_settings(key, value):
    made = entry("model=ratplus_nano")
    made["config"][key.replace("__", ".")] = value
    with pytest.raises(UsageError, match=r"^sweep.json: .* is no setting of a cell$"):
        reproduce.overrides(made)


def test_a_model_of_somebody_else_is_named_by_all_its_keys():
    made = entry("model=ratplus_nano", model__name="theirs", model__layers=3)
    words = reproduce.overrides(made)
    assert not any(word.startswith("model=") for word in words)
    assert {"model.name=theirs", "model.layers=3"} <= set(words)
    assert reproduce.differences(made) == []
    long = entry("model=ratplus_nano", model__name="x" * 61)
    assert not any(word.startswith("model=") for word in reproduce.overrides(long))


def test_keys_that_compose_to_other_values_are_sorted(monkeypatch):
    made = entry("model=ratplus_nano")
    wanted = {k: v for k, v in flatten(made["config"]).items() if k not in reproduce._IGNORED}
    odd = ("train.context", "seed", "model.layers", "data.recall.keys", "eval.text_rows", "model.d_model")
    monkeypatch.setattr(reproduce, "_flat", lambda words: {**wanted, **dict.fromkeys(odd, "?"), "new.key": 1})
    assert reproduce.differences(made) == sorted(odd)
    monkeypatch.setattr(reproduce, "_flat", lambda words: {k: v for k, v in wanted.items() if k not in odd})
    assert reproduce.differences(made) == sorted(odd), "keys that this version does not know"


def test_a_page_says_why_a_command_is_missing():
    assert reproduce.reproducer(101) is None
    found = reproduce.reproducer(100)
    made = entry("model=ratplus_nano")
    assert found(made) == reproduce.command(made, "evaluate", f"outputs/again-{'i' * 12}")
    made["config"]["seed"] = "${x}"
    assert found(made) == (
        "# this version of ratplus can't compose it: sweep.json: seed='${x}' is no setting of a cell"
    )
    assert found({"id": "x", "config": {"model": {"layers": 1}}}) == (
        "# sweep.json lacks its key 'model.name', so it can't be composed"
    )


# ---- the grid, at each shape --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapping", [[1], "x", 5, True])
@pytest.mark.parametrize("where", ["grid", "zip", "points"])
def test_what_is_no_mapping_is_shown(mapping, where):
    spec = {where: [mapping] if where == "points" else mapping}
    name = "sweep.points[0]" if where == "points" else f"sweep.{where}"
    with pytest.raises(UsageError) as told:
        grid.expand(spec, set(), set())
    assert str(told.value) == f"{name}: got {mapping!r}; it must be a mapping from keys to values"


def test_the_page_of_keys_is_written_where_it_is_asked_for(tmp_path, monkeypatch):
    """As `make docs` does it."""
    import runpy
    import sys

    monkeypatch.setattr(sys, "argv", ["key_reference", str(tmp_path / "keys.md")])
    monkeypatch.delitem(sys.modules, "ratplus.sweeps.define.key_reference")
    runpy.run_module("ratplus.sweeps.define.key_reference", run_name="__main__")
    assert (tmp_path / "keys.md").read_text() == key_reference.page()
