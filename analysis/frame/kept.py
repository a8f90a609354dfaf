"""What was read last from files is kept, within a bound: the tables, the figures and the page ask for the same."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Found = TypeVar("Found")


class Kept(Generic[Found]):
    """What was made of files; the files used longest ago are forgotten first.

    Args:
        most: bytes of all that is kept.
        size: bytes that one takes.
    """

    def __init__(self, most: int, size: Callable[[Found], int]) -> None:
        self._most, self._size = most, size
        self._found: OrderedDict[str, tuple[tuple, Found, int]] = OrderedDict()
        self._bytes = 0

    def get(self, path: str, stamp: tuple) -> Found | None:
        """What was kept of a path; None if nothing was, or under another stamp.

        Args:
            stamp: of `stamp_of`, of all files that it was made of.
        """
        found = self._found.get(path)
        if found is None or found[0] != stamp:
            return None
        self._found.move_to_end(path)
        return found[1]

    def add(self, path: str, stamp: tuple, new: Found) -> None:
        """Keep what was made of the files of a path in place of what was kept of it before."""
        if path in self._found:
            self._bytes -= self._found.pop(path)[2]
        size = self._size(new)
        self._found[path] = (stamp, new, size)
        self._bytes += size
        while self._bytes > self._most:
            self._bytes -= self._found.popitem(last=False)[1][2]


def stamp_of(path: str) -> tuple[int, ...]:
    """What tells a file from one that is written in its place later; empty if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
