"""`data=python_text`: source code and documentation that a Python installation holds, as a corpus of some 28 MB.

It needs no network, which makes it the corpus of small runs that should still learn something: `experiment=gpu_ladder`.
The text is collected once into one file, `<data.root>/python_text.jsonl.gz` (about 7 MB). Copy that file to another
machine and the same corpus is made there, whatever is installed on it. The packages keep their licences: the file is
made locally, for use on the user's own machines, and is not part of ratplus.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ratplus.data.corpus import CorpusError
from ratplus.records.atomic import new_file

ARCHIVE = "python_text.jsonl.gz"
# At most so much UTF-8 text is collected: an epoch takes a minute or less on one GPU, and the file has 7 MB.
MOST_BYTES = 28_000_000
_SUFFIXES = {".py", ".md", ".rst", ".txt"}
# METADATA holds a package's README.
_NAMES = {"METADATA"}
# Tests are long lists of numbers and names more than text; the other folders hold copies of what is elsewhere.
_SKIPPED = {"test", "tests", "testing", "__pycache__", "_vendor", "vendor", "licenses", "lib2to3", "turtledemo"}
# Shorter files are mostly empty modules and lists of names, longer ones mostly generated tables.
_FEWEST_BYTES, _MOST_BYTES_OF_FILE = 500, 150_000
_LONGEST_LINE = 1000


def collect(archive: Path, folders: list[Path] | None = None, most_bytes: int = MOST_BYTES) -> Path:
    """Write the texts of an installation to `archive`, one JSON object {"name", "text"} a line, and return its path.

    The same files give the same bytes: files are taken in the order of a hash of their name below their folder, so that
    any stretch is a fair sample of all packages, until `most_bytes` of text are reached. Each text is taken once.

    Args:
        folders: where to look; None takes the standard library and every site-packages folder of this Python.

    Raises:
        CorpusError: no text was found.
    """
    folders = installed_folders() if folders is None else folders
    found = sorted(_files(folders), key=lambda item: hashlib.sha256(item[0].encode()).digest())
    taken, seen = 0, set()
    with new_file(archive) as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
        for name, path in found:
            text = _text(path)
            digest = text and hashlib.sha256(text.encode()).digest()
            if not text or digest in seen:
                continue
            seen.add(digest)
            packed.write(json.dumps({"name": name, "text": text}, ensure_ascii=False).encode() + b"\n")
            taken += len(text.encode())
            if taken >= most_bytes:
                break
        if not seen:
            where = ", ".join(map(str, folders)) or "any folder"
            raise CorpusError(
                f"data=python_text: no Python sources in {where}; use data=text data.path=<file or folder>"
            )
    return archive


def installed_folders() -> list[Path]:
    """The standard library and the site-packages folders of this Python, in the order in which it imports from them."""
    folders = [Path(sysconfig.get_path("stdlib"))]
    folders += [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    return list(dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir()))


def _files(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    """(name below its folder, path) of every file whose name says that it is text; a name counts once."""
    names = set()
    for folder in folders:
        for path in folder.rglob("*"):
            relative = path.relative_to(folder)
            inner = {"site-packages", "dist-packages"} & set(relative.parts)  # they are folders of their own
            wanted = path.suffix in _SUFFIXES or path.name in _NAMES
            if inner or not wanted or _SKIPPED & set(relative.parts) or relative.as_posix() in names:
                continue
            names.add(relative.as_posix())
            yield relative.as_posix(), path


def _text(path: Path) -> str | None:
    """The text of a file; None if it is too short, too long, not UTF-8, or looks like a table."""
    try:
        if not _FEWEST_BYTES <= path.stat().st_size <= _MOST_BYTES_OF_FILE:
            return None
        text = path.read_bytes().decode("utf-8-sig")  # a byte-order mark is no text
    except (OSError, UnicodeDecodeError):
        return None
    if "\0" in text or max(map(len, text.splitlines())) > _LONGEST_LINE:
        return None
    return text
