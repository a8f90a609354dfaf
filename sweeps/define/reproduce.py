"""The command that makes a stage of a cell again, from the manifest alone: no experiment or user's YAML needed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache

from ratplus.records.manifest import Entry
from ratplus.records.record import flatten
from ratplus.sweeps.define.compose import RUNTIME, compose_one
from ratplus.sweeps.define.grid import override_value
from ratplus.sweeps.define.mistakes import UsageError

_LONGEST = 100_000  # Linux takes no word of more than 131,072 bytes
# Keys that decide no result, or that follow from other keys.
_IGNORED = ("model.vocab_size", "eval.batch", "data.root", "data.workers", "data.lossy", "data.longest_mib")


def command(entry: Entry, stage: str, folder: str, threads: int | None = None) -> str:
    """Write the shell line that runs a manifest entry's cell up to `stage` in a new `folder`.

    It names every key that differs from the defaults of this version; with `threads`, sums are formed in the same
    order too.

    Raises:
        UsageError: this version can't compose it, or nobody could paste it.
    """
    words = overrides(entry)
    words += [] if threads is None else [f"run.threads={threads}"]
    line = shlex.join(["ratplus", stage, *words, f"output={override_value(folder)}"])
    if len(line) > _LONGEST:
        raise UsageError(f"sweep.json: its config makes a command of {len(line):,} characters; no shell takes it")
    return line


def reproducer(cells: int) -> Callable[[Entry], str] | None:
    """The function that writes each cell's command for a report's page.

    None if there are so many cells that composing them all would take minutes.
    """
    return _command_or_reason if cells <= 100 else None


def _command_or_reason(entry: Entry) -> str:
    try:
        return command(entry, "evaluate", f"outputs/again-{entry['id']}")
    except UsageError as error:
        return f"# this version of ratplus can't compose it: {error}"
    except KeyError as missing:
        return f"# sweep.json lacks its key {missing}, so it can't be composed"


def overrides(entry: Entry) -> list[str]:
    """List the Hydra overrides that compose to the config of a manifest entry."""
    wanted = {k: v for k, v in flatten(entry["config"]).items() if k not in _IGNORED}
    for key, value in wanted.items():
        # The config may be somebody else's text: it chooses keys of cells, no settings of Hydra, and nothing resolves.
        if re.fullmatch(r"[a-z][\w.-]*", key) is None or key.startswith("hydra") or "${" in repr(value):
            raise UsageError(f"sweep.json: {key}={value!r} is no setting of a cell")
    words = _first_words(wanted)
    there = _flat(words)
    # A key that this version doesn't know is left in: composing then says which one.
    return words + [f"{k}={override_value(v)}" for k, v in wanted.items() if k not in there or there[k] != v]


def differences(entry: Entry) -> list[str]:
    """List the keys that `overrides(entry)` composes to other values here; none if this version can reproduce the cell.

    Raises:
        UsageError: this version can't compose it at all.
    """
    wanted = {k: v for k, v in flatten(entry["config"]).items() if k not in _IGNORED}
    there = _flat(overrides(entry))
    return sorted(k for k in wanted.keys() | there.keys() if wanted.get(k, there.get(k)) != there.get(k))


def _first_words(wanted: dict) -> list[str]:
    """Choose the groups that come closest: a shipped model of that name, and the source of the data."""
    words = []
    for group, name in (("model", str(wanted["model.name"])), ("data", str(wanted["data.source"]))):
        word = f"{group}={name}"
        if re.fullmatch(r"[\w-]{1,60}", name) is None:  # no longer one is a file of ours, or of any disk
            continue
        # A model of the user's own does not compose by its name; then all of its keys are named.
        if _composes((*words, word, *_required(wanted))):
            words.append(word)
    return words + _required(wanted)


def _required(wanted: dict) -> list[str]:
    return [f"data.path={override_value(wanted['data.path'])}"] if wanted.get("data.path") else []


# The cells of a sweep need few different compositions, and each takes a tenth of a second.
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
    config = asdict(compose_one(list(words)).config)
    science = {k: v for k, v in config.items() if k not in RUNTIME}
    return {k: v for k, v in flatten(science).items() if k not in _IGNORED}
