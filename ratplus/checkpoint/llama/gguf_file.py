"""A GGUF file (llama.cpp's format) of a Llama, Qwen2 or Qwen3 model: dequantised a tensor at a time, to float32.

Read with the format's own library (extra `gguf`). The names and the order of rows are llama.cpp's: in files of the
architecture `llama`, each head's rows of q and k stand in pairs of channels that RoPE turns together, where ours, as
transformers', stand in halves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.foreign_tensors import Stored
from ratplus.checkpoint.llama.gguf_head import check_head
from ratplus.checkpoint.llama.gguf_tokenizer import files_of
from ratplus.checkpoint.llama.weights import EMBED, HEAD, NORM, translate
from ratplus.checkpoint.llama.words import read_llama
from ratplus.checkpoint.official import Checkpoint
from ratplus.checkpoint.tokenizer_files import check_ids
from ratplus.records.lines import first_line, plain
from ratplus.records.reading import open_plain

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_INTERLEAVED = "llama"  # the architecture whose rows of q and k are in pairs
_WHOLE = {"token_embd.weight": EMBED, "output_norm.weight": NORM, "output.weight": HEAD}
_OF_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
# Theirs, in the words of a Hugging Face config.json; those of experts and of soft-capping are refused there by name.
_WORDS = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "expert_count": "num_local_experts",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does."""
    try:
        with open_plain(path) as file:
            return file.read(4) == b"GGUF"
    except (OSError, ValueError):  # a folder, a pipe
        return False


def read_gguf(path: Path, max_len: int | None = None) -> Checkpoint:
    """A GGUF file, understood and checked; weights are dequantised when they are used.

    Args:
        max_len: longest sequence of the model; None takes the file's.

    Raises:
        CheckpointError: a damaged file, a model of another kind, or the library is not installed.
    """
    try:
        import gguf
    except ImportError:
        what = "needs the package gguf; install the extra: pip install 'ratplus[gguf]'"
        raise CheckpointError(f"{path}: {what}") from None
    try:
        check_head(path)
        reader = gguf.GGUFReader(path)
        facts = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # whatever a damaged file makes it raise
        raise CheckpointError(f"{path}: not a whole GGUF file ({first_line(error)})") from None
    family = facts.get("general.architecture")
    if family not in _ARCHITECTURES:
        raise CheckpointError(
            f"{path}: general.architecture is {plain(repr(family)[:100])}; known are {', '.join(_ARCHITECTURES)}"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    words = _words_of(facts, str(family), tensors, path)
    found = read_llama(words, str(path), max_len)
    heads = {"attn_q": found.config.heads, "attn_k": found.config.key_heads}
    stored = {}
    for name, tensor in tensors.items():
        pairs = next((n for part, n in heads.items() if family == _INTERLEAVED and f".{part}." in name), None)
        stored[_theirs(name, path)] = _stored(gguf, tensor, pairs, path)
    files = files_of(facts, path)
    check_ids(files, found.config.vocab_size, path)
    return Checkpoint(found.config, translate(stored, found.config, str(path)), found.patterns, files, found.family)


def _words_of(facts: dict, family: str, tensors: dict, path: Path) -> dict:
    """The file's metadata in the words of a config.json."""
    words: dict[str, Any] = {"model_type": family, "tie_word_embeddings": "output.weight" not in tensors}
    for theirs, word in _WORDS.items():
        if isinstance(facts.get(f"{family}.{theirs}"), list) and theirs.startswith("attention.head_count"):
            raise CheckpointError(f"{path}: {family}.{theirs} differs by layer, which is not built")
        if (value := _number(facts, f"{family}.{theirs}", path)) is not None:
            words[word] = value
    if "rope_freqs.weight" in tensors:
        raise CheckpointError(
            f"{path}: rope_freqs.weight holds RoPE scaling as factors of channels, which is not read; import the "
            "model's Hugging Face folder, which says how it scales (llama3)"
        )
    if (kind := facts.get(f"{family}.rope.scaling.type", "none")) != "none":
        scaling = {"rope_type": kind, "factor": _number(facts, f"{family}.rope.scaling.factor", path) or 1.0}
        original = _number(facts, f"{family}.rope.scaling.original_context_length", path)
        words["rope_scaling"] = scaling | ({"original_max_position_embeddings": original} if original else {})
    window = facts.get(f"{family}.attention.sliding_window")
    if window:
        raise CheckpointError(f"{path}: {family}.attention.sliding_window is {window}; import the Hugging Face folder, "
                              "which says in which layers")  # fmt: skip
    turned, head_dim = facts.get(f"{family}.rope.dimension_count"), words.get("head_dim")
    if head_dim is None and words.get("hidden_size") and words.get("num_attention_heads"):
        head_dim = words["head_dim"] = words["hidden_size"] // words["num_attention_heads"]
    if turned not in (None, head_dim):
        raise CheckpointError(
            f"{path}: {family}.rope.dimension_count is {turned}; RoPE turns all {head_dim} channels of a head here"
        )
    if "token_embd.weight" not in tensors or len(tensors["token_embd.weight"].shape) != 2:
        raise CheckpointError(f"{path}: no weights for token_embd.weight")
    words["vocab_size"] = int(tensors["token_embd.weight"].shape[1])
    words["attention_bias"] = "blk.0.attn_q.bias" in tensors
    return words


def _number(facts: dict, name: str, path: Path) -> int | float | None:
    """A number of the metadata, None if it is not there; of a float, the shortest that rounds to the same float32.

    In that GGUF keeps what was 1e-5 in a config.json.

    Raises:
        CheckpointError: it is no number.
    """
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise CheckpointError(f"{path}: {name} is {plain(repr(value)[:100])}; it must be a number")
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _theirs(name: str, path: Path) -> str:
    """A tensor's name in transformers' words."""
    if name in _WHOLE:
        return _WHOLE[name]
    kind, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    part, _, last = rest.partition(".")
    if kind != "blk" or not layer.isdigit() or part not in _OF_LAYER:
        raise CheckpointError(f"{path}: unknown weights {name}")
    return f"model.layers.{layer}.{_OF_LAYER[part]}.{last}"


def _stored(gguf: Any, tensor: Any, heads: int | None, path: Path) -> Stored:
    """A tensor, dequantised when it is read.

    Args:
        heads: of q or k whose rows stand in pairs of channels; None leaves them.
    """
    shape = tuple(int(size) for size in reversed(tensor.shape))

    def read() -> Tensor:
        try:
            numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise CheckpointError(
                f"{path}: {tensor.name} is of {tensor.tensor_type.name}, which the gguf library does not read; choose "
                "another quantisation of the model (Q8_0, Q4_K_M, F16)"
            ) from None
        whole = torch.from_numpy(np.array(numbers, dtype=np.float32, copy=True)).reshape(shape)
        return whole if heads is None else unpaired(whole, heads)

    return Stored(shape, "F32", read)


def unpaired(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k [H d, ...] in halves; in pairs, channels 2i and 2i + 1 of a head turn together."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)
