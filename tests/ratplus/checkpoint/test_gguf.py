"""GGUF files: the same model as the Hugging Face folder that they were made of; damaged and unknown ones."""

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from llama_models import saved

from ratplus.checkpoint.adopt import bring_in, read_foreign
from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.llama import gguf_head
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
        add = {str: writer.add_string, list: writer.add_array, bool: writer.add_bool, float: writer.add_float32}
        name = key.replace("__", ".")
        writer.kv_data[0].pop(name, None)  # instead of the one above
        add.get(type(value), writer.add_uint32)(name, value)
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


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"llama__block_count": "2"}, "llama.block_count is '2'; it must be a number"),
        ({"llama__embedding_length": [32]}, "llama.embedding_length is [32]; it must be a number"),
        ({"llama__feed_forward_length": True}, "llama.feed_forward_length is True; it must be a number"),
        ({"llama__attention__head_count": 0, "llama__attention__key_length": 0}, "num_attention_heads"),
        ({"llama__attention__head_count_kv": [1, 2]}, "head_count_kv differs by layer"),
        ({"llama__attention__head_count": [1, 2]}, "head_count differs by layer"),
        ({"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": "x"}, "factor is 'x'"),
        ({"tokenizer__ggml__bos_token_id": 99}, "bos_token_id is 99, and there are 40 tokens"),
        ({"tokenizer__ggml__bos_token_id": "\x1b[2J"}, "bos_token_id is '\\x1b[2J', and there are 40 tokens"),
        ({"tokenizer__ggml__tokens": [1, 2, 3]}, "tokenizer.ggml.tokens is no list of texts"),
        ({"tokenizer__ggml__merges": "a b"}, "tokenizer.ggml.merges is no list of texts"),
        ({"tokenizer__ggml__token_type": 7}, "token_type tells of no list of tokens"),
        ({"general__architecture": ["a" * 10**6]}, "general.architecture is ['aaa"),
    ],
)
def test_metadata_of_other_kinds(facts, told, tmp_path):
    written("llama", tmp_path / "hub", tmp_path / "model.gguf", **facts)
    with pytest.raises(CheckpointError) as error:
        read_foreign(tmp_path / "model.gguf")
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("beyond", [None, 0, -1])
def test_an_end_of_text_that_there_is_not_is_none(tmp_path, beyond):
    """The last token may end a text; one behind it, or the number that stands for none, is not there."""
    written("llama", tmp_path / "hub", tmp_path / "model.gguf")
    tokens = json.loads(read_foreign(tmp_path / "model.gguf").files["tokenizer.json"])["model"]["vocab"]
    number = 4294967295 if beyond is None else len(tokens) + beyond
    (tmp_path / "model.gguf").unlink()
    written("llama", tmp_path / "hub", tmp_path / "model.gguf", tokenizer__ggml__eos_token_id=number)
    words = json.loads(read_foreign(tmp_path / "model.gguf").files["tokenizer_config.json"])
    last = {"eos_token": max(tokens, key=tokens.__getitem__)} if beyond == -1 else {}
    assert words == {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>"} | last


def test_bytes_changed_at_random(tmp_path):
    written("llama", tmp_path / "hub", tmp_path / "model.gguf")
    whole = (tmp_path / "model.gguf").read_bytes()
    draw = random.Random(3)
    said = []
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 2, 4))):
            content[draw.randrange(4, 6000)] = draw.choice((0, 1, 255, draw.randrange(256)))
        (tmp_path / "model.gguf").write_bytes(content)
        try:
            read_foreign(tmp_path / "model.gguf")
        except CheckpointError as error:
            said.append(str(error))
    assert len(said) > 50
    assert not [line for line in said if "\n" in line]


def head(*pairs: bytes, tensors: int = 0, order: str = "<") -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", 3, tensors, len(pairs)) + b"".join(pairs)


def text(name: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}Q", len(name)) + name


def test_heads_on_their_limits(tmp_path, monkeypatch):
    """As many values and tensors as are read, lists as deep, and bytes to the file's last one; and one more of each."""
    monkeypatch.setattr(gguf_head, "MOST_TENSORS", 3)
    monkeypatch.setattr(gguf_head, "MOST_VALUES", 7)
    path = tmp_path / "model.gguf"

    def check(content: bytes) -> str:
        path.write_bytes(content)
        try:
            gguf_head.check_head(path)
        except gguf_head.HeadError as error:
            return str(error)
        return ""

    number, name = struct.pack("<II", 4, 1), text(b"a")
    many = "more than 7 values of metadata, which no model has"
    assert check(head(tensors=3)) == ""
    assert check(head(tensors=4)) == "it tells of 4 tensors; at most 3 are read"
    assert check(head(*[name + number] * 7)) == ""
    assert check(head(*[name + number] * 8)) == many
    for order in "<>":
        numbers = struct.pack(f"{order}IIQ", 9, 4, 6) + bytes(24)  # the list is a value too
        whole = head(text(b"a", order) + numbers, order=order)
        assert check(whole) == ""
    assert check(head(name + struct.pack("<IIQ", 9, 4, 7) + bytes(28))) == many
    lists = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 3 + struct.pack("<IQ", 4, 1) + bytes(4)
    assert check(head(name + lists)) == ""
    lists = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 4 + struct.pack("<IQ", 4, 1) + bytes(4)
    assert check(head(name + lists)) == "lists within lists"
    # Every kind of number takes its own bytes: the next name is found behind it.
    for kind, size in {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}.items():
        odd = name + struct.pack("<I", 99)
        assert check(head(name + struct.pack("<I", kind) + bytes(size), odd)) == "a value of kind 99"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (head(tensors=10**9), "it tells of 1,000,000,000 tensors"),
        (head(text(b"a") + struct.pack("<IIQ", 9, 0, 5 << 20) + bytes(5 << 20)), "more than 4,194,304 values"),
        (head(text(b"a") + struct.pack("<IIQ", 9, 8, 5 << 20) + bytes(40 << 20)), "more than 4,194,304 values"),
        (head(text(b"a") + struct.pack("<IIQ", 9, 0, 1 << 60)), "more than 4,194,304 values"),
        (head(text(b"a") + struct.pack("<IIQ", 9, 12, 1 << 20)), "ends within its metadata"),
        (head(text(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50), "lists within lists"),
        (head(text(b"a") + struct.pack("<I", 77)), "a value of kind 77"),
        (head(struct.pack("<Q", 1 << 60)), "ends within its metadata"),
        (head(text(b"a", ">") + struct.pack(">I", 77), order=">"), "a value of kind 77"),
        (b"GGUF", "ends within its metadata"),
    ],
)  # fmt: skip
def test_a_head_that_would_fill_memory_is_refused_before_the_library_reads_it(content, told, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "GGUFReader", lambda *_: pytest.fail("the library was asked"))
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a whole GGUF file") as error:
        read_foreign(tmp_path / "model.gguf")
    assert told in str(error.value)
