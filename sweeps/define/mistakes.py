"""The error that a user can mend. It stands alone in this file, so that a verb which needs it imports nothing else."""

from __future__ import annotations


class UsageError(ValueError):
    """A user's mistake; the message is one line: which key or file, what was given, what is allowed."""
