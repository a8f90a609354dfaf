"""Models in the formats of others: round trips to the bit, what is refused, and how much memory it takes."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from ratplus import ModelConfig, RATPlus
from ratplus.checkpoint import load, save
from ratplus.checkpoint.adopt import read_foreign
from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.folder import save_weights
from ratplus.checkpoint.hub import export_hf
from ratplus.checkpoint.official import export_official, load_official
from ratplus.checkpoint.shards import write_shards
from ratplus.checkpoint.tensor_file import Lazy, map_safetensors, read_into, write_safetensors

RATPLUS = str(Path(sys.executable).with_name("ratplus"))


def official(golden, recurrence=1) -> dict:
    state = {k: torch.from_numpy(v) for k, v in golden(f"weights_re{recurrence}").items()}
    state["head.lm_head.weight"] = state["embedding.wte.weight"]
    return state


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def layer_shapes(d: int) -> dict:
    return {
        "seq_layer.input_norm": (d,), "seq_layer.in_proj": (5 * d, d), "seq_layer.out_proj": (d, d),
        "hidden_layer.fc1": (4 * d, d), "hidden_layer.fc2": (d, 4 * d), "hidden_layer.ln": (d,),
    }  # fmt: skip


def bring_in(source, folder, d_head=16, max_len=512) -> Path:
    found = read_foreign(source, d_head, max_len)
    save_weights(found.config, found.weights, folder)
    return folder


@pytest.mark.parametrize("recurrence", [0, 1])
def test_reference_to_ours_and_back_is_exact(golden, tmp_path, recurrence):
    state = official(golden, recurrence)
    torch.save({"task": state, "step": 3}, tmp_path / "theirs.pt")
    ours = bring_in(tmp_path / "theirs.pt", tmp_path / "ours")
    export_official(ours, tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["task"]
    assert same(back, state)
    assert back["head.lm_head.weight"].data_ptr() == back["embedding.wte.weight"].data_ptr()
    again = bring_in(tmp_path / "back.pt", tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (ours / name).read_bytes()
    assert load(ours).config == ModelConfig(97, 3, 64, 16, recurrence=bool(recurrence), max_len=512)


def test_keys_are_those_of_the_reference(golden, tmp_path):
    """Against the list of keys that its own two-layer model has."""
    keys = json.loads((Path(__file__).parents[2] / "golden" / "state_dict_keys_2layer.json").read_text())
    export_official(save(RATPlus(ModelConfig(11, 2, 16, 8)), tmp_path / "m"), tmp_path / "m.pt")
    written = torch.load(tmp_path / "m.pt", weights_only=True)["task"]
    assert set(written) == {entry["key"] for entry in keys}


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(11, 2, 16, 8, max_len=32),
        ModelConfig(11, 1, 24, 4, recurrence=False, output_gate=False, ffn_mult=3, rope_base=5e5, norm_eps=1e-5),
        ModelConfig(11, 1, 24, 4, kv_heads=2),
    ],
)
def test_hugging_face_folder_and_back_is_exact(tmp_path, config):
    ours = save(RATPlus(config), tmp_path / "ours")
    export_hf(ours, tmp_path / "hub")
    words = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert (words["hidden_size"], words["num_attention_heads"], words["model_type"]) == (
        config.d_model, config.heads, "ratplus",
    )  # fmt: skip
    assert words["num_key_value_heads"] == config.key_heads
    with safe_open(tmp_path / "hub" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    back = bring_in(tmp_path / "hub", tmp_path / "back")
    for name in ("config.json", "model.safetensors"):
        assert (back / name).read_bytes() == (ours / name).read_bytes()


# ---- shards -------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("most", "files"), [(1, 14), (6000, 7), (12000, 3), (10**6, 1)])
def test_large_exports_are_split_as_the_hub_does(tmp_path, most, files):
    ours = save(RATPlus(ModelConfig(11, 2, 16, 8, max_len=32)), tmp_path / "ours")
    hub = tmp_path / "hub"
    export_hf(ours, hub, most)
    shards = sorted(path.name for path in hub.glob("*.safetensors"))
    found = {}
    if files == 1:
        assert shards == ["model.safetensors"]
        assert not (hub / "model.safetensors.index.json").exists()
        found = safetensors.torch.load_file(hub / shards[0])
    else:
        assert shards == [f"model-{i:05}-of-{files:05}.safetensors" for i in range(1, files + 1)]
        index = json.loads((hub / "model.safetensors.index.json").read_text())
        assert sorted(set(index["weight_map"].values())) == shards
        for shard in shards:
            own = safetensors.torch.load_file(hub / shard)  # the format's own library
            assert own.keys() == {name for name, where in index["weight_map"].items() if where == shard}
            assert len(own) == 1 or sum(x.nbytes for x in own.values()) <= most
            found |= own
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in found.values())
    assert same(found, load(ours).state_dict())
    back = bring_in(hub, tmp_path / "back")
    assert contents(back) == contents(ours)


@pytest.mark.parametrize(
    ("most", "files"), [(15, ["a", "b", "c", "d"]), (31, ["a", "b", "c", "d"]), (32, ["ab", "cd"]), (48, ["abc", "d"])]
)
def test_a_shard_is_filled_to_the_last_byte(tmp_path, most, files):
    paths = write_shards(tmp_path, {name: torch.zeros(4) for name in "abcd"}, most, replace=True)
    assert ["".join(sorted(safetensors.torch.load_file(path))) for path in paths] == files
    (whole,) = write_shards(tmp_path, {name: torch.zeros(4) for name in "abcd"}, 64, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == [whole.name] == ["model.safetensors"]


def test_an_export_takes_the_place_of_one_of_another_split(tmp_path):
    ours = save(RATPlus(ModelConfig(11, 2, 16, 8)), tmp_path / "ours")
    for most in (6000, 12000, 10**6, 6000):
        export_hf(ours, tmp_path / "hub", most)
        export_hf(ours, tmp_path / "fresh" / str(most), most)
        assert contents(tmp_path / "hub") == contents(tmp_path / "fresh" / str(most))
    # One that fails does not leave the config of the old weights beside new ones, which would look whole.
    half = tmp_path / "fresh" / "6000"
    shutil.copytree(half, tmp_path / "half")
    (tmp_path / "half" / "model-00005-of-00007.safetensors").unlink()
    (tmp_path / "half" / "model-00005-of-00007.safetensors").mkdir()  # nothing can take its place
    with pytest.raises(OSError, match="model-00005"):
        export_hf(ours, tmp_path / "half", 6000)
    assert not (tmp_path / "half" / "config.json").exists()
    # But not of a model that is not ours, nor of weights of which nothing is known.
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "llama"}')
    before = contents(tmp_path / "hub")
    with pytest.raises(CheckpointError, match=r"holds the config\.json of another model; choose another target"):
        export_hf(ours, tmp_path / "hub")
    assert contents(tmp_path / "hub") == before
    (tmp_path / "hub" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds other weights already .model-00001-of-00007\.safetensors"):
        export_hf(ours, tmp_path / "hub")
    assert contents(tmp_path / "hub") == {k: v for k, v in before.items() if k != "config.json"}
    # As a killed export leaves it: the same one again mends it.
    export_hf(ours, tmp_path / "hub", 6000)
    assert contents(tmp_path / "hub") == contents(tmp_path / "fresh" / "6000")


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Path:
    """An export of seven shards."""
    folder = tmp_path_factory.mktemp("split")
    export_hf(save(RATPlus(ModelConfig(11, 2, 16, 8)), folder / "ours"), folder / "hub", 6000)
    return folder / "hub"


SHARD = "model-00002-of-00007.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({SHARD: None}, rf"{SHARD} is missing, which by model\.safetensors\.index\.json holds layers\.0\.ffn\.up"),
        ({SHARD: b"\x05"}, rf"{SHARD}: not a whole safetensors file"),
        ({"model.safetensors": b"x"}, r"holds model\.safetensors and model\.safetensors\.index\.json; remove the one"),
        ({"x.weight": SHARD}, rf"says that {SHARD} holds x\.weight, which it does not"),
        ({"embed.weight": SHARD}, r"does not say that model-00001.* holds embed\.weight, which it does"),
        ({"embed.weight": "../x.safetensors"}, r"damaged \(embed\.weight in '\.\./x\.safetensors', which is no name"),
        ({"model.safetensors.index.json": b"{}"}, r"index\.json: damaged \(lacks the key 'weight_map'\)"),
        ({"model.safetensors.index.json": b"["}, r"index\.json: damaged \("),
        ({"config.json": None}, r"no model here \(config\.json is missing\)"),
    ],
)
def test_shards_that_do_not_fit(split, tmp_path, change, message):
    hub = Path(shutil.copytree(split, tmp_path / "hub"))
    index = hub / "model.safetensors.index.json"
    for name, value in change.items():
        if isinstance(value, str):
            words = json.loads(index.read_text())
            words["weight_map"][name] = value
            index.write_text(json.dumps(words))
        elif value is None:
            (hub / name).unlink()
        else:
            (hub / name).write_bytes(value)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_foreign(hub)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_those_that_were_exported(split, tmp_path):
    hub = Path(shutil.copytree(split, tmp_path / "hub"))
    data = bytearray((hub / SHARD).read_bytes())
    data[-1] ^= 1
    (hub / SHARD).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"not those that config\.json was written for; .* remove weights_sha256"):
        read_foreign(hub)


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({}, None),
        ({"rope_scaling": "linear", "rope_factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"rope_scaling": "yarn", "rope_factor": 2.0, "rope_original": 64},
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
        ),
        (
            {"rope_scaling": "llama3", "rope_factor": 2.0, "rope_original": 64, "rope_low": 1.0, "rope_high": 4.0},
            {
                "rope_type": "llama3",
                "factor": 2.0,
                "original_max_position_embeddings": 64,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        ),
    ],
)
def test_rotary_scaling_in_the_hubs_words(tmp_path, rope, words):
    ours = save(RATPlus(ModelConfig(11, 1, 16, 8, rope_base=5e5, max_len=128, **rope)), tmp_path / "ours")
    export_hf(ours, tmp_path / "hub")
    told = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert (told["rope_theta"], told["rope_scaling"], told["max_position_embeddings"]) == (5e5, words, 128)
    assert contents(bring_in(tmp_path / "hub", tmp_path / "back")) == contents(ours)
    if rope:
        with pytest.raises(CheckpointError, match=r"no place for model\.rope"):
            export_official(ours, tmp_path / "m.pt")
    for other, message in (
        ({"rope_type": "default", "factor": 8.0}, "rope_scaling is of rope_type 'default'; known are"),
        ({"rope_type": "dynamic", "factor": 8.0}, "rope_scaling is of rope_type 'dynamic'; known are"),
        ({"rope_type": "llama3", "factor": 8.0}, "model.rope_original: got None; model.rope_scaling=llama3 needs"),
        ({"rope_type": "yarn", "factor": 8.0, "beta_fast": 16}, "rope_scaling has beta_fast; known are"),
    ):
        (tmp_path / "hub" / "config.json").write_text(json.dumps(told | {"rope_scaling": other}))
        with pytest.raises(CheckpointError, match=message):
            read_foreign(tmp_path / "hub")
    for other, message in (
        ({"hidden_act": "silu"}, "hidden_act is 'silu', where this model has 'gelu'"),
        ({"intermediate_size": 65}, "intermediate_size is 65, where this model has 64"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3, where this model has 2"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "lacks 'rope_theta'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_scaling is of rope_type 'dynamic'"),
    ):
        (tmp_path / "hub" / "config.json").write_text(json.dumps(told | other))
        with pytest.raises(CheckpointError, match=message):
            read_foreign(tmp_path / "hub")
    # Exports of before these keys.
    old = {key: value for key, value in told.items() if key not in ("rope_scaling", "weights_sha256")}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(old))
    assert read_foreign(tmp_path / "hub").config == ModelConfig(11, 1, 16, 8, rope_base=5e5, max_len=128)


def test_llama_shapes_in_the_hubs_words(tmp_path):
    words = {"query_heads": 3, "ffn": "swiglu", "ffn_size": 44, "qkv_bias": True, "gate_bias": -2.0, "tied": False}
    ours = save(RATPlus(ModelConfig(11, 1, 16, 8, max_len=128, **words)), tmp_path / "ours")
    export_hf(ours, tmp_path / "hub")
    told = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert (told["num_attention_heads"], told["hidden_act"], told["intermediate_size"]) == (3, "silu", 44)
    assert told["tie_word_embeddings"] is False
    assert contents(bring_in(tmp_path / "hub", tmp_path / "back")) == contents(ours)
    with pytest.raises(CheckpointError, match=r"no place for model\.query_heads=3"):
        export_official(ours, tmp_path / "m.pt")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_lose_nothing(golden, tmp_path, dtype):
    narrow = {k: v.to(dtype) for k, v in official(golden).items()}
    torch.save(narrow, tmp_path / "narrow.pt")
    model = load_official(tmp_path / "narrow.pt", 16)
    assert torch.equal(model.embed.weight, narrow["embedding.wte.weight"].float())
    assert same(load(bring_in(tmp_path / "narrow.pt", tmp_path / "m")).state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_export_tells_the_hash_of_what_it_holds(tmp_path, dtype):
    ours = save(RATPlus(ModelConfig(vocab_size=23, layers=1, d_model=16, d_head=8)), tmp_path / "ours")
    export_hf(ours, tmp_path / "hub", dtype=dtype)
    back = load(bring_in(tmp_path / "hub", tmp_path / "back"))  # refused if the weights are not those that it tells of
    assert torch.equal(back.embed.weight, load(ours).embed.weight.to(getattr(torch, dtype)).float())


def test_files_of_old_torch_and_safetensors_files(golden, tmp_path):
    state = official(golden)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    plain = {k: v.clone() for k, v in state.items()}
    safetensors.torch.save_file(plain, tmp_path / "weights.safetensors")
    for name in ("old.pt", "weights.safetensors"):
        assert torch.equal(load_official(tmp_path / name, 16).embed.weight, state["embedding.wte.weight"])


def test_safetensors_files_that_the_format_forbids(golden, tmp_path):
    """Tensors that share bytes, or leave some to nobody: what looks whole may be somebody's trick."""
    plain = {k: v.clone() for k, v in official(golden).items()}
    safetensors.torch.save_file(plain, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    norm = next(name for name, facts in header.items() if facts.get("shape") == [golden_width(plain)])
    for start in (0, header[norm]["data_offsets"][0] + 4):
        size = header[norm]["data_offsets"][1] - header[norm]["data_offsets"][0]
        moved = json.dumps(header | {norm: header[norm] | {"data_offsets": [start, start + size]}}).encode()
        (tmp_path / "x.safetensors").write_bytes(len(moved).to_bytes(8, "little") + moved + numbers)
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            load_official(tmp_path / "x.safetensors", 16)
    (tmp_path / "x.safetensors").write_bytes(data[:-5])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_official(tmp_path / "x.safetensors", 16)
    with pytest.raises(CheckpointError, match="no such file"):
        load_official(tmp_path / "y.safetensors", 16)


def golden_width(state: dict) -> int:
    return state["backbone.ln.weight"].shape[0]


def test_a_checkpoint_without_values(golden):
    state = {key: tensor.to("meta") for key, tensor in official(golden).items()}
    with pytest.raises(CheckpointError, match=r"is a tensor without values \(device meta\)"):
        load_official(state, 16)


def test_wrong_dtypes_and_shapes(golden):
    ints = {k: v.int() for k, v in official(golden).items()}
    with pytest.raises(CheckpointError, match="is int32; weights are float32, bfloat16 or float16"):
        load_official(ints, 16)
    mixed = official(golden)
    mixed["backbone.ln.weight"] = mixed["backbone.ln.weight"].bfloat16()
    with pytest.raises(CheckpointError, match=r"weights of several dtypes .*backbone\.ln\.weight bfloat16"):
        load_official(mixed, 16)
    paper = {"embedding.wte.weight": torch.zeros(3, 2048, device="meta"), "backbone.ln.weight": torch.zeros(2048)}
    d = 2048
    for i in range(24):
        for name, shape in layer_shapes(d).items():
            paper[f"backbone.layers.{i}.{name}.weight"] = torch.zeros(shape, device="meta")
    with pytest.raises(CheckpointError, match=r"d_head 64, but this is the paper's 1\.5B model, which has 128"):
        load_official(paper, 64)


class Stranger:
    pass


def test_objects_beside_weights_are_named_and_not_run(golden, tmp_path):
    torch.save({"task": official(golden), "config": Stranger()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"beside weights it holds .*Stranger; if you trust it") as caught:
        load_official(tmp_path / "x.pt", 16)
    assert "weights_only=False" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kv_heads": 1}, r"no place for model\.kv_heads=1 \(always None\); use --format hf"),
        ({"output_gate": False}, r"no place for model\.output_gate=False \(always True\); use --format hf"),
        ({"rope_base": 5e5}, r"no place for model\.rope_base=500000"),
        ({"norm_eps": 1e-5}, r"no place for model\.norm_eps"),
    ],
)
def test_what_the_reference_cannot_hold(tmp_path, config, message):
    folder = save(RATPlus(ModelConfig(11, 1, 16, 8, **config)), tmp_path / "m")
    with pytest.raises(CheckpointError, match=message):
        export_official(folder, tmp_path / "m.pt")
    assert not list(tmp_path.glob("*.pt"))


