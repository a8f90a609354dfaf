"""Exports in transformers: our recurrent model with the file beside its weights, and plain ones as its own classes."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from llama_models import CASES, saved
from safetensors.torch import load_file

import ratplus
from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.checkpoint import save
from ratplus.checkpoint.adopt import bring_in, read_foreign
from ratplus.checkpoint.facts import CheckpointError, default_patterns
from ratplus.checkpoint.hub import export_hf
from ratplus.checkpoint.llama.export import family_for
from ratplus.checkpoint.llama.tokenizer_export import files_for_others
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.model import rope
from ratplus.sweeps import cli

transformers = pytest.importorskip("transformers")
VOCAB = 260
ROPE = {"rope_scaling": "yarn", "rope_factor": 2.0, "rope_original": 32}
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 2.0, "rope_original": 32, "rope_low": 1.0, "rope_high": 4.0}
SHAPES = {
    "plain": {},
    "grouped": {"kv_heads": 2, "rope_scaling": "linear", "rope_factor": 2.0},
    "llama": {"ffn": "swiglu", "ffn_size": 44, "qkv_bias": True, "out_bias": True, "qk_norm": True, "gate_bias": -1.0,
              "tied": False, "kv_heads": 1, "query_heads": 6, **LLAMA3},
    "chunks": {"recurrence_chunk": 5, "output_gate": False, **ROPE},
    "attention": {"recurrence": False},
}  # fmt: skip


def our_model(name: str) -> RATPlus:
    """A model with random weights, norms and biases among them."""
    model = RATPlus(ModelConfig(VOCAB, 2, 32, 8, max_len=128, **SHAPES[name])).eval()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            start, spread = (1.0, 0.2) if parameter.dim() == 1 else (0.0, 0.15)
            parameter.copy_(start + spread * torch.randn(parameter.shape, generator=draw))
    return model


def loaded(folder: Path, **how):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **how).eval()


@pytest.fixture(autouse=True)
def cached_code(tmp_path_factory, monkeypatch):
    """Where transformers copies the code that it trusts: not the home folder."""
    place = tmp_path_factory.mktemp("modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(place))
    monkeypatch.syspath_prepend(str(place))
    # A test that ran before in this process may have imported ratplus.hf, and its classes would be taken instead.
    auto = transformers.models.auto
    for registered in (auto.configuration_auto.CONFIG_MAPPING, auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING):
        monkeypatch.setattr(registered, "_extra_content", {})


@pytest.mark.parametrize("base", [1e4, 5e5])
def test_frequencies_of_wide_heads_are_ours(base):
    """Of 64 channels some are between the fast ones and the slow ones, of a tiny model's 8 none."""
    from ratplus.hf.modeling_ratplus import query_scale, rope_frequencies

    original, factor = 2048, 4.0
    common = {"rope_theta": base, "factor": factor, "original_max_position_embeddings": original}
    bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for kind, ours in (("default", "none"), ("linear", "linear"), ("yarn", "yarn"), ("llama3", "llama3")):
        config = SimpleNamespace(head_dim=64, rope_parameters={"rope_type": kind, **common, **bounds})
        expected = rope.rope_frequencies(64, base, ours, factor, original, None, 1.0, 4.0)
        torch.testing.assert_close(rope_frequencies(config, torch.device("cpu")), expected)
        assert query_scale(config) == rope.attention_scale(ours, factor)
        plain = rope.rope_frequencies(64, base)
        between = ((expected < 0.99 * plain) & (expected > 1.01 * plain / factor)).sum()
        assert (between > 1) == (kind in ("yarn", "llama3"))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("label", ["D1", "D4-W6-I2", "layers[D8,stream-W5]"])
