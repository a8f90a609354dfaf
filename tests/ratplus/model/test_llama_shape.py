"""The words of Llama-family shapes: what they compute, what they cost, and which settings are refused."""

from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from ratplus import ModelConfig, Pattern, RATPlus
from ratplus.checkpoint import load, save
from ratplus.config.cell import Config, PatternSection
from ratplus.config.model import ModelSection
from ratplus.costs.budget import forward_flops, parameters
from ratplus.costs.facts import pattern_facts
from ratplus.model.rope import rope_frequencies, rotate
from ratplus.stages.stage_ids import LATER_KEYS

PLAIN = {"recurrence": False, "output_gate": False}
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original": 16, "rope_low": 1.0, "rope_high": 4.0}
SHAPES = {
    "swiglu": {"ffn": "swiglu", **PLAIN},
    "ffn_size": {"ffn": "swiglu", "ffn_size": 44, **PLAIN},
    "heads": {"query_heads": 6, "kv_heads": 2, "output_gate": True},
    "bias": {"qkv_bias": True, "out_bias": True, "kv_heads": 2, **PLAIN},
    "bias_with_gates": {"qkv_bias": True, "gate_bias": -2.0},
    "gate_bias": {"gate_bias": -2.0, "output_gate": False, "kv_heads": 2},
    "qk_norm": {"qk_norm": True, "kv_heads": 1},
    "untied": {"tied": False},
    "all": {"query_heads": 6, "kv_heads": 3, "ffn": "swiglu", "ffn_size": 44, "qkv_bias": True, "out_bias": True,
            "qk_norm": True, "gate_bias": -1.0, "tied": False, **LLAMA3},
}  # fmt: skip


def shaped(name: str) -> ModelConfig:
    return ModelConfig(vocab_size=23, layers=2, d_model=32, d_head=8, max_len=48, **SHAPES[name])


def randomised(config: ModelConfig, seed: int = 0) -> RATPlus:
    """A model all of whose weights are random: fresh norms and biases are 1 and 0, which would hide a mistake."""
    model = RATPlus(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            start = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(start + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_forward_prefill_and_steps_agree(name):
    model = randomised(shaped(name))
    tokens = torch.randint(23, (2, 24), generator=torch.Generator().manual_seed(1))
    for pattern in (Pattern(), Pattern(4, 3, 1)):
        with torch.no_grad():
            whole = model(tokens, pattern)
        cache = model.new_cache(2, pattern, 24)
        found = [model.prefill(tokens[:, :13], cache)] + [model.step(tokens[:, t], cache) for t in range(13, 24)]
        torch.testing.assert_close(torch.stack(found, 1), whole[:, 12:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_and_folders(name, tmp_path):
    config = shaped(name)
    model = randomised(config)
    assert parameters(config) == sum(p.numel() for p in model.parameters())
    save(model, tmp_path)
    again = load(tmp_path, config).state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_what_a_layer_computes():
    """One layer by hand, in float64: projections with biases, norms of heads, RoPE, attention, SwiGLU, untied head."""
    config = replace(shaped("all"), layers=1, recurrence=False, gate_bias=None, output_gate=False)
    model = randomised(config).double()
    w = model.state_dict()
    tokens = torch.randint(23, (1, 20), generator=torch.Generator().manual_seed(2))

    def norm(x, name):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config.norm_eps) * w[name]

    x = w["embed.weight"][tokens]
    z = norm(x, "layers.0.mixer.norm.weight") @ w["layers.0.mixer.in_proj.weight"].T + w["layers.0.mixer.qkv_bias"]
    q, k, v = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in z.split([48, 24, 24], dim=-1))
    q, k = norm(q, "layers.0.mixer.q_norm.weight"), norm(k, "layers.0.mixer.k_norm.weight")
    rope = [table[:20] for table in model.rope()]
    q, k = rotate(q, *rope), rotate(k, *rope)
    k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
    x = x + y @ w["layers.0.mixer.out_proj.weight"].T + w["layers.0.mixer.out_proj.bias"]
    gate, up = (norm(x, "layers.0.ffn.norm.weight") @ w["layers.0.ffn.up.weight"].T).split(44, dim=-1)
    x = x + (F.silu(gate) * up) @ w["layers.0.ffn.down.weight"].T
    expected = norm(x, "norm.weight") @ w["head.weight"].T
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), expected, rtol=1e-9, atol=1e-9)


def test_gate_bias_alone_decides_gates_whose_matrix_is_zero():
    """sigmoid(-40) is 0 in float32: nothing of the past is kept, as if there were no recurrence."""
    config = replace(shaped("gate_bias"), gate_bias=-40.0)
    model = RATPlus(config)
    model.reset_parameters(0, 0.2)
    assert model.blocks[0].mixer.gate_bias.eq(-40).all()
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.in_proj.weight[-16:] = 0  # two heads of 8
    plain = RATPlus(replace(config, recurrence=False, gate_bias=None))
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith("gate_bias")}
    plain.load_state_dict({k: v[:-16] if k.endswith("in_proj.weight") else v for k, v in weights.items()})
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), plain(tokens))
        for block in model.blocks:
            block.mixer.gate_bias.fill_(0.0)
        assert not torch.allclose(model(tokens), plain(tokens), atol=1e-3)


