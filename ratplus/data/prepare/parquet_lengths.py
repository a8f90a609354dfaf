"""How many lengths a page of parquet's newer encodings of text holds, counted before the library makes room for them.

Such a page begins with the lengths of its texts (DELTA_LENGTH_BYTE_ARRAY), or with how much each repeats of the text
before and then these (DELTA_BYTE_ARRAY). Both are whole numbers as differences, in blocks, and twenty bytes can claim a
billion of them. A block is read as "Delta encoding" in the format's Encodings.md says.
"""

from __future__ import annotations

DELTA_LENGTH, DELTA = 6, 7


class LengthsError(ValueError):
    """A page's lengths are more than its texts, or cannot be counted."""


def check_lengths(page: bytes | memoryview, encoding: int, values: int) -> None:
    """Refuse a page whose lengths are more than its values.

    Args:
        page: unpacked, from the first length on.
        encoding: DELTA_LENGTH or DELTA.
        values: of the page with those that are null, as its header says, or the most that may be read.

    Raises:
        LengthsError: they are, or they do not end.
    """
    at = 0
    for _ in range(2 if encoding == DELTA else 1):
        at = _behind(page, at, values)


def _behind(page: bytes | memoryview, at: int, values: int) -> int:
    """Where a stretch of whole numbers ends that begins at `at`."""
    block, at = _number(page, at)
    parts, at = _number(page, at)
    count, at = _number(page, at)
    _, at = _number(page, at)  # the first of them
    if count > values:
        raise LengthsError(f"{count:,} lengths of {values:,} texts")
    if not 0 < parts <= block or block % parts:
        raise LengthsError(f"a block of {block:,} lengths in {parts:,} parts")
    left = count - 1
    while left > 0:
        _, at = _number(page, at)  # the least difference
        widths = page[at : at + parts]
        at += parts
        for width in widths:
            if left > 0:
                at += width * (block // parts) // 8
                left -= block // parts
        if at > len(page) or len(widths) < parts:
            raise LengthsError("lengths without an end")
    return at


def _number(page: bytes | memoryview, at: int) -> tuple[int, int]:
    """A whole number of variable length, and where it ends."""
    value = shift = 0
    while at < len(page) and shift < 70:
        value |= (page[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not page[at - 1] & 0x80:
            return value, at
    raise LengthsError("lengths without an end")