def test_logits_are_ours(tmp_path, name, label):
    model = our_model(name)
    export_hf(save(model, tmp_path / "ours"), tmp_path / "hub", pattern=label)
    theirs, patterns = loaded(tmp_path / "hub"), PatternMap.from_label(label, 2, model.config.heads)
    assert type(theirs).__module__.startswith("transformers_modules")
    tokens = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens, patterns)
        assert 1 < expected.abs().max() < 30
        assert (theirs(tokens).logits - expected).abs().max() < 1e-5
        # The same in pieces over a cache, the second a sequence of its own length by padding on the left.
        padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), tokens[:, :-3]), 1)
        mask = torch.ones_like(padded)
        mask[:, :3] = 0
        first = theirs(padded[:, :20], attention_mask=mask[:, :20], use_cache=True)
        held = first.get("cache", first.past_key_values)
        pieces = [first.logits[:, 3:]]
        for start, end in ((20, 30), *((t, t + 1) for t in range(30, 40))):
            pieces.append(theirs(padded[:, start:end], attention_mask=mask[:, :end], cache=held).logits)
        assert (torch.cat(pieces, 1) - expected[:, :-3]).abs().max() < 1e-5
    if label != "D1":  # or the comparison could not fail
        with torch.no_grad():
            assert (model(tokens) - expected).abs().max() > 1e-2


def test_heads_of_their_own_and_training(tmp_path):
    model = our_model("plain")
    label = "heads[D1,D4x2,stream-W3]"
    export_hf(save(model, tmp_path / "ours"), tmp_path / "hub", pattern=label)
    theirs = loaded(tmp_path / "hub")
    tokens = torch.randint(VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))
    out = theirs(tokens, labels=tokens, output_hidden_states=True)
    expected = model(tokens, PatternMap.from_label(label, 2, 4))
    assert (out.logits - expected).abs().max() < 1e-5
    loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert torch.allclose(out.loss, loss, atol=1e-5)
    out.loss.backward()
    loss.backward()
    for ours, other in zip(model.parameters(), theirs.parameters()):
        assert torch.allclose(ours.grad, other.grad, atol=1e-5)
    assert len(out.hidden_states) == 3
    # What config.json asks for holds where the call says nothing.
    assert theirs(tokens).hidden_states is None
    theirs.config.output_hidden_states = True
    assert len(theirs(tokens).hidden_states) == 3
    assert theirs(tokens, output_hidden_states=False).hidden_states is None
    theirs.config.output_hidden_states = False
    assert theirs(tokens, logits_to_keep=1).logits.shape == (2, 1, VOCAB)
    for wrong, told in (({"output_attentions": True}, "output_attentions"), ({"attention_mask": tokens[:, :3]}, "give"),
                        ({"position_ids": tokens}, "position_ids: positions follow")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            theirs(tokens, **wrong)
    with pytest.raises(ValueError, match="cache: the recurrence's state"):
        theirs.generate(tokens, max_new_tokens=2, cache_implementation="static")


def test_generation_tokenizer_and_pipeline(tmp_path):
    """Greedy, sampling, beams, a batch padded on the left, and a pipeline; with the tokenizer made for bytes."""
    model, pattern = our_model("grouped"), Pattern(4, 6, 2)
    ours = save(model, tmp_path / "ours", ByteTokenizer(), PatternMap.uniform(pattern, 2, 4))
    done = export_hf(ours, tmp_path / "hub")
    assert (done.model, done.own, done.patterns.label, done.notes) == ("RATPlusForCausalLM", True, "D4-W6-I2", [])
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hub", trust_remote_code=True)
    assert config.sparse_pattern == "D4-W6-I2"
    theirs, tokenizer = (
        loaded(tmp_path / "hub"),
        transformers.AutoTokenizer.from_pretrained(tmp_path / "hub", trust_remote_code=True),
    )
    text = "Grüße\t 你\x00\n<|endo"
    assert tokenizer(text)["input_ids"] == ByteTokenizer().encode(text)
    assert tokenizer.decode(ByteTokenizer().encode(text)) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.padding_side) == (256, 256, "left")
    prompts = ["A rather long prompt", "short"]
    rows = [ByteTokenizer().encode(text) for text in prompts]
    expected = model.generate(rows, pattern, 12)
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    assert batch["attention_mask"].sum(-1).tolist() == [20, 5]
    greedy = theirs.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=-1)
    assert torch.equal(greedy[:, 20:], expected)
    beams = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": -1}
    assert torch.equal(theirs.generate(**batch, **beams), theirs.generate(**batch, **beams, use_cache=False))
    torch.manual_seed(0)
    sampled = theirs.generate(**batch, max_new_tokens=6, do_sample=True, top_p=0.9)
    assert sampled.shape[0] == 2
    said = transformers.pipeline("text-generation", model=str(tmp_path / "hub"), trust_remote_code=True)
    (answer,) = said("short", max_new_tokens=4, do_sample=False, return_full_text=False)
    assert answer["generated_text"] == tokenizer.decode(expected[1, :4], skip_special_tokens=True)


