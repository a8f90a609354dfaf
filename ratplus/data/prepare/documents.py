"""Documents of an input file, a few at a time: parquet, JSON lines or text, in constant memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ratplus.data.corpus import CorpusError
from ratplus.data.prepare.inputs import Input
from ratplus.data.prepare.parquet_pages import HeldFile, PageError, Pages, chunks_of, pages_of
from ratplus.records.lines import first_line
from ratplus.records.reading import parse_json

# Characters of text that are tokenized at once; a longer document is a batch of its own.
BATCH_CHARACTERS = 1 << 20
# Bytes of zstd that are unpacked at once, to at most some 20,000 times as many.
_CHUNK = 1 << 12
# Bytes of other files that are read at once.
_READ = 1 << 16
# The largest distance back that zstd's format allows.
_WINDOW = 1 << 31
# A longer document of a text file is cut at a line's end, a longer line within it before a space: nobody can say what
# else one file of gigabytes would be.
LONGEST_TEXT = 4 << 20
# Of parquet, about so many bytes of text are read at once; rows may hold a word or a book.
_ROWS_BYTES = 8 << 20
_MOST_ROWS = 4096
# A page or dictionary of parquet may hold so many times the longest text, and so may the rows that are read at once. A
# library writes a thousand books as one page, whose size in the file is honest then.
_PAGE_TIMES, _HONEST_TIMES = 4, 16
# What is compressed further, and holds more than SPARED bytes, is refused: tokenizing it would fill the disk.
MOST_TIMES = 200
SPARED = 32 << 20


def batches(
    source: Input, column: str, separator: str | None, longest: int = 64 << 20
) -> Iterator[tuple[list[str], int]]:
    """(documents, input bytes read so far) of a file, in its order; documents without any text are left out.

    Args:
        column: of parquet and JSON lines, the one that holds the text.
        separator: of text, the line between two documents.
        longest: bytes of the longest line of JSON, and of the longest text of a parquet row, that is read.

    Raises:
        CorpusError: a damaged file or line, an unknown column, text that is not UTF-8, or a missing library.
    """
    try:
        with source.open() as raw:
            if source.kind == "text":
                documents = _text(source, raw, separator)
            else:
                documents = (_parquet if source.kind == "parquet" else _jsonl)(source, raw, column, longest)
            batch, characters = [], 0
            for text, done in documents:
                if not text:
                    continue
                batch.append(text)
                characters += len(text)
                if characters >= BATCH_CHARACTERS:
                    yield batch, done
                    batch, characters = [], 0
            if batch:
                yield batch, source.bytes
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(f"{source.name}: damaged or truncated compressed file ({error})") from None
    except OSError as error:
        raise CorpusError(f"{source.name}: cannot be read ({error.strerror or error})") from None


def _parquet(source: Input, raw: BinaryIO, column: str, longest: int) -> Iterator[tuple[str | None, int]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise CorpusError(
            f"{source.name}: parquet needs the package pyarrow; install the extra: pip install 'ratplus[hub]'"
        ) from None
    if source.packed:
        raise CorpusError(f"{source.name}: parquet is compressed within; unpack the file")
    group = 0
    try:
        held = HeldFile(raw)
        file = parquet.ParquetFile(held)
        kinds = {field.name: field.type for field in file.schema_arrow}
        if column not in kinds:
            raise CorpusError(f"data.column={column}: {source.name} has no such column; it has {', '.join(kinds)}")
        if not _is_text(kinds[column]):
            raise CorpusError(f"data.column={column}: in {source.name} it holds {kinds[column]}, not text")
        # Kept as a dictionary, a text that is repeated in every row is in memory once, as it is in the file.
        repeating = parquet.ParquetFile(held, metadata=file.metadata, read_dictionary=[column])
        rows, groups, total, most = 0, file.num_row_groups, 0, most_unpacked(source)
        place = [file.schema.column(index).path for index in range(len(file.schema))].index(column)
        nullable, unpacked = file.schema.column(place).max_definition_level > 0, 0
        chunks = chunks_of(held, place)
        if len(chunks) != groups:
            raise PageError(f"the file's end tells of {len(chunks)} row groups, or of {groups}")
        for group in range(groups):
            pages = pages_of(held, chunks[group], nullable, _PAGE_TIMES * longest)
            _check_pages(source, pages, longest)
            unpacked += pages.total
            if unpacked > most:
                raise _expands(source)
            at_once = _rows_at_once(pages, file.metadata.row_group(group).num_rows, longest)
            reader = repeating if pages.simple else file
            for part in reader.iter_batches(at_once, row_groups=[group], columns=[column], use_threads=False):
                done = source.bytes * rows // max(file.metadata.num_rows, 1)
                given = part.column(0)
                total += len(given)
                for index, text in enumerate(_texts(given) if given.null_count < len(given) else (), start=rows):
                    if text is not None and len(text) > longest:
                        raise CorpusError(
                            f"{source.name}, row {index}: a text longer than data.longest_mib={longest >> 20} MiB; cut "
                            "it into rows, or give a higher data.longest_mib"
                        )
                    total += len(text or "")
                    if total > most:
                        raise _expands(source)
                    yield text, done
                if total > most:  # rows without text, of which a kilobyte holds millions
                    raise _expands(source)
                rows += part.num_rows
    except (arrow.ArrowException, PageError, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{source.name}: damaged parquet file, row group {group} ({first_line(error)})") from None


def _is_text(kind) -> bool:
    """Whether a column's type is text, in whichever of Arrow's encodings."""
    from pyarrow import types

    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):  # a category of pandas'
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _texts(column) -> Iterator[str | None]:
    """The texts of a column; of a dictionary's, equal ones are one object."""
    from pyarrow import types

    if not types.is_dictionary(column.type):
        yield from column.to_pylist()
        return
    known: dict[int, str | None] = {}
    for place in column.indices.to_pylist():
        if place is not None and place not in known:
            known[place] = column.dictionary[place].as_py()
        yield None if place is None else known[place]


