"""Input files that are valid but rarer, and files that are not what their name says: each under its right name."""

import gzip
import json
from pathlib import Path

import pytest
from corpora import texts, train_bpe, write_jsonl

from ratplus.config.data import DataSection
from ratplus.data import tokenizer as tokenizer_module
from ratplus.data.corpus import CorpusError, open_corpus
from ratplus.data.prepare import documents
from ratplus.data.prepare.inputs import list_inputs
from ratplus.data.sources import prepare
from ratplus.data.tokenizer import TokenizerError, load_tokenizer
from ratplus.records.stand_ins import stand_in

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>"


def section(folder: Path, **keys) -> DataSection:
    return DataSection(source="files", path=str(folder), root=str(folder.parent / "data"), **keys)


def read(folder: Path, longest: int = 64 << 20, separator: str | None = None) -> list[str]:
    (source,) = list_inputs(section(folder))
    return [text for batch, _ in documents.batches(source, "text", separator, longest) for text in batch]


@pytest.mark.parametrize(
    "kind", ["dictionary", "dictionary of large_string", "string_view", "large_string", "with nulls"]
)
def test_every_encoding_of_a_text_column_is_text(tmp_path, kind):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    given: list = texts(20)
    column = {
        "dictionary": lambda: arrow.array(given).dictionary_encode(),
        "dictionary of large_string": lambda: arrow.array(given, arrow.large_string()).dictionary_encode(),
        "string_view": lambda: arrow.array(given, arrow.string_view()),
        "large_string": lambda: arrow.array(given, arrow.large_string()),
        "with nulls": lambda: arrow.array([*given, None, ""]).dictionary_encode(),
    }[kind]()
    (tmp_path / "in").mkdir()
    parquet.write_table(arrow.table({"text": column}), tmp_path / "in" / "a.parquet")
    assert read(tmp_path / "in") == given


@pytest.mark.parametrize("kind", ["int64", "list", "binary", "dictionary of int64"])
def test_a_column_of_another_kind_is_named(tmp_path, kind):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    column = {
        "int64": lambda: arrow.array([1, 2]),
        "list": lambda: arrow.array([["a"], ["b"]]),
        "binary": lambda: arrow.array([b"a", b"b"]),
        "dictionary of int64": lambda: arrow.array([1, 2]).dictionary_encode(),
    }[kind]()
    (tmp_path / "in").mkdir()
    parquet.write_table(arrow.table({"text": column}), tmp_path / "in" / "a.parquet")
    with pytest.raises(CorpusError, match=r"data.column=text: in a.parquet it holds .*, not text"):
        read(tmp_path / "in")


