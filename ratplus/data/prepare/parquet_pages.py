"""What the pages of a parquet column unpack to, from their headers, before the library unpacks any of them.

A page is unpacked as a whole, to as many bytes as its header says and not one more, so that headers are enough. What
the file's end says of sizes may be a lie; where it says that pages begin is read here too, since the library's Python
functions end the whole process where they dislike it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

from ratplus.data.prepare.parquet_lengths import DELTA, DELTA_LENGTH, LengthsError, check_lengths
from ratplus.data.prepare.thrift_compact import FALSE, I32, I64, LIST, STRUCT, Reader, ThriftError

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
# Plain values, and the two ways to write places in a dictionary.
_SIMPLE = {0, 2, 8}
# Where the parts of a page's header with its number of values and its encoding are, and these two in them.
_PARTS = {_DATA: (5, 1, 2), _DATA_V2: (8, 1, 4)}
# Where the second version's says how long the levels before the values are, and whether these are packed.
_LEVELS, _PACKED = (5, 6), 7
_LONGEST = 16 << 20  # as the library has it
# Where the file's end has its row groups, these their columns, and these what is to be known of them.
_GROUPS, _COLUMNS, _META = (4, LIST), (1, LIST), (3, STRUCT)
# By the number that the file has for them. The library unpacks no LZO; the first LZ4 has a frame of Hadoop's.
_CODECS = (None, "snappy", "gzip", "lzo", "brotli", "lz4", "zstd", "lz4_raw")
_LZO = 3
# Old writers said too little of a column's length by some bytes; the library reads on so far.
_BEHIND = 100


class PageError(ValueError):
    """A page's header, or what the file's end says of it, is not as the format has it."""


@dataclass
class Chunk:
    """A row group's part of a column.

    Attributes:
        start: where its first page is.
        length: bytes of all of them.
        values: how many they have, with nulls.
        codec: what they are packed with, by the name that the library has for it; None for nothing.
    """

    start: int
    length: int
    values: int
    codec: str | None


@dataclass
class Pages:
    """What the pages of a column's part hold.

    Attributes:
        total: bytes that all of them unpack to.
        largest: of these, of the largest page of values.
        bloated: of these, of the largest page of values that was packed to less than a tenth, as hardly a text is.
        dictionary: of these, of the largest dictionary.
        a_value: of these, a value, on average over that page of values where it is most.
        simple: whether all values are written plainly or as places in a dictionary, of which the library can make an
            Arrow dictionary; the format's newer encodings (DELTA_...) are not.
        shared: whether a text may be written as what it adds to the beginning of the text before.
    """

    total: int = 0
    largest: int = 0
    bloated: int = 0
    dictionary: int = 0
    a_value: float = 0.0
    simple: bool = True
    shared: bool = False


class HeldFile:
    """A file to read from, of which one stretch is held in memory, so that it is fetched once and read twice.

    Args:
        raw: it may lie on another machine.
    """

    closed = False  # as the library asks of files

    def __init__(self, raw: BinaryIO):
        self._raw, self._place = raw, 0
        self._start, self._held = 0, b""

    def hold(self, start: int, length: int) -> memoryview:
        """Hold this stretch, and no other; of one that the file does not have, what there is of it."""
        size = self.seek(0, os.SEEK_END)
        self._held = b""  # both would be in memory
        self._raw.seek(start := min(max(start, 0), size))
        self._start, self._held = start, self._raw.read(max(min(length, size - start), 0))
        return memoryview(self._held)

    def read(self, length: int = -1) -> bytes:
        begin = self._place - self._start
        if length >= 0 <= begin and begin + length <= len(self._held):
            found = self._held[begin : begin + length]
        else:
            self._raw.seek(self._place)
            found = self._raw.read(length)
        self._place += len(found)
        return found

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            self._place = self._raw.seek(place, whence)
        else:
            self._place = place + (self._place if whence == os.SEEK_CUR else 0)
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Whoever opened the file closes it."""


