"""Structs of Thrift's compact protocol, as parquet files have them.

A field is a byte of kind and distance to the number of the field before, then its value; whole numbers are of variable
length. Everything is bounded by the bytes that are there, since strangers write them.
"""

from __future__ import annotations

TRUE, FALSE, I32, I64, TEXT, LIST, STRUCT = 1, 2, 5, 6, 8, 9, 12
_DEEPEST = 8


class ThriftError(ValueError):
    """No struct, or one that this reader and the library's could understand differently."""


class Reader:
    """Reads from `data` at the place `at`, which moves behind what is read.

    Args:
        most: bytes that are read at most.
    """

    def __init__(self, data: memoryview, at: int = 0, most: int = 1 << 62):
        self.data, self.at = data, at
        self._end = min(len(data), at + most)

    def struct(self, depth: int = 0) -> dict:
        """{(number, kind): value} of its fields: whole numbers, structs and lists of these; the rest is None."""
        if depth > _DEEPEST:
            raise ThriftError("a header that is nested too deep")
        number, found = 0, {}
        while kind := (byte := self.byte()) & 15:
            number = self.number_behind(number, byte)
            found[number, kind] = self.value(kind, depth)
        return found

    def number_behind(self, number: int, byte: int) -> int:
        """The number of the field that begins with a byte, behind the field `number`."""
        following = number + (byte >> 4) if byte >> 4 else self._whole(32)
        if not number < following < 1 << 15:  # the library reads these too, but perhaps as others
            raise ThriftError("a header whose fields are out of order")
        return following

    def head_of_list(self) -> tuple[int, int]:
        """(kind of its values, how many)."""
        byte = self.byte()
        return byte & 15, byte >> 4 if byte >> 4 < 15 else self._length(32)

    def value(self, kind: int, depth: int = 0):
        """The value of a field of this kind."""
        if kind in (TRUE, FALSE):  # which the kind says already
            return None
        if kind in (4, I32, I64):
            return self._whole(64 if kind == I64 else 32)
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in (3, 7, TEXT):
            self._pass(1 if kind == 3 else 8 if kind == 7 else self._length(32))
        elif kind in (LIST, 10):  # or a set
            inner, count = self.head_of_list()
            return self._values([inner], count, depth)
        elif kind == 11:  # a map
            count = self._length(32)
            byte = self.byte() if count else 0
            self._values([byte >> 4, byte & 15], count, depth)
        else:
            raise ThriftError(f"a header with a field of kind {kind}")
        return None

    def _values(self, kinds: list[int], count: int, depth: int) -> list:
        if depth > _DEEPEST:
            raise ThriftError("a header that is nested too deep")
        found = []
        for _ in range(count):  # each is a byte at least
            for kind in kinds:
                if kind in (TRUE, FALSE):
                    self._pass(1)
                else:
                    found.append(self.value(kind, depth + 1))
        return found

    def byte(self) -> int:
        self._pass(1)
        return self.data[self.at - 1]

    def _pass(self, count: int) -> None:
        self.at += count
        if self.at > self._end:
            raise ThriftError("a header that does not end")

    def _length(self, bits: int) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value & ((1 << bits) - 1)
            if shift > 63:
                raise ThriftError("a header with a number of more than 64 bits")

    def _whole(self, bits: int) -> int:
        value = self._length(bits)
        return (value >> 1) ^ -(value & 1)
