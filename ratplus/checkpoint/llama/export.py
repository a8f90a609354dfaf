"""A model of ours as one of transformers' own: which of its classes computes the same, its config.json, its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ratplus.checkpoint.llama.weights import names_of
from ratplus.checkpoint.llama.words import FAMILIES
from ratplus.checkpoint.tensor_file import Lazy
from ratplus.config.model import ModelConfig
from ratplus.pattern import Pattern, PatternMap

CLASSES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip


def family_for(config: ModelConfig, patterns: PatternMap | None, known: str | None = None) -> str | None:
    """The `model_type` whose class computes what this model does under these patterns; None if none does.

    Args:
        known: the one that it was imported from, which is preferred.
    """
    if config.recurrence or config.output_gate or config.ffn != "swiglu" or config.d_model % config.heads:
        return None
    windows = _windows(patterns, config.layers)
    if windows is None:
        return None
    biases = config.qkv_bias, config.out_bias
    same_everywhere, any_window = len(set(windows)) == 1, any(w is not None for w in windows)
    fits = {
        "llama": biases in ((False, False), (True, True)) and not config.qk_norm and not any_window,
        "mistral": biases == (False, False) and not config.qk_norm and same_everywhere,
        "qwen2": biases == (True, False) and not config.qk_norm,
        "qwen3": biases in ((False, False), (True, True)) and config.qk_norm,
    }
    order = FAMILIES if known is None else (known, *FAMILIES)
    return next((family for family in order if fits.get(family)), None)


def _windows(patterns: PatternMap | None, layers: int) -> list[int | None] | None:
    """Tokens before the query that each layer sees, None for all; None in place of the list if that says not all."""
    rows = [(Pattern(),)] * layers if patterns is None else list(patterns)
    found: list[int | None] = []
    for row in rows:
        pattern = row[0].canonical
        if any(other.canonical != pattern for other in row):
            return None
        if not pattern.dense and pattern != Pattern(None, pattern.window):
            return None  # sinks, dilated keys or a selection
        found.append(None if pattern.dense else pattern.window)
    return found if len({w for w in found if w is not None}) <= 1 else None


def words_for(config: ModelConfig, family: str, patterns: PatternMap | None, dtype: str) -> dict:
    """config.json of a model for which `family_for` gave this family, in words that transformers 4 and 5 read."""
    windows = _windows(patterns, config.layers)
    assert windows is not None
    # A window there counts the query, a Pattern's does not.
    window = next((w + 1 for w in windows if w is not None), None)
    words = {
        "architectures": [CLASSES[family]], "model_type": family, "vocab_size": config.vocab_size,
        "hidden_size": config.d_model, "head_dim": config.d_head, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.key_heads,
        "intermediate_size": config.ffn_width, "hidden_act": "silu", "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_len, "tie_word_embeddings": config.tied, "torch_dtype": dtype,
        "rope_theta": config.rope_base, "rope_scaling": _scaling(config),
    }  # fmt: skip
    if family in ("llama", "qwen3"):
        words["attention_bias"] = config.qkv_bias
    if family == "mistral":
        words["sliding_window"] = window
    if family in ("qwen2", "qwen3"):
        kinds = ["full_attention" if w is None else "sliding_attention" for w in windows]
        first = next((i for i, w in enumerate(windows) if w is not None), config.layers)
        words |= {"use_sliding_window": window is not None, "sliding_window": window, "max_window_layers": first,
                  "layer_types": kinds}  # fmt: skip
    return words


def _scaling(config: ModelConfig) -> dict | None:
    if config.rope_scaling == "none":
        return None
    told = {
        "factor": config.rope_factor, "original_max_position_embeddings": config.rope_original,
        "low_freq_factor": config.rope_low, "high_freq_factor": config.rope_high,
    }  # fmt: skip
    return {"rope_type": config.rope_scaling, **{key: value for key, value in told.items() if value is not None}}


def tensors_for(weights: Mapping[str, Tensor], config: ModelConfig, dtype: torch.dtype) -> dict[str, Lazy]:
    """The weights by transformers' names, each cut out of ours and made of that dtype when it is written."""
    tensors: dict[str, Lazy] = {}
    for ours, parts in names_of(config).items():
        row = 0
        for theirs, shape in parts.items():
            tensors[theirs] = _rows(weights[ours], row, shape, dtype)
            row += shape[0]
    return tensors


def _rows(weight: Tensor, first: int, shape: tuple[int, ...], dtype: torch.dtype) -> Lazy:
    return Lazy(shape, dtype, lambda: weight[first : first + shape[0]].to(dtype))
