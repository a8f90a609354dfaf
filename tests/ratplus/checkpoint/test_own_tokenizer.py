"""The tokenizer that lies beside a model: which one is taken, which is refused, and how its files travel."""

import hashlib
import json

import pytest

from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.own_tokenizer import carry, link_or_copy, own_tokenizer
from ratplus.data.tokenizer import ByteTokenizer

tokenizers = pytest.importorskip("tokenizers")
LINKED = "tokenizer_config.json"


def made(folder, words=("a", "b", "</s>"), bos=None):
    """A folder with a tokenizer.json; its facts, as a corpus made with it knows them."""
    folder.mkdir(exist_ok=True)
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=words[0]))
    if bos is not None:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    sha256 = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    return {"name": "huggingface", "file": "tokenizer.json", "sha256": sha256, "eos_id": 2, "bos_id": None}


def test_what_a_folder_says_of_its_tokenizer(tmp_path):
    assert own_tokenizer(tmp_path) is None  # neither file nor words
    facts = made(tmp_path, bos="b")
    found = own_tokenizer(tmp_path)
    assert found is not None
    assert (found.eos_id, found.bos_id, found.vocab_size) == (2, 1, 3)  # it puts `b` before a text by itself
    # What config.json says goes before that, and what the caller knows before both.
    (tmp_path / "config.json").write_text(json.dumps({"tokenizer": facts | {"eos_id": 1}}))
    found = own_tokenizer(tmp_path)
    assert found is not None
    assert (found.eos_id, found.bos_id) == (1, None)
    found = own_tokenizer(tmp_path, facts | {"bos_id": 0})
    assert found is not None
    assert (found.eos_id, found.bos_id) == (2, 0)
    assert isinstance(own_tokenizer(tmp_path, {"name": ByteTokenizer.name}), ByteTokenizer)
    assert own_tokenizer(tmp_path, {"name": "unknown ids"}) is None  # a stream of which nobody knows what made it


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"file": "../tokenizer.json"}, "tokenizer is missing, which config.json tells of"),
        ({"file": "tokenizer.model"}, "tokenizer is missing, which config.json tells of"),
        ({"sha256": "0" * 64}, "is not the tokenizer that config.json tells of"),
    ],
)
def test_another_tokenizer_than_told(tmp_path, changed, said):
    facts = made(tmp_path / "m")
    made(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        own_tokenizer(tmp_path / "m", facts | changed)


def test_files_are_those_of_the_first_source_that_has_the_tokenizer(tmp_path):
    other, right, later = (tmp_path / name for name in "abc")
    made(other, ("x", "y", "</s>"))
    facts = made(right)
    made(later)
    for folder in (other, right, later):
        (folder / LINKED).write_text(folder.name)
    target = tmp_path / "new" / "model"
    carry([tmp_path / "gone", other, right, later], target, facts)
    assert (target / LINKED).read_text() == "b"
    assert (target / "tokenizer.json").samefile(right / "tokenizer.json")  # no cell costs disk for it
    carry([other, right], target, None)  # as they are, of the first
    assert (target / LINKED).read_text() == "a"
    (right / LINKED).unlink()
    carry([right], target, facts)
    assert not (target / LINKED).exists()  # nothing of another tokenizer stays
    carry([right], target, {"name": ByteTokenizer.name})
    assert list(target.iterdir()) == []


def test_a_tokenizer_that_no_source_has(tmp_path):
    facts = made(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"b: its tokenizer's file tokenizer.json is missing or was altered"):
        carry([tmp_path / "a", tmp_path / "b"], tmp_path / "m", facts)


def test_a_copy_where_there_are_no_links(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    link_or_copy(tmp_path / "link", tmp_path / "hard")
    assert (tmp_path / "hard").samefile(tmp_path / "a")
    assert not (tmp_path / "hard").is_symlink()

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"x" * 1000
    assert not (tmp_path / "copy").samefile(tmp_path / "a")
