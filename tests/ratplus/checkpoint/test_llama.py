"""Hugging Face folders of the Llama family: the same logits as in transformers, and every word read or refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llama_models import CASES, saved

from ratplus import Pattern, PatternMap
from ratplus.checkpoint import load
from ratplus.checkpoint.adopt import bring_in, read_foreign
from ratplus.checkpoint.facts import CheckpointError, default_patterns, family_of
from ratplus.checkpoint.llama.weights import names_of
from ratplus.checkpoint.llama.words import read_llama
from ratplus.costs.budget import parameters
from ratplus.model import RATPlus

pytest.importorskip("transformers")
TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 95}, "merges": []}, "added_tokens": []}


def words_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def change(folder: Path, **words) -> None:
    """Set words of a config.json; None takes one out."""
    told = {key: value for key, value in {**words_of(folder), **words}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(told))


def imported(source: Path, folder: Path, **how):
    found = read_foreign(source, **how)
    bring_in(found, source, folder)
    return found


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name, tmp_path):
    theirs = saved(name, tmp_path / "theirs")
    imported(tmp_path / "theirs", tmp_path / "ours")
    ours, patterns = load(tmp_path / "ours").eval(), default_patterns(tmp_path / "ours")
    tokens = torch.randint(97, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = theirs(tokens).logits, ours(tokens, patterns)
    assert 1 < expected.abs().max() < 20
    assert (found - expected).abs().max() < 2e-5
    assert ours.config.max_len == 128
    assert family_of(tmp_path / "ours") == CASES[name][0]
    assert parameters(ours.config) == sum(p.numel() for p in theirs.parameters())
    windowed = "window" in name or "alternating" in name
    assert (patterns is not None) == windowed
    if windowed:
        with torch.no_grad():  # a window one longer is another model, so the comparison above can fail
            wider = PatternMap.per_layer([Pattern(p.dilation, p.window and p.window + 1) for p, *_ in patterns], 8)
            assert (ours(tokens, wider) - expected).abs().max() > 1e-2
    cache = ours.new_cache(2, patterns, 64)
    steps = [ours.prefill(tokens[:, :40], cache)] + [ours.step(tokens[:, t], cache) for t in range(40, 64)]
    assert (torch.stack(steps, 1) - found[:, 39:]).abs().max() < 2e-5


def test_default_patterns_of_windows(tmp_path):
    for name, label in (("mistral_window", "stream-W15"), ("qwen2_alternating", "layers[D1,stream-W15,D1]"),
                        ("qwen3_bias_window", "layers[D1,stream-W23x2]")):  # fmt: skip
        saved(name, tmp_path / name)
        assert read_foreign(tmp_path / name).patterns.label == label
    # Where the model takes no more than the window, it sees all.
    assert read_foreign(tmp_path / "mistral_window", max_len=16).patterns is None


def test_shards_dtypes_and_old_words(tmp_path):
    """Shards, bfloat16 with float32 norms, and config.json as transformers 4 wrote it: the same model."""
    theirs = saved("llama_llama3", tmp_path / "one")
    whole = read_foreign(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    rope = words_of(tmp_path / "many")["rope_parameters"]
    old = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")} | {"type": "llama3"}
    change(tmp_path / "many", rope_parameters=None, dtype=None, torch_dtype="float32", rope_theta=rope["rope_theta"],
           rope_scaling=old)  # fmt: skip
    split = read_foreign(tmp_path / "many")
    assert split.config == whole.config
    assert all(torch.equal(split.weights[name].make(), lazy.make()) for name, lazy in whole.weights.items())

    mixed = theirs.bfloat16()
    for name, parameter in mixed.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float()
    mixed.save_pretrained(tmp_path / "mixed")
    imported(tmp_path / "mixed", tmp_path / "ours")
    ours = load(tmp_path / "ours").state_dict()
    assert ours["embed.weight"].dtype == torch.float32
    assert torch.equal(ours["embed.weight"], mixed.model.embed_tokens.weight.float())
    assert torch.equal(ours["norm.weight"], mixed.model.norm.weight)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (dict(model_type="llama", vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
              num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
              max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=500000.0, rope_scaling=dict(
                  rope_type="llama3", factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0,
                  original_max_position_embeddings=8192)), 1_235_814_400),  # Llama-3.2-1B
        (dict(model_type="llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
              num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False, max_position_embeddings=131072,
              rms_norm_eps=1e-5, rope_theta=500000.0, rope_scaling=dict(
                  rope_type="llama3", factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0,
                  original_max_position_embeddings=8192)), 8_030_261_248),  # Llama-3.1-8B
        (dict(model_type="qwen3", vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
              num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
              max_position_embeddings=40960, rms_norm_eps=1e-6, rope_theta=1000000, attention_bias=False,
              sliding_window=None, use_sliding_window=False, max_window_layers=28), 596_049_920),  # Qwen3-0.6B
        (dict(model_type="qwen3", vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
              num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
              max_position_embeddings=40960, rms_norm_eps=1e-6, rope_theta=1000000, attention_bias=False,
              sliding_window=None, use_sliding_window=False, max_window_layers=36), 8_190_735_360),  # Qwen3-8B
        (dict(model_type="mistral", vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
              num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False, max_position_embeddings=32768,
              rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096), 7_241_732_096),  # Mistral-7B-v0.1
        (dict(model_type="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
              num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=8192,
              rms_norm_eps=1e-5, rope_theta=100000), 134_515_008),  # SmolLM2-135M
        (dict(model_type="llama", vocab_size=49152, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24,
              num_attention_heads=32, num_key_value_heads=32, tie_word_embeddings=True, max_position_embeddings=8192,
              rms_norm_eps=1e-5, rope_theta=130000), 1_711_376_384),  # SmolLM2-1.7B
    ],
)  # fmt: skip
def test_parameters_of_known_models(config, count):
    """Counted in closed form, on a meta device here, and on a meta device by transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    ours = read_llama(config, "config.json").config
    assert parameters(ours) == count
    with torch.device("meta"):
        assert sum(p.numel() for p in RATPlus(ours).parameters()) == count
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert sum(p.numel() for p in theirs.parameters()) == count


