"""Labels in the place of files, and what is looked for in config files of the user's: each case by its own line."""

from pathlib import Path

import pytest

from ratplus import conf
from ratplus.sweeps.define.compose import compose_cells, compose_one
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.own_files import is_open, open_keys, refuse_hydra_section, refuse_open
from ratplus.sweeps.define.pattern_labels import labels_as_keys


def write(folder: Path, **files: str) -> str:
    """Files of these groups and names (`pattern__mine`) in a folder, which is returned as the command line has it."""
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
        ('pattern="D16"', 'pattern.label="D16"'), ("pattern='D16", "pattern='D16"), ("pattern=D16, D4",
                                                                                     'pattern.label="D16","D4"'),
        ("pattern='D16\"", "pattern='D16\""), ("pattern= D1 , top4x8", 'pattern.label="D1","top4x8"'),
        # The same character at both ends is no quote unless it is one.
        ("pattern=DD16D", "pattern=DD16D"), ("pattern=1D4-W11", "pattern=1D4-W11"),
        ("pattern=layers[D1,D64]", 'pattern.label="layers[D1,D64]"'),
        ("pattern=layers[D1,D4],D16", 'pattern.label="layers[D1,D4]","D16"'), ("pattern=dense", "pattern=dense"),
        ("pattern=mixed[D1,D4|D4,D1]", 'pattern.label="mixed[D1,D4|D4,D1]"'), ("pattern=", "pattern="),
        ("pattern=dense,dilated", "pattern=dense,dilated"), ("pattern", "pattern"), ("model=D16", "model=D16"),
        ("pattern='", "pattern='"), ("pattern.dilation=D4", "pattern.dilation=D4"),
        ("pattern.label=D16", "pattern.label=D16"), ("pattern.label=layers[D1,D4]", 'pattern.label="layers[D1,D4]"'),
        ("pattern.label=D4,D8", "pattern.label=D4,D8"),
        ("pattern.label='layers[D1,D4]'", "pattern.label='layers[D1,D4]'"),
        ("pattern.label=layers[D1,D4],D16", 'pattern.label="layers[D1,D4]","D16"'),
    ],
)  # fmt: skip
def test_labels_become_a_key(word, key):
    assert labels_as_keys(["a=1", word, "b"], None) == ["a=1", key, "b"]


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
    monkeypatch.setattr(conf, "__path__", [write(tmp_path / "ours", pattern__D16="dilation: 16\n")])
    assert labels_as_keys(["pattern=D16", "pattern=D4"], write(tmp_path / "theirs", pattern__D4="")) == [
        "pattern=D16", "pattern=D4",
    ]  # fmt: skip


# ---- keys that are left open --------------------------------------------------------------------------------------


def test_keys_that_files_leave_open(tmp_path):
    folder = write(
        tmp_path,
        pattern__must="dilation: ???\nwindow: [1, '???']\nsinks: 2\n",
        data__odd="[1]\n",
        data__mine="path: ???\nfiles: a\nrecall:\n  keys: ???\n",
        data__text="path: ???\n",
        train__own__deep="a: ???\n",
        model__own="# @package pattern\nkernel: ???\n",
        model__mine="# @package _global_\nmodel:\n  name: ???\ndefaults: ['???']\n",
        eval__mine="# @package train.sft\ntasks: [a, '???']\n",
        experiment__gives="# @package _global_\npattern: {dilation: 8}\ndefaults: ['???']\n",
        experiment__asks="# @package _global_\nseed: ???\n",
        experiment__both="# @package _global_\ndata:\n  path: here\n  root: ???\ntrain:\n  context: 5\n",
        experiment__list="- 1\n",
    )
    for chosen, found in (
        ({"pattern": "must"}, {"pattern.dilation", "pattern.window"}),
        ({"data": "mine"}, {"data.path", "data.recall.keys"}),
        ({"train/own": "deep"}, {"train.own.a"}),
        ({"model": "mine", "eval": "mine"}, {"model.name", "train.sft.tasks"}),
        # An experiment is merged last, wherever it stands among the groups.
        ({"experiment": "gives", "pattern": "must"}, {"pattern.window"}),
        ({"experiment": "asks", "model": "own"}, {"seed", "pattern.kernel"}),
        ({"experiment": "both", "data": "mine"}, {"data.recall.keys", "data.root"}),
        ({"experiment": "list", "data": "gone", "pattern": "dense"}, set()),
        ({"data": "odd", "pattern": "not there"}, set()),
        ({"data": "text"}, {"data.path"}),
    ):
        assert open_keys(folder, chosen) == found, chosen
    assert open_keys(str(tmp_path / "no"), {"pattern": "dense"}) == set()
    (tmp_path / "data" / "text.yaml").write_text("path: x\n")
    assert open_keys(folder, {"data": "text"}) == set(), "the user's file stands for ours"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("???", True), ("??", False), ("????", False), ("x", False), (None, False), ([1, "???"], True), ([], False),
        ([[1], ["???"]], True), ({}, False),
    ],
)  # fmt: skip
def test_what_is_open(value, found):
    assert is_open(value) is found


