"""Input files at their limits: what is read on the limit and refused beyond it, and what each name of a file means."""

import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ratplus.config.data import DataSection
from ratplus.data.corpus import CorpusError
from ratplus.data.prepare import documents, inputs, progress
from ratplus.data.prepare.inputs import Input, is_known, list_inputs
from ratplus.data.prepare.parquet_lengths import DELTA, DELTA_LENGTH, LengthsError, check_lengths
from ratplus.data.prepare.parquet_pages import Pages
from ratplus.data.prepare.thrift_compact import Reader, ThriftError


def of(path: Path) -> Input:
    return Input(path.name, str(path), path.stat().st_size)


def written(path: Path, data: bytes) -> Input:
    path.write_bytes(data)
    return of(path)


# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "packed", "times"),
    [
        ("a.txt", "text", None, 1),
        ("a.md", "text", None, 1),
        ("a.rst", "text", None, 1),
        ("a.TEXT", "text", None, 1),
        ("a.txt.gz", "text", ".gz", 4),
        ("a.TXT.GZ", "text", ".gz", 4),
        ("a.jsonl", "jsonl", None, 1),
        ("a.ndjson", "jsonl", None, 1),
        ("a.json", "jsonl", None, 1),
        ("a.jsonl.zst", "jsonl", ".zst", 4),
        ("a.txt.jsonl", "jsonl", None, 1),
        ("a.parquet", "parquet", None, 2),
        ("A.Parquet", "parquet", None, 2),
        ("a.parquet.gz", "parquet", ".gz", 4),
    ],
)
def test_what_a_name_says(name, kind, packed, times):
    found = Input(name, name, 1000)
    assert (found.kind, found.packed, found.text_bytes) == (kind, packed, 1000 * times)
    assert is_known(name)


@pytest.mark.parametrize("name", ["a.pdf", "a.gz", "a.zst", "txt", "a.txt.bz2", "a.json5", "a.txt.gz.old"])
def test_names_of_no_text(name):
    assert not is_known(name)


