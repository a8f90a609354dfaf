"""Files that somebody else may have written, read and extended with care: bounded in size and depth, plain files only.

A sweep folder, a corpus or a checkpoint may come from a stranger. A named pipe would hold the reader for ever, a link
would show or change a file that lies elsewhere, and JSON that is nested a hundred thousand times ends in a traceback of
the parser, or of whoever walks through the result.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from ratplus.records.stand_ins import HEAD_BYTES, stand_in

# The largest files of ours: sweep.json of 10,000 cells has 60 MB.
MOST_BYTES = 512 << 20
MOST_DEPTH = 64
MOST_NUMBER = (1 << 63) - 1
_PIECE = 1 << 20
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_HALF_BYTES = re.compile(_HALF.pattern.encode())
_LINK = "is a link, and links within a folder that may come from somebody else are not followed"


class StandIn(ValueError):
    """A file only stands for the data (`stand_ins`)."""


class LinkError(ValueError):
    """A sweep folder's own files or folders lie elsewhere."""


def open_plain(path: str | Path, follow: bool = True, most: int | None = None) -> BufferedReader:
    """A plain file, opened to be read as bytes.

    Args:
        follow: whether the file may be a link.
        most: more bytes are refused; None for files that are never in memory as a whole.

    Raises:
        FileNotFoundError, OSError: as `open` does; ELOOP for a link that is not followed.
        ValueError: no plain file, or a larger one.
    """
    # A pipe that nobody writes to would otherwise stop us here.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else _no_link(path)))
    found = os.fstat(handle)
    problem: Exception | None = None
    if stat.S_ISDIR(found.st_mode):
        problem = IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    elif not stat.S_ISREG(found.st_mode):
        problem = ValueError("not a plain file")
    elif most is not None and found.st_size > most:
        problem = ValueError(f"{found.st_size:,} bytes, of which at most {most:,} are read")
    if problem is not None:
        os.close(handle)
        raise problem
    return open(handle, "rb")


def read_bytes(path: str | Path, follow: bool = True, most: int = MOST_BYTES) -> bytes:
    """The content of a plain file; arguments and errors as of `open_plain`."""
    with open_plain(path, follow, most) as file:
        # No more is asked for than the file has, since memory is set aside for all that is asked for. A file of /proc,
        # or one that grows, has more than it says.
        told = os.fstat(file.fileno()).st_size
        parts = [file.read(told + 1)]
        size = len(parts[0])
        while told < size <= most and (part := file.read(min(_PIECE, most + 1 - size))):
            parts.append(part)
            size += len(part)
    if size > most:
        raise ValueError(f"more than {most:,} bytes")
    return b"".join(parts)


def read_lines(path: str | Path, most_line: int, follow: bool = True, most: int = MOST_BYTES) -> Iterator[bytes]:
    """The lines of a plain file, one at a time in memory; other arguments and errors as of `open_plain`.

    Args:
        most_line: a line of more bytes is refused (ValueError).
    """
    with open_plain(path, follow, most) as file:
        while line := file.readline(most_line + 1):
            if len(line) > most_line:
                raise ValueError(f"a line of more than {most_line:,} bytes")
            yield line


def read_text(path: str | Path, follow: bool = True, most: int = MOST_BYTES) -> str:
    """`read_bytes` as UTF-8. A UnicodeDecodeError is a ValueError."""
    return read_bytes(path, follow, most).decode()


def read_json(path: str | Path, follow: bool = True, most: int = MOST_BYTES) -> Any:
    """The value in a JSON file, as `whole_text`; arguments and errors as of `read_bytes` and `parse_json`."""
    data = read_bytes(path, follow, most)
    return whole_text(parse_json(data), data)


def parse_json(text: str | bytes, any_number: bool = False) -> Any:
    """`json.loads`, which raises a ValueError too for what is nested deeper than MOST_DEPTH.

    Of a file that only stands for another (`stand_ins`) the error says so.

    Args:
        any_number: allow whole numbers of more than 63 bits. No file of ours has them, and what calculates with them
            (NumPy, pandas, torch) raises errors of its own.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))  # json's own decoding lets halves of surrogate pairs pass
    try:
        value = json.loads(text, parse_int=int if any_number else _whole_number)
    except RecursionError:
        raise ValueError(f"nested deeper than {MOST_DEPTH}") from None
    except ValueError:
        head = text[:HEAD_BYTES]
        if what := stand_in(head.encode(errors="replace") if isinstance(head, str) else head):
            raise StandIn(f"this is {what}") from None
        raise
    level, depth = [value], 1
    while level := [
        item
        for outer in level
        if isinstance(outer, (dict, list))
        for item in (outer.values() if isinstance(outer, dict) else outer)
        if isinstance(item, (dict, list))
    ]:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"nested deeper than {MOST_DEPTH}")
    return value


def whole_text(value: Any, source: str | bytes) -> Any:
    r"""A value of JSON in which each half of a surrogate pair is written as its code, `\ud800`.

    Such halves stand for bytes of a file's name that are no UTF-8, or are somebody's trick: neither a file nor a table
    can hold them.

    Args:
        source: the text that the value was parsed from.
    """
    escapes = _HALF if isinstance(source, str) else _HALF_BYTES
    return _without_halves(value) if escapes.search(source) else value  # ty: ignore[no-matching-overload]


def _without_halves(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_halves(key): _without_halves(item) for key, item in value.items()}
    return [_without_halves(item) for item in value] if isinstance(value, list) else value


def _whole_number(digits: str) -> int:
    # The length is looked at first: it takes long to read a number of millions of digits.
    if len(digits) > 20 or not -MOST_NUMBER <= (value := int(digits)) <= MOST_NUMBER:
        raise ValueError(f"a whole number of more than 63 bits, {digits[:20]}")
    return value


def open_own(path: str | Path, append: bool) -> IO[str]:
    """A text file of a sweep folder, opened to be written anew or to be extended; never through a link.

    Raises:
        OSError: as `open` does; ELOOP for a link, EMLINK for a file that has a second name, ENXIO for a pipe.
    """
    mode = os.O_APPEND if append else 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | mode | _no_link(path)
    handle = os.open(path, flags, 0o666)
    try:
        found = os.fstat(handle)
        # A hard link: the other name may be a file that lies elsewhere.
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            raise OSError(errno.EMLINK, "is a file that has another name too (a hard link); remove it", str(path))
        if not append:
            os.truncate(handle, 0)
    except OSError:
        os.close(handle)
        raise
    return open(handle, "a" if append else "w", newline="")


def _no_link(path: str | Path) -> int:
    # Said here, since the system's own words are "Too many levels of symbolic links".
    if os.path.islink(path):
        raise OSError(errno.ELOOP, _LINK, str(path))
    return os.O_NOFOLLOW


def refuse_links(folder: Path, deeper: tuple[str, ...]) -> None:
    """Refuse a folder in which something that we read or write is a link: what lies there would lie elsewhere.

    Args:
        deeper: folders within it whose own entries may not be links either.

    Raises:
        LinkError: one line that names the link.
    """
    for place in (Path(folder), *(Path(folder) / name for name in deeper)):
        try:
            with os.scandir(place) as entries:
                link = next((entry.path for entry in entries if entry.is_symlink()), None)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if link is not None:
            raise LinkError(f"{link}: {_LINK}; put what it points to in its place, or remove it")
