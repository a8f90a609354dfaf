"""Every word of a Llama-family config.json: what it becomes in the model's shape, and what is refused by its name."""

import re

import pytest

from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.llama.words import FAMILIES, read_llama
from ratplus.pattern import Pattern

WORDS = {
    "vocab_size": 99, "num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 100, "max_position_embeddings": 256, "sliding_window": None,
}  # fmt: skip
SHAPE = {
    "vocab_size": 99, "layers": 3, "d_model": 64, "d_head": 16, "heads": 4, "kv_heads": 2, "recurrence": False,
    "output_gate": False, "ffn": "swiglu", "ffn_size": 100, "qkv_bias": False, "out_bias": False, "qk_norm": False,
    "tied": False, "norm_eps": 1e-6, "max_len": 256, "rope_base": 10000.0, "rope_scaling": "none", "rope_factor": 1.0,
    "rope_original": None, "rope_low": None, "rope_high": None, "mixer": "attention", "gate_bias": None,
}  # fmt: skip
OF_FAMILY = {"qwen2": {"qkv_bias": True}, "qwen3": {"d_head": 128, "qk_norm": True}}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0}  # fmt: skip


def read(family="llama", max_len=None, without=(), **words):
    given = {"model_type": family} | WORDS | words
    return read_llama({k: v for k, v in given.items() if k not in without}, "config.json", max_len)


def shape(config) -> dict:
    return {name: getattr(config, name) for name in SHAPE}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_words(family):
    found = read(family)
    assert (found.family, found.patterns) == (family, None)
    assert shape(found.config) == SHAPE | OF_FAMILY.get(family, {})


