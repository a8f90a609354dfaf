"""A recurrence for weights that have none: which rows are new, and what the gates begin with."""

import pytest
import torch

from ratplus import ModelConfig, RATPlus
from ratplus.checkpoint.llama.download import is_hub_name
from ratplus.checkpoint.retrofit import with_recurrence
from ratplus.checkpoint.tensor_file import Lazy


def test_weights_with_rows_and_biases_of_gates():
    shape = dict(vocab_size=11, layers=2, d_model=16, d_head=4, query_heads=6, kv_heads=2)
    plain = RATPlus(ModelConfig(**shape, recurrence=False))
    plain.reset_parameters(0, 0.5)
    before = plain.state_dict()
    config = ModelConfig(**shape, gate_bias=-2.0)
    made = with_recurrence(before, config)
    after = {name: tensor.make() if isinstance(tensor, Lazy) else tensor for name, tensor in made.items()}
    assert {name: tensor.shape for name, tensor in after.items()} == {
        name: tensor.shape for name, tensor in RATPlus(config).state_dict().items()
    }
    for name, tensor in after.items():
        if name.endswith("mixer.gate_bias"):
            assert (tensor == -2).all()
        elif name.endswith("mixer.in_proj.weight"):
            rows = len(before[name])
            assert len(tensor) == rows + 2 * 4  # a gate for each channel of a head of keys
            assert torch.equal(tensor[:rows], before[name])
            assert (tensor[rows:] == 0).all()
        else:
            assert tensor is before[name]


@pytest.mark.parametrize(
    ("source", "hub"),
    [
        ("owner/name", True), ("o.w-n_er/na.me-1", True), ("owner/name.GGUF", False),
        ("owner/model.safetensors", False), ("owner", False), ("a/b/c", False), ("owner/na me", False),
        ("here/model", False), ("http://x/y", False),
    ],
)  # fmt: skip
def test_what_names_a_model_of_the_hub(tmp_path, monkeypatch, source, hub):
    (tmp_path / "here/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(source) == hub
