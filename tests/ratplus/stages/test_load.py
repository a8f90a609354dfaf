"""`ratplus.load`: model, tokenizer and pattern of stages, copies of them, imports and exports."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import ratplus
from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.checkpoint import save
from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.hub import export_hf
from ratplus.data.tokenizer import ByteTokenizer, load_tokenizer
from ratplus.records.find_stage import NoSuchStage
from ratplus.records.manifest import read_manifest
from ratplus.records.record import read_record
from ratplus.sweeps import cli
from ratplus.sweeps.views.sweep_summary import summary

WORDS = [
    "sweep", "model=ratplus_nano", "data=text", "data.path=text.txt", "data.recall.fraction=0", "logger=none",
    "data.validation_fraction=0.3", "data.tokenizer=tokenizer.json", 'data.bos="<s>"', "train.context=32",
    "train.pretrain.steps=1", "train.adapt.steps=1", "train.pretrain.batch=2", "train.adapt.batch=2",
    "eval.text_rows=2", "eval.cloze.items=0", "pattern.dilation=4", "run.threads=1", "run.accelerator=cpu",
    "launcher.workers=1", "output=outputs/one",
]  # fmt: skip
LABEL = "D4"


def write_tokenizer(path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    letters = {letter: i for i, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(path))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of one cell, and the stages' ids."""
    place = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        Path("text.txt").write_text("".join(f"Line {i} of a text that nobody reads.\n" for i in range(200)))
        write_tokenizer(Path("tokenizer.json"))
        with pytest.raises(SystemExit) as ended:
            cli.main(WORDS)
        assert not ended.value.code
    (cell,) = read_manifest(place / "outputs" / "one")["cells"]
    return place, cell["stages"]


def text_of(loaded) -> list[int]:
    return loaded.model.generate([loaded.tokenizer.encode("Line")], loaded.patterns, 4)[0].tolist()


def test_records_say_how_long_a_stage_trained(swept):
    place, ids = swept
    timing = {
        stage: (read_record(place / "outputs/one" / stage / ids[stage]) or {})["timing"]
        for stage in ("pretrain", "adapt", "evaluate")
    }
    for stage in ("pretrain", "adapt"):
        assert 0 < timing[stage]["train_seconds"] < 600
        assert timing[stage]["resumed_at_step"] == 0
        assert "layouts" not in timing[stage], "one process whose losses are one sum"
    assert timing["evaluate"]["evaluate_seconds"] > 0
    lines = "\n".join(summary(place / "outputs/one")).splitlines()
    told = [line.split()[-1] for line in lines if line.split()[0] in ("pretrain", "adapt")]
    assert told == [f"{timing[stage]['train_seconds']:.1f}" for stage in ("pretrain", "adapt")]


def test_stages_by_id_and_by_folder(swept, monkeypatch):
    place, ids = swept
    monkeypatch.chdir(place)
    for stage, folder in (("pretrain", "pretrain"), ("adapt", "adapt"), ("evaluate", "adapt")):
        loaded = ratplus.load(ids[stage])
        model, tokenizer, patterns = loaded
        assert patterns.label == ("D1" if stage == "pretrain" else LABEL)
        assert tokenizer.decode(tokenizer.encode("text ")) == "text "
        assert tokenizer.encode("")[0] == tokenizer.bos_id == 256
        weights = ratplus.load(Path("outputs/one") / folder / ids[folder]).model.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        assert not model.training
    assert ratplus.load(ids["adapt"][:8], sweep="outputs/one").patterns.label == LABEL
    with pytest.raises(NoSuchStage, match="no stage of outputs/"):
        ratplus.load("0" * 12)
    with pytest.raises(CheckpointError, match="model=nowhere: no such folder, and not an id of a stage"):
        ratplus.load("nowhere")
    # Each adapted model holds no copy of the tokenizer.
    first, second = (Path("outputs/one") / stage / ids[stage] / "tokenizer.json" for stage in ("pretrain", "adapt"))
    assert first.samefile(second)


