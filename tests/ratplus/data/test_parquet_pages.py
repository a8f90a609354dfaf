"""Parquet files of strangers: what their pages unpack to is counted before, whatever the file's end says of it."""

import io
import itertools
import random

import pytest

from ratplus.data.corpus import CorpusError
from ratplus.data.prepare import documents
from ratplus.data.prepare.inputs import Input
from ratplus.data.prepare.parquet_lengths import DELTA, DELTA_LENGTH, LengthsError, check_lengths
from ratplus.data.prepare.parquet_pages import Chunk, HeldFile, PageError, Pages, chunks_of, pages_of

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TEXTS = [f"row {i} " * (1 + i % 40) if i % 5 else None for i in range(900)]


def write(path, texts, **options):
    settings = {"use_dictionary": False} | options
    table = arrow.table({"id": list(range(len(texts))), "text": arrow.array(texts, "string")})
    parquet.write_table(table, path, **settings)
    return path


def read(path, longest=64 << 20) -> list[str]:
    source = Input(path.name, str(path), path.stat().st_size)
    return [text for batch, _ in documents.batches(source, "text", None, longest) for text in batch]


@pytest.fixture
def pool():
    """Arrow's memory of this test alone."""
    before = arrow.default_memory_pool()
    own = arrow.proxy_memory_pool(before)
    arrow.set_memory_pool(own)
    yield own
    arrow.set_memory_pool(before)


@pytest.mark.parametrize("encoding", [None, "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_every_encoding_and_codec_is_read(tmp_path, version, encoding):
    """DuckDB and Spark write the newer ones; None is a dictionary."""
    way = {"use_dictionary": True} if encoding is None else {"column_encoding": {"text": encoding}}
    for codec in ("none", "snappy", "gzip", "brotli", "zstd", "lz4"):
        path = write(
            tmp_path / f"{codec}.parquet", TEXTS, compression=codec, data_page_version=version, row_group_size=400,
            data_page_size=2000, write_batch_size=16, write_page_checksum=True, **way,
        )  # fmt: skip
        assert read(path) == [text for text in TEXTS if text]


def test_a_column_without_nulls_has_no_levels(tmp_path):
    schema = arrow.schema([arrow.field("text", "string", nullable=False)])
    table = arrow.table({"text": ["a", "bb", "ccc"]}, schema=schema)
    for encoding in ("DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"):
        path = tmp_path / f"{encoding}.parquet"
        parquet.write_table(table, path, use_dictionary=False, column_encoding={"text": encoding})
        assert read(path) == ["a", "bb", "ccc"]


def test_a_large_page_is_refused_before_it_is_unpacked(tmp_path, pool):
    path = write(tmp_path / "a.parquet", ["word " * 200_000] * 64, compression="zstd")
    assert path.stat().st_size < 50_000
    arrow.set_memory_pool(own := arrow.proxy_memory_pool(pool))
    with pytest.raises(CorpusError, match=r"less than a tenth, of 64,000,\d+ bytes; at most 4 times .*=1 MiB"):
        read(path, longest=1 << 20)
    assert own.max_memory() < 1 << 20


def test_a_large_page_that_is_large_in_the_file_too(tmp_path):
    """As libraries write a thousand books."""
    draw = random.Random(1)
    given = ["".join(draw.choices("abcdefgh", k=1 << 18)) for _ in range(24)]
    path = write(tmp_path / "a.parquet", given, compression="zstd")
    assert read(path, longest=1 << 20) == given
    with pytest.raises(CorpusError, match=r"a page, of 6,\d+,\d+ bytes; at most 16 times"):
        read(path, longest=1 << 18)


def test_pages_that_unpack_to_more_than_text_does_are_refused_before(tmp_path, pool, monkeypatch):
    monkeypatch.setattr(documents, "SPARED", 1 << 20)
    path = write(tmp_path / "a.parquet", ["word " * 100_000] * 64, compression="zstd", write_batch_size=1)
    arrow.set_memory_pool(own := arrow.proxy_memory_pool(pool))
    with pytest.raises(CorpusError, match="unpacks to more than 200 times its size"):
        read(path)
    assert own.max_memory() < 1 << 20


def number(value: int) -> bytes:
    """A whole number of variable length."""
    return bytes([value & 127]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)


def claiming(path, encoding: str, count: int) -> None:
    """A file of one text whose page claims so many lengths in some twenty bytes."""
    write(path, ["x" * 64], compression="none", column_encoding={"text": encoding}, write_statistics=False)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"\x80\x01\x04\x01")  # blocks of 128 numbers in 4 parts; 1 number
    block = number(1 << 30) + number(1) + number(count) + number(0) + number(0) + b"\0"
    content[at : at + len(block)] = block
    path.write_bytes(content)


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_lengths_without_texts_are_refused_before_the_library_makes_room_for_them(tmp_path, pool, encoding):
    claiming(tmp_path / "a.parquet", encoding, 1 << 30)
    arrow.set_memory_pool(own := arrow.proxy_memory_pool(pool))
    with pytest.raises(
        CorpusError, match=r"damaged parquet file, row group 0 \(a page: 1,073,741,824 lengths of 1 texts\)"
    ):
        read(tmp_path / "a.parquet")
    assert own.max_memory() < 1 << 20


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (number(128) + number(4) + number(9) + number(0), "9 lengths of 8 texts"),
        (number(128) + number(0) + number(8) + number(0), "in 0 parts"),
        (number(128) + number(3) + number(8) + number(0), "in 3 parts"),
        (number(128) + number(256) + number(8) + number(0), "in 256 parts"),
        (number(128) + number(4) + number(8) + number(0) + number(0) + b"\1\0\0\0", "without an end"),
        (number(128) + number(4) + number(8) + number(0) + number(0) + b"\0", "without an end"),
        (b"\x80" * 12, "without an end"),
        (b"", "without an end"),
    ],
)
def test_damaged_lengths(page, said):
    with pytest.raises(LengthsError, match=said):
        check_lengths(page, DELTA_LENGTH, 8)