def test_tokenizer_and_chat_template_come_along(tmp_path):
    saved("llama", tmp_path / "theirs")
    files = {"tokenizer.json": json.dumps(TOKENIZER), "tokenizer_config.json": '{"bos_token": "a"}',
             "chat_template.jinja": "{{ messages }}", "special_tokens_map.json": "{}"}  # fmt: skip
    for name, text in files.items():
        (tmp_path / "theirs" / name).write_text(text)
    imported(tmp_path / "theirs", tmp_path / "ours")
    assert all((tmp_path / "ours" / name).read_text() == text for name, text in files.items())
    # Of another model that takes its place nothing stays.
    (tmp_path / "theirs" / "chat_template.jinja").unlink()
    imported(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours" / "chat_template.jinja").exists()
    TOKENIZER_TOO_LARGE = {**TOKENIZER, "added_tokens": [{"id": 97, "content": "c"}]}
    (tmp_path / "theirs" / "tokenizer.json").write_text(json.dumps(TOKENIZER_TOO_LARGE))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: has an id 97, but the embedding only 97 rows"):
        read_foreign(tmp_path / "theirs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("llama") / "theirs"
    saved("llama", place)
    return place


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"model_type": None}, "has no model_type; known are llama, mistral, qwen2, qwen3 and ratplus"),
        ({"model_type": "gemma2"}, "model_type is 'gemma2'; known are llama, mistral, qwen2, qwen3"),
        ({"model_type": "mixtral"}, "model_type is 'mixtral'; known are"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is built"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is of 'gptq'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config is of 'awq'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config is of 'bitsandbytes'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3'; it must be a whole number ≥ 1"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1; it must be a number > 0"),
        ({"num_key_value_heads": 3}, "it must divide the 8 heads"),
        ({"head_dim": 7}, "model.d_head: got 7; it must be even"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters has rope_type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_parameters has rope_type 'longrope'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.0}}, "has attention_factor=1"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "rope_parameters has mscale=1.0"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16}}, "has beta_fast=16"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1}}, "high_freq_factor is None"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
         "has partial_rotary_factor=0.5"),
        ({"rope_parameters": "default"}, "rope_parameters is 'default'; it must hold keys and values"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens.weight"),
        ({"intermediate_size": 90}, "model.layers.0.mlp.gate_proj.weight has shape [88, 64], needs [90, 64]"),
        ({"num_hidden_layers": 4}, "no weights for model.layers.3.input_layernorm.weight"),
        ({"num_hidden_layers": 2}, "unknown weights model.layers.2."),
        ({"attention_bias": True}, "no weights for model.layers.0.self_attn.q_proj.bias"),
    ],
)  # fmt: skip
def test_words_that_no_model_is_built_for(folder, tmp_path, words, told):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    change(other, **words)
    with pytest.raises(CheckpointError) as error:
        read_foreign(other)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "words", "told"),
    [
        ("mistral", {"num_key_value_heads": None}, "has no num_key_value_heads"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types has 'chunked_attention'"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types is of 1 layers"),
    ],
)
def test_words_of_other_families(folder, kind, words, told):
    config = {**words_of(folder), "model_type": kind, "use_sliding_window": True, "sliding_window": 8}
    config = {key: value for key, value in {**config, **words}.items() if value is not None}
    with pytest.raises(CheckpointError, match=told):
        read_llama(config, "config.json")


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ({"max_window_layers": 1}, "layers[D1,stream-W7x2]"),  # from that layer on
        ({"max_window_layers": 0}, "stream-W7"),
        ({"max_window_layers": 3}, None),
        ({}, None),  # 28, as of transformers
        ({"max_window_layers": 0, "use_sliding_window": False}, None),
        ({"max_window_layers": 0, "sliding_window": 128}, None),  # as long as the model's context
        ({"max_window_layers": 0, "sliding_window": 127}, "stream-W126"),
    ],
)
def test_layers_with_a_window_where_no_list_names_them(folder, words, label):
    config = {**words_of(folder), "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, **words}
    patterns = read_llama({k: v for k, v in config.items() if k != "layer_types"}, "config.json").patterns
    assert (patterns and patterns.label) == label


def test_words_that_are_absent(folder):
    plain = words_of(folder)
    mistral = read_llama({**plain, "model_type": "mistral", "max_position_embeddings": 8192}, "config.json")
    assert mistral.patterns.label == "stream-W4095"  # transformers' own default, where the word is absent
    assert read_llama({**plain, "model_type": "mistral", "sliding_window": None}, "config.json").patterns is None
    absent = {
        key: value for key, value in plain.items() if key not in ("head_dim", "tie_word_embeddings", "rope_parameters")
    }
    llama = read_llama(absent, "config.json").config
    assert (llama.d_head, llama.tied, llama.rope_base) == (8, False, 10000.0)
    assert read_llama({**absent, "model_type": "qwen3"}, "config.json").config.d_head == 128
    assert read_llama({**plain, "num_key_value_heads": None}, "config.json").config.kv_heads is None
    with pytest.raises(
        CheckpointError, match=r"--max-len: got 256; .* max_position_embeddings=128.*model\.rope_factor=2"
    ):
        read_llama(plain, "config.json", 256)


def test_folders_without_readable_weights(folder, tmp_path):
    def refused(told: str, **files: str | None):
        other = Path(shutil.copytree(folder, tmp_path / "other"))
        for name, text in files.items():
            path = other / name.replace("_json", ".json").replace("_bin", ".bin").replace(
                "_safetensors", ".safetensors"
            )
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
        with pytest.raises(CheckpointError) as error:
            read_foreign(other)
        shutil.rmtree(other)
        assert told in str(error.value)
        assert "\n" not in str(error.value)

    refused("config.json is missing", config_json=None)
    refused("config.json: damaged", config_json="{")
    refused("config.json: damaged (it holds no keys and values)", config_json="[]")
    refused("model.safetensors is missing)", model_safetensors=None)
    refused("pytorch_model.bin is a pickle, which may run code", model_safetensors=None, pytorch_model_bin="x")
    refused("not a whole safetensors file", model_safetensors="x")
    refused("holds a LoRA adapter (adapter_config.json) of meta/base; merge", config_json=None,
            adapter_config_json='{"base_model_name_or_path": "meta/base"}')  # fmt: skip
    refused("tokenizer.json: not a tokenizer.json", tokenizer_json="{}")


def test_quantised_and_missing_tensors(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(folder, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for value, told in (
        (weights[name].to(torch.int8), f"{name} is of I8: quantised weights"),
        (None, f"no weights for {name}"),
    ):
        changed = {key: tensor for key, tensor in (weights | {name: value}).items() if tensor is not None}
        save_file(changed, other / "model.safetensors")
        with pytest.raises(CheckpointError, match=told):
            read_foreign(other)
    save_file({key: tensor for key, tensor in weights.items() if key != "lm_head.weight"}, other / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings=false, but there is no lm_head\.weight"):
        read_foreign(other)
    # An adapter that was saved into the model's own file: most of its tensors are the model's.
    adapter = {f"model.layers.0.self_attn.q_proj.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save_file(weights | adapter, other / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds LoRA weights \(lora_A, lora_B\); merge them"):
        read_foreign(other)


@pytest.mark.slow
def test_memory_of_an_import(tmp_path):
    """Beside torch itself, an import of 110 MB takes less than 1.3 times that, mapped pages included."""
    from safetensors.torch import save_file

    words = {"model_type": "llama", "vocab_size": 16000, "hidden_size": 768, "intermediate_size": 2048,
             "num_hidden_layers": 6, "num_attention_heads": 12, "num_key_value_heads": 4, "tie_word_embeddings": True,
             "max_position_embeddings": 512}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(words))
    names = names_of(read_llama(words, "config.json").config)
    shapes = {name: shape for parts in names.values() for name, shape in parts.items()}
    save_file({k: torch.zeros(shape, dtype=torch.bfloat16) for k, shape in shapes.items()},
              tmp_path / "model.safetensors")  # fmt: skip
    code = """
import re, sys
from pathlib import Path
from ratplus.checkpoint.adopt import bring_in, read_foreign
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before, source = peak(), Path(sys.argv[1])
bring_in(read_foreign(source), source, Path(sys.argv[2]))
print((peak() - before) / (source / "model.safetensors").stat().st_size)
"""
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "ours")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.3
