"""From overrides to cells, and one clear line for each mistake."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from ratplus.pattern import Pattern, PatternMap
from ratplus.sweeps.define import compose
from ratplus.sweeps.define.compose import compose_cells, compose_one
from ratplus.sweeps.define.mistakes import UsageError

CONF = Path(__file__).parents[3] / "conf"
NEEDS_PATH = ("text", "files", "hub", "bin", "prepared")
# What a pattern needs that has no loss.
NO_LOSS = ["eval.text_rows=0", "eval.recall_rows=0", "eval.cloze.items=0", "train.adapt.dense=true"]


def labels(cells) -> list[str]:
    return [f"{cell.config.model.name}:{cell.config.patterns.label}" for cell in cells]


def shipped(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def builds(cells) -> int:
    """How many cells there are, each of which has a model and a pattern for it."""
    for cell in cells:
        with torch.device("meta"):  # shapes are built and checked; values are not drawn
            cell.config.model.build(vocab_size=257, max_len=cell.config.train.context)
        assert cell.config.patterns.layers == cell.config.model.layers
    return len(cells)


OTHERS = [g.name for g in sorted(CONF.iterdir()) if g.is_dir() and g.name not in ("pattern", "sweep", "__pycache__")]


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in OTHERS for name in shipped(group)])
def test_every_shipped_choice_composes_and_builds(group, name):
    assert builds(compose_cells([f"{group}={name}"] + (["data.path=README.md"] if name in NEEDS_PATH else [])))


def test_every_shipped_pattern_fits_every_shipped_model():
    """But for patterns that differ between heads which share keys and values, and models without attention."""
    states = ["gated_deltanet_tiny", "mamba2_tiny"]
    models = [model for model in shipped("model") if model not in states]
    sharing = [model for model in models if model.endswith(("gqa", "mqa"))]
    own = [model for model in models if model not in sharing]
    patterns = [pattern for pattern in shipped("pattern") if pattern not in ("hybrid_heads", "snapkv")]
    assert sharing
    cells = compose_cells([f"pattern={','.join(patterns)}", f"model={','.join(models)}"])
    assert builds(cells) == len(patterns) * len(models)
    assert builds(compose_cells(["pattern=hybrid_heads", f"model={','.join(own)}"])) == len(own)
    by_generation = [*NO_LOSS, f"model={','.join(models)}"]
    assert builds(compose_cells(["pattern=snapkv", *by_generation])) == len(models)
    for model in sharing:
        with pytest.raises(UsageError, match="share keys and values .*so they must have the same pattern"):
            compose_one(["pattern=hybrid_heads", f"model={model}"])
    assert builds(compose_cells(["pattern=dense", f"model={','.join(states)}"])) == 2
    for model in states:
        for pattern in ("dilated", "streaming", "topk"):
            with pytest.raises(UsageError, match=r"^pattern: got .* has no pattern: .*; use dense \(D1\)$"):
                compose_one([f"pattern={pattern}", f"model={model}"])


def test_defaults_are_one_dense_cell():
    (cell,) = compose_cells([])
    assert cell.config.patterns == PatternMap.uniform(Pattern(), 4, 3)
    assert cell.config.train.pretrain.arl
    assert not compose_one(["model=attention_tiny"]).config.train.pretrain.arl


def test_pattern_glob():
    assert len(compose_cells(["pattern=glob(*,exclude=snapkv)"])) == len(shipped("pattern")) - 1
    assert labels(compose_cells(["pattern=glob(hybrid*)", "model=ratplus_nano"])) == [
        "ratplus_nano:heads[D64,D1]", "ratplus_nano:layers[D1,D64]",
    ]  # fmt: skip


def test_product_of_values():
    cells = compose_cells(["pattern.dilation=1,2,4,8,16,32,64", "pattern.window=0,64"])
    assert len(cells) == 14
    assert {c.config.pattern.window for c in cells} == {0, 64}
    assert cells[0].axes == ["pattern.dilation", "pattern.window"]


def test_sweep_file_times_command_line():
    demo = compose_cells(["experiment=demo"])
    assert len(demo) == 22
    assert len(set(labels(demo))) == 22
    one_model = compose_cells(["experiment=demo", "model=ratplus_nano"])
    assert len(one_model) == 11
    assert {c.config.model.name for c in one_model} == {"ratplus_nano"}
    assert len(compose_cells(["experiment=demo", "seed=0,1"])) == 44
    # What the command line says of a group replaces what the sweep file says of it.
    globbed = compose_cells(["experiment=demo", "pattern=glob(*,exclude=snapkv)", "model=attention_tiny,ratplus_tiny"])
    assert len(globbed) == 2 * (len(shipped("pattern")) - 1)
    assert len(compose_cells(["experiment=demo", "pattern.dilation=1,2"])) == 4
    # A single value is applied on top of every cell.
    small = compose_cells(["experiment=demo", "model.d_model=64"])
    assert len(small) == 22
    assert {c.config.model.d_model for c in small} == {64}


def own_sweep(folder, text: str):
    (folder / "sweep").mkdir(exist_ok=True)
    (folder / "sweep" / "mine.yaml").write_text(f"name: mine\n{text}")
    return lambda *words: compose_cells(["sweep=mine", *words], str(folder))


def test_zip_pairs_values(tmp_path):
    cells = own_sweep(tmp_path, "zip: {pattern.dilation: [4, 16, 64], pattern.window: [0, 8, 16]}\nseeds: 2\n")
    assert labels(cells()) == [f"ratplus_tiny:{x}" for x in ("D4", "D4", "D16-W8", "D16-W8", "D64-W16", "D64-W16")]
    assert [c.config.seed for c in cells()] == [0, 1] * 3
    # What the command line decides drops out of the pairs; the rest stays paired.
    assert labels(cells("seed=5", "pattern.window=2"))[0] == "ratplus_tiny:D4-W2"
    assert [c.config.seed for c in cells("seed=5")] == [5, 5, 5]
    with pytest.raises(UsageError, match=r"paired lists must be equally long; seed has 2, pattern.window has 1"):
        own_sweep(tmp_path, "zip: {seed: [1, 2], pattern.window: [3]}\n")()
    with pytest.raises(UsageError, match=r"sweep.zip.seed: got 1; it must be a list"):
        own_sweep(tmp_path, "zip: {seed: 1}\n")()


def test_seeds_as_a_list(tmp_path):
    assert [c.config.seed for c in own_sweep(tmp_path, "seeds: [3, 7]\n")()] == [3, 7]
    for wrong in ("0", "many", "[]"):
        with pytest.raises(UsageError, match=r"sweep.seeds: got .*; give how many \(1 to 100000\) or a list of seeds"):
            own_sweep(tmp_path, f"seeds: {wrong}\n")()


def test_exclude_leaves_cells_out(tmp_path):
    text = (
        "grid: {model: [attention_tiny, ratplus_tiny], pattern.dilation: [1, 4, 16], pattern.window: [0, 8]}\n"
        "exclude:\n  - {model: attention_tiny, pattern.window: 8}\n  - {pattern.dilation: [4, 16], pattern.window: 0}\n"
    )
    assert labels(own_sweep(tmp_path, text)()) == [
        "attention_tiny:D1", "ratplus_tiny:D1", "ratplus_tiny:D1-W8", "ratplus_tiny:D4-W8", "ratplus_tiny:D16-W8",
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"sweep.exclude\[0\]: pattern.dilaton: unknown key"):
        own_sweep(tmp_path, "exclude: [{pattern.dilaton: 1}]\n")()
    with pytest.raises(UsageError, match=r"sweep.exclude\[0\]: got 'D4'; it must be a mapping"):
        own_sweep(tmp_path, "exclude: [D4]\n")()
    with pytest.raises(UsageError, match=r"sweep.exclude: it leaves none of 1 cells"):
        own_sweep(tmp_path, "exclude: [{pattern.dilation: 1}]\n")()


SIZES = {
    "none": 1, "overview": 22, "paper_dilation": 14, "paper_local": 26, "hybrid_layers": 20, "hybrid_heads": 10,
    "sensitivity": 9, "streaming": 14, "long_context": 16, "ablation": 36, "baselines": 18, "from_scratch": 10,
    "kv_sharing": 11, "ladder": 24, "niah": 8, "foreign": 11, "topk": 41,
}  # fmt: skip
# Counted in `make test-all`: each takes seconds, and `overview` is as large as most.
LARGE = ("ablation", "hybrid_layers", "ladder", "long_context", "paper_local", "topk")


def test_every_named_sweep_is_counted():
    assert sorted(SIZES) == shipped("sweep")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in sorted(SIZES)]
)
def test_named_sweeps(name):
    # A third and a sixth of the largest ones, in which every cell has three seeds.
    part = {"ablation": ["seed=0"], "topk": ["seed=0", "model=ratplus_tiny", "train.sft.arl=true"]}
    if name in part:
        assert compose_one([f"sweep={name}"]).config.sweep["seeds"] == 3
    assert builds(compose_cells([f"sweep={name}", *part.get(name, [])])) == SIZES[name]


def test_models_of_a_sweep_from_scratch():
    scratch = [c for c in compose_cells(["sweep=from_scratch"]) if c.config.train.pretrain.sparse]
    assert labels(scratch) == [f"{m}_tiny:{d}" for m in ("attention", "ratplus") for d in ("D16", "D64")]
    assert not any(c.config.train.pretrain.arl or c.config.train.adapt.steps for c in scratch)


def test_groups_composed_apart_equal_groups_composed_at_once(tmp_path):
    """A choice that reaches into another section must not be taken for one that doesn't."""
    (tmp_path / "pattern").mkdir()
    (tmp_path / "pattern" / "far.yaml").write_text("# @package _global_\npattern: {dilation: 9}\nmodel: {layers: 7}\n")
    cells = compose_cells(["pattern=dense,far", "model=ratplus_tiny,attention_tiny"], str(tmp_path))
    found = [(c.config.model.name, c.config.pattern.dilation, c.config.model.layers) for c in cells]
    assert found == [
        ("ratplus_tiny", 1, 4), ("attention_tiny", 1, 4), ("ratplus_tiny", 9, 7), ("attention_tiny", 9, 7),
    ]  # fmt: skip
    # Interpolations see the combination.
    assert [c.config.train.pretrain.arl for c in cells] == [True, False, True, False]


