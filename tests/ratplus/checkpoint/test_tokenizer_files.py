"""What is read off a tokenizer.json without its library: its ids, and whether it begins every text with a token."""

import json
from pathlib import Path

import pytest

from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.tokenizer_files import begins_texts, check_ids, id_count, write_tokenizer_files

HERE = Path("here")


def files(**words) -> dict[str, bytes]:
    return {"tokenizer.json": json.dumps(words).encode()}


@pytest.mark.parametrize(
    ("vocabulary", "added", "count"),
    [
        ({"a": 0, "b": 1}, None, 2), ({"a": 7, "b": 3}, None, 8), ({"a": 7, "b": 3}, [{"id": 5}], 8),
        ({"a": 7}, [{"id": 9}, {"id": 8}], 10), ([["a", -1.0], ["b", -2.0], ["c", 0]], [], 3), ({}, [{"id": 4}], 5),
        ({}, [], 0),
    ],
)  # fmt: skip
def test_ids_are_counted_to_the_last(vocabulary, added, count):
    given = files(model={"vocab": vocabulary}, added_tokens=added)
    assert id_count(given, HERE) == count
    check_ids(given, count, HERE)
    if count:
        with pytest.raises(CheckpointError, match=f"has an id {count - 1}, but the embedding only {count - 1} rows"):
            check_ids(given, count - 1, HERE)


def test_no_tokenizer_has_no_ids_and_a_damaged_one_is_told():
    assert id_count({"tokenizer.model": b"x"}, HERE) is None
    check_ids({}, 0, HERE)
    for damaged in (b"{", b"[]", b'{"model": {"vocab": 3}}', b'{"model": {"vocab": {"a": "b"}}}'):
        with pytest.raises(CheckpointError, match=r"here/tokenizer\.json: not a tokenizer\.json"):
            id_count({"tokenizer.json": damaged}, HERE)


BEGINS = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}
ENDS = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}]}


@pytest.mark.parametrize(
    ("after", "begins"),
    [
        (None, False),
        (BEGINS, True),
        (ENDS, False),
        (BEGINS | {"type": "other"}, False),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, BEGINS]}, True),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, ENDS]}, False),
        ({"type": "TemplateProcessing", "single": []}, False),
    ],
)
def test_what_begins_every_text(after, begins):
    assert begins_texts(files(post_processor=after)) == begins
    assert not begins_texts({})


def test_files_of_a_model_that_lay_there_before_are_taken_away(tmp_path):
    write_tokenizer_files({"tokenizer.json": b"1", "tokenizer_config.json": b"2"}, tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    write_tokenizer_files({"tokenizer_config.json": b"3", "tokenizer.model": b"4", "other.txt": b"5"}, tmp_path)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"mine.txt": b"mine", "tokenizer_config.json": b"3", "tokenizer.model": b"4"}
