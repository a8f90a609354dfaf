"""What the config.json of a model folder says: of ours, of a stage's, and of one in the hub's style."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from ratplus.checkpoint.facts import (
    CheckpointError,
    checked_facts,
    default_of,
    default_patterns,
    family_of,
    is_hub_folder,
    read_facts,
    read_hub_facts,
    read_start,
    tokenizer_facts,
)  # fmt: skip
from ratplus.checkpoint.hub_config import config_of, words_of
from ratplus.config.model import ModelConfig
from ratplus.pattern import Pattern, PatternMap

SHAPE = ModelConfig(40, layers=2, d_model=32, d_head=8, kv_heads=2, max_len=64)
MAP = PatternMap.uniform(Pattern(4, 8, 1), 2, 4)
DEEPER = PatternMap.per_layer([Pattern(2), Pattern(2), Pattern(4)], 4)


def ours(folder: Path, **more) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model": asdict(SHAPE), "sha256": "aa"} | more))
    return folder


def hubs(folder: Path, **more) -> Path:
    folder.mkdir(exist_ok=True)
    words = words_of(SHAPE, "bb") | more
    (folder / "config.json").write_text(json.dumps({k: v for k, v in words.items() if v != "gone"}))
    return folder


def test_a_model_folder(tmp_path):
    folder = ours(tmp_path / "m")
    assert read_facts(folder) == read_start(folder) == (SHAPE, "aa")
    assert read_facts(ours(tmp_path / "m", format=1)) == (SHAPE, "aa")
    assert not is_hub_folder(folder)
    assert (default_patterns(folder), default_of(folder), family_of(folder), tokenizer_facts(folder)) == (None,) * 4
    facts = {"name": "t", "file": "t.json", "sha256": "cc", "eos_id": 3, "bos_id": None}
    folder = ours(folder, pattern=MAP.to_dict(), family="llama", tokenizer=facts)
    assert (default_patterns(folder), default_of(folder)) == (MAP, MAP)
    assert (family_of(folder), tokenizer_facts(folder)) == ("llama", facts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"no checkpoint here \(config.json is missing\)"),
        ("[]", r"config.json: damaged \(not a JSON object\); restore it or train again"),
        ("{}", r"config.json: damaged \('model'\)"),
        ('{"model": {}}', "config.json: damaged"),
        (
            '{"model_type": "llama"}',
            r"is a Hugging Face folder \(model_type 'llama'\).*ratplus import",
        ),
        ('{"model": {}, "format": 2}', "config.json: format 2; this version reads format 1"),
    ],
)
def test_no_model_folder(tmp_path, content, said):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=said):
        read_facts(tmp_path)


def test_a_model_type_beside_a_model_is_no_matter(tmp_path):
    assert read_facts(ours(tmp_path, model_type="llama")) == (SHAPE, "aa")


@pytest.mark.parametrize(
    ("record", "good"),
    [
        ({"status": "done", "weights_sha256": "aa"}, True),
        ({"status": "done", "weights_sha256": "bb"}, False),
        ({"status": "done"}, True),  # of before the key
        ({"status": "failed", "weights_sha256": "bb"}, True),
    ],
)
def test_weights_that_the_record_tells_of(tmp_path, monkeypatch, record, good):
    monkeypatch.setattr("ratplus.checkpoint.facts.read_record", lambda folder: record)
    folder = ours(tmp_path / "stage")
    if good:
        assert read_facts(folder) == (SHAPE, "aa")
    else:
        with pytest.raises(CheckpointError, match="are not those that this stage trained: its record.json tells of"):
            read_facts(folder)


def test_the_pattern_of_a_stage_s_config(tmp_path, monkeypatch):
    """A stage of before the key `pattern` of config.json has it in its record, once it is done."""
    other = PatternMap.uniform(Pattern(2), 2, 4)
    record = {"status": "done", "config": {"pattern": other.to_dict()}}
    monkeypatch.setattr("ratplus.checkpoint.facts.read_record", lambda folder: record)
    assert default_patterns(ours(tmp_path / "s")) == other
    assert default_patterns(ours(tmp_path / "s", pattern=MAP.to_dict())) == MAP
    record["status"] = "failed"
    assert default_patterns(ours(tmp_path / "s")) is None


@pytest.mark.parametrize(
    "pattern", [3, {}, {"layers": []}, PatternMap.per_layer([Pattern(2), Pattern(2), Pattern(4)], 4).to_dict()]
)
def test_a_damaged_pattern(tmp_path, pattern):
    with pytest.raises(CheckpointError, match=r"config.json: damaged \(.*\); restore it or import it again"):
        default_patterns(ours(tmp_path, pattern=pattern))


# ---- in the hub's style --------------------------------------------------------------------------------------------


def test_a_folder_in_the_hub_s_style(tmp_path):
    folder = hubs(tmp_path / "h")
    assert is_hub_folder(folder)
    assert read_hub_facts(folder) == read_start(folder) == (SHAPE, "bb")
    assert default_of(folder) is None
    assert default_of(hubs(folder, sparse_pattern="D4-W8-I1")) == MAP
    with pytest.raises(CheckpointError, match=r"config.json: sparse_pattern: "):
        default_of(hubs(folder, sparse_pattern="D0"))
    assert read_hub_facts(hubs(folder, weights_sha256="gone")) == (SHAPE, None)
    with pytest.raises(CheckpointError, match=r"has no weights_sha256; turn it into a model folder: ratplus import"):
        read_start(folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"model_type": "llama"}, "config.json: model_type is 'llama', not 'ratplus'"),
        ({"vocab_size": "gone"}, r"config.json: damaged \(lacks 'vocab_size'\)"),
        ({"hidden_size": 33}, r"config.json: damaged \(.*33"),
        ({"hidden_size": "wide"}, r"config.json: damaged"),
        ({"num_attention_heads": 3}, r"damaged \(num_attention_heads is 3, where this model has 4\)"),
        ({"intermediate_size": 0}, r"config.json: damaged"),
        ({"tie_word_embeddings": False}, r"damaged \(tie_word_embeddings is False, where this model has True\)"),
    ],
)
def test_damaged_words(tmp_path, words, said):
    with pytest.raises(CheckpointError, match=said):
        read_hub_facts(hubs(tmp_path / "h", **words))


def test_no_folder_in_the_hub_s_style(tmp_path):
    assert not is_hub_folder(tmp_path)
    with pytest.raises(CheckpointError, match=r"no model here \(config.json is missing\)"):
        read_hub_facts(tmp_path)
    for content in ("{", "[]", '"ratplus"'):
        (tmp_path / "config.json").write_text(content)
        assert not is_hub_folder(tmp_path)
        assert (family_of(tmp_path), tokenizer_facts(tmp_path)) == (None, None)
        with pytest.raises(CheckpointError, match=r"config.json: damaged"):
            read_hub_facts(tmp_path)


@pytest.mark.parametrize(
    "shape",
    [
        {}, {"kv_heads": 1, "recurrence": False}, {"ffn": "swiglu", "ffn_size": 50}, {"query_heads": 6, "kv_heads": 3},
        {"rope_scaling": "linear", "rope_factor": 2.0}, {"tied": False, "qkv_bias": True, "out_bias": True},
        {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original": 16}, {"qk_norm": True, "gate_bias": -1.5},
        {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original": 16, "rope_low": 1.0, "rope_high": 4.0},
        {"recurrence_chunk": 16}, {"ffn_mult": 3}, {"output_gate": False, "rope_base": 5e5, "norm_eps": 1e-5},
    ],
)  # fmt: skip
def test_words_of_every_shape_and_back(shape):
    config = ModelConfig(**(asdict(SHAPE) | {"kv_heads": None} | shape))
    words = json.loads(json.dumps(words_of(config, "bb")))
    assert config_of(words) == config
    assert words["rope_scaling"] is None or words["rope_scaling"]["rope_type"] == config.rope_scaling
    # As transformers 5 saves them.
    rope = words.pop("rope_scaling") or {}
    words["rope_parameters"] = {"rope_type": "default", "rope_theta": words.pop("rope_theta")} | rope
    assert config_of(words) == config


@pytest.mark.parametrize(
    ("facts", "good"),
    [
        ({}, True), ({"name": "t", "eos_id": 0}, True), ({"bos_id": None}, True), ({"other": []}, True),
        ([], False), ("t", False), ({"name": 3}, False), ({"file": None}, False), ({"sha256": 1}, False),
        ({"eos_id": "3"}, False), ({"eos_id": True}, False), ({"bos_id": 1.5}, False),
    ],
)  # fmt: skip
def test_facts_of_a_tokenizer_that_somebody_wrote(facts, good):
    if good:
        assert checked_facts(facts, Path("c")) == facts
    else:
        with pytest.raises(CheckpointError, match=r"c: damaged \(what it says of a tokenizer\)"):
            checked_facts(facts, Path("c"))
