"""Files that stand where data should: a pointer of Git LFS, a web page that a download saved, another format's bytes.

Readers of a format call such a file damaged, which sends people to look for a fault that is not there.
"""

from __future__ import annotations

from pathlib import Path

HEAD_BYTES = 512
# What a file of a format begins with -> its name.
_FORMATS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
}


def stand_in(head: bytes) -> str:
    """What a file is that begins with these bytes, if it only stands for the data: words that follow "is".

    Empty if nothing speaks against it.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")):
        return "a pointer of Git LFS, not the file itself: run `git lfs pull` where it was cloned"
    if text.startswith((b"/annex/objects/", b"../.git/annex/", b".git/annex/")):
        return "a pointer of git-annex, not the file itself: run `git annex get` where it was cloned"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML), as a download without login leaves; download the file itself"
    if text.startswith(b"<?xml") and (b"<error>" in text or b"<html" in text):
        return "the error message of a server (XML), not the file itself; download it again"
    return ""


def stand_in_file(path: str | Path) -> str:
    """`stand_in` of a file; empty for one that cannot be read, which whoever opens it says better."""
    return stand_in(head_of(path))


def head_of(path: str | Path) -> bytes:
    """The first bytes of a plain file; none of one that cannot be read."""
    try:
        if not Path(path).is_file():
            return b""
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def format_of(head: bytes) -> str:
    """Name of the format that a file of these first bytes has, whatever its name says; empty for text and others."""
    if head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return "zstd"  # a skippable frame, which may stand before others
    return next((name for begin, name in _FORMATS.items() if head.startswith(begin)), "")


def wide_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32, of text that begins with the byte-order mark of one of them; else empty."""
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "UTF-32"
    return "UTF-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
