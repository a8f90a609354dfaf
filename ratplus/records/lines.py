"""One line of what may be many: errors as they stand in a message, a table or a record."""

from __future__ import annotations

MOST_CHARACTERS = 200


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, cut to MOST_CHARACTERS; its class's name where it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:MOST_CHARACTERS]


def last_line(text: str) -> str:
    """The last line that is not blank; empty if there is none."""
    return (text.strip().splitlines() or [""])[-1].strip()
