"""Labels in the place of files, keys that are left open, and values in typed sections: each case by its own line."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from ratplus.sweeps.define import manifest
from ratplus.sweeps.define.compose import compose_cells, compose_one
from ratplus.sweeps.define.manifest import sweep_folder
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.open_keys import is_open, open_keys, refuse_hydra_section, refuse_open
from ratplus.sweeps.define.pattern_labels import labels_as_keys
from ratplus.sweeps.define.typed import typed, typed_section

# ---- labels of patterns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("pattern=D16-W64", 'pattern.label="D16-W64"'),
        ("pattern=D16, D4", 'pattern.label="D16","D4"'),
        ("pattern='D16,D4'", 'pattern.label="D16","D4"'),
        ('pattern="D16"', 'pattern.label="D16"'),
        ("pattern=layers[D1,D64]", 'pattern.label="layers[D1,D64]"'),
        ("pattern=layers[D1,D64],D4", 'pattern.label="layers[D1,D64]","D4"'),
        ("pattern=dense", "pattern=dense"),
        ("pattern=dense,dilated", "pattern=dense,dilated"),
        ("pattern=", "pattern="),
        ("pattern", "pattern"),
        ("pattern='", "pattern='"),
        ("pattern.dilation=D4", "pattern.dilation=D4"),
        ("model=D4", "model=D4"),
        ("pattern.label=D4", "pattern.label=D4"),
        ("pattern.label=D4,D8", "pattern.label=D4,D8"),
        ("pattern.label=layers[D1,D64],D4", 'pattern.label="layers[D1,D64]","D4"'),
        ("pattern.label='layers[D1,D64]'", "pattern.label='layers[D1,D64]'"),
        # The same character at both ends is no quote unless it is one.
        ("pattern=1D4-W11", "pattern=1D4-W11"),
    ],
)
def test_labels_become_keys(word, found):
    assert labels_as_keys(["a=1", word, "b"], None) == ["a=1", found, "b"]


def test_labels_and_names_of_files_are_not_mixed():
    with pytest.raises(UsageError, match=r"^pattern=D4,dense: D4 is a label and dense is none; give labels alone"):
        labels_as_keys(["pattern=D4,dense"], None)
    with pytest.raises(UsageError, match=r"^pattern=dense, D4: D4 is a label and dense is none"):
        labels_as_keys(["pattern=dense, D4"], None)


def test_a_file_of_the_name_of_a_label_is_meant(tmp_path):
    (tmp_path / "pattern").mkdir()
    (tmp_path / "pattern" / "D4.yaml").write_text("dilation: 4\n")
    assert labels_as_keys(["pattern=D4", "pattern=D8"], str(tmp_path)) == ["pattern=D4", 'pattern.label="D8"']


# ---- keys that are left open ---------------------------------------------------------------------------------------


def group(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


def test_open_keys_of_the_files_that_were_chosen(tmp_path):
    folder = group(
        tmp_path,
        data__mine="path: ???\nfiles: a\nrecall:\n  keys: ???\n",
        train__own__deep="a: ???\n",
        data__other="root: ???\n",
        model__mine="# @package _global_\nmodel:\n  name: ???\ndefaults: ['???']\n",
        eval__mine="# @package train.sft\ntasks: [a, '???']\n",
        experiment__a="# @package _global_\ndata:\n  path: here\n  root: ???\ntrain:\n  context: 5\n",
        experiment__list="- 1\n",
    )
    assert open_keys(folder, {"data": "mine"}) == {"data.path", "data.recall.keys"}
    assert open_keys(folder, {"train/own": "deep"}) == {"train.own.a"}
    assert open_keys(folder, {"model": "mine", "eval": "mine"}) == {"model.name", "train.sft.tasks"}
    # An experiment is merged last, wherever it stands among the groups.
    assert open_keys(folder, {"experiment": "a", "data": "mine"}) == {"data.recall.keys", "data.root"}
    assert open_keys(folder, {"experiment": "list", "data": "gone", "pattern": "dense"}) == set()


@pytest.mark.parametrize(
    ("value", "found"),
    [("???", True), ("??", False), (["a", "???"], True), ([["???"]], True), ([], False), (None, False), ({}, False)],
)
def test_what_is_open(value, found):
    assert is_open(value) is found


def test_an_open_value_is_named():
    refuse_open({"a": {"b": 1}, "c": ["x"]})
    with pytest.raises(UsageError, match=r"^c: must be given, since a config file or word says \?\?\?; add c=<value>$"):
        refuse_open({"a": {"b": 1}, "c": ["x", "???"], "d": "???"})


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("hydra:\n  run:\n    dir: x\n", "hydra.run.dir"),
        ("defaults:\n  - override /hydra/launcher: joblib\n", "override /hydra/launcher"),
        ("defaults:\n  - hydra/sweeper: ax\n", "hydra/sweeper"),
        ("# @package hydra.sweeper\nn: 1\n", "hydra.sweeper"),
        ("#@package hydra\nn: 1\n", None),
        ("# @package hydra\nn: 1\n", "hydra"),
        ("hydras: 1\n", None),
        ("defaults:\n  - hydra\n  - other: x\n", None),
        ("data:\n  hydra: 1\n", None),
        ("# @package hydras\nn: 1\n", None),
        ("- hydra\n", None),
        ("", None),
    ],
)
def test_settings_of_hydra_have_no_effect(tmp_path, text, key):
    folder = group(tmp_path, data__mine=text)
    chosen = {"model": "gone", "data": "mine"}
    if text.startswith("#@"):
        key = "hydra"  # without a space it is one too
    if key is None:
        refuse_hydra_section(folder, chosen)
    else:
        with pytest.raises(UsageError, match=rf"data/mine.yaml: {re.escape(key)}: has no effect, since"):
            refuse_hydra_section(folder, chosen)


def test_a_file_with_the_name_of_a_shipped_one_is_not_passed_over_in_silence(tmp_path):
    """Hydra reads ours, so a user's would have no effect. A copy of ours is no mistake, nor is what nobody chose."""
    ours = Path(manifest.__file__).parents[2] / "conf" / "pattern" / "dilated.yaml"
    folder = group(tmp_path, pattern__dilated="dilation: 3\n", pattern__mine="dilation: 3\n")
    assert compose_one(["pattern=mine"], folder).config.patterns.label == "D3"
    for compose in (compose_one, compose_cells):
        with pytest.raises(
            UsageError, match=r"pattern/dilated.yaml: is not read, since pattern=dilated is a choice of "
        ):
            compose(["pattern=dilated"], folder)
    (tmp_path / "pattern" / "dilated.yaml").write_bytes(ours.read_bytes())
    assert compose_one(["pattern=dilated"], folder).config == compose_one(["pattern=dilated"]).config


