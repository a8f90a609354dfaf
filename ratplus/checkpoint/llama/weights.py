"""Weights of a Llama-family model by transformers' names, as ours: checked first, then made a tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.foreign_tensors import Stored
from ratplus.checkpoint.tensor_file import Lazy, check_shapes
from ratplus.config.model import ModelConfig

HEAD, EMBED, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"
_FLOATS = ("F32", "BF16", "F16", "F64")
# A buffer that old versions of transformers saved; every reader computes it anew.
_COMPUTED = "rotary_emb.inv_freq"


def translate(found: Mapping[str, Stored], config: ModelConfig, where: str) -> dict[str, Lazy]:
    """Weights by our names, in float32, each made of its parts when used.

    Args:
        found: tensors by transformers' names.
        config: of the model that they are to be; no recurrence, no output gate.
        where: the folder or file, for messages.

    Raises:
        CheckpointError: a tensor that is missing, unknown, of another shape, or not of floating-point numbers; a head
            that differs from the embedding where the config says that they are one.
    """
    found = {name: stored for name, stored in found.items() if not name.endswith(_COMPUTED)}
    names = names_of(config)
    wanted = {theirs: shape for parts in names.values() for theirs, shape in parts.items()}
    if any(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in found):
        raise CheckpointError(f"{where}: holds LoRA weights (lora_A, lora_B); merge them into the model first")
    _check_floats(found, where)
    if not config.tied and HEAD not in found:
        raise CheckpointError(f"{where}: config.json says tie_word_embeddings=false, but there is no {HEAD}")
    if config.tied and HEAD in found:
        _check_tie(found, where)
        found = {name: stored for name, stored in found.items() if name != HEAD}
    check_shapes({name: stored.shape for name, stored in found.items()}, wanted, where)
    return {ours: _joined([found[theirs] for theirs in parts]) for ours, parts in names.items()}


def names_of(config: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Our name -> {theirs: shape}, one below the other where a tensor of ours has several of theirs."""
    d, wide, narrow = config.d_model, config.query_width, config.key_heads * config.d_head
    rows = {"q": wide, "k": narrow, "v": narrow}
    names: dict[str, dict[str, tuple[int, ...]]] = {"embed.weight": {EMBED: (config.vocab_size, d)}}
    for i in range(config.layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        attention, mlp = f"{theirs}self_attn.", f"{theirs}mlp."
        names |= {
            f"{ours}mixer.norm.weight": {f"{theirs}input_layernorm.weight": (d,)},
            f"{ours}mixer.in_proj.weight": {f"{attention}{x}_proj.weight": (n, d) for x, n in rows.items()},
            f"{ours}mixer.out_proj.weight": {f"{attention}o_proj.weight": (d, wide)},
            f"{ours}ffn.norm.weight": {f"{theirs}post_attention_layernorm.weight": (d,)},
            f"{ours}ffn.up.weight": {f"{mlp}{x}_proj.weight": (config.ffn_width, d) for x in ("gate", "up")},
            f"{ours}ffn.down.weight": {f"{mlp}down_proj.weight": (d, config.ffn_width)},
        }
        if config.qkv_bias:
            names[f"{ours}mixer.qkv_bias"] = {f"{attention}{x}_proj.bias": (n,) for x, n in rows.items()}
        if config.out_bias:
            names[f"{ours}mixer.out_proj.bias"] = {f"{attention}o_proj.bias": (d,)}
        if config.qk_norm:
            names |= {f"{ours}mixer.{x}_norm.weight": {f"{attention}{x}_norm.weight": (config.d_head,)} for x in "qk"}
    names["norm.weight"] = {NORM: (d,)}
    if not config.tied:
        names["head.weight"] = {HEAD: (config.vocab_size, d)}
    return names


def _check_floats(found: Mapping[str, Stored], where: str) -> None:
    for name, stored in found.items():
        if stored.dtype not in _FLOATS:
            raise CheckpointError(
                f"{where}: {name} is of {stored.dtype}: quantised weights are not read (read are "
                f"{', '.join(_FLOATS)}); import the model that they were made from"
            )


def _check_tie(found: Mapping[str, Stored], where: str) -> None:
    head, embedding = found[HEAD], found.get(EMBED)
    if embedding is None or head.shape != embedding.shape or not torch.equal(head.read(), embedding.read()):
        raise CheckpointError(
            f"{where}: {HEAD} differs from {EMBED}, but config.json says tie_word_embeddings=true; one of them is wrong"
        )


def _joined(parts: list[Stored]) -> Lazy:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    def make() -> Tensor:
        if not parts[1:]:
            return parts[0].read().float()
        whole, row = torch.empty(shape), 0
        for part in parts:  # each is dropped before the next one is read
            whole[row : row + part.shape[0]] = part.read()
            row += part.shape[0]
        return whole

    return Lazy(shape, torch.float32, make)