def test_long_rows_of_parquet_are_read_a_few_at_once(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    given = [f"{n} " * 600_000 for n in range(10, 30)]
    (tmp_path / "in").mkdir()
    table = arrow.table({"id": list(range(20)), "of": [{"url": "u"}] * 20, "text": given})
    parquet.write_table(table, tmp_path / "in" / "a.parquet", use_dictionary=False, write_batch_size=2)
    assert read(tmp_path / "in") == given
    assert read(tmp_path / "in", longest=len(given[0])) == given
    with pytest.raises(CorpusError, match="row 0: a text longer than data.longest_mib=1 MiB"):
        read(tmp_path / "in", longest=len(given[0]) - 1)


def parquet_of(tmp_path, column, **options):
    """A parquet file of one column `text`; its size."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.parquet"
    table = arrow.table({"text": column(arrow)})
    parquet.write_table(table, path, compression="zstd", store_schema=False, **options)
    return path.stat().st_size


def test_a_text_that_parquet_repeats_is_refused_when_it_fills_the_disk(tmp_path, monkeypatch):
    """Kilobytes that hold one text in a dictionary, and a million rows that point at it."""
    monkeypatch.setattr(documents, "SPARED", 4 << 20)
    size = parquet_of(
        tmp_path, lambda arrow: arrow.DictionaryArray.from_arrays(arrow.array([0] * 10**6, "int32"), ["word " * 50_000])
    )
    assert size < 10_000
    with pytest.raises(CorpusError, match=r"a.parquet: unpacks to more than 200 times its size.*write it as JSON"):
        read(tmp_path / "in")


def test_rows_of_parquet_without_text_have_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "SPARED", 1 << 16)
    size = parquet_of(tmp_path, lambda arrow: arrow.nulls(2_000_000, "string"))
    assert size < 9_000
    with pytest.raises(CorpusError, match=r"a.parquet: unpacks to more than 200 times its size"):
        read(tmp_path / "in")


def test_a_large_dictionary_of_parquet_is_refused_before_it_is_unpacked(tmp_path):
    options = {"dictionary_pagesize_limit": 1 << 30}
    parquet_of(tmp_path, lambda arrow: arrow.array(["word " * 2_000_000] * 3).dictionary_encode(), **options)
    with pytest.raises(CorpusError, match=r"a dictionary, of 10,000,004 bytes; at most 4 times data.longest_mib=1 MiB"):
        read(tmp_path / "in", longest=1 << 20)
    assert read(tmp_path / "in", longest=16 << 20) == ["word " * 2_000_000] * 3


def test_the_dictionary_of_another_column_is_no_matter(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "in").mkdir()
    table = arrow.table({"page": arrow.array(["word " * 2_000_000] * 3).dictionary_encode(), "text": ["a", "b", "c"]})
    parquet.write_table(table, tmp_path / "in" / "a.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert read(tmp_path / "in", longest=1 << 20) == ["a", "b", "c"]


def test_a_long_window_of_zstd_is_no_damage(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    # As `zstd --long=31` from a pipe, where the size is not known and the frame says the whole window.
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=30, enable_ldm=False)
    frame = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    data = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts(5))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl.zst").write_bytes(frame.compress(data) + frame.flush())
    assert read(tmp_path / "in") == texts(5)
    with pytest.raises(zstandard.ZstdError, match="too much memory"):  # which the default refuses
        zstandard.ZstdDecompressor().decompressobj().decompress((tmp_path / "in" / "a.jsonl.zst").read_bytes())


def test_a_dictionary_of_zstd_is_named(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    samples = [json.dumps({"text": text}).encode() for text in texts(2000)]
    trained = zstandard.train_dictionary(4000, samples)
    (tmp_path / "in").mkdir()
    packed = zstandard.ZstdCompressor(dict_data=trained).compress(b"\n".join(samples[:9]))
    (tmp_path / "in" / "a.jsonl.zst").write_bytes(packed)
    with pytest.raises(CorpusError, match="compressed with a dictionary"):
        read(tmp_path / "in")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt", "a.txt.gz"])
def test_a_pointer_of_git_lfs_is_recognised(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(POINTER)
    with pytest.raises(CorpusError, match=rf"{name}: this is a pointer of Git LFS.*git lfs pull"):
        prepare(section(tmp_path / "in"))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])
def test_a_web_page_is_recognised(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(PAGE)
    with pytest.raises(CorpusError, match=rf"{name}: this is a web page"):
        prepare(section(tmp_path / "in"))


def test_a_web_page_as_text_is_told(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.txt").write_bytes(PAGE + b"\n\n".join(b"words %d" % i for i in range(200)))
    said: list[str] = []
    prepare(section(tmp_path / "in", separator=""), said.append)
    assert said[0].startswith("0.txt begins as a web page does (HTML)")
    assert said[0].endswith("; 2 more files do so")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # Without a time: these bytes are part of the test's name, which has to be the same in every process of xdist.
        ("a.jsonl", gzip.compress(b'{"text": "a"}', mtime=0), r"by its content this is gzip, not jsonl; .* a.jsonl.gz"),
        ("a.txt", b"\x28\xb5\x2f\xfd....", r"this is zstd, not text; .* a.txt.zst"),
        ("a.jsonl.gz", b'{"text": "plain"}\n', "this is no compressed file, not gzip"),
        ("a.jsonl.zst", gzip.compress(b"a", mtime=0), "this is gzip, not zstd"),
        ("a.jsonl", b"PAR1....PAR1", "this is parquet, not jsonl"),
        ("a.txt", "word\n".encode("utf-16"), "not UTF-8 text, but UTF-16"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-32"), "not UTF-8 text, but UTF-32"),
        ("a.json", b'[\n  {"text": "a"},\n  {"text": "b"}\n]\n', r"one JSON value over several lines.*jq -c"),
    ],
)
def test_files_that_are_not_what_their_name_says(tmp_path, name, content, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        prepare(section(tmp_path / "in"))


def test_one_text_file_says_which_key_splits_it(tmp_path):
    (tmp_path / "book.txt").write_text("".join(f"chapter {n}\n\n" for n in range(90)))
    with pytest.raises(CorpusError, match=r"no document fell into .* data.separator=LINE"):
        prepare(section(tmp_path / "book.txt"))
    assert prepare(section(tmp_path / "book.txt", separator="")).is_dir()


@pytest.mark.parametrize(
    ("files", "keys", "hint"),
    [
        ({"a.txt": "one"}, {}, True),
        ({"a.txt": "one"}, {"separator": "---"}, False),  # it is given, and yet there is one document
        ({"a.jsonl": '{"text": "one"}\n'}, {}, False),  # a line each says where documents end
        ({"a.txt": "one", "b.jsonl": '{"text": "one"}\n'}, {}, False),
    ],
)
def test_the_key_that_splits_text_is_named_where_it_would_help(tmp_path, files, keys, hint):
    (tmp_path / "in").mkdir()
    for name, content in files.items():
        (tmp_path / "in" / name).write_text(content)
    with pytest.raises(CorpusError, match="no document fell into") as caught:
        prepare(section(tmp_path / "in", **keys))
    assert ("data.separator=LINE" in str(caught.value)) is hint


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_a_long_line_of_text_is_cut_before_a_space(tmp_path, monkeypatch, name):
    """In bounded memory, and nothing of it is lost, doubled or cut within a character."""
    monkeypatch.setattr(documents, "LONGEST_TEXT", 1000)
    words = " ".join(f"wörd{n}" for n in range(2000))
    given = f"first line\n{words}\n{'é' * 3000}\nlast line\n"
    (tmp_path / "in").mkdir()
    data = given.encode()
    if name.endswith("zst"):
        data = pytest.importorskip("zstandard").compress(data)
    (tmp_path / "in" / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = read(tmp_path / "in")
    assert "".join(found) == given
    assert max(len(text.encode()) for text in found) < 2100
    assert all(part.startswith((" ", "first", "é", "\n", "last")) or "é" in part for part in found)


def test_a_long_line_is_no_separator_by_chance(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_TEXT", 100)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("x" * 100 + "--\nmore\n")
    assert "".join(read(tmp_path / "in", separator="--")) == "x" * 100 + "--\nmore\n"


def test_long_json_is_refused_with_its_key(tmp_path):
    write_jsonl(tmp_path / "in" / "a.jsonl", ["short", "long " * 300_000])
    with pytest.raises(CorpusError, match=r"a.jsonl, line 2: longer than data.longest_mib=1 MiB"):
        prepare(section(tmp_path / "in", longest_mib=1))


def test_a_long_document_is_tokenized_in_pieces_with_the_same_ids(tmp_path, monkeypatch):
    """The library needs hundreds of bytes a character of a text, so it gets no long one."""
    path = train_bpe(tmp_path / "tokenizer.json")
    text = " ".join(texts(30))
    whole = load_tokenizer(path).encode_batch(["a", text, ""])
    monkeypatch.setattr(tokenizer_module, "PIECE", 500)
    tokenizer = load_tokenizer(path)
    longest = []
    encode = tokenizer._encode
    monkeypatch.setattr(tokenizer, "_encode", lambda given: longest.append(max(map(len, given))) or encode(given))
    assert [ids.tolist() for ids in tokenizer.encode_batch(["a", text, ""])] == [ids.tolist() for ids in whole]
    assert max(longest) <= 500
    assert len(longest) > 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", POINTER, "this is a pointer of Git LFS"),
        ("tokenizer.model", POINTER, "this is a pointer of Git LFS"),
        ("tokenizer.json", PAGE, "this is a web page"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\nIw== 2\n", "a vocabulary of tiktoken"),
    ],
)
def test_tokenizer_files_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path / name)


def test_a_stream_and_a_corpus_of_pointers(tmp_path):
    (tmp_path / "train.bin").write_bytes(POINTER + b"\n" * (len(POINTER) % 2))
    ids = {"tokenizer": None, "vocab_size": 60000, "eos_id": 2}
    bare = DataSection(source="bin", path=str(tmp_path / "train.bin"), root=str(tmp_path), **ids)
    with pytest.raises(CorpusError, match="this is a pointer of Git LFS"):
        prepare(bare)
    write_jsonl(tmp_path / "in" / "a.jsonl", texts(60))
    folder = prepare(section(tmp_path / "in"))
    (folder / "shards" / "00000-train.bin").write_bytes(POINTER)
    with pytest.raises(CorpusError, match="this is a pointer of Git LFS"):
        open_corpus(folder)
    (folder / "manifest.json").write_bytes(POINTER)
    with pytest.raises(CorpusError, match="this is a pointer of Git LFS"):
        open_corpus(folder)


@pytest.mark.parametrize("head", [b"", b"version 2 of my notes", b"<p>no page", b"{}", b"<?xml version='1.0'?><book>"])
def test_what_is_no_stand_in(head):
    assert stand_in(head) == ""


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    text = '{"text": "one"}\n{"text": "two"}\n' if "jsonl" in name else "one\n-\ntwo\n"
    data = b"\xef\xbb\xbf" + text.encode()
    if name.endswith("zst"):
        data = pytest.importorskip("zstandard").compress(data)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert [found.strip() for found in read(tmp_path / "in", separator="-")] == ["one", "two"]