def test_saved_again_by_transformers_and_imported(tmp_path):
    ours = save(our_model("llama"), tmp_path / "ours", ByteTokenizer())
    export_hf(ours, tmp_path / "hub", pattern="D4")
    theirs = loaded(tmp_path / "hub")
    theirs.save_pretrained(tmp_path / "again")
    found = read_foreign(tmp_path / "again")
    bring_in(found, tmp_path / "again", tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (ours / "model.safetensors").read_bytes()
    assert found.config == our_model("llama").config
    assert default_patterns(tmp_path / "back").label == "D4"
    # An export may be replaced, what transformers saved may not.
    export_hf(ours, tmp_path / "hub", dtype="bfloat16")
    assert read_foreign(tmp_path / "hub").weights["embed.weight"].make().dtype == torch.float32
    assert load_file(tmp_path / "hub" / "model.safetensors")["embed.weight"].dtype == torch.bfloat16
    assert loaded(tmp_path / "hub").dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match=r"holds the config\.json of another model"):
        export_hf(ours, tmp_path / "again")


def test_registered_by_ratplus_itself(tmp_path):
    """In a process of its own, since classes stay registered."""
    export_hf(save(our_model("plain"), tmp_path / "ours"), tmp_path / "hub", pattern="D4")
    code = (
        "import sys, torch, ratplus.hf; from transformers import AutoModelForCausalLM as Auto; "
        f"print(type(Auto.from_pretrained({str(tmp_path / 'hub')!r})).__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "ratplus.hf.modeling_ratplus", done.stderr


def test_labels_that_the_file_does_not_know():
    modelling = importlib.import_module("ratplus.hf.modeling_ratplus")
    for label in ("D1", "D16-W256-I4", "stream", "stream-W3", "layers[D1,D64x2]", "heads[D1,D4]", "mixed[D1,D4|D4,D1]"):
        rows = modelling.patterns_of(label, 3, 4)
        expected = PatternMap.from_label(label, 3, 4)
        assert rows == [[(p.dilation, p.window, p.sinks) for p in row] for row in expected]
    for label in ("top16x64", "D64-top8x64", "snap64x8", "D0", "D4-W", "rows[D1]", "layers[D1,Q]", "", "layers[]"):
        with pytest.raises(ValueError, match="sparse_pattern: got .* for others use ratplus itself"):
            modelling.RATPlusConfig(sparse_pattern=label or "-")
    with pytest.raises(ValueError, match="hidden_act: got 'relu'"):
        modelling.RATPlusConfig(hidden_act="relu")


# ---- models that transformers has classes for ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_llama_family_round_trip(tmp_path, name):
    theirs = saved(name, tmp_path / "theirs")
    found = read_foreign(tmp_path / "theirs")
    bring_in(found, tmp_path / "theirs", tmp_path / "ours")
    done = export_hf(tmp_path / "ours", tmp_path / "hub", shard_bytes=40_000)
    assert (done.model, done.own) == (type(theirs).__name__, False)
    shards = [load_file(path) for path in sorted((tmp_path / "hub").glob("*.safetensors"))]
    assert len(shards) > 1
    state = theirs.state_dict()
    written = {key: tensor for shard in shards for key, tensor in shard.items()}
    assert state.keys() - written.keys() == ({"lm_head.weight"} if "tied" in name else set())
    assert all(torch.equal(tensor, state[key]) for key, tensor in written.items())
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hub", attn_implementation="eager").eval()
    assert type(back) is type(theirs)
    tokens = torch.randint(97, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, theirs(tokens).logits)
        ours = ratplus.load(tmp_path / "hub")
        assert (ours.model(tokens, ours.patterns) - theirs(tokens).logits).abs().max() < 2e-5
    again = read_foreign(tmp_path / "hub")
    assert (again.config, again.patterns, again.family) == (found.config, found.patterns, found.family)


def test_a_llama_under_a_pattern(tmp_path, capsys):
    """What no class of transformers computes becomes one of ours; a plain window is Mistral's."""
    saved("llama", tmp_path / "theirs")
    bring_in(read_foreign(tmp_path / "theirs"), tmp_path / "theirs", tmp_path / "ours")
    words = ["export", str(tmp_path / "ours"), str(tmp_path / "hub"), "--format", "hf", "--pattern", "D4-W8-I2"]

    def run(*more: str) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, *more])
        return ended.value.code or 0

    assert run() == 0
    line, note = capsys.readouterr().out.strip().splitlines()
    assert (
        "as RATPlusForCausalLM under D4-W8-I2; load it with transformers: AutoModelForCausalLM.from_pretrained(" in line
    )
    assert line.endswith(", trust_remote_code=True)")
    assert note == "note: it has no tokenizer: the model folder holds none"
    tokens = torch.randint(97, (1, 40), generator=torch.Generator().manual_seed(1))
    ours = ratplus.load(tmp_path / "ours").model
    with torch.no_grad():
        assert (loaded(tmp_path / "hub")(tokens).logits - ours(tokens, Pattern(4, 8, 2))).abs().max() < 1e-5
    words[-1] = "stream-W7"
    assert run() == 0
    assert "as MistralForCausalLM under stream-W7" in capsys.readouterr().out
    assert not (tmp_path / "hub" / "modeling_ratplus.py").exists()
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["sliding_window"] == 8
    with torch.no_grad():
        assert (loaded(tmp_path / "hub")(tokens).logits - ours(tokens, Pattern(None, 7))).abs().max() < 1e-5
    for label, told in (
        ("top4x16", "which selects keys by the query; in transformers there are"),
        ("Q4", "--pattern:"),
        ("heads[D1,D4]", "--pattern: pattern: heads 0 to 3 of layer 0 share keys and values"),
    ):
        words[-1] = label
        assert run("--force") == 2
        assert told in capsys.readouterr().err
    words[4:5] = ["official"]
    words[-1] = "D4"
    assert run() == 2
    assert "--pattern: got D4; only --format hf has it" in capsys.readouterr().err


