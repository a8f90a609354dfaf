"""Statistics of the recurrence, checked against what follows from constant gates."""

import json

import numpy as np
import pytest
import torch

from ratplus.config.model import ModelConfig
from ratplus.evaluation.gates import measure_gates, write_gates
from ratplus.model import RATPlus
from ratplus.pattern import Pattern, PatternMap


@pytest.fixture
def model() -> RATPlus:
    torch.manual_seed(0)
    return RATPlus(ModelConfig(vocab_size=17, layers=2, d_model=16, d_head=8, max_len=256))


def constant_gate(model: RATPlus, logit: float) -> None:
    """Make every gate sigmoid(logit): the norm's weight picks one channel that the embedding holds at its scale."""
    d = model.config.d_model
    with torch.no_grad():
        model.embed.weight.zero_()
        model.embed.weight[:, 0] = 1.0  # after RMSNorm: sqrt(d)
        for layer in model.layers:
            layer.mixer.out_proj.weight.zero_()
            layer.ffn.down.weight.zero_()
            layer.mixer.in_proj.weight[4 * d :].zero_()
            layer.mixer.in_proj.weight[4 * d :, 0] = logit / d**0.5


@pytest.mark.parametrize("gate", [0.5, 0.9])
def test_memory_of_a_constant_gate_is_g_over_1_minus_g(model, gate):
    constant_gate(model, float(np.log(gate / (1 - gate))))
    tokens = np.zeros((3, 256), dtype=np.int64)
    found = measure_gates(model, PatternMap.uniform(Pattern(4), 2, 2), tokens, batch=2)
    assert np.shape(found["memory_tokens"]) == np.shape(found["gate_mean"]) == (2, 2)
    for name in ("gate_mean", "gate_p10", "gate_p90"):
        assert np.allclose(found[name], gate, atol=1e-3)
    assert np.allclose(found["memory_tokens"], gate / (1 - gate), rtol=1e-2)
    assert np.shape(found["value_norm"]) == (2, 256)
    # One token over and over: the state approaches its value, so its norm rises and then stands.
    norms = np.array(found["value_norm"])
    assert (norms[:, 0] < norms[:, -1]).all()
    assert np.allclose(norms[:, 128:], norms[:, -1:], rtol=1e-3)
    assert found["recurrence_chunk"] is None


def test_a_recurrence_that_starts_anew_is_seen_in_norm_and_memory():
    torch.manual_seed(0)
    model = RATPlus(ModelConfig(vocab_size=17, layers=2, d_model=16, d_head=8, max_len=256, recurrence_chunk=16))
    constant_gate(model, float(np.log(9)))
    patterns, tokens = PatternMap.uniform(Pattern(4), 2, 2), np.zeros((3, 256), dtype=np.int64)
    found = measure_gates(model, patterns, tokens, batch=2)
    assert found["recurrence_chunk"] == 16
    assert np.allclose(found["gate_mean"], 0.9, atol=1e-3)  # as learned
    # Within a chunk the state holds 1 - 0.9^(t + 1) of the one value; then it begins again.
    norms = np.array(found["value_norm"]).reshape(2, 16, 16)
    assert np.allclose(norms, norms[:, :1], rtol=1e-4)
    share = 1 - 0.9 ** np.arange(1, 17)
    assert np.allclose(norms[0, 0] / norms[0, 0, -1], share / share[-1], rtol=1e-3)
    ages = [sum(0.9**i for i in range(1, t + 1)) for t in range(16)]
    assert np.allclose(found["memory_tokens"], np.mean(ages), rtol=1e-3)


def test_of_long_sequences_some_positions_are_kept():
    model = RATPlus(ModelConfig(vocab_size=17, layers=1, d_model=8, d_head=8, max_len=1200))
    found = measure_gates(model, PatternMap.uniform(Pattern(64), 1, 1), np.zeros((1, 1200), dtype=np.int64))
    assert found["positions"] == [*range(0, 1200, 3), 1199]
    assert np.shape(found["value_norm"]) == (1, 401)


def test_batches_do_not_matter_and_the_file_is_plain_json(model, tmp_path):
    tokens = np.random.default_rng(0).integers(0, 17, (5, 64))
    patterns = PatternMap.uniform(Pattern(8), 2, 2)
    whole, parts = (measure_gates(model, patterns, tokens, batch=batch) for batch in (5, 2))
    for name in ("gate_mean", "memory_tokens", "key_norm", "value_norm"):
        assert np.allclose(whole[name], parts[name], rtol=1e-5)
    path = write_gates(tmp_path, whole)
    assert json.loads(path.read_text())["positions"][-1] == 63
    assert [hook for layer in model.layers for hook in layer.mixer._forward_pre_hooks] == []


def test_attention_alone_has_no_gates():
    model = RATPlus(ModelConfig(vocab_size=17, layers=1, d_model=16, d_head=8, recurrence=False))
    with pytest.raises(ValueError, match="no recurrence"):
        measure_gates(model, PatternMap.uniform(Pattern(), 1, 2), np.zeros((1, 8), dtype=np.int64))