def test_whole_lengths():
    one = number(128) + number(4) + number(8) + number(0) + number(0) + b"\1\0\0\0" + b"\0" * 4
    check_lengths(one, DELTA_LENGTH, 8)
    with pytest.raises(LengthsError):
        check_lengths(one, DELTA, 8)  # which has two of them
    check_lengths(one + one, DELTA, 8)


def test_rows_at_once():
    def rows(pages: Pages, count=1000) -> int:
        return documents._rows_at_once(pages, count, 1 << 20)

    assert rows(Pages(total=1000)) == 4096
    assert rows(Pages(total=8 << 20)) == 1000
    assert rows(Pages(total=1 << 40)) == 1
    # A page is denser than the others, or the file's end says that there are more rows.
    assert rows(Pages(total=8 << 20, a_value=1 << 20), 10**12) == 4
    # Without an Arrow dictionary each text is in memory, and one may be as long as all that its page holds.
    assert rows(Pages(total=1000, dictionary=1 << 19)) == 4096
    assert rows(Pages(total=1000, dictionary=1 << 19, simple=False)) == 2
    assert rows(Pages(total=1000, largest=1 << 18)) == 4096
    assert rows(Pages(total=1000, largest=1 << 18, simple=False, shared=True)) == 4
    assert rows(Pages(total=1000, largest=1 << 30, simple=False, shared=True)) == 1


def test_a_dictionary_is_seen_by_its_page(tmp_path):
    path = write(tmp_path / "a.parquet", ["word " * 100] * 9, use_dictionary=True)
    with path.open("rb") as raw:
        (told,) = chunks_of(HeldFile(raw), 1)
        known = parquet.ParquetFile(path).metadata.row_group(0).column(1)
        assert told == Chunk(known.dictionary_page_offset, known.total_compressed_size, 9, "snappy")
        pages = pages_of(HeldFile(raw), told, True, 1 << 20)
        assert (pages.dictionary, pages.simple, pages.shared) == (504, True, False)


def test_a_stretch_is_fetched_once():
    class Counted(io.BytesIO):
        fetched = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.fetched += len(found)
            return found

    raw = Counted(bytes(range(200)))
    file = HeldFile(raw)
    assert bytes(file.hold(20, 100)) == bytes(range(20, 120))
    assert file.seek(30) == 30
    assert file.read(50) == bytes(range(30, 80))
    assert (file.tell(), raw.fetched) == (80, 100)
    assert file.seek(0, 1) == 80
    assert file.read(50) == bytes(range(80, 130))  # which ends behind it
    assert (file.tell(), raw.fetched) == (130, 150)
    assert file.seek(-10, 2) == 190
    assert file.read() == bytes(range(190, 200))
    for start, length, found in ((190, 50, 10), (500, 5, 0), (-5, 5, 5), (10, -5, 0)):
        assert len(file.hold(start, length)) == found


