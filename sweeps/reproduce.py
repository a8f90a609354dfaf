"""The command that makes a stage of a cell again, from the manifest alone: no experiment or user's YAML needed."""

from __future__ import annotations

import re
import shlex
from functools import lru_cache

from ratplus.sweeps.compose import UsageError, compose_one
from ratplus.sweeps.manifest import flatten

# What decides nothing, or is decided by the other keys.
_IGNORED = ("model.vocab_size", "eval.batch", "data.root", "data.workers")
_PLAIN = re.compile(r"[\w./@%+:-]+")


def command(entry: dict, stage: str, folder: str, threads: int | None = None) -> str:
    """A shell line that runs a manifest entry's cell up to `stage` in a new `folder`.

    It names every key that differs from the defaults of this version; with `threads`, sums are formed in the same
    order too.
    """
    words = overrides(entry)
    words += [] if threads is None else [f"run.threads={threads}"]
    return shlex.join(["ratplus", stage, *words, f"output={_word(folder)}"])


def overrides(entry: dict) -> list[str]:
    """Hydra overrides that compose to the config of a manifest entry."""
    wanted = {k: v for k, v in flatten(entry["config"]).items() if k not in _IGNORED}
    words = _first_words(wanted)
    there = _flat(words)
    # A key that this version doesn't know is left in: composing then says which one.
    return words + [f"{k}={_word(v)}" for k, v in wanted.items() if k not in there or there[k] != v]


def differences(entry: dict) -> list[str]:
    """Keys in which `overrides(entry)` composes to something else here; [] if this version can reproduce it.

    Raises:
        UsageError: this version can't compose it at all.
    """
    wanted = {k: v for k, v in flatten(entry["config"]).items() if k not in _IGNORED}
    there = _flat(overrides(entry))
    return sorted(k for k in wanted.keys() | there.keys() if wanted.get(k, there.get(k)) != there.get(k))


def _first_words(wanted: dict) -> list[str]:
    """The choices of groups that come closest: a shipped model of that name, and the source of the data."""
    words = []
    for word in (f"model={wanted['model.name']}", f"data={wanted['data.source']}"):
        if _composes((*words, word, *_required(wanted))):  # else a model of the user's own: all of its keys are named
            words.append(word)
    return words + _required(wanted)


def _required(wanted: dict) -> list[str]:
    return [f"data.path={_word(wanted['data.path'])}"] if wanted.get("data.path") else []


# Cells of a sweep have most of this in common, and composing takes a tenth of a second.
@lru_cache(maxsize=256)
def _composes(words: tuple[str, ...]) -> bool:
    try:
        compose_one(list(words))
    except UsageError:
        return False
    return True


def _flat(words: list[str]) -> dict:
    return _flat_of(tuple(words))


@lru_cache(maxsize=256)
def _flat_of(words: tuple[str, ...]) -> dict:
    config = vars(compose_one(list(words)).config)
    sections = {name: config[name] for name in ("model", "data", "train", "pattern", "eval", "seed")}
    return {k: v for k, v in flatten(_plain(sections)).items() if k not in _IGNORED}


def _plain(value):
    if hasattr(value, "__dataclass_fields__"):
        return {k: _plain(v) for k, v in vars(value).items()}
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _word(value) -> str:
    """A value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(_word(v) for v in value) + "]"
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