def chunks_of(file: BinaryIO | HeldFile, place: int) -> list[Chunk]:
    """The parts of a column, one for each row group, as the end of a parquet file tells of them.

    Args:
        file: that the library has opened, so that there is such an end.
        place: of the column.

    Raises:
        PageError: the end of the file is damaged.
    """
    size = file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(size - length, 0))
    reader, number, found = Reader(memoryview(file.read(length))), 0, []
    try:
        while kind := (byte := reader.byte()) & 15:
            number = reader.number_behind(number, byte)
            if (number, kind) != _GROUPS:
                reader.value(kind)
                continue
            inner, count = reader.head_of_list()
            for _ in range(count):  # one at a time: there may be thousands
                group = reader.value(inner)
                found.append(_chunk(group[_COLUMNS][place][_META]))
    except (ThriftError, LookupError, TypeError) as error:
        said = str(error) if isinstance(error, ThriftError) else "it tells of no column there"
        raise PageError(f"the file's end: {said}") from None
    return found


def _chunk(meta: dict) -> Chunk:
    """A part of a column, as ColumnMetaData tells of it."""
    start, first = meta[9, I64], meta.get((11, I64), 0)
    codec = meta[4, I32]
    if not 0 <= codec < len(_CODECS) or codec == _LZO:
        raise PageError(f"pages that are packed with the codec {codec}, which there is not")
    return Chunk(first if 0 < first < start else start, meta[7, I64], meta[5, I64], _CODECS[codec])


def pages_of(file: HeldFile, chunk: Chunk, nullable: bool, most: int) -> Pages:
    """Look at the pages of a column's part of a row group, which `file` holds from then on.

    Args:
        nullable: whether the column may have nulls.
        most: bytes that are unpacked of a page to look further; a larger one is not looked into.

    Raises:
        PageError: a header is damaged, or a page claims more lengths than texts.
    """
    try:
        return _pages_of(file.hold(chunk.start, chunk.length + _BEHIND), chunk, nullable, most)
    except (ThriftError, LengthsError) as error:
        raise PageError(f"a page: {error}") from None


def _pages_of(data: memoryview, chunk: Chunk, nullable: bool, most: int) -> Pages:
    found, at, values = Pages(), 0, 0
    while values < chunk.values and at < len(data):
        head = Reader(data, at, _LONGEST)
        fields = head.struct()
        kind, unpacked, packed = (fields.get((number, I32), -1) for number in (1, 2, 3))
        if kind < 0 or unpacked < 0 or packed < 0:
            raise PageError("a page's header without its kind or sizes")
        body, at = data[head.at : head.at + packed], head.at + packed
        found.total += unpacked
        if kind in _PARTS:
            part, count, encoding = _PARTS[kind]
            said = fields.get((part, STRUCT), {})
            number = said.get((count, I32), -1)
            if number < 0:
                raise PageError("a page's header without the number of its values")
            values += number
            found.largest = max(found.largest, unpacked)
            found.bloated = max(found.bloated, unpacked if unpacked > 10 * packed else 0)
            found.a_value = max(found.a_value, unpacked / max(number, 1))
            way = said.get((encoding, I32))
            found.simple &= way in _SIMPLE
            found.shared |= way == DELTA
            if way in (DELTA, DELTA_LENGTH) and unpacked <= most:
                plain = _values_of(kind, said, body, unpacked, chunk.codec, nullable)
                check_lengths(plain, way, min(number, most // 4))  # four bytes each
        elif kind == _DICTIONARY:
            found.dictionary = max(found.dictionary, unpacked)
    return found


def _values_of(kind: int, said: dict, body: memoryview, unpacked: int, codec: str | None, nullable: bool) -> memoryview:
    """The values of a page, unpacked, without the levels before them, which tell nulls."""
    levels = sum(said.get((number, I32), 0) for number in _LEVELS) if kind == _DATA_V2 else 0
    if not 0 <= levels <= min(len(body), unpacked):
        raise PageError("a page whose levels are longer than itself")
    values = body[levels:]
    if codec is not None and (kind == _DATA or (_PACKED, FALSE) not in said):
        values = _unpack(values, unpacked - levels, codec)
    if kind == _DATA and nullable:
        values = values[4 + int.from_bytes(values[:4], "little") :]
    return values


def _unpack(body: memoryview, size: int, codec: str) -> memoryview:
    import pyarrow

    try:
        return memoryview(pyarrow.decompress(body, decompressed_size=size, codec=codec)).cast("B") if size else body[:0]
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise PageError(f"a page in {codec} that cannot be unpacked ({error})") from None
