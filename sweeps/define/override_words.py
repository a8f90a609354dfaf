"""Words of the command line that Hydra's grammar refuses: which word, which character, and what to type instead.

Hydra's parser is generated, and its errors speak of lexers and tokens. Here each word is looked at as a user sees it.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ratplus.records.lines import first_line
from ratplus.sweeps.define.mistakes import UsageError

# Keys whose value is a place on this machine, where ~ means the home folder.
PATH_KEYS = (
    "output",
    "data.path",
    "data.root",
    "data.tokenizer",
    "data.validation_path",
    "model.init_from",
    "run.store",
)
_KEY = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@:-]*", re.ASCII)
# What Hydra's grammar takes in a value without quotes.
_PLAIN = re.compile(r"[\w/\\+.$%*@?|:, -]", re.ASCII)
_FUNCTIONS = re.compile(r"(?:bool|choice|float|glob|int|interval|range|shuffle|sort|str|tag)\s*\(", re.ASCII)
_HOMES = re.compile(r"~[\w./@%+:-]*(?:,~?[\w./@%+:-]+)*")
_AS_TEXT = "quoted, it is taken as it stands"


def expand_home(word: str) -> str:
    """A word such as `data.path=~/corpus`, which neither the shell nor Hydra understands, with the home folder in it.

    Raises:
        UsageError: there is no such user.
    """
    key, sign, value = word.partition("=")
    if not sign or key not in PATH_KEYS or not _HOMES.fullmatch(value):
        return word
    places = [home_of(key, place) for place in value.split(",")]
    return f"{key}=" + ",".join(_quoted(place) if "~" not in place else place for place in places)


def home_of(key: str, place: str) -> str:
    """A path with its leading ~ or ~user replaced; other paths as they are.

    Raises:
        UsageError: there is no such user.
    """
    try:
        return str(Path(place).expanduser()) if place.startswith("~") else place
    except RuntimeError:
        raise UsageError(
            f"{key}: got {place!r}; there is no home folder of that name; write the path in full"
        ) from None


def refuse_words(words: list[str], parser: OverridesParser) -> None:
    """Raise the one line for the first word that Hydra's grammar refuses.

    Raises:
        UsageError: always, where the parser has refused all words together.
    """
    for word in words:
        try:
            parser.parse_overrides([word])
        except HydraException as error:
            raise UsageError(_line(word, error, parser)) from None


def _line(word: str, error: HydraException, parser: OverridesParser) -> str:
    key, sign, value = word.partition("=")
    if not word.strip():
        return f"got an empty word ({word!r}); an override is key=value, and an empty value is quoted: 'key=\"\"'"
    if not sign:
        return f"{word!r}: not an override; give key=value, with a value of several words quoted: 'key=\"a b\"'"
    if key != key.strip() and _KEY.fullmatch(key.strip()):
        proper = shlex.quote(f"{key.strip()}={value.strip()}")
        return f"{word!r}: no spaces around =; type {proper} (spaces within a value are quoted: 'key=\"a b\"')"
    if not _KEY.fullmatch(key):
        strange = next((c for c in key if not re.match(r"[\w./@:+~-]", c, re.ASCII)), key[:1])
        return f"{word!r}: the key holds {strange!r}; keys are letters, digits, _ and dots, and only values are quoted"
    typed = f"{key}={_quoted(value)}"
    try:
        parser.parse_overrides([typed])
        instead = f"; {_AS_TEXT}: {shlex.quote(typed)}"
    except HydraException:
        instead = ""
    if _FUNCTIONS.match(value):
        reason = first_line(error).rpartition("while evaluating ")[2].partition("': ")[2]
        reason = reason or "a function whose brackets, commas or quotes are not in order"
        return f"{word}: {' '.join(reason.split())}{instead}"
    if value[:1] in "[{\"'" and value:
        return f"{word}: brackets, quotes or commas are not in order{instead}"
    strange = next((c for c in value if not _PLAIN.match(c)), None)
    holds = f"the value holds {strange!r}, which needs quotes" if strange else "the value needs quotes"
    return f"{word}: {holds}{instead}"


def _quoted(value: str) -> str:
    # Within Hydra's quotes a backslash escapes nothing but the quote, and backslashes right before it.
    return '"' + re.sub(r'(\\*)(?="|$)', lambda run: run[1] * 2, value).replace('"', '\\"') + '"'
