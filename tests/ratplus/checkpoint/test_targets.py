"""What `import` and `export` never write over, and weights that are not those of a stage's record."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from ratplus import ModelConfig, RATPlus
from ratplus.checkpoint import load, save
from ratplus.checkpoint.adopt import bring_in, read_foreign
from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.folder import save_weights
from ratplus.checkpoint.hub import export_hf
from ratplus.checkpoint.official import export_official
from ratplus.checkpoint.targets import check_free
from ratplus.records.record import read_record, stage_id, write_record

CONFIG = ModelConfig(11, 2, 16, 8)
STAGE = Path(__file__).parents[2] / "data/sweep_before_folders/sweep/pretrain/185a72309e0e"


def contents(folder: Path) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def ours(tmp_path):
    return save(RATPlus(CONFIG), tmp_path / "ours")


@pytest.fixture
def theirs(ours, tmp_path):
    export_official(ours, tmp_path / "theirs.pt")
    return tmp_path / "theirs.pt"


def take(theirs: Path, folder: Path, force: bool = False) -> None:
    bring_in(read_foreign(theirs, 8), theirs, folder, force)


def test_an_official_export_replaces_no_other_file(ours, tmp_path):
    notes, other = tmp_path / "notes.txt", save(RATPlus(CONFIG), tmp_path / "other")
    notes.write_text("my notes")
    with pytest.raises(CheckpointError, match=r"notes\.txt: exists already; choose another target, or .* --force"):
        export_official(ours, notes)
    assert notes.read_text() == "my notes"
    export_official(ours, tmp_path / "m.pt")
    export_official(ours, tmp_path / "m.pt")  # the same again
    with pytest.raises(CheckpointError, match="exists already"):
        export_official(other, tmp_path / "m.pt")
    # Somebody's whole training state, of which the weights are only a part.
    whole = torch.load(tmp_path / "m.pt", weights_only=True) | {"optimizer": {"step": 3}}
    torch.save(whole, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="exists already"):
        export_official(ours, tmp_path / "m.pt")
    (tmp_path / "link.pt").symlink_to("nowhere.pt")
    with pytest.raises(CheckpointError, match="exists already"):
        export_official(ours, tmp_path / "link.pt")
    export_official(other, tmp_path / "m.pt", force=True)
    assert torch.load(tmp_path / "m.pt", weights_only=True).keys() == {"task"}
    os.mkfifo(tmp_path / "pipe.pt")  # nothing of this machine itself: a fault would replace it
    with pytest.raises(CheckpointError, match="not a plain file, so --force does not replace it"):
        export_official(ours, tmp_path / "pipe.pt", force=True)


def test_an_import_replaces_no_other_model(ours, theirs, tmp_path):
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_text("weights")
    before = contents(folder)
    with pytest.raises(CheckpointError, match=r"llama: holds config\.json of another model already; .* --force"):
        take(theirs, folder)
    (folder / "config.json").unlink()  # weights alone are somebody's as well
    with pytest.raises(CheckpointError, match=r"llama: holds model\.safetensors of another model already"):
        take(theirs, folder)
    assert contents(folder) == {Path("model.safetensors"): before[Path("model.safetensors")]}
    take(theirs, folder, force=True)
    first = contents(folder)
    take(theirs, folder)  # the same again
    assert contents(folder) == first
    trained = save(RATPlus(CONFIG), tmp_path / "trained")
    before = contents(trained)
    with pytest.raises(CheckpointError, match="trained: holds config.json of another model already"):
        take(theirs, trained)
    assert contents(trained) == before


def test_an_hf_export_replaces_only_an_export(ours, tmp_path):
    hub, other = tmp_path / "hub", save(RATPlus(CONFIG), tmp_path / "other")
    export_hf(other, hub)
    export_hf(ours, hub)
    # Whoever trains an export further takes out the hash (docs/data.md), and would miss the result.
    words = (hub / "config.json").read_text()
    (hub / "config.json").write_text("\n".join(line for line in words.split("\n") if "weights_sha256" not in line))
    before = contents(hub)
    with pytest.raises(CheckpointError, match=r"holds the config\.json of another model; .* --force"):
        export_hf(ours, hub)
    assert contents(hub) == before
    export_hf(ours, hub, force=True)
    assert (hub / "config.json").read_text() == words
    with pytest.raises(CheckpointError, match="is a ratplus model folder already"):
        export_hf(ours, other)
    export_hf(ours, other, force=True)
    assert contents(other) == contents(hub)


@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_written_into_a_stage_or_over_its_own_source(ours, theirs, tmp_path, force):
    sweep = tmp_path / "sweep"
    shutil.copytree(STAGE.parents[1], sweep)
    stage = sweep / "pretrain" / STAGE.name
    shutil.copytree(stage, tmp_path / "moved")
    (tmp_path / "link").symlink_to(stage)
    empty = sweep / "adapt" / "0123456789ab"  # of a cell that is queued
    before = contents(tmp_path)
    for folder in (stage, stage / "deeper", empty, tmp_path / "moved", tmp_path / "link"):
        for write in (lambda to: take(theirs, to, force), lambda to: export_hf(ours, to, force=force),
                      lambda to: export_official(ours, to / "x.pt", force=force)):  # fmt: skip
            with pytest.raises(CheckpointError, match="lies in the folder of a stage of a sweep"):
                write(folder)
    for write in (lambda: export_hf(ours, ours, force=force),
                  lambda: export_official(ours, ours / "model.safetensors", force=force)):  # fmt: skip
        with pytest.raises(CheckpointError, match="it would take the place of the model folder itself"):
            write()
    assert contents(tmp_path) == before


def test_a_stage_s_weights_are_those_of_its_record(tmp_path):
    """Weights and config.json that fit each other, but not the record beside them."""
    identity = stage_id("pretrain", {"a": 1}, None)
    folder = tmp_path / "pretrain" / identity
    parts = {"stage": "pretrain", "config": {"a": 1}, "parent": None, "metrics": {}, "timing": {}, "provenance": {}}
    sha256 = save_weights(CONFIG, RATPlus(CONFIG).state_dict(), folder)
    write_record(folder, status="done", weights_sha256=sha256, **parts)
    assert read_record(folder)["weights_sha256"] == sha256
    assert load(folder).config == CONFIG
    save(RATPlus(CONFIG), folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors and config\.json are not those that this stage"):
        load(folder)
    # Of before the key, and of a stage that failed once and is trained again.
    write_record(folder, status="done", **parts)
    assert "weights_sha256" not in read_record(folder)
    assert load(folder).config == CONFIG
    write_record(folder, status="failed", weights_sha256=sha256, **parts)
    assert load(folder).config == CONFIG


def test_names_that_are_taken(tmp_path):
    """By a file, a folder or a link, also one that leads to nothing: whoever made it may want it."""
    check_free(tmp_path / "nowhere", ["a"], "a model")
    check_free(tmp_path, ["a", "b"], "a model")
    for make in (Path.touch, Path.mkdir, lambda path: path.symlink_to("gone")):
        path = tmp_path / "b"
        make(path)
        with pytest.raises(CheckpointError, match=r"holds b of a model already; choose another target, or replace it "):
            check_free(tmp_path, ["a", "b"], "a model")
        path.rmdir() if path.is_dir() else path.unlink()