# ---- typed values --------------------------------------------------------------------------------------------------


def test_sections_are_copies():
    """Cells share what was validated once, and a change of one cell's is no change of another's."""
    first, second = typed({"data": {"recall": {"keys": 9}}}), typed({"data": {"recall": {"keys": 9}}})
    first.data.recall.keys = 3
    first.logger.tags.append("a")
    assert (second.data.recall.keys, second.logger.tags) == (9, [])
    one = typed_section("eval", {"tasks": ["a"]})
    one.tasks.append("b")
    assert typed_section("eval", {"tasks": ["a"]}).tasks == ["a"]
    assert typed({"objective": ["a", "b"]}).objective == ["a", "b"]
    assert typed({"seed": 7}).seed == 7
    assert typed({}).seed == 0


@pytest.mark.parametrize(
    ("plain", "line"),
    [
        ({"data": {"path": "${oc.env:HOME}"}}, "data.path: got '${oc.env:HOME}'; ${...} is resolved in config files"),
        ({"data": {"${a}": 1}}, "data.${a}: got 1; ${...} is resolved in config files and overrides alone"),
        ({"nonsense": 1}, "nonsense"),
        ({"data": {"nonsense": 1}}, "data.nonsense"),
        ({"seed": "x"}, "seed"),
        ({"train": {"context": 1}}, "train.context: got 1; it must be ≥ 2"),
    ],
)
def test_a_wrong_value_is_one_line(plain, line):
    with pytest.raises(UsageError) as caught:
        typed(plain)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    (name, section), *_ = plain.items()
    if isinstance(section, dict):
        with pytest.raises(UsageError) as alone:
            typed_section(name, section)
        assert str(alone.value) == str(caught.value)


# ---- folders and corpora of a sweep --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "sweep", "found"),
    [
        ("here/there", {"name": "a"}, "here/there"), (None, {"name": "a"}, "outputs/a"), (None, None, "outputs/adhoc"),
        (None, {}, "outputs/adhoc"), (None, {"name": ""}, "outputs/adhoc"), (None, {"name": "a.b c"}, "outputs/a.b c"),
    ],
)  # fmt: skip
def test_the_folder_of_a_sweep(output, sweep, found):
    cells = [SimpleNamespace(config=SimpleNamespace(output=output, sweep=sweep)) for _ in range(2)]
    assert str(sweep_folder(cells)) == found
    cells[1].config.output = "elsewhere"
    with pytest.raises(UsageError, match=r"^output: one sweep has one folder; give a single value$"):
        sweep_folder(cells)


