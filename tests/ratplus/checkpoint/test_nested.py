"""Where in a checkpoint of others the weights are found, and files that are no checkpoints."""

from pathlib import Path

import pytest
import torch

from ratplus import ModelConfig, RATPlus
from ratplus.checkpoint import load, save
from ratplus.checkpoint.adopt import read_foreign
from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.official import export_official, read_official

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def weights(tmp_path) -> dict:
    export_official(save(RATPlus(ModelConfig(11, 1, 16, 8)), tmp_path / "m"), tmp_path / "m.pt")
    return torch.load(tmp_path / "m.pt", weights_only=True)["task"]


def prefixed(weights: dict, prefix: str) -> dict:
    return {prefix + key: tensor for key, tensor in weights.items()}


@pytest.mark.parametrize(
    "make",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "step": 1},
        lambda w: {"model_state_dict": prefixed(w, "module.")},  # DistributedDataParallel
        lambda w: {"state_dict": prefixed(w, "model.")},  # Lightning
        lambda w: {"task": prefixed(w, "_orig_mod.")},  # torch.compile
        lambda w: {"state_dict": prefixed(w, "model._orig_mod.")},
        lambda w: {"checkpoint": {"model": {"weights": w}}},
        lambda w: {"module": w, "ema": prefixed(w, "")},  # the likelier place is taken
    ],
)
def test_weights_are_found_below_other_things(weights, tmp_path, make):
    torch.save(make(weights), tmp_path / "theirs.ckpt")
    found = read_foreign(tmp_path / "theirs.ckpt", 8)
    assert torch.equal(found.weights["embed.weight"].make(), weights["embedding.wte.weight"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: {"ema_fast": w, "ema_slow": w | {}}, r"several models \(ema_fast, ema_slow\); .* state_dict"),
        (lambda w: {"optimizer": {}, "epoch": 1}, r"not in the reference layout .*it holds optimizer, epoch"),
        (lambda w: {"state_dict": prefixed(w, "model.") | {"head.bias": torch.zeros(3)}}, "unknown key head.bias"),
        (lambda w: {}, "it holds nothing"),
    ],
)
def test_what_is_not_understood_says_what_it_holds(weights, tmp_path, make, message):
    with pytest.raises(CheckpointError, match=message):
        read_official(make(weights), 8)


def test_dicts_within_dicts_have_an_end():
    """A small file may hold one dict under thousands of names, on every level."""
    inner: dict = {"x": 1}
    for _ in range(4):
        inner = dict.fromkeys(range(2000), inner)
    with pytest.raises(CheckpointError, match="not in the reference layout"):
        read_official(inner, 8)


@pytest.mark.parametrize("name", ["c.pt", "c.safetensors", "c.ckpt"])
@pytest.mark.parametrize("content", [POINTER, "<!DOCTYPE html><html>"])
def test_a_pointer_or_a_web_page_is_no_damaged_checkpoint(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=r"this is a (pointer of Git LFS|web page)"):
        read_foreign(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_cloned_model_folder_without_its_large_files(tmp_path, name):
    folder: Path = save(RATPlus(ModelConfig(11, 1, 16, 8)), tmp_path / "m")
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match="this is a pointer of Git LFS, not the file itself: run `git lfs pull`"):
        load(folder)