def test_compositions_are_kept_until_a_config_file_changes(tmp_path, monkeypatch):
    """For the next call of the same process, such as a notebook's; what a cell holds is its own."""
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(compose.conf, "__path__", [str(tmp_path / "conf")])  # only times of change are read there
    composed = []
    hydra = compose.compose
    monkeypatch.setattr(compose, "compose", lambda *args, **kwargs: composed.append(1) or hydra(*args, **kwargs))
    (first,) = compose_cells(["pattern=dilated"])
    asked = len(composed)
    assert asked > 0
    first.choices["pattern"] = first.config.model.name = "changed by the caller"
    (second,) = compose_cells(["pattern=dilated"])
    assert len(composed) == asked
    assert (second.choices["pattern"], second.config.model.name) == ("dilated", "ratplus_tiny")
    (tmp_path / "conf" / "pattern" / "dilated.yaml").touch()
    assert labels(compose_cells(["pattern=dilated"])) == ["ratplus_tiny:D16"]
    assert len(composed) == 2 * asked
    composed.clear()
    compose_cells(["pattern=dilated"], str(tmp_path))  # with a folder of the user's, nothing is kept
    asked = len(composed)
    compose_cells(["pattern=dilated"], str(tmp_path))
    assert len(composed) == 2 * asked > 0


