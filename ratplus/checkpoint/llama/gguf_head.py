"""The head of a GGUF file, walked before the format's library makes some objects of each of its numbers. Torch-free."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from ratplus.records.reading import open_plain

# A vocabulary of 262,144 tokens with scores, kinds and merges has 1.3 million; the library takes 200 bytes for each.
MOST_VALUES = 4 << 20
MOST_TENSORS = 100_000
_DEEPEST = 4
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of numbers, by kind
_TEXT, _LIST = 8, 9


class HeadError(ValueError):
    """The head is damaged, or holds more than that of any model."""


def check_head(path: Path) -> None:
    """Refuse a file whose metadata holds more values or tensors than that of any model.

    Raises:
        HeadError: it does, or it is damaged.
        OSError, ValueError: it cannot be read as a plain file.
    """
    with open_plain(path) as file:
        _Head(file).check()


class _Head:
    def __init__(self, file: BinaryIO):
        self._file, self._values = file, 0
        self._size = file.seek(0, 2)
        file.seek(4)
        # Files of machines with the other order of bytes are as good; the version tells, since it is small.
        version = file.read(4)
        self._order = ">" if version[:2] == b"\0\0" else "<"

    def check(self) -> None:
        tensors, pairs = self._whole(8), self._whole(8)
        if tensors > MOST_TENSORS:
            raise HeadError(f"it tells of {tensors:,} tensors; at most {MOST_TENSORS:,} are read")
        for _ in range(pairs):  # each takes bytes of the file
            self._text()
            self._value(self._whole(4), 0)

    def _value(self, kind: int, depth: int) -> None:
        self._count(1)
        if kind == _LIST:
            inner, count = self._whole(4), self._whole(8)
            if depth >= _DEEPEST:
                raise HeadError("lists within lists")
            if inner in _SIZES:
                self._count(count)
                self._pass(count * _SIZES[inner])
            else:
                for _ in range(count):
                    self._value(inner, depth + 1)
        elif kind == _TEXT:
            self._text()
        elif kind in _SIZES:
            self._pass(_SIZES[kind])
        else:
            raise HeadError(f"a value of kind {kind}")

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise HeadError(f"more than {MOST_VALUES:,} values of metadata, which no model has")

    def _text(self) -> None:
        self._pass(self._whole(8))

    def _whole(self, size: int) -> int:
        data = self._file.read(size)
        if len(data) < size:
            raise HeadError("it ends within its metadata")
        return struct.unpack(self._order + {4: "I", 8: "Q"}[size], data)[0]

    def _pass(self, size: int) -> None:
        if size > self._size:
            raise HeadError("it ends within its metadata")
        self._file.seek(size, 1)
