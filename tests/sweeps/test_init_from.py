"""Cells that start from given weights: an imported model goes straight into adapt and evaluate."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_runs import records

from ratplus import ModelConfig, RATPlus
from ratplus.checkpoint import load, save
from ratplus.stages.cell import Cell
from ratplus.stages.run_stage import Surroundings
from ratplus.sweeps import cli
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.manifest import cell_config, plan_cells, planned_stages
from ratplus.sweeps.define.typed import typed

WORDS = [
    "data=text", "data.path=text.txt", "data.recall.fraction=0", "model=ratplus_nano", "model.layers=3",
    "model.d_model=64", "model.d_head=16", "logger=none", "train.context=64", "eval.text_rows=4", "eval.recall_rows=0",
    "train.adapt.steps=2", "train.adapt.batch=4", "run.threads=1", "run.accelerator=cpu",
]  # fmt: skip
SHAPE = ModelConfig(257, 3, 64, 16, max_len=128)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("".join(f"Line {i} of a text that nobody reads.\n" for i in range(400)))
    model = RATPlus(SHAPE)
    model.reset_parameters(3)
    save(model, "given")
    return tmp_path


def ratplus(*words) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return ended.value.code or 0


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() != set() and all(torch.equal(a[name], b[name]) for name in a)


def stage_folder(sweep: str, stage: str) -> Path:
    (folder,) = Path(sweep, stage).iterdir()
    return folder


def test_an_imported_model_is_adapted_and_evaluated(place, capsys):
    """Reference file -> import -> evaluate: the pretrain stage holds the given weights, and no recipe."""
    assert ratplus("export", "given", "theirs.pt") == 0
    assert "import it with --d-head 16" in capsys.readouterr().out
    assert ratplus("import", "theirs.pt", "imported", "--d-head", "16", "--max-len", "128") == 0
    told = capsys.readouterr().out
    assert "parameters, recurrence on" in told
    shape = told.rpartition("use it with: ")[2].split()
    assert shape == ["model.init_from=imported"]  # the folder knows the rest
    words = [*(w for w in WORDS if not w.startswith("model")), *shape]
    evaluated = Cell(compose_one([*words, "pattern.dilation=8"]).config, Surroundings(Path("one"))).run("evaluate")
    assert evaluated["metrics"]["loss"]["value"] > 1
    pretrain = json.loads((stage_folder("one", "pretrain") / "record.json").read_text())
    assert set(pretrain["config"]) == {"model", "context", "weights"}
    assert pretrain["metrics"]["parameters"]["value"] == sum(p.numel() for p in RATPlus(SHAPE).parameters())
    taken, given = load(stage_folder("one", "pretrain")), load("given")
    assert taken.config.max_len == 64
    assert same(taken.state_dict(), given.state_dict())

    # The weights count, not where they lie; and neither the seed nor the recipe of a pretraining that was not.
    Path("imported").rename("elsewhere")
    words = [w.replace("imported", "elsewhere") for w in words]
    assert ratplus("pretrain", *words, "output=two", "seed=5", "train.pretrain.steps=7") == 0
    assert stage_folder("two", "pretrain").name == stage_folder("one", "pretrain").name


def test_a_link_outlives_its_source(place):
    assert ratplus("pretrain", *WORDS, "model.init_from=given", "output=one") == 0
    before = load(stage_folder("one", "pretrain")).state_dict()
    other = RATPlus(SHAPE)
    other.reset_parameters(4)
    save(other, "given")
    after = load(stage_folder("one", "pretrain")).state_dict()
    assert same(before, after)


def test_a_longer_context_with_other_rotary_positions(place, capsys):
    """Given at 128, used at 256 through YaRN: adapted, evaluated by position, exported, imported, generated from."""
    yarn = ["model.rope_scaling=yarn", "model.rope_factor=2", "model.rope_original=128"]
    words = [
        *WORDS,
        "train.context=256",
        "model.init_from=given",
        "eval.positions.width=64",
        "eval.cloze.items=0",
        *yarn,
    ]
    record = Cell(compose_one([*words, "pattern.dilation=4"]).config, Surroundings(Path("one"))).run("evaluate")
    assert set(record["metrics"]) >= {f"loss_at_{low}_{low + 64}" for low in (0, 64, 128, 192)}
    pretrain = json.loads((stage_folder("one", "pretrain") / "record.json").read_text())
    assert pretrain["metrics"]["trained_context"]["value"] == 128
    assert "used with rope_scaling=yarn instead of none, rope_factor=2.0 instead of 1.0" in capsys.readouterr().out
    adapted = stage_folder("one", "adapt")
    assert load(adapted).config == replace(SHAPE, max_len=256, rope_scaling="yarn", rope_factor=2.0, rope_original=128)

    assert ratplus("export", str(adapted), "hub", "--format", "hf", "--shard-gb", "1e-4") == 0
    assert len(list(Path("hub").glob("model-*-of-*.safetensors"))) > 3
    assert ratplus("import", "hub", "back") == 0
    for name in ("config.json", "model.safetensors"):
        assert Path("back", name).read_bytes() == (adapted / name).read_bytes()
    assert ratplus("generate", "model=back", "prompt=" + 180 * "a", "pattern=D1,D4", "max_new_tokens=20") == 0

    # Started from directly, or from what import made of it: the same weights, so the same stage.
    for source, sweep in (("back", "two"), ("hub", "three")):
        others = [f"model.init_from={source}", *(w for w in words if not w.startswith("model.init_from"))]
        assert ratplus("pretrain", *others, f"output={sweep}") == 0
    assert stage_folder("two", "pretrain").name == stage_folder("three", "pretrain").name
    taken = [load(stage_folder(sweep, "pretrain")).state_dict() for sweep in ("two", "three")]
    wanted = load(adapted).state_dict()
    assert all(same(wanted, state) for state in taken)
    (Path("hub") / "config.json").write_text(Path("hub/config.json").read_text().replace("weights_sha256", "x"))
    assert ratplus("pretrain", *others, "output=four") == 2
    assert "has no weights_sha256; turn it into a model folder: ratplus import hub" in capsys.readouterr().err


def test_no_adaptation(place):
    """Zero steps: the weights as they are, under any pattern."""
    assert ratplus("adapt", *WORDS, "model.init_from=given", "output=one", "train.adapt.steps=0") == 0
    given, adapted = load("given").state_dict(), load(stage_folder("one", "adapt")).state_dict()
    assert same(given, adapted)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.init_from=nowhere"], "model.init_from: nowhere: no checkpoint here (config.json is missing)"),
        (["model.layers=2", "model.d_model=32"], "it needs model.layers=3 (not 2), model.d_model=64 (not 32)"),
        (["model.rope_scaling=yarn"], "model.rope_factor: got 1.0; it must be > 1"),
        (["model.recurrence=false", "train.pretrain.arl=false"], "it needs model.recurrence=True (not False)"),
        (["data.recall.fraction=0.5", "data.recall.length=64"], "data.recall.fraction=0 leaves out"),
    ],
)
def test_what_does_not_fit(place, capsys, words, message):
    assert ratplus("adapt", *WORDS, "model.init_from=given", "output=one", *words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not Path("one").exists()


def test_weights_that_are_altered(place, capsys):
    data = bytearray(Path("given/model.safetensors").read_bytes())
    data[-1] ^= 1
    Path("given/model.safetensors").write_bytes(data)
    assert ratplus("pretrain", *WORDS, "model.init_from=given", "output=one") == 2
    (record,) = records(Path("one")).values()
    assert record["status"] == "failed"
    assert not list(Path("one").rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "given", "given", "--format", "official"], "is a folder; --format official writes one file"),
        (["export", "given", "text.txt", "--format", "hf"], "is a file; --format hf writes a folder"),
        (["export", "nothing", "x.pt"], "nothing: no checkpoint here"),
        (["import", "text.txt", "m"], "cannot be read as a weights-only checkpoint"),
        (["import", "given", "m"], "is a ratplus model folder already"),
        (["export", "given", "x.pt", "--shard-gb", "1"], "--shard-gb: got 1; only --format hf writes shards"),
        (["export", "given", "x", "--format", "hf", "--shard-gb", "0"], "--shard-gb: got 0; it must be > 0"),
        (["import", "given", "m", "--d-head", "0"], "--d-head: got 0"),
    ],
)
def test_mistakes_of_import_and_export(place, capsys, words, message):
    assert ratplus(*words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_the_plan_knows_that_nothing_is_pretrained(place, capsys):
    assert ratplus("plan", *WORDS, "model.init_from=given") == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("pretrain"))
    assert row.split() == ["pretrain", "1", "0", "0", "0"]


def test_a_planned_cell_has_its_ids_from_the_manifest_alone(place):
    """Given weights fix the vocabulary, and the recall task adds symbols to it; the corpus is not opened for either."""
    recall = [
        "data.recall.fraction=0.5", "data.recall.length=32", "data.recall.keys=4", "data.recall.pairs=4",
        "eval.recall_rows=4",
    ]  # fmt: skip
    entries = plan_cells([compose_one([*WORDS, "model.init_from=given"]), compose_one([*WORDS, *recall])])
    shutil.rmtree("data")
    Path("text.txt").unlink()
    for entry in entries:
        config, vocab_size = typed(cell_config(entry)), entry["config"]["model"]["vocab_size"]
        assert {stage.name: stage.id for stage in planned_stages(config, entry["corpus"], vocab_size)} == entry[
            "stages"
        ]


def test_what_given_weights_make_meaningless_is_in_no_id(place):
    def ids(*words: str) -> dict[str, str]:
        (entry,) = plan_cells([compose_one([*WORDS, *words])])
        return entry["stages"]

    given = ids("model.init_from=given")
    shutil.copytree("given", "moved")
    for words in (["model.init_std=0.5"], ["model.name=other"], ["model.init_from=moved"]):
        assert ids("model.init_from=given", *words) == given, words
    assert ids("model.init_std=0.5")["pretrain"] != ids()["pretrain"]
    changed = {key: ids("model.init_from=given", key) for key in ("model.rope_base=5000", "train.context=32", "seed=1")}
    assert all(stages["adapt"] != given["adapt"] for stages in changed.values())
    assert changed["seed=1"]["pretrain"] == given["pretrain"], "the weights are the same for every seed"


def test_a_child_stage_refuses_other_weights_than_its_parent_made(place, capsys):
    words = [*WORDS, "model.init_from=given", "output=one", "pattern.dilation=8"]
    assert ratplus("adapt", *words) == 0
    for stage in ("pretrain", "adapt"):
        record = json.loads((stage_folder("one", stage) / "record.json").read_text())
        facts = json.loads((stage_folder("one", stage) / "config.json").read_text())
        assert record["weights_sha256"] == facts["sha256"]
    save(RATPlus(load(stage_folder("one", "adapt")).config), stage_folder("one", "adapt"))
    capsys.readouterr()
    assert ratplus("evaluate", *words) == 2
    told = capsys.readouterr().err
    assert "are not those that this stage trained" in told
    assert f"delete {stage_folder('one', 'adapt')} to train it again" in told.replace("\n", "")
    shutil.rmtree(stage_folder("one", "adapt"))
    assert ratplus("evaluate", *words) == 0
    assert ratplus("import", "given", str(stage_folder("one", "adapt"))) == 2
    assert "lies in the folder of a stage of a sweep" in capsys.readouterr().err
