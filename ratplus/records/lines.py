"""One line of what may be many: errors as they stand in a message, a table or a record."""

from __future__ import annotations

import re

MOST_CHARACTERS = 200
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Text without characters that a terminal obeys: each control character but tab and line feed as its code.

    What stands in a folder may be somebody else's, and an escape sequence can rename windows, fill the clipboard or
    hide lines. Marks that turn the direction of writing make a line read as another, so they go too.
    """
    return _OBEYED.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, cut to MOST_CHARACTERS; its class's name where it has no text."""
    return plain((str(error).strip() or type(error).__name__).splitlines()[0][:MOST_CHARACTERS])


def last_line(text: str) -> str:
    """The last line that is not blank; empty if there is none."""
    return plain((text.strip().splitlines() or [""])[-1].strip())