def test_a_stage_that_is_copied_elsewhere_says_the_same(swept, tmp_path, capsys, monkeypatch):
    place, ids = swept
    there = place / "outputs" / "one" / "adapt" / ids["adapt"]
    copied = Path(shutil.copytree(there, tmp_path / "copied"))
    (copied / "record.json").unlink()
    expected, found = ratplus.load(there), ratplus.load(copied)
    assert found.patterns == expected.patterns
    assert found.tokenizer.facts == expected.tokenizer.facts
    assert text_of(found) == text_of(expected)

    # One of before tokenizers and patterns went along: its sweep and its record say what its folder does not.
    monkeypatch.chdir(place)
    alone = Path(shutil.copytree(there, tmp_path / there.name))  # under another name, its record says nothing
    words = json.loads((there / "config.json").read_text())
    for folder in (there, alone):
        (folder / "tokenizer.json").unlink()
        (folder / "config.json").write_text(json.dumps({k: words[k] for k in ("format", "model", "sha256")}))
    found = ratplus.load(there)
    shutil.copy(copied / "tokenizer.json", there)
    shutil.copy(copied / "config.json", there)
    assert (found.patterns, found.tokenizer.facts) == (expected.patterns, expected.tokenizer.facts)
    found = ratplus.load(alone)
    assert (found.patterns.label, found.tokenizer) == (LABEL, None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["generate", f"model={alone}", "prompt=Line", "max_new_tokens=2"])
    assert ended.value.code == 2
    assert "nothing there says which tokenizer it was trained with; give tokenizer=bytes" in capsys.readouterr().err


def test_tokenizers_that_are_missing_or_others(swept, tmp_path):
    place, ids = swept
    copied = Path(shutil.copytree(place / "outputs" / "one" / "adapt" / ids["adapt"], tmp_path / "copied"))
    words = json.loads((copied / "config.json").read_text())
    tokenizer = copied / "tokenizer.json"
    tokenizer.rename(tmp_path / "kept.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the model's tokenizer is missing"):
        ratplus.load(copied)
    assert ratplus.load(copied, tokenizer=tmp_path / "kept.json").tokenizer.vocab_size == 258
    tokenizer.write_text((tmp_path / "kept.json").read_text() + " ")
    with pytest.raises(CheckpointError, match="is not the tokenizer that config.json tells of"):
        ratplus.load(copied)
    for facts, told in (({"name": "x", "file": "../kept.json"}, "is missing"), ([1], "damaged"),
                        ({"file": 3}, "damaged"),
                        ({"name": "x", "file": "tokenizer.json", "eos_id": "a"}, "damaged")):  # fmt: skip
        (copied / "config.json").write_text(json.dumps(words | {"tokenizer": facts}))
        with pytest.raises(CheckpointError, match=told):
            ratplus.load(copied)


def test_exports_and_plain_folders(tmp_path):
    torch.manual_seed(0)
    model = RATPlus(ModelConfig(260, 2, 32, 16, max_len=64))
    ours = save(model, tmp_path / "ours", ByteTokenizer(), PatternMap.uniform(Pattern(4, 8), 2, 2))
    export_hf(ours, tmp_path / "hub")
    for folder in (ours, tmp_path / "hub"):
        loaded = ratplus.load(folder)
        assert (loaded.patterns.label, loaded.tokenizer.name) == ("D4-W8", "bytes")
        assert text_of(loaded) == text_of(ratplus.load(ours))
    bare = save(model, tmp_path / "bare")
    # A copy under a stage's name is no stage where no sweep lies around it.
    named = shutil.copytree(ours, tmp_path / "adapt" / "0123456789ab")
    assert ratplus.load(named).patterns.label == "D4-W8"
    assert ratplus.load(bare).tokenizer is None
    assert ratplus.load(bare, tokenizer="bytes").tokenizer.vocab_size == 257
    with pytest.raises(CheckpointError, match=r"is a Hugging Face folder .*ratplus import"):
        ratplus.checkpoint.load(tmp_path / "hub")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file; make a model folder of it with: ratplus import"):
        ratplus.load(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"not a model folder \(config.json is missing\)"):
        ratplus.load(tmp_path / "empty")
    (tmp_path / "empty" / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(CheckpointError, match=r"holds a LoRA adapter \(adapter_config\.json\) of some/base"):
        ratplus.load(tmp_path / "empty")
    write_tokenizer(tmp_path / "tokenizer.json")
    small = save(RATPlus(ModelConfig(200, 2, 32, 16)), tmp_path / "small")
    with pytest.raises(CheckpointError, match="it has 258 tokens, the model's vocabulary only 200"):
        ratplus.load(small, tokenizer=load_tokenizer(tmp_path / "tokenizer.json", eos="</s>"))
