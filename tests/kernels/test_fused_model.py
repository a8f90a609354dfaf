"""A small whole model through the Triton kernels (interpreter) does what it does on the eager path."""

import os

import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

SPARSE = Pattern(dilation=4, window=3, sinks=2)


@pytest.fixture
def model():
    config = ModelConfig(vocab_size=40, layers=2, d_model=32, d_head=16, max_len=64)
    model = RATPlus(config)
    model.reset_parameters(seed=0, std=0.2)
    return model


def _both(monkeypatch, function):
    """What `function` returns on the eager and on the fused path."""
    results = []
    for implementation in ("eager", "fused"):
        monkeypatch.setenv("RATPLUS_KERNELS", implementation)
        results.append(function())
    return results


@pytest.mark.parametrize("kind", ["sparse", "hybrid"])
def test_training_step(monkeypatch, model, kind):
    hybrid = PatternMap.per_head([SPARSE, Pattern(dilation=None, window=5, sinks=1)], layers=2)
    patterns = SPARSE if kind == "sparse" else hybrid
    tokens = torch.randint(40, (2, 33), generator=torch.Generator().manual_seed(1))

    def step():
        logits = model(tokens[:, :-1], patterns)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        return [logits, loss, *torch.autograd.grad(loss, list(model.parameters()))]

    for x, y in zip(*_both(monkeypatch, step)):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-4)


def test_generation(monkeypatch, model):
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]
    eager, fused = _both(monkeypatch, lambda: model.generate(prompts, SPARSE, max_new_tokens=6))
    assert torch.equal(eager, fused)