def test_an_open_value_is_named():
    refuse_open({"a": {"b": 1}, "c": ["x"]})
    with pytest.raises(UsageError, match=r"^c: must be given, since a config file or word says \?\?\?; add c=<value>$"):
        refuse_open({"a": {"b": 1}, "c": ["x", "???"], "d": "???"})


# ---- what has no effect -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hydra: {job: {name: x}}\n", "hydra.job.name"), ("hydra:\n  run:\n    dir: x\n", "hydra.run.dir"),
        ("defaults: [{override hydra/launcher: x}]\n", "override hydra/launcher"),
        ("defaults:\n  - override /hydra/launcher: joblib\n", "override /hydra/launcher"),
        ("defaults: [{/hydra/job: x}, a]\n", "/hydra/job"), ("defaults:\n  - hydra/sweeper: ax\n", "hydra/sweeper"),
        ("# @package hydra.job\nname: x\n", "hydra.job"), ("# @package hydra\njob: x\n", "hydra"),
        ("#@package hydra\nn: 1\n", "hydra"), ("hydration: 1\nlater: {hydra: 1}\n", None), ("[hydra]\n", None),
        ("# @package hydrae\nname: x\n", None), ("defaults: null\nseed: 1\n", None), ("defaults: [hydra]\n", None),
        ("defaults:\n  - hydra\n  - other: x\n", None), ("", None),
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


def test_a_file_with_the_name_of_a_shipped_one_is_not_passed_over_in_silence(tmp_path):
    """Hydra reads ours, so a user's would have no effect. A copy of ours is no mistake, nor is what nobody chose."""
    folder = write(tmp_path, pattern__dilated="dilation: 3\n", pattern__mine="dilation: 3\n")
    assert compose_one(["pattern=mine"], folder).config.patterns.label == "D3"
    for compose in (compose_one, compose_cells):
        with pytest.raises(UsageError, match=r"/dilated.yaml: is not read, since ratplus has a file of that name"):
            compose(["pattern=dilated"], folder)
    ours = Path(conf.__path__[0]) / "pattern" / "dilated.yaml"
    (tmp_path / "pattern" / "dilated.yaml").write_bytes(ours.read_bytes())
    assert compose_one(["pattern=dilated"], folder).config == compose_one(["pattern=dilated"]).config
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    with pytest.raises(UsageError, match=r"/config.yaml: is not read, since ratplus has a file of that name; give it "):
        compose_one([], folder)


def test_keys_of_points_are_told_as_swept(tmp_path):
    folder = write(tmp_path, sweep__mine="name: mine\npoints:\n  - {train.pretrain.lr: [0.1, 0.2]}\n")
    found = compose_cells(["sweep=mine", "pattern=D1,D4"], folder)
    assert len(found) == 4
    assert {tuple(cell.axes) for cell in found} == {("pattern.label", "train.pretrain.lr")}
