"""Words of a command and files of the user's, in each case that decides one: labels, open keys, names, commands."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
from omegaconf.errors import OmegaConfBaseException

from ratplus.records.record import flatten
from ratplus.sweeps.define import grid, key_reference, manifest, reproduce
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.hydra_errors import omegaconf_line
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.open_keys import is_open, open_keys, refuse_hydra_section
from ratplus.sweeps.define.pattern_labels import labels_as_keys


def write(folder, **files: str) -> str:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


# ---- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("pattern=D16-W64", 'pattern.label="D16-W64"'), ("pattern='D16,D4'", 'pattern.label="D16","D4"'),
        ('pattern="D16"', 'pattern.label="D16"'), ("pattern='D16", "pattern='D16"),
        ("pattern='D16\"", "pattern='D16\""),
        ("pattern= D1 , top4x8", 'pattern.label="D1","top4x8"'), ("pattern=DD16D", "pattern=DD16D"),
        ("pattern=layers[D1,D4],D16", 'pattern.label="layers[D1,D4]","D16"'), ("pattern=dense", "pattern=dense"),
        ("pattern=mixed[D1,D4|D4,D1]", 'pattern.label="mixed[D1,D4|D4,D1]"'), ("pattern=", "pattern="),
        ("pattern=dense,dilated", "pattern=dense,dilated"), ("pattern", "pattern"), ("model=D16", "model=D16"),
        ("pattern='", "pattern='"),
        ("pattern.label=D16", "pattern.label=D16"), ("pattern.label=layers[D1,D4]", 'pattern.label="layers[D1,D4]"'),
        ("pattern.label='layers[D1,D4]'", "pattern.label='layers[D1,D4]'"),
        ("pattern.label=layers[D1,D4],D16", 'pattern.label="layers[D1,D4]","D16"'),
    ],
)  # fmt: skip
def test_labels_become_a_key(word, key):
    assert labels_as_keys([word], None) == [key]


def test_a_file_that_has_the_name_of_a_label_is_meant(tmp_path):
    folder = write(tmp_path, pattern__D16="dilation: 9\n")
    assert labels_as_keys(["pattern=D16", "pattern=D4"], folder) == ["pattern=D16", 'pattern.label="D4"']
    assert labels_as_keys(["pattern=D16"], None) == ['pattern.label="D16"']
    for word, first, other in (
        ("pattern=D4,D16", "D4", "D16"), ("pattern=D16,D4", "D4", "D16"), ("pattern=dense, top4x8", "top4x8", "dense"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as told:
            labels_as_keys([word], folder)
        assert str(told.value).startswith(f"{word}: {first} is a label and {other} is none; give labels alone")


def test_a_file_of_ours_has_its_name_whatever_the_users_folder_has(tmp_path, monkeypatch):
    """The names of our files are no labels today; this is what would count if one were."""
    from ratplus import conf

    ours = write(tmp_path / "ours", pattern__D16="dilation: 16\n")
    monkeypatch.setattr(conf, "__path__", [ours])
    assert labels_as_keys(["pattern=D16", "pattern=D4"], write(tmp_path / "theirs", pattern__D4="")) == [
        "pattern=D16", "pattern=D4",
    ]  # fmt: skip


# ---- open keys ----------------------------------------------------------------------------------------------------


def test_keys_that_files_leave_open(tmp_path):
    folder = write(
        tmp_path, pattern__must="dilation: ???\nwindow: [1, '???']\nsinks: 2\n", data__odd="[1]\n",
        experiment__gives="# @package _global_\npattern: {dilation: 8}\ndefaults: ['???']\n",
        experiment__asks="# @package _global_\nseed: ???\n", model__own="# @package pattern\nkernel: ???\n",
        data__text="path: ???\n",
    )  # fmt: skip
    assert open_keys(folder, {"pattern": "must"}) == {"pattern.dilation", "pattern.window"}
    assert open_keys(folder, {"experiment": "gives", "pattern": "must"}) == {"pattern.window"}
    assert open_keys(folder, {"experiment": "asks", "model": "own"}) == {"seed", "pattern.kernel"}
    assert open_keys(folder, {"data": "odd", "pattern": "not there"}) == set()
    assert open_keys(folder, {"data": "text"}) == {"data.path"}
    assert open_keys(str(tmp_path / "no"), {"pattern": "dense"}) == set()
    (tmp_path / "data" / "text.yaml").write_text("path: x\n")
    assert open_keys(folder, {"data": "text"}) == set(), "the user's file stands for ours"


@pytest.mark.parametrize(
    ("value", "open_"),
    [
        ("???", True), ("x", False), (None, False), ([1, "???"], True), ([[1], ["???"]], True), ([], False),
        ("????", False),
    ],
)  # fmt: skip
def test_what_is_open(value, open_):
    assert is_open(value) is open_


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hydra: {job: {name: x}}\n", "hydra.job.name"), ("defaults: [{override hydra/launcher: x}]\n",
                                                          "override hydra/launcher"),
        ("defaults: [{/hydra/job: x}, a]\n", "/hydra/job"), ("# @package hydra.job\nname: x\n", "hydra.job"),
        ("# @package hydra\njob: x\n", "hydra"), ("hydration: 1\nlater: {hydra: 1}\n", None), ("[hydra]\n", None),
        ("# @package hydrae\nname: x\n", None), ("defaults: null\nseed: 1\n", None), ("defaults: [hydra]\n", None),
    ],
)  # fmt: skip
def test_a_file_that_sets_what_hydra_does(tmp_path, text, named):
    folder = write(tmp_path, experiment__x=text)
    chosen = {"pattern": "dense", "experiment": "x"}
    if named is None:
        refuse_hydra_section(folder, chosen)
        return
    with pytest.raises(UsageError) as told:
        refuse_hydra_section(folder, chosen)
    assert str(told.value).startswith(f"{tmp_path / 'experiment' / 'x.yaml'}: {named}: has no effect, since ratplus")


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


# ---- folders of sweeps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "output", "folder"),
    [
        (None, None, "outputs/adhoc"), ({}, None, "outputs/adhoc"), ({"name": None}, None, "outputs/adhoc"),
        ({"name": "a b"}, None, "outputs/a b"), ({"name": "x"}, "there/y", "there/y"), (None, "y", "y"),
    ],
)  # fmt: skip
def test_the_folder_of_a_sweep(sweep, output, folder):
    cell = SimpleNamespace(config=SimpleNamespace(sweep=sweep, output=output))
    assert str(manifest.sweep_folder([cell, cell])) == folder


@pytest.mark.parametrize("name", [5, "a\nb", ".", "..", "a/b", "a\\b", ["x"]])
def test_names_that_are_no_folder(name):
    cell = SimpleNamespace(config=SimpleNamespace(sweep={"name": name}, output=None))
    with pytest.raises(UsageError) as told:
        manifest.sweep_folder([cell])
    assert str(told.value) == (
        f"sweep.name: got {name!r}; it names a folder of outputs/, so it is one plain word without /"
    )


def test_cells_of_two_folders_are_no_sweep():
    cells = [SimpleNamespace(config=SimpleNamespace(sweep=None, output=output)) for output in ("a", "b")]
    with pytest.raises(UsageError, match="output: one sweep has one folder; give a single value"):
        manifest.sweep_folder(cells)
    with pytest.raises(UsageError, match="output: got 'a.tb'; a folder's name has no control characters"):
        manifest.sweep_folder([SimpleNamespace(config=SimpleNamespace(sweep=None, output="a\tb"))])


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
