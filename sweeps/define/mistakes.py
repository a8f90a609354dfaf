"""Mistakes: the error that a user can mend, and the one line in which every command tells of what went wrong.

Nothing else is imported before it is needed, so that a verb which only may fail stays light.
"""

from __future__ import annotations

import os
import sys

_LONGEST_LINE = 4_000


class UsageError(ValueError):
    """A user's mistake; the message is one line: which key or file, what was given, what is allowed."""


def mistake_line(error: BaseException) -> str | None:
    """The line for what a user can mend, or has to: a mistake, a file, memory; None for a fault of ours."""
    if isinstance(error, ValueError):
        # Every mistake that a user can mend is raised as a ValueError with a message of one line.
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}"
    if isinstance(error, MemoryError):
        return f"not enough memory on this machine ({str(error) or 'an allocation was refused'})"
    if isinstance(error, ImportError):
        return f"{error}; a package that ratplus needs is missing or damaged: install ratplus again"
    # What torch raises where the system refuses memory is no MemoryError.
    if "can't allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":
        return "not enough memory on this machine or GPU"
    return None


def say_error(line: str) -> None:
    """Print one line about what went wrong, as every command does."""
    say(f"ratplus: error: {line}")


def say(line: str) -> None:
    """Print one line to standard error: no secret, no line break, no escape sequence, and not without end."""
    from ratplus.records.lines import plain
    from ratplus.records.secrets import scrub

    # Cut before it is searched for secrets, and again where none can be left in two: searching megabytes takes seconds.
    line = plain(scrub(" ".join(line[: 20 * _LONGEST_LINE].split())))
    if len(line) > _LONGEST_LINE:  # it may quote what somebody wrote into a file
        line = f"{line[:_LONGEST_LINE]}…"
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it, or there is no room: the exit code is all that is left to tell
        to_nowhere("stderr")


def to_nowhere(*names: str) -> None:
    """Lead streams to the null device, so that what they still hold is dropped without a word."""
    for name in names:
        try:
            handle = os.open(os.devnull, os.O_WRONLY)
            os.dup2(handle, getattr(sys, name).fileno())
            os.close(handle)
        except (OSError, ValueError, AttributeError):  # a stream of a test's, without a file
            continue