@pytest.mark.parametrize(
    ("family", "words", "other"),
    [
        ("llama", {"vocab_size": 5}, {"vocab_size": 5}), ("llama", {"num_hidden_layers": 1}, {"layers": 1}),
        ("llama", {"head_dim": 8}, {"d_head": 8}), ("qwen3", {"head_dim": 8}, {"d_head": 8}),
        ("qwen3", {"head_dim": None}, {"d_head": 16}), ("llama", {"num_key_value_heads": None}, {"kv_heads": None}),
        ("mistral", {"num_key_value_heads": None}, {"kv_heads": None}),
        ("llama", {"num_key_value_heads": 4}, {"kv_heads": None}),
        ("llama", {"num_key_value_heads": 1}, {"kv_heads": 1}),
        ("llama", {"intermediate_size": 128}, {"ffn_size": None}),
        ("llama", {"rms_norm_eps": 1e-5}, {"norm_eps": 1e-5}),
        ("llama", {"tie_word_embeddings": True}, {"tied": True}), ("llama", {"tie_word_embeddings": None}, {}),
        ("llama", {"attention_bias": True}, {"qkv_bias": True, "out_bias": True}),
        ("qwen3", {"attention_bias": True}, {"qkv_bias": True, "out_bias": True}),
        ("qwen2", {"attention_bias": True}, {}), ("mistral", {"attention_bias": True}, {}),
        ("llama", {"hidden_act": "silu", "mlp_bias": False, "partial_rotary_factor": 1}, {}),
        ("llama", {"rope_theta": 5e5}, {"rope_base": 5e5}), ("llama", {"rope_scaling": None}, {}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 5.0},
         {"rope_base": 7.0}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_scaling": "linear", "rope_factor": 2.0}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 1}}, {}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2, "beta_fast": 5}},
         {"rope_scaling": "linear", "rope_factor": 2.0}),
        ("llama", {"rope_scaling": YARN}, {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original": 64}),
        ("llama", {"rope_scaling": YARN | {"factor": None}},
         {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original": 64}),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
         {"rope_scaling": "yarn", "rope_factor": 2.0, "rope_original": 256}),
        ("llama", {"rope_scaling": YARN | {"beta_fast": 32, "beta_slow": 1, "truncate": True, "mscale": None}},
         {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original": 64}),
        ("llama", {"rope_scaling": LLAMA3},
         {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original": 64, "rope_low": 1.0, "rope_high": 4.0}),
    ],
)  # fmt: skip
def test_what_another_word_changes(family, words, other):
    assert shape(read(family, **words).config) == SHAPE | OF_FAMILY.get(family, {}) | other
    scaling = words.get("rope_scaling")
    if scaling:  # what follows a word that means nothing is read too, and a word may stand in any order
        assert shape(read(family, rope_scaling=dict(reversed(scaling.items()))).config) == SHAPE | other
        assert shape(read(family, rope_parameters=scaling).config) == SHAPE | other


def test_a_shorter_model_can_be_asked_for_and_no_longer_one():
    assert read(max_len=256).config.max_len == 256
    assert read(max_len=100).config.max_len == 100
    with pytest.raises(CheckpointError, match=r"--max-len: got 257; config.json says max_position_embeddings=256"):
        read(max_len=257)


FOREIGN = (
    "attn_logit_softcapping", "final_logit_softcapping", "logits_soft_cap", "query_pre_attn_scalar",
    "num_local_experts", "num_experts", "n_routed_experts", "no_rope_layers", "attention_multiplier",
    "embedding_multiplier", "residual_multiplier", "logits_scaling", "clip_qkv",
)  # fmt: skip
NUMBERS = ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
           "max_position_embeddings", "num_key_value_heads", "head_dim")  # fmt: skip


@pytest.mark.parametrize("key", FOREIGN)
def test_words_of_other_kinds_of_models_are_refused(key):
    assert shape(read(**{key: None}).config) == SHAPE
    for value in (0, 1.5):
        with pytest.raises(CheckpointError, match=f"{key} is {value}; it belongs to a kind of model that is not built"):
            read(**{key: value})


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_must_be_whole_and_positive(key):
    for value in (0, -1, 2.5, "4", True):
        with pytest.raises(CheckpointError, match=f"{key} is {value!r}; it must be a whole number ≥ 1"):
            read(**{key: value})
    if key not in ("num_key_value_heads", "head_dim"):
        with pytest.raises(CheckpointError, match=f"has no {key}"):
            read(without=[key])


@pytest.mark.parametrize(
    ("family", "words", "line"),
    [
        ("gemma", {}, "model_type is 'gemma'; known are llama"), (None, {}, "has no model_type"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"), ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config is of 'awq'"),
        ("llama", {"quantization_config": "x"}, "quantization_config is of 'x'"),
        ("llama", {"num_attention_heads": 3}, "hidden_size is 64; without head_dim it must be a multiple of "),
        ("llama", {"num_key_value_heads": 3}, "no model that is built here (model.kv_heads: got 3"),
        ("llama", {"head_dim": 7}, "no model that is built here (model.d_head: got 7"),
        ("llama", {"rope_scaling": "x"}, "rope_scaling is 'x'; it must hold keys and values"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type 'longrope'; built are default, linear"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor is None; it must be a number > 0"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": True}}, "factor is True"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2, "short_factor": 1}}, "has short_factor=1"),
        ("llama", {"rope_scaling": YARN | {"beta_fast": 16}}, "has beta_fast=16, which is not built"),
        ("llama", {"rope_scaling": YARN | {"mscale": 1.0}}, "has mscale=1.0"),
        ("llama", {"rope_scaling": YARN | {"beta_slow": 2}}, "has beta_slow=2"),
        ("llama", {"rope_scaling": YARN | {"attention_factor": 1.0}}, "has attention_factor=1.0"),
        ("llama", {"rope_scaling": YARN | {"truncate": False}}, "has truncate=False"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}},
         "has partial_rotary"),
        ("llama", {"rope_scaling": YARN | {"low_freq_factor": 1.0}}, "has low_freq_factor=1.0"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 5, "high_freq_factor": 4}},
         "has high_freq_factor=4"),
        ("llama", {"rope_scaling": {k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}},
         "low_freq_factor is None"),
        ("llama", {"rope_scaling": {k: v for k, v in LLAMA3.items() if k != "factor"}}, "factor is None"),
        ("llama", {"rope_theta": 0}, "rope_theta is 0; it must be a number > 0"),
        ("llama", {"rope_theta": float("inf")}, "rope_theta is inf"),
        ("llama", {"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06"),
        ("llama", {"rms_norm_eps": True}, "rms_norm_eps is"),
    ],
)  # fmt: skip
def test_what_is_not_built_is_named(family, words, line):
    with pytest.raises(CheckpointError, match=r"^config.json: .*" + re.escape(line)):
        read(family, **words)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_heads_of_keys_must_be_told_where_a_family_has_a_default_of_its_own(family):
    with pytest.raises(CheckpointError, match="has no num_key_value_heads"):
        read(family, without=["num_key_value_heads"])
    assert read("llama", without=["num_key_value_heads"]).config.kv_heads is None


DENSE, WINDOW = Pattern(), Pattern(None, 31)


@pytest.mark.parametrize(
    ("family", "words", "rows"),
    [
        ("llama", {"sliding_window": 32}, None), ("mistral", {"sliding_window": 32}, [WINDOW] * 3),
        ("mistral", {"sliding_window": 256}, None), ("mistral", {"sliding_window": 255}, [Pattern(None, 254)] * 3),
        ("mistral", {"sliding_window": 1}, [Pattern(None, 0)] * 3),
        ("qwen2", {"sliding_window": 32}, None), ("qwen2", {"sliding_window": 32, "use_sliding_window": False}, None),
        ("qwen2", {"sliding_window": 32, "use_sliding_window": True}, None),  # from layer 28 on
        ("qwen3", {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 1}, [DENSE, WINDOW, WINDOW]),
        ("qwen3", {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 3}, None),
        ("qwen3", {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 0,
                   "layer_types": ["full_attention", "sliding_attention", "full_attention"]}, [DENSE, WINDOW, DENSE]),
    ],
)  # fmt: skip
def test_windows_of_layers(family, words, rows):
    """A window of w tokens counts the query itself, and a Pattern's does not."""
    patterns = read(family, **words).patterns
    assert (patterns and [row[0] for row in patterns]) == rows


def test_windows_that_are_none():
    assert read("mistral", without=["sliding_window"]).patterns is None, "4096, more than the model takes"
    long = read("mistral", without=["sliding_window"], max_position_embeddings=8192)
    assert long.patterns is not None
    assert long.patterns[0][0] == Pattern(None, 4095)
    turned_on = {"use_sliding_window": True, "sliding_window": 32}
    for kinds, line in (
        (["full_attention"] * 2, "is of 2 layers"),
        (["chunked_attention"] * 3, "has 'chunked_attention'"),
    ):
        with pytest.raises(CheckpointError, match=f"layer_types {line}; it must name sliding_attention or full_att"):
            read("qwen2", **turned_on, layer_types=kinds)
    with pytest.raises(CheckpointError, match="sliding_window is 0; it must be a whole number ≥ 1"):
        read("mistral", sliding_window=0)