def test_equal_cells_are_one():
    assert len(compose_cells(["pattern=dense,dilated", "pattern.dilation=4"])) == 1


def test_streaming_and_lists_on_the_command_line():
    cells = compose_cells(["pattern.dilation=null", "pattern.window=8"])
    assert labels(cells) == ["ratplus_tiny:stream-W8"]
    layers = compose_cells(["pattern.dilation=[1,1,2,2],[1,2,4,8]"])
    assert labels(layers) == ["ratplus_tiny:layers[D1x2,D2x2]", "ratplus_tiny:layers[D1,D2,D4,D8]"]
    nested = compose_one(["model=ratplus_nano", "pattern.dilation=[[1,2],[4,null]]"])
    assert nested.config.patterns.label == "mixed[D1,D2|D4,stream]"


def test_own_config_folder(tmp_path):
    (tmp_path / "pattern").mkdir()
    (tmp_path / "pattern" / "mine.yaml").write_text("dilation: 5\nwindow: 1\nsinks: 2\n")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "pairs.yaml").write_text(
        "name: pairs\npoints:\n  - {pattern: mine}\n  - {pattern: dilated, pattern.dilation: [2, 3], seed: 4}\n"
    )
    cells = compose_cells(["sweep=pairs"], str(tmp_path))
    assert [c.config.patterns.label for c in cells] == ["D5-W1-I2", "D2", "D3"]
    assert [c.config.seed for c in cells] == [0, 4, 4]
    with pytest.raises(UsageError, match="no such folder"):
        compose_cells([], str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pattern.dilaton=3", r"pattern.dilaton: unknown key; did you mean pattern.dilation\?"),
        ("+model.recurence=true", r"model.recurence: unknown key; did you mean model.recurrence\?"),
        ("patern=dense", r"patern: unknown key; did you mean pattern\?"),
        ("foo=1", r"foo: unknown key; allowed: data, dry_run, eval, experiment, launcher,"),
        ("train.pretrain.stps=3", r"did you mean train.pretrain.steps\?"),
        ("pattern.dilation=0", r"pattern.dilation: got 0; it must be a whole number ≥ 1"),
        ("pattern.dilation=-7", r"pattern.dilation: got -7"),
        ("pattern.dilation=banana", r"pattern.dilation: got 'banana'"),
        ("pattern.window=-1", r"pattern.window: got -1; it must be ≥ 0"),
        ("pattern.sinks=513", r"pattern.sinks: got 513; it must be ≤ train.context=512"),
        ("pattern.dilation=[1,2,3]", r"over layers has 3 entries, but the model has 4 layers"),
        ("pattern.over=rows", r"pattern.over: got 'rows'; allowed: layers, heads"),
        ("model.d_model=100", r"model.d_model: got 100; it must be a multiple of model.d_head=32"),
        ("model.layers=0", r"model.layers: got 0"),
        ("model.layers=many", r"model.layers: got 'many'; it must be a whole number"),
        ("model=ratplus_huge", r"model=ratplus_huge: no such choice; available: attention_150m,"),
        ("pattern=sparse", r"pattern=sparse: no such choice; available: dense, dilated,"),
        ("experiment=foo", r"experiment=foo: no such choice; available: demo, "),
        ("data=text", r"data.path: got None; data=text needs path="),
        ("data.validation_fraction=1", r"data.validation_fraction: got 1"),
        ("data.recall.pairs=99", r"data.recall.pairs: got 99; every pair needs a key"),
        ("data.recall.length=513", r"data.recall.length: got 513; it must be ≤ train.context=512"),
        ("train.context=64", r"data.recall.length: got 128; it must be ≤ train.context=64"),
        ("train.pretrain.micro_batch=3", r"train.pretrain.micro_batch: got 3; it must divide"),
        ("train.pretrain.lr=-1", r"train.pretrain.lr: got -1.0; it must be > 0"),
        ("train.pretrain.arl_dilation=0", r"train.pretrain.arl_dilation: got 0"),
        ("train.adapt.arl=true", r"train.adapt.arl: got True; adaptation trains one pattern alone"),
        ("train.precision=fp8", r"train.precision: got 'fp8'; allowed: float32, bf16"),
        ("run.accelerator=tpu", r"run.accelerator: got 'tpu'; allowed: auto, cpu, cuda"),
        ("logger.wandb=maybe", r"logger.wandb: got 'maybe'; allowed: offline, online, none"),
        ("trainer.activation_checkpointing=maybe", r"got 'maybe'; it must be true or false"),
        ("trainer.compile=2.5", r"trainer.compile: got '2.5'; it must be true or false"),
        ("seed=-1", r"seed: got -1"),
        ("seed=a", r"seed: got 'a'; it must be a whole number"),
        ("pattern.dilation=[1,", r"pattern.dilation=\[1,: brackets, quotes or commas are not in order; quoted"),
        ("hydra.run.dir=x", r"hydra.run.dir=x: hydra.run.dir has no effect, .*; output= names the folder"),
        ("pattern.dilation=???", r"pattern.dilation: must be given"),
    ],
)
def test_one_line_for_each_mistake(override, message):
    with pytest.raises(UsageError, match=message) as caught:
        compose_cells([override])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("word", ["output=a=b", "output=a#b", "output=a(1)", "output=实验", "data.eos=<|endoftext|>",
                                  "output=a b;c", "output=it's \"so\"", "output=a=\\"])  # fmt: skip
