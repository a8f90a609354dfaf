"""Whole models through the Triton kernels (interpreter): the paper's reference data, and what the eager path does.

The golden tests proper, every one of them on the fused path, take eight minutes: `pytest -m slow`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.checkpoint import load_official
from ratplus.model.network import Mixer
from ratplus.model.rope import rope_tables

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

TESTS = Path(__file__).parents[1]
MANIFEST = json.loads((TESTS / "golden" / "manifest.json").read_text())["files"]
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
    tokens = torch.randint(40, (2, 24), generator=torch.Generator().manual_seed(1))

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


# Reference data: one sequence of the batch, and no more tokens than it takes; what a token gives depends on none after.


@pytest.fixture
def official(golden, monkeypatch):
    monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    weights = {name: torch.from_numpy(value) for name, value in golden("weights_re1").items()}
    return load_official(weights, d_head=16, max_len=256)


def _pattern(facts: dict) -> Pattern:
    return Pattern(facts["D"], facts["W"], facts["I"])


def test_golden_logits(golden, official):
    name = "logits_re1_D8_W5_I4"
    tokens = torch.from_numpy(golden("model")["tokens"][:1, :34].astype(np.int64))
    with torch.no_grad():
        logits = official(tokens, _pattern(MANIFEST["model.npz"][name]))
    np.testing.assert_allclose(logits.numpy(), golden("model")[name][:1, :34], atol=1e-4, rtol=0)


def test_golden_prefill_and_steps(golden, official):
    arrays, facts = golden("decode"), MANIFEST["decode.npz"]["c1_steps"]
    tokens = torch.from_numpy(arrays["c1_tokens"][:1].astype(np.int64))
    prompt = facts["P"]
    cache = official.new_cache(1, _pattern(facts), max_len=tokens.shape[1])
    logits = official.prefill(tokens[:, :prompt], cache)
    np.testing.assert_allclose(logits.numpy(), arrays["c1_prefill"][:1], atol=1e-4, rtol=0)
    for j in range(5):  # past position 23, which the dilation keeps
        logits = official.step(tokens[:, prompt + j], cache)
        np.testing.assert_allclose(logits.numpy(), arrays["c1_steps"][:1, j], atol=1e-4, rtol=0)


def test_golden_layer_and_its_gradient(golden, monkeypatch):
    """The loss is a sum over sequences, so the input's gradient for the first one is its own."""
    monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    arrays = golden("layer")
    mixer = Mixer(ModelConfig(vocab_size=2, layers=1, d_model=64, d_head=16))
    names = {"in_proj": "in_proj", "out_proj": "out_proj", "norm": "input_norm"}
    weights = {f"{k}.weight": torch.from_numpy(arrays[f"w_re1.{v}.weight"]) for k, v in names.items()}
    mixer.load_state_dict(weights)
    x = torch.from_numpy(arrays["x_T128"][:1]).requires_grad_()
    y = mixer(x, (Pattern(4, 5, 3),) * 4, rope_tables(torch.arange(128), 16, 10000.0))
    np.testing.assert_allclose(y.detach().numpy(), arrays["y_re1_T128_D4_W5_I3"][:1], atol=2e-5, rtol=0)
    (y * torch.from_numpy(arrays["R_T128"][:1])).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), arrays["G_re1_T128_D4_W5_I3.x"][:1], atol=1.5e-4, rtol=0)


@pytest.mark.slow
def test_every_golden_test_on_the_fused_path():
    """Logits, decoding, layer gradients, and three iterations of active recurrence learning."""
    environment = os.environ | {"RATPLUS_KERNELS": "fused", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONSAFEPATH", None)  # a command that an earlier test ran here may have set it
    command = [sys.executable, "-m", "pytest", "-q", str(TESTS / "ratplus" / "test_golden.py")]
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