def test_folders_that_are_not_what_they_should_be(tmp_path):
    ours = save(RATPlus(ModelConfig(11, 1, 16, 8)), tmp_path / "m")
    with pytest.raises(CheckpointError, match="is a ratplus model folder already"):
        read_foreign(ours)
    with pytest.raises(CheckpointError, match="it would take the place of the model folder itself"):
        export_hf(ours, ours)
    other = save(RATPlus(ModelConfig(11, 1, 16, 8)), tmp_path / "other")
    before = (other / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="other: is a ratplus model folder already"):
        export_hf(ours, other)
    assert (other / "model.safetensors").read_bytes() == before
    with pytest.raises(CheckpointError, match=r"no model here .config\.json is missing."):
        read_foreign(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint here .config\.json is missing."):
        export_official(tmp_path, tmp_path / "x.pt")
    export_hf(ours, tmp_path / "hub")
    words = json.loads((tmp_path / "hub" / "config.json").read_text())
    (tmp_path / "hub" / "config.json").write_text(json.dumps(words | {"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="model_type is 'bert'; known are llama"):
        read_foreign(tmp_path / "hub")
    (tmp_path / "hub" / "config.json").write_text(json.dumps(words | {"vocab_size": 12}))
    with pytest.raises(CheckpointError, match=r"embed\.weight has shape \[11, 16\], needs \[12, 16\]"):
        read_foreign(tmp_path / "hub")
    data = (ours / "model.safetensors").read_bytes()
    (ours / "model.safetensors").write_bytes(data[:-3] + b"abc")
    for export in (export_official, export_hf):
        with pytest.raises(CheckpointError, match="SHA-256 differs"):
            export(ours, tmp_path / "y")


# ---- the files themselves -----------------------------------------------------------------------------------------


def test_our_writer_writes_what_the_library_writes(tmp_path):
    torch.manual_seed(0)
    tensors = {"b": torch.randn(3, 5), "a.x": torch.randn(7), "c": torch.randn(2, 2).bfloat16(), "e": torch.zeros(0, 4)}
    sha256 = write_safetensors(tmp_path / "x", tensors)
    data = (tmp_path / "x").read_bytes()
    assert data == safetensors.torch.save(tensors)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert same(safetensors.torch.load(data), tensors)
    assert same(map_safetensors(tmp_path / "x"), tensors)
    targets = {k: torch.full_like(v, 9, dtype=torch.float32) for k, v in tensors.items()}
    assert read_into(tmp_path / "x", targets) == sha256
    assert same(targets, {k: v.float() for k, v in tensors.items()})
    lazy = {k: Lazy(tuple(v.shape), v.dtype, lambda v=v: v) for k, v in tensors.items()}
    write_safetensors(tmp_path / "y", lazy)
    assert (tmp_path / "y").read_bytes() == data


@pytest.mark.parametrize("length", range(1, 9))
def test_bytes_of_tensors_begin_at_a_multiple_of_eight(tmp_path, length):
    """So that a reader can use them where they lie; as the library writes them, for headers of any length."""
    tensors = {"a" * length: torch.arange(3.0)}
    write_safetensors(tmp_path / "x", tensors)
    assert (tmp_path / "x").read_bytes() == safetensors.torch.save(tensors)
    assert (tmp_path / "x").stat().st_size % 8 == 12 % 8


def test_a_target_that_does_not_lie_in_one_piece_is_filled(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4.0)}
    sha256 = write_safetensors(tmp_path / "x", tensors)
    targets = {"a": torch.full((3, 2), 9.0).t(), "b": torch.full((8,), 9.0)[::2]}
    assert read_into(tmp_path / "x", targets) == sha256
    assert same(targets, tensors)


@pytest.mark.parametrize("damage", [b"", b"\x05", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{}"])
def test_damaged_safetensors(tmp_path, damage):
    (tmp_path / "x").write_bytes(damage)
    with pytest.raises(CheckpointError):
        read_into(tmp_path / "x", {"a": torch.zeros(2)})


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def fail():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        write_safetensors(tmp_path / "m" / "x", {"a": torch.zeros(2), "b": Lazy((2,), torch.float32, fail)})
    assert caught.value.filename.endswith("x")
    assert not list((tmp_path / "m").iterdir())


# ---- memory -------------------------------------------------------------------------------------------------------

_PEAK = """
import sys
sys.argv = ["ratplus", *sys.argv[1:]]
from ratplus.sweeps.cli import main
import torch, ratplus.checkpoint.hub, ratplus.checkpoint

def peak():
    # Not ru_maxrss, which a process inherits from the one that started it.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

before = peak()
try:
    main() if sys.argv[1] != "load" else ratplus.checkpoint.load(sys.argv[2])
except SystemExit as ended:
    assert not ended.code, ended.code
print("PEAK", peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_big_checkpoint(tmp_path):
    """Importing, exporting and loading take less than 1.3 times the file, mapped pages included."""
    layers, d, vocab = 10, 1408, 32000
    draw = torch.Generator().manual_seed(0)
    state = {"embedding.wte.weight": torch.randn(vocab, d, generator=draw), "backbone.ln.weight": torch.ones(d)}
    for i in range(layers):
        for name, shape in layer_shapes(d).items():
            state[f"backbone.layers.{i}.{name}.weight"] = torch.randn(shape, generator=draw)
    state["head.lm_head.weight"] = state["embedding.wte.weight"]
    torch.save({"task": state, "optimizer": {"state": {0: torch.zeros(50_000_000)}}}, tmp_path / "big.pt")
    size = sum(v.numel() * 4 for k, v in state.items() if not k.startswith("head"))
    del state
    assert size > 1.25e9

    def peak(*words) -> float:
        done = subprocess.run([sys.executable, "-c", _PEAK, *map(str, words)], capture_output=True, text=True,
                              timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
        assert done.returncode == 0, done.stderr
        return int(done.stdout.rpartition("PEAK ")[2]) / size

    used = {
        "import": peak("import", tmp_path / "big.pt", tmp_path / "m"),
        "export": peak("export", tmp_path / "m", tmp_path / "back.pt"),
        "export hf": peak("export", tmp_path / "m", tmp_path / "hub", "--format", "hf", "--shard-gb", "0.3"),
        "import hf": peak("import", tmp_path / "hub", tmp_path / "m2"),
        "load": peak("load", tmp_path / "m"),
    }
    print(f"{size / 1e9:.2f} GB of weights:", {k: f"{v:.2f}" for k, v in used.items()})
    assert max(used.values()) < 1.3
    assert used["load"] > 0.9  # it does measure