def test_tokenizers_and_templates_travel(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    saved("llama", tmp_path / "theirs")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "<s>": 2, "</s>": 3}, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "theirs" / "tokenizer.json"))
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "bos_token": "<s>"}'
    )
    (tmp_path / "theirs" / "generation_config.json").unlink()  # it goes along as it is; what is missing is made
    (tmp_path / "theirs" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    bring_in(read_foreign(tmp_path / "theirs"), tmp_path / "theirs", tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "hub")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "hub")
    assert other("a b")["input_ids"] == [0, 1]
    assert other.apply_chat_template([{"role": "user", "content": "b"}], tokenize=False) == "b"
    words = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert (words["eos_token_id"], words["bos_token_id"]) == (3, 2)
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "hub").eos_token_id == 3
    # Of somebody else's folder nothing is replaced.
    shutil.rmtree(tmp_path / "hub")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "tokenizer.json").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds tokenizer\.json of another model already"):
        export_hf(tmp_path / "ours", tmp_path / "hub")


@pytest.mark.parametrize("tokenizer", [b'{"model": {"vocab": {"a": 0, "b": 1}}}', b"{"])
def test_facts_that_the_tokenizer_does_not_know(tokenizer):
    with pytest.raises(CheckpointError, match="tokenizer.json: has no token of the id 9, which config.json names"):
        files_for_others({"tokenizer.json": tokenizer}, {"name": "own", "eos_id": 9, "bos_id": None})


def test_families_of_shapes():
    def family(**words) -> str | None:
        patterns, known = words.pop("patterns", None), words.pop("known", None)
        plain = {"recurrence": False, "output_gate": False, "ffn": "swiglu"}
        return family_for(ModelConfig(97, 3, 32, 8, **{**plain, **words}), patterns, known)

    slides = PatternMap.per_layer([Pattern(), Pattern(None, 4), Pattern()], 4)
    assert family() == "llama"
    assert family(known="mistral") == "mistral"
    assert family(known="llama", patterns=PatternMap.uniform(Pattern(None, 4), 3, 4)) == "mistral"
    assert family(patterns=slides) is None
    assert family(qk_norm=True, patterns=slides) == "qwen3"
    assert family(qkv_bias=True) == "qwen2"
    assert family(qkv_bias=True, out_bias=True) == "llama"
    assert family(out_bias=True) is None
    assert family(patterns=PatternMap.uniform(Pattern(None, 4, 1), 3, 4)) is None
    assert family(query_heads=3) is None  # transformers wants a width that the heads divide
    assert family(recurrence=True) is family(ffn="gelu") is family(output_gate=True) is None