def _rows_at_once(pages: Pages, rows: int, longest: int) -> int:
    """Rows of a row group that are read at once; fewer where they are long, or may be."""
    most = _PAGE_TIMES * longest / max(pages.a_value, 1)
    if not pages.simple:  # each text is in memory on its own then, also one of a dictionary
        most = min(most, longest / max(pages.dictionary, pages.largest if pages.shared else 0, 1))
    return max(1, min(_MOST_ROWS, _ROWS_BYTES * rows // max(pages.total, 1), int(most)))


def _check_pages(source: Input, pages: Pages, longest: int) -> None:
    """Refuse what is large before the library unpacks it: it would be in memory several times.

    Writers begin a page or a dictionary anew long before.
    """
    for what, size, times, instead in (
        ("dictionary", pages.dictionary, _PAGE_TIMES, "without (use_dictionary=False)"),
        ("page that was packed to less than a tenth", pages.bloated, _PAGE_TIMES, "with smaller ones"),
        ("page", pages.largest, _HONEST_TIMES, "with smaller ones (write_batch_size=16)"),
    ):
        if size > times * longest:
            raise CorpusError(
                f"{source.name}: a {what}, of {size:,} bytes; at most {times} times data.longest_mib="
                f"{longest >> 20} MiB are read: write it {instead}, or give a higher data.longest_mib"
            )


def _jsonl(source: Input, raw: BinaryIO, column: str, longest: int) -> Iterator[tuple[str | None, int]]:
    first = True
    for number, line, _ in _lines(source, raw, _Limit(longest, cut=False)):
        if not line.strip():
            continue
        where = f"{source.name}, line {number}"
        try:
            row = parse_json(line, any_number=True)
        except ValueError as error:  # of JSON and of UTF-8
            if first and line.strip() in (b"[", b"{"):
                raise CorpusError(
                    f"{source.name}: one JSON value over several lines; what is read is one object a line: "
                    f"jq -c '.[]' {source.name} > {source.name}l"
                ) from None
            raise CorpusError(f"{where}: not JSON ({first_line(error)})") from None
        first = False
        if not isinstance(row, dict):
            raise CorpusError(f"{where}: holds a {type(row).__name__}; every line must be an object with a text")
        if column not in row:
            raise CorpusError(f"data.column={column}: {where} has no such key; it has {', '.join(row) or 'none'}")
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise CorpusError(f"data.column={column}: in {where} it holds a {type(text).__name__}, not text")
        if text and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise CorpusError(
                    f"{where}: the text holds half of a surrogate pair, which no tokenizer reads"
                ) from None
        yield text, raw.tell()


def _text(source: Input, raw: BinaryIO, separator: str | None) -> Iterator[tuple[str, int]]:
    lines, characters = [], 0
    begin = True  # whether what comes next begins a line
    for number, part, ends in _lines(source, raw, _Limit(LONGEST_TEXT, cut=True)):
        try:
            # A byte-order mark at the file's start is no text.
            line = part.decode("utf-8-sig" if number == 1 and begin else "utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(f"{source.name}, line {number}: not UTF-8 text ({error.reason})") from None
        between = separator is not None and begin and ends and line.rstrip("\r\n") == separator
        if not between:
            lines.append(line)
            characters += len(line)
        if between or not ends or characters >= LONGEST_TEXT:
            yield "".join(lines), raw.tell()
            lines, characters = [], 0
        begin = ends
    yield "".join(lines), source.bytes


# ---- lines ---------------------------------------------------------------------------------------------------------


@dataclass
class _Limit:
    """The most bytes that are held as one line: a longer one is refused, or cut."""

    bytes: int
    cut: bool


def _lines(source: Input, raw: BinaryIO, limit: _Limit) -> Iterator[tuple[int, bytes, bool]]:
    """(line number, bytes with their line feed, whether it is the end of a line) of a file, whatever it is packed with.

    A compressed file of kilobytes can hold a line of terabytes, so no reader of lines of a library's is used.
    """
    number = 1
    held: list[bytes] = []  # of a line that has not ended yet
    size = 0
    total, most = 0, most_unpacked(source)
    for chunk in _chunks(source, raw):
        total += len(chunk)
        if source.packed and total > most:
            raise _expands(source)
        *whole, last = chunk.split(b"\n")
        for piece, ends in [*((piece, True) for piece in whole), (last, False)]:
            held.append(piece)
            size += len(piece)
            if size > limit.bytes and not limit.cut:
                raise _too_long(source, number, limit)
            if size > limit.bytes:
                rest = b"".join(held)
                while len(rest) > limit.bytes:
                    end = _cut(rest, limit.bytes)
                    yield number, rest[:end], False
                    rest = rest[end:]
                held, size = [rest], len(rest)
            if ends:
                yield number, b"".join(held) + b"\n", True
                number += 1
                held, size = [], 0
    if size:
        yield number, b"".join(held), True


def _cut(line: bytes, most: int) -> int:
    """Where to cut a line that is too long: before the last space, else between two characters."""
    end = line.rfind(b" ", most // 2, most)
    if end > 0:
        return end
    end = most
    while end > most - 4 and line[end] & 0xC0 == 0x80:  # within a character of UTF-8
        end -= 1
    return end


def most_unpacked(source: Input) -> int:
    """Bytes that a file may hold, unpacked: text shrinks to a third, logs perhaps to a fiftieth."""
    return SPARED + MOST_TIMES * source.bytes


def _expands(source: Input) -> CorpusError:
    how = "write it as JSON lines" if source.kind == "parquet" else "unpack it before"
    return CorpusError(
        f"{source.name}: unpacks to more than {MOST_TIMES} times its size, as no text does; if it is text, {how}"
    )


def _too_long(source: Input, number: int, limit: _Limit) -> CorpusError:
    return CorpusError(
        f"{source.name}, line {number}: longer than data.longest_mib={limit.bytes >> 20} MiB, the most that is read as "
        "one line; is it text, a document a line? Cut it into lines, or give a higher data.longest_mib"
    )


def _chunks(source: Input, raw: BinaryIO) -> Iterable[bytes]:
    """A file's content, unpacked, some at a time."""
    if source.packed == ".zst":
        return _unzstd(source, raw)
    file = gzip.GzipFile(fileobj=raw) if source.packed == ".gz" else raw
    return iter(lambda: file.read(_READ), b"")


def _unzstd(source: Input, raw: BinaryIO) -> Iterator[bytes]:
    """The content of one or several frames; the library's own reader takes a truncated frame for a whole one."""
    try:
        import zstandard
    except ImportError:
        raise CorpusError(
            f"{source.name}: needs the package zstandard; install the extra: pip install 'ratplus[hub]'"
        ) from None
    frame = None
    try:
        while chunk := raw.read(_CHUNK):
            while chunk:
                # `zstd --long=31` refers back as far as the format allows; by default the library refuses that.
                frame = frame or zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
                yield frame.decompress(chunk)
                chunk, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        said = first_line(error)
        if "too much memory" in said:
            raise CorpusError(
                f"{source.name}: compressed with a window of more than {_WINDOW >> 30} GiB; compress it with a smaller "
                "one (zstd --long=27)"
            ) from None
        if "ictionary" in said:
            raise CorpusError(
                f"{source.name}: compressed with a dictionary, which is not read; compress it without (zstd -D)"
            ) from None
        raise CorpusError(f"{source.name}: damaged compressed file ({said})") from None
    if frame is not None:
        raise CorpusError(f"{source.name}: truncated compressed file")