def test_empty_models_get_their_start():
    """`reset_parameters` after `to_empty`: no parameter keeps what lay in memory."""
    model = RATPlus(shaped("all"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.reset_parameters(0)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    mixer = model.blocks[0].mixer
    assert mixer.qkv_bias.eq(0).all()
    assert mixer.out_proj.bias.eq(0).all()
    assert mixer.gate_bias.eq(-1).all()


@pytest.mark.parametrize("seed", [None, 3])
def test_matrices_are_drawn_as_wide_as_asked(seed):
    model = RATPlus(ModelConfig(vocab_size=64, layers=2, d_model=64, d_head=16))
    model.reset_parameters(seed, std=0.3)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            assert module.weight.std().item() == pytest.approx(0.3, rel=0.1)
    model.reset_parameters(seed)
    assert model.embed.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_flops_of_a_gated_feed_forward():
    gelu, swiglu = (ModelConfig(23, 1, 32, 8, ffn=kind, ffn_size=44) for kind in ("gelu", "swiglu"))
    assert forward_flops(swiglu, None, 10) - forward_flops(gelu, None, 10) == 2 * 10 * 32 * 44


def test_llama3_frequencies_are_those_of_transformers():
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    for d, base, factor, original, low, high in ((64, 5e5, 32.0, 8192, 1.0, 4.0), (16, 1e4, 2.0, 64, 0.5, 3.0)):
        words = {
            "rope_type": "llama3", "factor": factor, "rope_theta": base, "original_max_position_embeddings": original,
            "low_freq_factor": low, "high_freq_factor": high,
        }  # fmt: skip
        config = LlamaConfig(
            hidden_size=2 * d, num_attention_heads=2, head_dim=d, max_position_embeddings=int(original * factor),
            rope_parameters=words,
        )  # fmt: skip
        theirs, temperature = utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        ours = rope_frequencies(d, base, "llama3", factor, original, low=low, high=high)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        assert temperature == 1


def test_one_way_to_write_a_shape():
    same = ModelConfig(23, 2, 32, 8, query_heads=4, kv_heads=4, ffn_size=96)
    assert same == ModelConfig(23, 2, 32, 8, ffn_mult=3)
    assert (same.heads, same.key_heads, same.ffn_width, same.query_width) == (4, 4, 96, 32)
    section = ModelSection(query_heads=4, ffn_size=512)
    assert (section.query_heads, section.ffn_size, section.ffn_mult) == (None, None, 4)
    # Keys of a model that no id holds at their default are those at which the sections stand.
    assert {k: v for k, v in asdict(ModelSection()).items() if k in LATER_KEYS} == LATER_KEYS


def test_heads_of_the_model_everywhere():
    config = Config(model=ModelSection(d_model=64, d_head=32, query_heads=6, kv_heads=3),
                    pattern=PatternSection(dilation=[1, 1, 4, 4, 8, 8], over="heads"))  # fmt: skip
    assert config.patterns.heads == 6
    facts = pattern_facts(config.patterns.to_dict(), asdict(config.model), 64)
    assert (facts.cost.heads, facts.cost.kv_heads) == (24, 12)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"query_heads": 0}, "model.query_heads: got 0; it must be a whole number ≥ 1, or null"),
        ({"query_heads": 2.0}, "model.query_heads: got 2.0; it must be a whole number ≥ 1, or null"),
        ({"query_heads": True}, "model.query_heads: got True; it must be a whole number ≥ 1, or null"),
        ({"d_model": 33}, "it must be a multiple of model.d_head=8, or model.query_heads must tell the heads"),
        ({"query_heads": 6, "kv_heads": 4}, "it must divide the 6 heads"),
        ({"ffn": "relu"}, "model.ffn: got 'relu'; allowed: gelu, swiglu"),
        ({"ffn_size": 40, "ffn_mult": 2}, "model.ffn_mult: got 2; model.ffn_size=40 tells the width already"),
        ({"ffn_size": 0}, "model.ffn_size: got 0"),
        ({"qkv_bias": "yes"}, "model.qkv_bias: got 'yes'; allowed: true, false"),
        ({"gate_bias": 1.0, "recurrence": False}, "model.gate_bias: got 1.0; only a model with recurrence has one"),
        ({"gate_bias": float("nan")}, "model.gate_bias: got nan"),
        ({**LLAMA3, "rope_low": None}, "model.rope_low: got None; model.rope_scaling=llama3 needs it"),
        ({**LLAMA3, "rope_high": 0.5}, "model.rope_high: got 0.5; it must be > model.rope_low=1.0"),
        ({**LLAMA3, "rope_original": None}, "model.rope_scaling=llama3 needs the context"),
        ({"rope_low": 1.0}, "model.rope_low: got 1.0; only model.rope_scaling=llama3 reads it"),
    ],
)
def test_settings_that_make_no_model(words, told):
    with pytest.raises(ValueError) as error:
        ModelConfig(**{"vocab_size": 23, "layers": 2, "d_model": 32, "d_head": 8, **words})
    assert told in str(error.value)
    assert "\n" not in str(error.value)
