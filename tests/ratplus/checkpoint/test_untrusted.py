"""Files of weights that claim more than they hold, or are no files: refused in one line before anything is made."""

import json
import os
import struct
import zipfile

import pytest
import torch

from ratplus.checkpoint import CheckpointError, load, load_official, save
from ratplus.checkpoint.adopt import read_foreign
from ratplus.checkpoint.folder import map_weights
from ratplus.checkpoint.shards import map_shards
from ratplus.checkpoint.tensor_file import LONGEST_HEADER, map_safetensors
from ratplus.checkpoint.tokenizer_files import tokenizer_files
from ratplus.checkpoint.untrusted import check_claims, check_unpacked
from ratplus.config.model import ModelConfig
from ratplus.model import RATPlus
from ratplus.training.state import load_state

SMALL = ModelConfig(vocab_size=7, layers=1, d_model=8, d_head=4, max_len=16)


@pytest.fixture
def folder(tmp_path):
    return save(RATPlus(SMALL), tmp_path / "m")


def tell(folder, **changes) -> None:
    """Change what config.json says of the model's shape."""
    path = folder / "config.json"
    words = json.loads(path.read_text())
    words["model"] |= changes
    path.write_text(json.dumps(words))


def header(folder, change) -> None:
    """Change the header of the weights, and let config.json know their hash."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    told = json.loads(data[8 : 8 + length])
    change(told)
    text = json.dumps(told).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize(("text", "line"), [
    ('{"format": 2, "model": {}, "sha256": ""}', "format 2; this version reads format 1"),
    ('{"format": 0, "model": {}, "sha256": ""}', "format 0; this version reads format 1"),
    ("[]", "not a JSON object"), ("7", "not a JSON object"), ("null", "not a JSON object"),
])  # fmt: skip
def test_a_config_of_another_version_or_kind(folder, text, line):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"config.json: .*{line}"):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [{"layers": 10**9}, {"layers": 9_000}, {"vocab_size": 1 << 32}, {"d_model": 1 << 17, "d_head": 1 << 16},
     {"max_len": 10**18}, {"kv_heads": 10**12}],
)  # fmt: skip
def test_a_config_of_terabytes_makes_no_model(folder, changes, monkeypatch):
    tell(folder, **changes)
    monkeypatch.setattr("ratplus.checkpoint.folder.empty_model", lambda config: pytest.fail("a model was made"))
    for read in (load, map_weights):
        with pytest.raises(CheckpointError):
            read(folder)


@pytest.mark.parametrize(
    "facts",
    [{"shape": [1 << 32, 1 << 32], "data_offsets": [0, 0]}, {"shape": [-7, -8]}, {"shape": [7.0, 8]},
     {"shape": [True, 8]}, {"shape": "x"}, {"data_offsets": [-4, 220]}, {"data_offsets": [0, 10**18]},
     {"data_offsets": ["a", "b"]}, {"dtype": ["F32"]}],
)  # fmt: skip
def test_impossible_headers(folder, facts):
    header(folder, lambda told: told["embed.weight"].update(facts))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        map_safetensors(folder / "model.safetensors")
    with pytest.raises(CheckpointError):
        load(folder)


def test_tensors_that_share_their_bytes(folder):
    header(folder, lambda told: told.update({name: told["embed.weight"] for name in told}))
    with pytest.raises(CheckpointError, match="bytes that another tensor has too"):
        map_safetensors(folder / "model.safetensors")


def test_what_follows_the_last_tensor_is_not_read(folder, monkeypatch):
    """A file of kilobytes may say that it has gigabytes more, which reading them for a hash would take minutes."""
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("it was read"))
    for read in (load, map_weights):
        with pytest.raises(CheckpointError, match="model.safetensors: SHA-256 differs"):
            read(folder)


def test_long_headers_are_not_parsed(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", LONGEST_HEADER + 1) + b"{" + b" " * LONGEST_HEADER)
    for read, what in ((map_safetensors, path), (map_shards, tmp_path)):
        with pytest.raises(CheckpointError, match="a header of more than 16 MiB"):
            read(what)


def test_pipes_and_devices_hold_no_reader(folder, tmp_path):
    path = folder / "model.safetensors"
    path.unlink()
    os.mkfifo(path)
    for read in (load, map_weights, map_shards):
        with pytest.raises(CheckpointError):
            read(folder)
    with pytest.raises(CheckpointError, match="is not a plain file"):
        load_official(path.rename(folder / "x.pt"))
    os.mkfifo(tmp_path / f"training-00000001-{'0' * 16}.pt")
    with pytest.raises(CheckpointError, match="is not a plain file"):
        load_state(tmp_path, "s")
    os.mkfifo(folder / "tokenizer_config.json")
    with pytest.raises(CheckpointError, match="tokenizer_config.json: cannot be read .not a plain file"):
        tokenizer_files(folder)
    os.mkfifo(folder / "x.gguf")
    with pytest.raises(CheckpointError, match="x.gguf"):
        read_foreign(folder / "x.gguf")


# ---- torch's own files --------------------------------------------------------------------------------------------


def test_a_tensor_that_repeats_one_number_is_no_weight(tmp_path):
    state = {"embedding.wte.weight": torch.zeros(1).expand(10**9, 64), "backbone.ln.weight": torch.zeros(64)}
    for zipped in (True, False):
        torch.save({"task": state}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        assert (tmp_path / "x.pt").stat().st_size < 10_000
        with pytest.raises(CheckpointError, match=r"claim 256,000,000,256 bytes"):
            load_official(tmp_path / "x.pt", 16)


def test_claims():
    flat = torch.zeros(100)
    check_claims([flat[:50].view(5, 10), flat[50:], torch.zeros(9, 9, device="meta")], "x")  # parts of one storage
    check_claims([flat, flat], "x")  # tied weights
    for odd in ([flat] * 3, [torch.zeros(2).to_sparse()], [torch.zeros(3).expand(3, 3)]):
        with pytest.raises(CheckpointError):
            check_claims(odd, "x")


def test_packed_records_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "plain.pt")
    check_unpacked(tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as old,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    with pytest.raises(CheckpointError, match="its records are compressed"):
        load_official(tmp_path / "x.pt")


def test_a_pickle_that_makes_bytes_of_nothing(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.")
    with pytest.raises(CheckpointError, match="holds a bytearray"):
        load_official(tmp_path / "x.pt")


def test_keys_that_are_no_text(tmp_path):
    torch.save({1: torch.zeros(1), (2, 3): torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not in the reference layout"):
        load_official(tmp_path / "x.pt")


def test_a_training_state_that_is_none(tmp_path):
    """Its name holds the true hash of its content, as of any file that somebody made on purpose."""
    import hashlib

    for content in ({"x": 1}, [1], {"stage_id": "s", "step": "x", "model": {}, "optimizer": {"state": {}}}):
        torch.save(content, tmp_path / "made")
        digest = hashlib.sha256((tmp_path / "made").read_bytes()).hexdigest()[:16]
        path = (tmp_path / "made").rename(tmp_path / f"training-00000001-{digest}.pt")
        with pytest.raises(CheckpointError, match="is no training state"):
            load_state(tmp_path, "s")
        path.unlink()
