"""One clear line for each error of Hydra and OmegaConf: which key, what was given, what is allowed."""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, fields

from omegaconf.errors import OmegaConfBaseException

from ratplus.config.cell import Config
from ratplus.records.lines import first_line
from ratplus.records.record import flatten

# What an override on the command line may begin with.
_SECTIONS = {f.name for f in fields(Config)} | {"experiment"}


def hydra_line(error: Exception) -> str:
    """Say in one line what an error of Hydra means for the user."""
    text = str(error)
    if found := re.search(r"In 'experiment/([^']+)': .*\nKey 'experiment' not in", text):
        return f"experiment={found[1]}: its file must begin with the line `# @package _global_`"
    if found := re.search(r"Could not find '([^']+)'(?:\s+Available options in '[^']+':\n((?:\t.*\n?)+))?", text):
        group, _, choice = found[1].rpartition("/")
        options = ", ".join((found[2] or "").split())
        return f"{group}={choice}: no such choice" + (f"; available: {options}" if options else "")
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1])
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OmegaConfBaseException):
            return omegaconf_line(cause)
    return " ".join(text.partition("See https")[0].split())


def omegaconf_line(error: OmegaConfBaseException) -> str:
    """Say in one line what an error of OmegaConf means for the user."""
    first = first_line(error)
    key = getattr(error, "full_key", None) or ""
    if "not in" in first and key:
        return _unknown_key(key)
    if found := re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", first):
        kinds = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
        return f"{key}: got {found[1]!r}; it must be {kinds.get(found[2], found[2])}"
    if found := re.match(r"Value '(.*)' is not a valid bool", first):
        return f"{key}: got {found[1]!r}; it must be true or false"
    return f"{key}: {first}" if key else first


def _unknown_key(key: str) -> str:
    key = key.lstrip("+~")
    known = list(flatten(asdict(Config())))
    parent, _, name = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent] if parent else sorted(_SECTIONS)
    # A typo in the last word is likelier than a wrong group.
    names = [k.rpartition(".")[2] for k in siblings]
    close = [f"{parent}.{n}".lstrip(".") for n in difflib.get_close_matches(name, names, n=1, cutoff=0.6)]
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    if close:
        return f"{key}: unknown key; did you mean {close[0]}?"
    return f"{key}: unknown key; allowed: {', '.join(siblings or sorted(_SECTIONS))}"
