"""Model files: our own format and the reference layout, and what is said of damaged ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ratplus import ModelConfig, RATPlus
from ratplus.checkpoint import load, load_official, save
from ratplus.checkpoint.adopt import adopt
from ratplus.checkpoint.facts import CheckpointError, read_facts
from ratplus.checkpoint.folder import map_weights

CONFIG = ModelConfig(11, 2, 16, 8, max_len=32)


@pytest.fixture
def folder(tmp_path):
    return save(RATPlus(CONFIG), tmp_path / "model")


def test_round_trip_is_exact(tmp_path):
    model = RATPlus(ModelConfig(11, 2, 16, 8, recurrence=False, output_gate=False, rope_base=5e5, max_len=32))
    back = load(save(model, tmp_path / "m"))
    assert back.config == model.config
    assert model.state_dict().keys() == back.state_dict().keys() != set()
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: cut(f / "model.safetensors"), "SHA-256 differs"),
        (lambda f: (f / "model.safetensors").unlink(), "no checkpoint here .model.safetensors is missing."),
        (lambda f: (f / "config.json").unlink(), "no checkpoint here .config.json is missing."),
        (lambda f: (f / "config.json").write_text("{"), "config.json: damaged"),
    ],
)  # fmt: skip
def test_damage_is_seen(folder, damage, message):
    damage(folder)
    for read in (load, map_weights):
        with pytest.raises(CheckpointError, match=message):
            read(folder)


def test_adopting_weights(folder, tmp_path):
    _, sha256 = read_facts(folder)
    model = load(folder)
    assert adopt(folder, tmp_path / "new", CONFIG, sha256) == (sum(p.numel() for p in model.parameters()), sha256)
    assert torch.equal(load(tmp_path / "new", CONFIG).embed.weight, model.embed.weight)
    # Of what is another setting than in training a line is told; a longer context is none.
    said: list[str] = []
    longer = replace(CONFIG, max_len=64)
    adopt(folder, tmp_path / "longer", longer, sha256, said.append)
    assert (said, load(tmp_path / "longer").config.max_len) == ([], 64)
    adopt(folder, tmp_path / "turned", replace(longer, rope_base=5e5), sha256, said.append)
    assert said == [f"model.init_from={folder}: used with rope_base=500000.0 instead of 10000.0"]
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        adopt(folder, tmp_path / "other", CONFIG, "0" * 64)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint here .model.safetensors is missing."):
        adopt(folder, tmp_path / "other", CONFIG, sha256)
    assert not (tmp_path / "other").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def test_another_architecture(folder):
    with pytest.raises(CheckpointError, match=r"another architecture \(layers=2 there, 3 asked for\)"):
        load(folder, ModelConfig(11, 3, 16, 8, max_len=32))


def official(golden, recurrence=1) -> dict:
    return {k: torch.from_numpy(v) for k, v in golden(f"weights_re{recurrence}").items()}


def logits(model):
    return model(torch.arange(20)[None])


def test_every_form_of_the_reference_layout(golden, tmp_path):
    plain = official(golden)
    expected = logits(load_official(plain, d_head=16))
    d = 64
    apart = {}
    for key, tensor in plain.items():
        if key.endswith("in_proj.weight"):
            apart[key] = tensor[: 4 * d]
            apart[key.replace("in_proj", "fgate_proj")] = tensor[4 * d :]
        else:
            apart[key] = tensor
    torch.save({"task": plain, "step": 7, "config": {"a": 1}}, tmp_path / "task.pt")
    torch.save(plain, tmp_path / "plain.pt")
    forms = [
        {"_orig_mod." + k: v for k, v in plain.items()},
        {k.replace("backbone.", "backbone._orig_mod."): v for k, v in plain.items()},
        apart,
        {k: v for k, v in plain.items() if k != "head.lm_head.weight"},
        {"model." + k: v for k, v in plain.items()},
        tmp_path / "task.pt",
        str(tmp_path / "plain.pt"),
    ]
    for form in forms:
        torch.testing.assert_close(logits(load_official(form, d_head=16)), expected, atol=0, rtol=0)
    assert not load_official(official(golden, 0), d_head=16).config.recurrence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("backbone.ln.weight"), "backbone.ln.weight is missing"),
        (lambda s: s.pop("embedding.wte.weight"), "not in the reference layout"),
        (lambda s: s.pop("backbone.layers.1.hidden_layer.fc1.weight"), "layer 1 has missing or unknown keys"),
        (lambda s: s.update({"backbone.layers.7.x": torch.zeros(1)}), r"layers \[0, 1, 2, 7\]"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), "unknown key extra.weight"),
        (lambda s: s.update({"head.lm_head.weight": torch.zeros(97, 64)}), "only tied embeddings"),
        (lambda s: s.update({"backbone.layers.0.seq_layer.out_proj.weight": torch.zeros(3, 64)}), "has shape"),
        (lambda s: s.update({"backbone.layers.0.seq_layer.in_proj.weight": torch.zeros(384, 64)}), "blocks of d rows"),
    ],
)  # fmt: skip
def test_strange_state_dicts(golden, change, message):
    state = official(golden)
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_official(state, d_head=16)


def test_wrong_head_size(golden):
    with pytest.raises(CheckpointError, match="pass the d_head it was trained with"):
        load_official(official(golden))


def test_unreadable_files(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_official(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="cannot be read as a weights-only checkpoint"):
        load_official(tmp_path / "text.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="holds a Tensor, not a state_dict"):
        load_official(tmp_path / "tensor.pt")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(CheckpointError):
        load_official(tmp_path / "array.npy")