def test_files_of_a_folder(tmp_path):
    """Each file that can be read, in the order of its name within the folder, by the place where it truly lies."""
    for name in ("b/z.txt", "b.txt", "a.jsonl", "c.pdf", ".hidden.txt", "b/.x.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("ab" * len(name))
    (tmp_path / "elsewhere.md").write_text("abc")
    (tmp_path / "in" / "link.md").symlink_to(tmp_path / "elsewhere.md")
    section = DataSection(source="files", path=str(tmp_path / "in"))
    place = str((tmp_path / "in").resolve())
    assert list_inputs(section) == [
        Input("a.jsonl", f"{place}/a.jsonl", 14),
        Input("b.txt", f"{place}/b.txt", 10),
        Input("b/z.txt", f"{place}/b/z.txt", 14),
        Input("link.md", str((tmp_path / "elsewhere.md").resolve()), 3),
    ]
    chosen = DataSection(source="files", path=str(tmp_path / "in"), files="b*.txt")
    assert [item.name for item in list_inputs(chosen)] == ["b.txt", "b/z.txt"]
    alone = DataSection(source="files", path=str(tmp_path / "in" / "link.md"))
    assert list_inputs(alone) == [Input("link.md", str((tmp_path / "elsewhere.md").resolve()), 3)]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"files": "*.csv"}, "data.files=*.csv: matches no file of "),
        ({"files": "*"}, "data.files=*: a.pdf is of an unknown kind; allowed: .parquet, .jsonl, "),
    ],
)
def test_files_that_cannot_be_chosen(tmp_path, keys, said):
    for name in ("b.pdf", "a.pdf", "c.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(CorpusError) as caught:
        list_inputs(DataSection(source="files", path=str(tmp_path), **keys))
    assert said in str(caught.value)


def test_a_folder_without_text(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(
        CorpusError, match=r"no files to read there \(looked for .parquet, .*each also with .gz or .zst"
    ):
        list_inputs(DataSection(source="files", path=str(tmp_path)))
    with pytest.raises(CorpusError, match="a.pdf: unknown kind of file; allowed: .parquet"):
        list_inputs(DataSection(source="files", path=str(tmp_path / "a.pdf")))
    with pytest.raises(CorpusError, match="gone: no such file or folder"):
        list_inputs(DataSection(source="files", path=str(tmp_path / "gone")))


def test_what_a_file_is_known_by(tmp_path):
    item = written(tmp_path / "a.txt", b"abc")
    assert item.stamp() == [3, (tmp_path / "a.txt").stat().st_mtime_ns]
    assert item.sha256() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    far = Input("a.txt", "datasets/x/a.txt", 7, "v1", "https://hub")
    assert (far.stamp(), far.sha256()) == ([7, "v1"], "v1")


@pytest.mark.parametrize(
    ("facts", "version"),
    [
        ({"lfs": {"sha256": "s"}, "blob_id": "b"}, "s"),
        ({"lfs": SimpleNamespace(sha256="s"), "blob_id": "b"}, "s"),
        ({"lfs": {}, "blob_id": "b"}, "b"),
        ({"lfs": None, "blob_id": "b"}, "b"),
        ({"blob_id": "b"}, "b"),
    ],
)
def test_what_the_hub_knows_a_file_by(facts, version):
    assert inputs._version(facts) == version


# ---- lines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "most", "end"),
    [
        (b"aaaa bbbb cccc", 10, 9),  # before the last space
        (b"aaaaa bbbbbbbbb", 10, 5),  # in the middle, which still counts
        (b"aaaa bbbbbbbbbb", 10, 10),  # too far ahead
        (b"aaaaaaaaa bbbb", 10, 9),
        (b"aaaaaaaaaa bbb", 10, 10),  # the space is behind
        (b"aaaaaaaaaabbbb", 10, 10),
        ("aaaaaaaaaéb".encode(), 10, 9),  # two bytes, cut in the middle
        ("aaaaaaaaéb".encode(), 10, 10),
        ("aaaaaaa😀bbb".encode(), 10, 7),  # four bytes, after the third
        ("aaaaaaa😀bbb".encode(), 8, 7),
        (b"aaaa" + b"\x80" * 10, 10, 6),  # no character is longer than four bytes
    ],
)
def test_where_a_long_line_is_cut(line, most, end):
    assert documents._cut(line, most) == end


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_the_longest_line_of_json(tmp_path, name):
    line = json.dumps({"text": "x" * 88}).encode()
    data = b'{"text": "first"}\n' + line + b"\n"
    item = written(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    assert [text for batch, _ in documents.batches(item, "text", None, len(line)) for text in batch] == [
        "first", "x" * 88,
    ]  # fmt: skip
    with pytest.raises(CorpusError, match="line 2: longer than"):
        list(documents.batches(item, "text", None, len(line) - 1))


@pytest.mark.parametrize("cut", [True, False])
def test_lines_that_come_in_parts(tmp_path, monkeypatch, cut):
    """A line is one, whatever is read at once; what is cut says that it does not end there."""
    monkeypatch.setattr(documents, "_READ", 4)
    item = written(tmp_path / "a.txt", b"abcdefgh\n\nij\nklm")
    with item.open() as raw:
        found = list(documents._lines(item, raw, documents._Limit(8, cut)))
    assert found == [(1, b"abcdefgh\n", True), (2, b"\n", True), (3, b"ij\n", True), (4, b"klm", True)]
    with item.open() as raw:
        lines = documents._lines(item, raw, documents._Limit(7, cut))
        if not cut:
            with pytest.raises(CorpusError, match=r"a.txt, line 1: longer than data.longest_mib=0 MiB"):
                list(lines)
            return
        assert list(lines)[:3] == [(1, b"abcdefg", False), (1, b"h\n", True), (2, b"\n", True)]


@pytest.mark.parametrize("packed", [True, False])
def test_what_unpacks_to_too_much(tmp_path, monkeypatch, packed):
    """On the limit it is read; only what is compressed has one."""
    data = b"word\n" * 2000
    item = written(tmp_path / ("a.txt.gz" if packed else "a.txt"), gzip.compress(data) if packed else data)
    monkeypatch.setattr(documents, "MOST_TIMES", 3)
    monkeypatch.setattr(documents, "SPARED", len(data) - 3 * item.bytes)
    assert documents.most_unpacked(item) == len(data)
    assert [text for batch, _ in documents.batches(item, "text", None) for text in batch] == [data.decode()]
    monkeypatch.setattr(documents, "SPARED", len(data) - 3 * item.bytes - 1)
    if packed:
        with pytest.raises(CorpusError, match="a.txt.gz: unpacks to more than 3 times its size.*unpack it before"):
            list(documents.batches(item, "text", None))
    else:
        assert len(list(documents.batches(item, "text", None))) == 1


@pytest.mark.parametrize(
    ("content", "separator", "found"),
    [
        ("a\n--\nb\n", "--", ["a\n", "b\n"]),
        ("a\r\n--\r\nb\r\n", "--", ["a\r\n", "b\r\n"]),
        ("a\n --\nb\n", "--", ["a\n --\nb\n"]),
        ("a\n-- \nb\n", "--", ["a\n-- \nb\n"]),
        ("a\n\nb\n", "", ["a\n", "b\n"]),
        ("a\n\nb\n", None, ["a\n\nb\n"]),
        ("--\na\n--\n--\nb\n--", "--", ["a\n", "b\n"]),
        ("\ufeff--\na\n", "--", ["a\n"]),
        ("a\n\ufeffb\n", None, ["a\n\ufeffb\n"]),
    ],
)
def test_documents_of_a_text_file(tmp_path, content, separator, found):
    item = written(tmp_path / "a.txt", content.encode())
    assert [text for batch, _ in documents.batches(item, "text", separator) for text in batch] == found


def test_the_longest_text_is_cut_at_a_lines_end(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_TEXT", 10)
    item = written(tmp_path / "a.txt", b"abcd\nefgh\nij\nkl\nmnopqr\nst")
    assert [text for batch, _ in documents.batches(item, "text", None) for text in batch] == [
        "abcd\nefgh\n", "ij\nkl\nmnopqr\n", "st",
    ]  # fmt: skip


def test_batches_hold_so_many_characters(tmp_path, monkeypatch):
    """A batch ends with the text that fills it; texts that are empty or missing are none."""
    monkeypatch.setattr(documents, "BATCH_CHARACTERS", 6)
    monkeypatch.setattr(documents, "_READ", 1)  # so that what has been read is told to the line
    rows = ["abc", "", "defg", None, "hijklm", "n"]
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in rows]
    lines.insert(2, b"  \n")
    item = written(tmp_path / "a.jsonl", b"".join(lines))
    ends = [sum(map(len, lines[: n + 1])) for n in range(len(lines))]
    with item.open() as raw:
        assert [text for text, _ in documents._jsonl(item, raw, "text", 100)] == rows
    found = list(documents.batches(item, "text", None))
    assert [batch for batch, _ in found] == [["abc", "defg"], ["hijklm"], ["n"]]
    assert found[-1][1] == item.bytes
    assert ends[3] <= found[0][1] < found[1][1] <= item.bytes


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"other": 1, "more": 2}', "data.column=text: a.jsonl, line 2 has no such key; it has other, more"),
        (b"{}", "a.jsonl, line 2 has no such key; it has none"),
        (b'{"text": 5}', "data.column=text: in a.jsonl, line 2 it holds a int, not text"),
        (b'["text"]', "a.jsonl, line 2: holds a list; every line must be an object with a text"),
        (b'{"text": "\\ud800"}', "a.jsonl, line 2: the text holds half of a surrogate pair"),
        (b"[", "a.jsonl, line 2: not JSON"),
        (b'{"text": "\xff"}', "a.jsonl, line 2: not JSON"),
    ],
)
def test_bad_lines_are_told_by_their_number(tmp_path, line, said):
    item = written(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(CorpusError) as caught:
        list(documents.batches(item, "text", None))
    assert said in str(caught.value)


# ---- parquet -------------------------------------------------------------------------------------------------------


def test_the_longest_text_of_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = ["ab", None, "é" * 30, "", "abcd" * 10]
    parquet.write_table(arrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=2)
    item = of(tmp_path / "a.parquet")
    assert [text for batch, _ in documents.batches(item, "text", None, 40) for text in batch] == [
        "ab", "é" * 30, "abcd" * 10,
    ]  # fmt: skip
    # The row is counted over all row groups and with rows that hold nothing.
    with pytest.raises(CorpusError, match=r"a.parquet, row 4: a text longer than data.longest_mib=0 MiB"):
        list(documents.batches(item, "text", None, 39))
    with item.open() as raw:
        read = list(documents._parquet(item, raw, "text", 40))
    # What has been read when a part of two rows comes: the share of the rows before it.
    assert [done for _, done in read] == [item.bytes * n // 5 for n in (0, 0, 2, 2, 4)]


@pytest.mark.parametrize(
    ("pages", "times", "said"),
    [
        ("dictionary", 4, "a dictionary, of 4,097 bytes; at most 4 times data.longest_mib"),
        ("bloated", 4, "a page that was packed to less than a tenth, of 4,097 bytes; at most 4 times"),
        ("largest", 16, "a page, of 16,385 bytes; at most 16 times data.longest_mib"),
    ],
)
def test_pages_on_the_limit(pages, times, said):
    source = Input("a.parquet", "a.parquet", 1)
    documents._check_pages(source, Pages(**{pages: times * 1024}), 1024)
    with pytest.raises(CorpusError) as caught:
        documents._check_pages(source, Pages(**{pages: times * 1024 + 1}), 1024)
    assert said in str(caught.value)


def number(value: int) -> bytes:
    """A whole number of variable length."""
    parts = bytearray()
    while True:
        parts.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(parts)


def lengths(count: int, block: int = 128, parts: int = 4, width: int = 3) -> bytes:
    """`count` lengths as differences, in blocks; each block's are `width` bits."""
    data = number(block) + number(parts) + number(count) + number(2)
    left = count - 1
    while left > 0:
        used = min(parts, -(-left // (block // parts)))
        data += (
            number(0) + bytes([width] * used + [9] * (parts - used)) + b"\x55" * (used * width * block // parts // 8)
        )
        left -= block
    return data


@pytest.mark.parametrize("count", [0, 1, 2, 32, 33, 34, 128, 129, 130, 257, 300])
def test_lengths_end_where_they_end(count):
    """Each part of a block that holds a length is passed over, and none of the rest: what follows is found there."""
    page = lengths(count)
    check_lengths(page, DELTA_LENGTH, count)
    check_lengths(page + page, DELTA, count)
    if count > 1:
        with pytest.raises(LengthsError, match="lengths without an end"):
            check_lengths(page[:-1], DELTA_LENGTH, count)
        with pytest.raises(LengthsError, match="lengths without an end"):
            check_lengths(page + page[:-1], DELTA, count)
    if count:
        with pytest.raises(LengthsError, match=f"{count} lengths of {count - 1} texts"):
            check_lengths(page, DELTA_LENGTH, count - 1)


@pytest.mark.parametrize(
    ("block", "parts", "good"), [(128, 4, True), (4, 4, True), (4, 0, False), (4, 5, False), (6, 4, False)]
)
def test_parts_of_a_block(block, parts, good):
    page = number(block) + number(parts) + number(1) + number(0)
    if good:
        check_lengths(page, DELTA_LENGTH, 1)
    else:
        with pytest.raises(LengthsError, match=f"a block of {block} lengths in {parts} parts"):
            check_lengths(page, DELTA_LENGTH, 1)


@pytest.mark.parametrize("value", [0, 1, -1, 63, -64, 64, 2**31 - 1, -(2**31)])
def test_whole_numbers_of_thrift(value):
    zigzag = (value << 1) ^ (value >> 63) if value >= 0 else (-value << 1) - 1
    reader = Reader(memoryview(number(zigzag)))
    assert reader.value(5) == value
    assert reader.at == len(number(zigzag))


def test_a_struct_of_every_kind():
    """What is asked for is given with its number and kind; the rest is passed over to the byte."""
    data = bytes(
        [0x15, 6, 0x11, 0x12, 0x13, 99, 0x14, 8, 0x17, *b"8 bytes!", 0x18, 3, *b"abc", 0x19, 0x25, 2, 4,
         0x1C, 0x15, 1, 0, 0x1B, 1, 0x55, 4, 6, 0x16, 10, 0x05, 0x28, 12, 0]
    )  # fmt: skip
    reader = Reader(memoryview(data + b"\xff"))
    assert reader.struct() == {
        (1, 5): 3, (2, 1): None, (3, 2): None, (4, 3): None, (5, 4): 4, (6, 7): None, (7, 8): None, (8, 9): [1, 2],
        (9, 12): {(1, 5): -1}, (10, 11): None, (11, 6): 5, (20, 5): 6,
    }  # fmt: skip
    assert reader.at == len(data)
    with pytest.raises(ThriftError, match="does not end"):
        Reader(memoryview(data), 0, len(data) - 1).struct()
    assert Reader(memoryview(data), 0, len(data)).struct()[20, 5] == 6


@pytest.mark.parametrize(("depth", "good"), [(8, True), (9, False)])
def test_the_deepest_struct(depth, good):
    data = memoryview(bytes([0x1C] * depth + [0] * (depth + 1)))
    if good:
        assert Reader(data).struct() != {}
    else:
        with pytest.raises(ThriftError, match="nested too deep"):
            Reader(data).struct()


def test_lists_of_fifteen_and_more():
    """Up to fourteen values the first byte says how many; then a number does."""
    for count in (0, 1, 14, 15, 200):
        head = bytes([count << 4 | 5]) if count < 15 else bytes([0xF5]) + number(count)
        reader = Reader(memoryview(head + bytes([4]) * count))
        assert reader.value(9) == [2] * count
        assert reader.at == len(head) + count


# ---- what is shown -------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(("live", "seconds"), [(True, 0.5), (False, 20.0)])
def test_a_line_now_and_then(monkeypatch, live, seconds):
    clock, out = Clock(monkeypatch), io.StringIO()
    out.isatty = lambda: live  # type: ignore[method-assign]
    shown = progress.Progress(1000, 0, out)
    for after, lines in ((seconds - 0.25, 0), (seconds, 1), (2 * seconds - 0.25, 1), (2 * seconds, 2)):
        clock.now = 100.0 + after
        shown.report(0, 10, 10)
        assert out.getvalue().count("tokenizing") == lines
    shown.report(1, 10, 10)
    assert shown.tokens == 20


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"), (7384, "2 h 03 min"), (float("nan"), "unknown time"),
    ],
)  # fmt: skip
def test_times(seconds, said):
    assert progress._time(seconds) == said


def test_a_line_before_anything_is_read(monkeypatch):
    Clock(monkeypatch)
    assert progress.Progress(0, 0, io.StringIO()).line() == (
        "tokenizing: 0.0% of 0.0 MB, 0.0 M tokens, 0 tokens/s, unknown time left"
    )
