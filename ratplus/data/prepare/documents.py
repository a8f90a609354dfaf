"""Documents of an input file, a few at a time: parquet, JSON lines or text, in constant memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from ratplus.data.corpus import CorpusError
from ratplus.data.prepare.inputs import Input
from ratplus.records.lines import first_line
from ratplus.records.reading import parse_json

# Characters of text that are tokenized at once; a longer document is a batch of its own.
BATCH_CHARACTERS = 1 << 20
# Bytes of zstd that are unpacked at once, to at most some 20,000 times as many.
_CHUNK = 1 << 12
# A longer document of a text file is cut at a line's end: nobody can say what else one file of gigabytes would be.
LONGEST_TEXT = 4 << 20
# A longer line is refused: it is in memory several times over.
LONGEST_LINE = 64 << 20


def batches(source: Input, column: str, separator: str | None) -> Iterator[tuple[list[str], int]]:
    """(documents, input bytes read so far) of a file, in its order; documents without any text are left out.

    Args:
        column: of parquet and JSON lines, the one that holds the text.
        separator: of text, the line between two documents.

    Raises:
        CorpusError: a damaged file or line, an unknown column, text that is not UTF-8, or a missing library.
    """
    try:
        with source.open() as raw:
            documents = _READERS[source.kind](source, raw, column, separator)
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


def _parquet(source: Input, raw: BinaryIO, column: str, _separator) -> Iterator[tuple[str, int]]:
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
        file = parquet.ParquetFile(raw)
        kinds = {field.name: field.type for field in file.schema_arrow}
        if column not in kinds:
            raise CorpusError(f"data.column={column}: {source.name} has no such column; it has {', '.join(kinds)}")
        if not (arrow.types.is_string(kinds[column]) or arrow.types.is_large_string(kinds[column])):
            raise CorpusError(f"data.column={column}: in {source.name} it holds {kinds[column]}, not text")
        rows, groups = 0, file.num_row_groups
        for group in range(groups):
            for part in file.iter_batches(batch_size=256, row_groups=[group], columns=[column], use_threads=False):
                done = source.bytes * rows // max(file.metadata.num_rows, 1)
                rows += part.num_rows
                for text in part.column(0).to_pylist():
                    yield text, done
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{source.name}: damaged parquet file, row group {group} ({first_line(error)})") from None


def _jsonl(source: Input, raw: BinaryIO, column: str, _separator) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(_unpacked(source, raw), start=1):
        if not line.strip():
            continue
        where = f"{source.name}, line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:  # of JSON and of UTF-8
            raise CorpusError(f"{where}: not JSON ({first_line(error)})") from None
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


def _text(source: Input, raw: BinaryIO, _column, separator: str | None) -> Iterator[tuple[str, int]]:
    lines, characters = [], 0
    for number, line in enumerate(_unpacked(source, raw), start=1):
        try:
            # A byte-order mark at the file's start is no text.
            line = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(f"{source.name}, line {number}: not UTF-8 text ({error.reason})") from None
        between = separator is not None and line.rstrip("\r\n") == separator
        if not between:
            lines.append(line)
            characters += len(line)
        if between or characters >= LONGEST_TEXT:
            yield "".join(lines), raw.tell()
            lines, characters = [], 0
    yield "".join(lines), source.bytes


_READERS = {"parquet": _parquet, "jsonl": _jsonl, "text": _text}


def _unpacked(source: Input, raw: BinaryIO) -> Iterable[bytes]:
    """The lines of a file, as bytes."""
    if source.packed == ".zst":
        return _unzstd(source, raw)
    return _bounded(source, gzip.GzipFile(fileobj=raw) if source.packed == ".gz" else raw)


def _bounded(source: Input, file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    """Lines of a file, of which a compressed one of kilobytes can hold one of terabytes."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise _too_long(source, number)
        yield line


def _too_long(source: Input, number: int) -> CorpusError:
    return CorpusError(
        f"{source.name}, line {number}: longer than {LONGEST_LINE >> 20} MiB, the most that is read as one line; is it "
        "text, a document a line? Cut it into lines"
    )


def _unzstd(source: Input, raw: BinaryIO) -> Iterator[bytes]:
    """Lines of a file of one or several frames; the library's own reader takes a truncated frame for a whole one."""
    try:
        import zstandard
    except ImportError:
        raise CorpusError(
            f"{source.name}: needs the package zstandard; install the extra: pip install 'ratplus[hub]'"
        ) from None
    frame, pieces, size, number = None, [], 0, 0  # pieces of the line that has not ended yet
    try:
        while chunk := raw.read(_CHUNK):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                first, *others = frame.decompress(chunk).split(b"\n")
                chunk, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
                pieces.append(first)
                size += len(first)
                for line in others:
                    number += 1
                    if size > LONGEST_LINE:
                        raise _too_long(source, number)
                    yield b"".join(pieces) + b"\n"
                    pieces, size = [line], len(line)
                if size > LONGEST_LINE:
                    raise _too_long(source, number + 1)
    except zstandard.ZstdError as error:
        raise CorpusError(f"{source.name}: damaged compressed file ({first_line(error)})") from None
    if frame is not None:
        raise CorpusError(f"{source.name}: truncated compressed file")
    if size:
        yield b"".join(pieces)
