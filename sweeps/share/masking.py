"""Secrets and paths of this machine, masked in what leaves it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ratplus.records.secrets import Scrubber, looks_secret

MASKED_PATH = "[path]"
# An absolute path of two names or more, of POSIX or of Windows; the last name stays. Part of an address it is not.
_PATH = re.compile(r"(?<![\w./~-])(?:file://)?(?:~|[A-Za-z]:)?(?:[/\\][\w.@+%-]+)+[/\\](?P<last>[\w.@+%-]+)[/\\]?")
_WHOLE = re.compile(r"(?:/|~[\w.-]*/|[A-Za-z]:\\|\\\\)[^\n]*")
_NUMBERS = re.compile(r"[\d.,eE+\-\s]*")
# A number as the value of a key in a line of JSON, and one that looks as much like a secret as a number can.
_VALUE = re.compile(r'(?<=": )-?\d[\d.eE+\-]*(?=[,}])')
_ANY_VALUE = "12345678901234567890"
_MOST_KEPT = 200_000
_LONGEST_KEPT = 4_000
# Absolute paths that were found and are looked for in pages, where markup and scripts hold other things like paths.
_MOST_PATHS = 2_000


class Mask:
    """Masks texts, and remembers which paths it found."""

    def __init__(self, *places: Path):
        """`places` are folders of this machine (home, the working folder) that are masked wherever they stand."""
        self._scrub = Scrubber()
        self._known: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        for place in places:
            if len(place.parts) > 2:  # / and /root stand in texts by chance
                self._paths[str(place)] = MASKED_PATH

    def text(self, text: str) -> str:
        """A text without secrets and absolute paths."""
        known = self._known.get(text)
        if known is not None:
            return known
        clean = self._scrub(text)
        if _WHOLE.fullmatch(clean) and ("/" in clean.strip("/\\~") or "\\" in clean.strip("/\\~")):
            clean = self._masked(clean, re.split(r"[/\\]", clean.rstrip("/\\"))[-1])
        else:
            clean = _PATH.sub(lambda found: self._masked(found[0], found["last"]), clean)
        if len(text) <= _LONGEST_KEPT and len(self._known) < _MOST_KEPT:
            self._known[text] = clean
        return clean

    def line(self, line: str) -> str:
        """A line of numbers or of JSON.

        A file of samples has thousands of lines that differ in numbers alone: what is found in none of one form is
        looked for once. A secret of the environment may be a number, and is looked for in every line.
        """
        if _NUMBERS.fullmatch(line):
            return line
        form = _VALUE.sub(_ANY_VALUE, line)
        return line if self.text(form) == form and not self._scrub.knows(line) else self.text(line)

    def _masked(self, path: str, last: str) -> str:
        masked = f"{MASKED_PATH}/{last}"
        if len(self._paths) < _MOST_PATHS:
            self._paths[path] = masked
        return masked

    def tree(self, value: Any) -> Any:
        """Nested dicts and lists with all texts masked; a text under a name that looks secret goes whole."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {
                self.text(key): "***" if isinstance(item, str) and item and looks_secret(key) else self.tree(item)
                for key, item in value.items()
            }
        return [self.tree(item) for item in value] if isinstance(value, list) else value

    def page(self, text: str) -> str:
        """A page or table that was made of masked things: secrets, and the paths that were found so far."""
        if self._paths:
            longest_first = sorted(self._paths, key=len, reverse=True)
            found = re.compile("|".join(re.escape(path) for path in longest_first))
            text = found.sub(lambda path: self._paths[path[0]], text)
        return self._scrub(text)