def test_a_word_that_needs_quotes_is_shown_as_it_must_be_typed(word):
    """The form that the message gives is taken, and means the text that was typed."""
    with pytest.raises(UsageError) as caught:
        compose_one([word])
    assert str(caught.value).startswith(f"{word}: ")
    assert "Lexer" not in str(caught.value)
    cell = compose_one(shlex.split(str(caught.value).partition("as it stands: ")[2]))
    key, _, value = word.partition("=")
    assert (cell.config.output if key == "output" else cell.config.data.eos) == value


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "got an empty word"),
        ("pattern.dilation", "not an override; give key=value"),
        ("seed = 1", r"'seed = 1': no spaces around =; type seed=1 \(.*quoted"),
        (" seed=1", "' seed=1': no spaces around =; type seed=1 "),
        ("my seed=1", "the key holds ' '"),
        ("实验=1", "the key holds '实'"),
        ("output=a(1)", "the value holds .*|Unknown function 'a'"),
        ("seed=range(a)", r"seed=range\(a\): "),
    ],
)
def test_a_word_that_is_no_override(word, message):
    with pytest.raises(UsageError, match=message) as caught:
        compose_cells(["train.pretrain.steps=3", word])
    assert len(str(caught.value).splitlines()) == 1


def test_values_that_cannot_be_listed():
    with pytest.raises(
        UsageError, match=r"^train.pretrain.lr=interval\(0.001,0.01\): its values cannot be listed; allo"
    ):
        compose_cells(["train.pretrain.lr=interval(0.001,0.01)"])


