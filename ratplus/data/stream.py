"""A token stream that lies in several files."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np


class ShardedStream:
    """Memory-mapped id arrays end to end, read as one: `len(stream)`, `stream[a:b]`, `stream[i]`.

    Sampling reads slices of a few thousand ids, so that a slice is copied only where it crosses a border.
    """

    def __init__(self, parts: list[np.ndarray]):
        self.parts = [part for part in parts if len(part)]
        assert self.parts, "a stream has at least one id"  # an empty split is refused before
        self.dtype = self.parts[0].dtype
        ends = np.cumsum([len(part) for part in self.parts]).tolist()
        self._starts, self._length = [0, *ends[:-1]], ends[-1]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index):
        if not isinstance(index, slice):
            number = range(self._length)[index]  # raises IndexError, and understands negative numbers
            which = bisect_right(self._starts, number) - 1
            return self.parts[which][number - self._starts[which]]
        first, last, step = index.indices(self._length)
        if step != 1:
            raise ValueError(f"a stream is read in steps of 1; got {step}")
        pieces, which = [], bisect_right(self._starts, first) - 1
        while first < last:
            start, part = self._starts[which], self.parts[which]
            piece = part[first - start : last - start]
            pieces.append(piece)
            first, which = first + len(piece), which + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else self.parts[0][:0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """All of it, in memory."""
        return np.asarray(self[:], dtype=dtype)


Stream = np.ndarray | ShardedStream


def join(parts: list[np.ndarray]) -> Stream:
    """One stream of one or several arrays."""
    return parts[0] if len(parts) == 1 else ShardedStream(parts)