@pytest.mark.parametrize(
    ("output", "name", "line"),
    [
        (None, ".", "sweep.name: got '.'; it names a folder of outputs/"), (None, "..", "sweep.name: got '..'"),
        (None, "a/b", "sweep.name: got 'a/b'"), (None, "a\\b", "sweep.name: got "), (None, "a\n", "sweep.name: got "),
        (None, 3, "sweep.name: got 3"), ("a\nb", "a", "output: got 'a\\nb'; a folder's name has no control characters"),
    ],
)  # fmt: skip
def test_what_names_no_folder(output, name, line):
    with pytest.raises(UsageError, match="^" + re.escape(line)):
        sweep_folder([SimpleNamespace(config=SimpleNamespace(output=output, sweep={"name": name}))])


def test_a_corpus_is_opened_and_a_suite_checked_once(monkeypatch, tmp_path):
    """Cells of another recall task have the same corpus; those of another suite or context are checked again."""
    opened, checked = [], []

    def corpus_of(data):
        opened.append(data)
        return SimpleNamespace(
            folder=tmp_path, identity={"tokenizer": "bytes"}, vocab_size=256, train=range(999), validation=range(999)
        )

    monkeypatch.setattr(manifest, "corpus_of", corpus_of)
    monkeypatch.setattr(manifest, "check_suites", lambda config, corpus: checked.append(config))
    words = [[], ["data.recall.keys=9"], ["seed=1"], ["eval.text_rows=9"], ["train.context=128"], ["data.vocab_size=9"]]
    entries = manifest.plan_cells([compose_one([*more]) for more in words])
    assert len(entries) == 6
    assert len(opened) == 2
    assert len(checked) == 4


# ---- what decides a result -----------------------------------------------------------------------------------------


def entries(*lines: str) -> list:
    """Manifest entries of composed cells, with a corpus of one name."""
    found = []
    for line in lines:
        cell = compose_one(["train.context=64", "data.recall.length=64", *line.split()])
        stages = manifest.plan(cell.config, {"name": "text"}, 257)
        found.append(manifest.entry_of(cell, stages, {"name": "text"}))
    return found


@pytest.mark.parametrize(
    ("words", "axes"),
    [
        (["", "seed=1", "pattern=D4"], {}),
        (["", "eval.batch=3 data.root=x data.workers=2 data.lossy=0.5 data.longest_mib=5 model.name=m"], None),
        (["", "train.pretrain.lr=0.5"], {"train.pretrain.lr"}),
        (["", "train.pretrain.lr=0.5", "train.context=32 data.recall.length=32"],
         {"train.pretrain.lr", "train.context", "data.recall.length"}),
        (["", "train.pretrain.micro_batch=1"], {}),
        (["", "train.pretrain.arl_dilation=16"], {"train.pretrain.arl_dilation"}),
        (["train.pretrain.arl=true", "train.pretrain.arl=false"], {"train.pretrain.arl"}),
        # Of other models, seeds and patterns the keys may differ as they like.
        (["model=attention_tiny train.pretrain.lr=0.5", ""], {}),
        (["seed=1 train.pretrain.lr=0.5", ""], {}),
        (["pattern=D4 train.pretrain.lr=0.5", ""], {}),
    ],
)  # fmt: skip
def test_axes_are_the_keys_in_which_like_cells_differ(words, axes):
    cells = entries(*words)
    if axes is None:
        cells[1]["model"] = cells[0]["model"]  # a name alone makes no other model here
    manifest.name_axes(cells)
    for cell in cells:
        assert set(cell["axes"]) == set(axes or ())
    if axes == {"train.pretrain.lr"}:
        assert cells[1]["axes"]["train.pretrain.lr"] == 0.5


def test_without_active_recurrence_learning_its_settings_are_no_axes():
    cells = entries("train.pretrain.arl_dilation=16", "train.pretrain.arl_dilation=64", "train.pretrain.arl=false")
    manifest.name_axes(cells)
    assert [sorted(cell["axes"]) for cell in cells] == [["train.pretrain.arl", "train.pretrain.arl_dilation"]] * 2 + [
        ["train.pretrain.arl"]
    ]
    # Active recurrence learning is that of the model unless it is set by hand; an axis shows what it is.
    assert [cell["axes"]["train.pretrain.arl"] for cell in cells] == [True, True, False]
    assert [manifest.science(cell)["train.pretrain.arl"] for cell in cells] == ["as the model"] * 2 + [False]


def test_keys_of_points_are_told_as_swept(tmp_path):
    folder = group(tmp_path, sweep__mine="name: mine\npoints:\n  - {train.pretrain.lr: [0.1, 0.2]}\n")
    found = compose_cells(["sweep=mine", "pattern=D1,D4"], folder)
    assert len(found) == 4
    assert {tuple(cell.axes) for cell in found} == {("pattern.label", "train.pretrain.lr")}