def test_the_home_folder_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for word in ("output=~/a", 'output="~/a"'):
        assert compose_one([word]).config.output == str(tmp_path / "a")
    assert compose_one(["data=text", "data.path=~/b"]).config.data.path == str(tmp_path / "b")
    with pytest.raises(UsageError, match="output: got '~nobody-of-this-name/a'; there is no home folder"):
        compose_one(["output=~nobody-of-this-name/a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dilation:\t4\n\twindow: 2\n", r"mine.yaml, line \d, column \d+: not YAML \("),
        (b"\tdilation: 4\n", r"mine.yaml, line 1, column 1: not YAML \(a tab, where YAML takes only spaces\)"),
        (b"dilation: 4\ndilation: 5\n", r"mine.yaml, line 2, column 1: not YAML \(found duplicate key dilation\)"),
        (b"dilation: 4 # caf\xe9\n", r"mine.yaml: not UTF-8 text \(byte 17: "),
        (b"- dilation: 4\n", "mine.yaml: holds a list; a config file is a mapping"),
        (b"4\n", "mine.yaml: holds a int; a config file is a mapping"),
        (b"dilation: \x01\n", "mine.yaml: not YAML "),
        (b"dilation: [4\n", r"mine.yaml, line \d, column \d: not YAML"),
        (b"dilation: " + b"[" * 5000 + b"]" * 5000, "mine.yaml: nested too deep"),
        (b"dilation: ???\n", r"^pattern.dilation: must be given, since .* add pattern.dilation="),
    ],
)
def test_a_damaged_file_of_the_users(tmp_path, content, message):
    (tmp_path / "pattern").mkdir()
    (tmp_path / "pattern" / "mine.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        compose_cells(["pattern=mine"], str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_value_that_a_file_leaves_open_may_come_from_anywhere(tmp_path):
    for name, content in {
        "pattern/must": "dilation: ???\nwindow: 0\n",
        "experiment/gives": "# @package _global_\npattern: {dilation: 8}\n",
        "experiment/asks": "# @package _global_\ntrain:\n  pretrain:\n    steps: ???\n",
        "sweep/grid": "name: x\ngrid: {pattern.dilation: [2, 4]}\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(content)
    folder = str(tmp_path)
    assert compose_one(["pattern=must", "pattern.dilation=4"], folder).config.pattern.dilation == 4
    assert compose_one(["pattern=must", "experiment=gives"], folder).config.pattern.dilation == 8
    assert len(compose_cells(["pattern=must", "pattern.dilation=1,2"], folder)) == 2
    assert len(compose_cells(["experiment=asks", "train.pretrain.steps=3"], folder)) == 1
    with pytest.raises(UsageError, match="train.pretrain.steps: must be given"):
        compose_cells(["experiment=asks"], folder)


def test_a_typo_in_a_users_file(tmp_path):
    (tmp_path / "pattern").mkdir()
    (tmp_path / "pattern" / "mine.yaml").write_text("dilaton: 5\n")
    with pytest.raises(UsageError, match="dilaton: unknown key"):
        compose_cells(["pattern=mine"], str(tmp_path))
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "bad.yaml").write_text("name: x\npoint: []\n")
    with pytest.raises(UsageError, match="sweep.point: unknown key; allowed: name, grid, zip, points, seeds"):
        compose_cells(["sweep=bad"], str(tmp_path))


def test_an_experiment_without_its_header(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# no header\nseed: 3\n")
    with pytest.raises(UsageError, match="experiment=mine: its file must begin with the line `# @package _global_`"):
        compose_cells(["experiment=mine"], str(tmp_path))


def test_several_values_need_multirun():
    with pytest.raises(UsageError, match="pattern.dilation=1,2: several values; add -m"):
        compose_one(["pattern.dilation=1,2"])


def test_rows_at_a_time_are_no_science():
    """Another micro_batch continues the same cell in the same folder, so it cannot tell cells apart either."""
    from ratplus.stages.stage_ids import plan
    from ratplus.sweeps.define.manifest import entry_of, science

    entries = []
    for micro in ("null", "2"):
        cell = compose_one([f"train.pretrain.micro_batch={micro}", f"train.adapt.micro_batch={micro}"])
        entries.append(entry_of(cell, plan(cell.config, {}, 256), {"sha256": {}}))
    assert entries[0]["stages"] == entries[1]["stages"]
    assert science(entries[0]) == science(entries[1])
    with pytest.raises(UsageError, match=r"^train.pretrain.micro_batch: cannot have several values; it says how cells"):
        compose_cells(["train.pretrain.micro_batch=1,2"])


def test_a_model_without_active_recurrence_learning_has_no_axis_of_its_lengths():
    from ratplus.stages.stage_ids import plan
    from ratplus.sweeps.define.manifest import entry_of, name_axes

    words = ["train.pretrain.arl=true,false", "train.pretrain.arl_dilation=16,64"]
    entries = [entry_of(c, plan(c.config, {}, 256), {"sha256": {}}) for c in compose_cells(words)]
    name_axes(entries)
    found = sorted((e["axes"]["train.pretrain.arl"], e["axes"].get("train.pretrain.arl_dilation")) for e in entries)
    assert found == [(False, None), (False, None), (True, 16), (True, 64)]
