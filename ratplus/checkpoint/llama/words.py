"""config.json of Llama, Mistral, Qwen2 and Qwen3 models, as transformers 4 and 5 write it: read as a ModelConfig.

A word that would change what the model computes is either read or refused by its name; none is passed over. Torch-free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ratplus.checkpoint.facts import CheckpointError
from ratplus.config.model import ModelConfig
from ratplus.pattern import Pattern, PatternMap, is_whole

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ADAPTER_FILE = "adapter_config.json"  # of weights that are added to another model's, such as LoRA's

# Words that other models of these libraries have and these must not: each changes what is computed.
_FOREIGN = (
    "attn_logit_softcapping", "final_logit_softcapping", "logits_soft_cap", "query_pre_attn_scalar",
    "num_local_experts", "num_experts", "n_routed_experts", "no_rope_layers", "attention_multiplier",
    "embedding_multiplier", "residual_multiplier", "logits_scaling", "clip_qkv",
)  # fmt: skip
# What each kind of RoPE scaling reads, beside its factor and kind; and words whose usual value means nothing.
_ROPE_READS = {
    "default": set(),
    "linear": set(),
    "yarn": {"original_max_position_embeddings"},
    "llama3": {"original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
}
_ROPE_USUAL = {
    "beta_fast": (None, 32), "beta_slow": (None, 1), "attention_factor": (None,), "mscale": (None,),
    "mscale_all_dim": (None,), "truncate": (None, True), "partial_rotary_factor": (None, 1),
}  # fmt: skip
_YARN_ONLY = ("original_max_position_embeddings", *(set(_ROPE_USUAL) - {"partial_rotary_factor"}))
_ANY_KIND = {"rope_type", "type", "factor", "rope_theta"}


@dataclass(frozen=True)
class LlamaModel:
    """A model of the Llama family.

    Attributes:
        family: its `model_type`.
        config: its shape.
        patterns: what its heads see in training, where that is not all: sliding windows. None: dense.
    """

    family: str
    config: ModelConfig
    patterns: PatternMap | None


def read_llama(words: dict, where: str, max_len: int | None = None) -> LlamaModel:
    """The model that a config.json describes.

    Args:
        where: the file, for messages.
        max_len: longest sequence of the model that is made; None takes the whole of max_position_embeddings.

    Raises:
        CheckpointError: a model of another kind, or a word that is missing, impossible, or not built here; it is named.
    """
    family = words.get("model_type")
    if family is None:
        raise CheckpointError(f"{where}: has no model_type; known are {', '.join(FAMILIES)} and ratplus")
    if family not in FAMILIES:
        raise CheckpointError(f"{where}: model_type is {family!r}; known are {', '.join(FAMILIES)} and ratplus")
    _refuse(words, where)
    d_model, heads = _whole(words, "hidden_size", where), _whole(words, "num_attention_heads", where)
    trained = _whole(words, "max_position_embeddings", where)
    if max_len is not None and max_len > trained:
        raise CheckpointError(
            f"--max-len: got {max_len}; {where} says max_position_embeddings={trained}. Import it as it is, and ask "
            f"for RoPE scaling where it is used: model.rope_scaling=yarn model.rope_factor={max_len / trained:g} "
            f"model.rope_original={trained}"
        )
    own_bias = family == "qwen2"
    bias = own_bias or (family in ("llama", "qwen3") and bool(words.get("attention_bias")))
    shape: dict[str, Any] = {
        "vocab_size": _whole(words, "vocab_size", where),
        "layers": _whole(words, "num_hidden_layers", where),
        "d_model": d_model,
        "d_head": _d_head(words, family, d_model, heads, where),
        "query_heads": heads,
        "kv_heads": _kv_heads(words, family, heads, where),
        "recurrence": False,
        "output_gate": False,
        "ffn": "swiglu",
        "ffn_size": _whole(words, "intermediate_size", where),
        "qkv_bias": bias,
        "out_bias": bias and not own_bias,
        "qk_norm": family == "qwen3",
        "tied": bool(words.get("tie_word_embeddings", False)),
        "norm_eps": _number(words, "rms_norm_eps", 1e-6, where),
        "max_len": max_len or trained,
        **_rope(words, trained, where),
    }
    try:
        config = ModelConfig(**shape)
    except ValueError as error:
        raise CheckpointError(f"{where}: no model that is built here ({error})") from None
    return LlamaModel(family, config, _windows(words, family, config, where))


def _refuse(words: dict, where: str) -> None:
    """Raises CheckpointError for what would be computed otherwise here."""
    quantised = words.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise CheckpointError(
            f"{where}: quantization_config is of {method!r}: quantised weights are not read; import the model that "
            "they were made from, or one that was dequantised (transformers: model.dequantize(), then save_pretrained)"
        )
    if (act := words.get("hidden_act", "silu")) != "silu":
        raise CheckpointError(f"{where}: hidden_act is {act!r}; only 'silu' is built")
    if words.get("mlp_bias"):
        raise CheckpointError(f"{where}: mlp_bias is {words['mlp_bias']!r}; a feed-forward with biases is not built")
    if words.get("partial_rotary_factor") not in (None, 1):
        value = words["partial_rotary_factor"]
        raise CheckpointError(f"{where}: partial_rotary_factor is {value!r}; RoPE turns all channels of a head here")
    for key in _FOREIGN:
        if words.get(key) is not None:
            raise CheckpointError(f"{where}: {key} is {words[key]!r}; it belongs to a kind of model that is not built")


def _whole(words: dict, key: str, where: str) -> int:
    if key not in words:
        raise CheckpointError(f"{where}: has no {key}")
    value = words[key]
    if not is_whole(value) or value < 1:
        raise CheckpointError(f"{where}: {key} is {value!r}; it must be a whole number ≥ 1")
    return int(value)


def _number(words: dict, key: str, default: float | None, where: str) -> float:
    value = words.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise CheckpointError(f"{where}: {key} is {value!r}; it must be a number > 0")
    return float(value)


def _d_head(words: dict, family: str, d_model: int, heads: int, where: str) -> int:
    if words.get("head_dim") is not None:
        return _whole(words, "head_dim", where)
    if family == "qwen3" and "head_dim" not in words:
        return 128  # the family's own default, whatever the width
    if d_model % heads:
        raise CheckpointError(
            f"{where}: hidden_size is {d_model}; without head_dim it must be a multiple of num_attention_heads={heads}"
        )
    return d_model // heads


def _kv_heads(words: dict, family: str, heads: int, where: str) -> int:
    if words.get("num_key_value_heads") is not None:
        return _whole(words, "num_key_value_heads", where)
    if family != "llama" and "num_key_value_heads" not in words:
        # The families' own defaults are those of one of their models, whatever the number of heads.
        raise CheckpointError(f"{where}: has no num_key_value_heads")
    return heads


def _rope(words: dict, trained: int, where: str) -> dict:
    """Base and scaling: rope_theta and rope_scaling of transformers 4, or rope_parameters of 5."""
    new, old = words.get("rope_parameters"), words.get("rope_scaling")
    name = "rope_scaling" if new is None else "rope_parameters"
    given = old if new is None else new
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise CheckpointError(f"{where}: {name} is {given!r}; it must hold keys and values")
    base = _number({**words, **given}, "rope_theta", 10000.0, where)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _ROPE_READS:
        raise CheckpointError(f"{where}: {name} has rope_type {kind!r}; built are {', '.join(_ROPE_READS)}")
    for key, value in given.items():
        if key in _ANY_KIND | _ROPE_READS[kind] or (key in _ROPE_USUAL and value in _ROPE_USUAL[key]):
            continue
        if key in _YARN_ONLY and kind in ("default", "linear"):
            continue  # transformers does not read it either
        raise CheckpointError(f"{where}: {name} has {key}={value!r}, which is not built with rope_type {kind!r}")
    if kind == "default":
        return {"rope_base": base}
    original = None
    if kind != "linear":
        # Where the context of training is not told, it is that of the whole model.
        asked = {"max_position_embeddings": trained, **given}
        key = "original_max_position_embeddings"
        original = _whole(asked, key if key in asked else "max_position_embeddings", where)
    told = given
    if kind == "yarn" and given.get("factor") is None and original is not None:
        told = {**given, "factor": trained / original}
    factor = _number(told, "factor", None, where)
    if kind == "llama3":
        low, high = (_number(given, key, None, where) for key in ("low_freq_factor", "high_freq_factor"))
        return {"rope_base": base, "rope_scaling": kind, "rope_factor": factor, "rope_original": original,
                "rope_low": low, "rope_high": high}  # fmt: skip
    if factor == 1:
        return {"rope_base": base}
    return {"rope_base": base, "rope_scaling": kind, "rope_factor": factor, "rope_original": original}


def _windows(words: dict, family: str, config: ModelConfig, where: str) -> PatternMap | None:
    """What each layer sees, if that is not all. A window of w counts the query there, a Pattern's does not."""
    if family == "llama":
        return None
    if family == "mistral":
        window = words.get("sliding_window", 4096)
        sliding = [window is not None] * config.layers
    else:
        # transformers 4 keeps a window that use_sliding_window=false turns off.
        window = words.get("sliding_window", 4096) if words.get("use_sliding_window") else None
        kinds = words.get("layer_types")
        if kinds is None:
            first = words.get("max_window_layers", 28)
            sliding = [window is not None and i >= first for i in range(config.layers)]
        else:
            known = {"sliding_attention": True, "full_attention": False}
            strange = next((kind for kind in kinds if kind not in known), None)
            if strange is not None or len(kinds) != config.layers:
                what = f"has {strange!r}" if strange is not None else f"is of {len(kinds)} layers"
                raise CheckpointError(
                    f"{where}: layer_types {what}; it must name {' or '.join(known)} for each of {config.layers} layers"
                )
            sliding = [known[kind] for kind in kinds]
    if not any(sliding):
        return None
    width = _whole({**words, "sliding_window": window}, "sliding_window", where)
    if width >= config.max_len:
        return None  # as long as whatever the model takes
    rows = [Pattern(None, width - 1) if slides else Pattern() for slides in sliding]
    return PatternMap.per_layer(rows, config.heads)
