"""The words of `ratplus search`: keys of its own section, and Hydra overrides for the data of a model folder."""

from __future__ import annotations

import difflib
import re
from dataclasses import MISSING, fields
from typing import Any

from ratplus.config.search import SearchSection
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.override_words import home_of

_PLACES = ("model", "sweep", "out", "output", "bench")
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
# Groups of a cell's config that say what a model folder reads, or how.
_HYDRA = ("data", "train", "eval", "seed")


def parse(words: list[str]) -> tuple[SearchSection, list[str]]:
    """(section, overrides for the config of a cell with that model).

    Raises:
        UsageError: a word that is no `key=value`, an unknown key, or a value of the wrong kind.
        ValueError: an impossible value.
    """
    known = {f.name: f for f in fields(SearchSection)}
    values: dict[str, Any] = {}
    rest = []
    for word in words:
        key, sign, value = word.partition("=")
        if sign and key in known:
            # A group and a key of ours may have one name: `seed` is ours.
            values[key] = _value(key, str(known[key].type), value, known[key])
        elif sign and key.lstrip("+").partition(".")[0] in _HYDRA:
            rest.append(word)
        else:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}=?" if close and sign else (
                f"give key=value; keys: {', '.join(known)}; of a model folder also data=..., data.*, train.context"
            )  # fmt: skip
            raise UsageError(f"search: {word!r}: {hint}")
    return SearchSection(**values), rest


def _value(key: str, kind: str, text: str, field) -> Any:
    if key in _PLACES:
        text = home_of(key, text)
    optional = "None" in kind
    if text == "null":
        if optional:
            return None
        default = field.default if field.default is not MISSING else field.default_factory()
        raise UsageError(f"{key}: got null; it must have a value, such as {default!r}")
    kind = kind.partition(" |")[0]
    if kind == "list[str]":
        # Commas within brackets belong to a label.
        inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [part.strip() for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", inner) if part.strip()]
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{key}: got {text!r}; it must be true or false")
        return text.lower() == "true"
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:
            raise UsageError(f"{key}: got {text!r}; it must be {_KINDS[kind]}") from None
    return text
