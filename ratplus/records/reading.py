"""Files that somebody else may have written, read and extended with care: bounded in size and depth, plain files only.

A sweep folder, a corpus or a checkpoint may come from a stranger. A named pipe would hold the reader for ever, a link
would show or change a file that lies elsewhere, and JSON that is nested a hundred thousand times ends in a traceback of
the parser, or of whoever walks through the result.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import IO, Any

from ratplus.records.stand_ins import HEAD_BYTES, stand_in

# The largest files of ours: sweep.json of 10,000 cells has 60 MB.
MOST_BYTES = 512 << 20
MOST_DEPTH = 64
_LINK = "is a link, and links within a folder that may come from somebody else are not followed"


class StandIn(ValueError):
    """A file only stands for the data (`stand_ins`)."""


class LinkError(ValueError):
    """A sweep folder's own files or folders lie elsewhere."""


def read_bytes(path: str | Path, follow: bool = True, most: int = MOST_BYTES) -> bytes:
    """The content of a plain file.

    Args:
        follow: whether the file may be a link.
        most: more bytes are refused.

    Raises:
        FileNotFoundError, OSError: as `open` does; ELOOP for a link that is not followed.
        ValueError: no plain file, or a larger one.
    """
    with open_plain(path, follow) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{size:,} bytes, of which at most {most:,} are read")
        data = file.read(most + 1)  # the size of a file of /proc or of one that grows is not known before
    if len(data) > most:
        raise ValueError(f"more than {most:,} bytes")
    return data


def open_plain(path: str | Path, follow: bool = True) -> IO[bytes]:
    """A plain file, opened to read its bytes; `follow` and errors as of `read_bytes`."""
    # A pipe that nobody writes to would otherwise stop us here.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else _no_link(path)))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("not a plain file")
    return open(handle, "rb")


def read_text(path: str | Path, follow: bool = True, most: int = MOST_BYTES) -> str:
    """`read_bytes` as UTF-8. A UnicodeDecodeError is a ValueError."""
    return read_bytes(path, follow, most).decode()


def read_json(path: str | Path, follow: bool = True, most: int = MOST_BYTES) -> Any:
    """The value in a JSON file; arguments and errors as of `read_bytes`, and ValueError where it is no JSON of ours."""
    return parse_json(read_bytes(path, follow, most))


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, which raises a ValueError too for what is nested deeper than MOST_DEPTH.

    Of a file that only stands for another (`stand_ins`) the error says so.
    """
    try:
        value = json.loads(text)
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


def open_own(path: str | Path, append: bool) -> IO[str]:
    """A text file of a sweep folder, opened to be written anew or to be extended; never through a link.

    Raises:
        OSError: as `open` does; ELOOP for a link, ENXIO for a pipe.
    """
    mode = os.O_APPEND if append else os.O_TRUNC
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | mode | _no_link(path)
    return open(os.open(path, flags, 0o666), "a" if append else "w", newline="")


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
