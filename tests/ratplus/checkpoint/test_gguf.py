"""GGUF files: the same model as the Hugging Face folder that they were made of; damaged and unknown ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from llama_models import saved

from ratplus.checkpoint.adopt import bring_in, read_foreign
from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.llama.gguf_file import _OF_LAYER, unpaired

gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BYTES = ["Ġ", *"abcdefghijklmnopqrstuvwxyz0123456789"]


def theirs_of(name: str) -> str:
    """llama.cpp's name of one of transformers' tensors."""
    stem, _, last = name.rpartition(".")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{last}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    ours = next(ours for ours, hub in _OF_LAYER.items() if hub == part)
    return f"blk.{layer}.{ours}.{last}"


def in_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter writes q and k: the halves of each head interleaved."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def written(name: str, folder: Path, path: Path, quantised=None, **facts) -> None:
    """A GGUF file of the model that lies in `folder`, with a tokenizer of single letters and digits."""
    model, config = saved(name, folder), json.loads((folder / "config.json").read_text())
    kind = config["model_type"]
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config.get("head_dim", 8))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(1e4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = ["<|end|>", "<|begin|>", *BYTES, "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages }}")
    for key, value in facts.items():
        writer.add_string(key.replace("__", "."), value) if isinstance(value, str) else writer.add_uint32(
            key.replace("__", "."), value
        )
    for hub, parameter in model.state_dict().items():
        if hub == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        weight = parameter.numpy()
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in hub and kind == "llama":
                weight = in_pairs(weight, config[heads])
        as_type = quantised if quantised is not None and weight.ndim == 2 and weight.shape[1] % 32 == 0 else None
        data = np.ascontiguousarray(weight) if as_type is None else gguf.quants.quantize(weight, as_type)
        writer.add_tensor(theirs_of(hub), data, raw_dtype=as_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["llama", "llama_tied", "llama_head_dim", "qwen2", "qwen3"])
def test_the_same_weights_to_the_bit(name, tmp_path):
    written(name, tmp_path / "hub", tmp_path / "model.gguf")
    found, hub = read_foreign(tmp_path / "model.gguf"), read_foreign(tmp_path / "hub")
    assert found.config == hub.config
    assert found.family == hub.family
    assert found.weights.keys() == hub.weights.keys()
    assert all(torch.equal(lazy.make(), hub.weights[key].make()) for key, lazy in found.weights.items())


def test_rows_of_pairs_and_halves():
    rows = torch.arange(12)[:, None]  # two heads of six channels
    assert unpaired(rows, 2).flatten().tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert torch.equal(unpaired(torch.from_numpy(in_pairs(rows.numpy(), 2)), 2), rows)


def test_quantised_weights(tmp_path):
    written("llama", tmp_path / "hub", tmp_path / "model.gguf", gguf.GGMLQuantizationType.Q8_0)
    found, hub = read_foreign(tmp_path / "model.gguf"), read_foreign(tmp_path / "hub")
    for key, lazy in found.weights.items():
        weight, exact = lazy.make(), hub.weights[key].make()
        assert weight.dtype == torch.float32
        assert (weight - exact).abs().max() <= exact.abs().max() / 127  # eight bits a number, a scale for every 32
    name = "layers.0.mixer.in_proj.weight"
    assert not torch.equal(found.weights[name].make(), hub.weights[name].make())


def test_its_tokenizer(tmp_path):
    from ratplus.data.tokenizer import load_tokenizer

    written("llama", tmp_path / "hub", tmp_path / "model.gguf")
    bring_in(read_foreign(tmp_path / "model.gguf"), tmp_path / "model.gguf", tmp_path / "ours")
    assert (tmp_path / "ours" / "chat_template.jinja").read_text() == "{{ messages }}"
    tokenizer = load_tokenizer(tmp_path / "ours")
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (0, 40)
    letters = {token: i + 2 for i, token in enumerate([*BYTES, "ab"])}
    assert tokenizer.encode("cab 12") == [letters[token] for token in ("c", "ab", "Ġ", "1", "2")]
    assert tokenizer.decode(tokenizer.encode("cab 12")) == "cab 12"
    # Of another way to cut words nothing is guessed.
    written("llama", tmp_path / "hub", tmp_path / "other.gguf", tokenizer__ggml__pre="unheard")
    assert set(read_foreign(tmp_path / "other.gguf").files) == {"chat_template.jinja"}


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"llama__expert_count": 8}, "num_local_experts is 8"),
        ({"llama__rope__dimension_count": 4}, "llama.rope.dimension_count is 4; RoPE turns all 8 channels"),
        ({"llama__rope__scaling__type": "longrope"}, "rope_scaling has rope_type 'longrope'"),
        ({"llama__attention__sliding_window": 64}, "llama.attention.sliding_window is 64"),
        ({"general__architecture": "gemma2"}, "general.architecture is 'gemma2'; known are llama, qwen2, qwen3"),
    ],
)
def test_files_of_other_models(facts, told, tmp_path):
    written("llama", tmp_path / "hub", tmp_path / "model.gguf", **facts)
    with pytest.raises(CheckpointError) as error:
        read_foreign(tmp_path / "model.gguf")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path):
    written("llama", tmp_path / "hub", tmp_path / "model.gguf")
    whole = (tmp_path / "model.gguf").read_bytes()
    for size in (5, 40, 2000, len(whole) - 5000):
        (tmp_path / "model.gguf").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="not a whole GGUF file"):
            read_foreign(tmp_path / "model.gguf")