def stretch(header: bytes) -> tuple[HeldFile, Chunk]:
    return HeldFile(io.BytesIO(header)), Chunk(0, len(header), 10, None)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"\x15\x00\x15\x08", "does not end"),
        (b"\x15\x00\x15\x08\x15\x08\x00", "without the number of its values"),
        (b"\x15\x00\x15\x08\x00", "without its kind or sizes"),
        (b"\x15\x00\x16\x08\x15\x08\x00", "without its kind or sizes"),  # a number of 64 bits is none of 32
        (b"\x15\x00\x15\x07\x15\x08\x00", "without its kind or sizes"),  # -4 bytes
        (b"\x15\x00\x15\x08\x15\x08\x05\x04\x08\x00", "out of order"),  # the field 2 again
        (b"\x15\x00\x05\x84\x80\x08\x08\x00", "out of order"),  # the field 65538, which is 2 in 16 bits
        (b"\x1c" * 50, "nested too deep"),
        (b"\x19" * 50, "nested too deep"),
        (b"\x1d\x00", "a field of kind 13"),
        (b"\x15" + b"\xff" * 11, "more than 64 bits"),
        (b"\x19\xf1" + b"\xff" * 4 + b"\x0f" + b"\x01" * 100, "does not end"),  # a list of four billion
        (b"\x1b\xff\xff\xff\xff\x0f\x11", "does not end"),  # a map
        (b"\x18\xff\xff\xff\xff\x0f", "does not end"),  # a text
    ],
)
def test_damaged_headers(header, said):
    with pytest.raises(PageError, match=said):
        pages_of(*stretch(header), True, 1 << 20)


def test_fields_that_nobody_asks_for_are_passed_over():
    index = (
        b"\x15\x02\x15\x08\x15\x04\x28\x03abc\x19\x21\x01\x02\x1b\x01\x88\x01a\x01b\x11\x12\x17"
        + b"\0" * 8
        + b"\x13\0\0"
    )
    dictionary = b"\x15\x04\x15\x0a\x15\x02\x00" + b"."
    pages = pages_of(*stretch(index + b".." + dictionary), True, 1 << 20)
    assert (pages.total, pages.dictionary, pages.largest) == (9, 5, 0)


def damaged(content: bytes, draw: random.Random, until: int) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 4))):
        changed[draw.randrange(4, until)] = draw.randrange(256)
    return bytes(changed)


def test_damaged_files_are_one_line_or_their_texts(tmp_path):
    """Bytes changed at random, in pages as in the file's end: never another error, nor the end of the process."""
    draw = random.Random(5)
    ways = ["PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"]
    said = []
    for encoding, version in itertools.product(ways, ["1.0", "2.0"]):
        path = write(
            tmp_path / "a.parquet", [f"row {i}" for i in range(40)], column_encoding={"text": encoding},
            data_page_version=version, compression="zstd",
        )  # fmt: skip
        whole = path.read_bytes()
        for _ in range(60):
            path.write_bytes(damaged(whole, draw, len(whole) - 8))
            try:
                assert len(read(path)) <= 40
            except CorpusError as error:
                said.append(str(error))
    assert len(said) > 50
    assert not [line for line in said if "\n" in line]


def test_a_codec_that_there_is_not_is_a_damaged_file(tmp_path):
    """Of which the library's Python functions make the end of the process."""
    path = write(tmp_path / "a.parquet", ["a", "b"], compression="zstd")
    content = path.read_bytes()
    column = content.rindex(b"text", 0, content.rindex(b"text", 0, content.index(b"ARROW:schema")) + 4)
    place = content.index(b"\x15\x0c", column)  # the field behind the column's name: zstd is 6
    path.write_bytes(content[: place + 1] + b"\x44" + content[place + 2 :])
    with pytest.raises(CorpusError, match=r"damaged parquet file, row group 0 \(pages .* with the codec 34"):
        read(path)


@pytest.mark.parametrize("place", [0, 2])
def test_an_end_that_tells_of_no_such_column(tmp_path, place):
    path = write(tmp_path / "a.parquet", ["a", "b"])
    with path.open("rb") as raw:
        if place == 2:
            with pytest.raises(PageError, match="tells of no column there"):
                chunks_of(HeldFile(raw), place)
        else:
            assert chunks_of(HeldFile(raw), place)[0].values == 2
    with pytest.raises(PageError, match="does not end"):
        chunks_of(io.BytesIO(b"\x15\x04" + (2).to_bytes(4, "little") + b"PAR1"), 0)
