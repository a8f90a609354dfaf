"""docs/reference/keys.md says what the code says, and what it calls impossible is refused."""

import copy
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.key_reference import STAGES, page, tables
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.typed import typed

PAGE = Path(__file__).parents[3] / "docs/reference/keys.md"
KEYS = {key.name.replace("<stage>", stage): key for _, _, keys in tables() for key in keys for stage in STAGES}


COMPOSED = asdict(compose_one(["launcher=slurm"]).config)  # its launcher knows all keys but `address`


def leaves(values: dict, prefix: str = "") -> set[str]:
    found = set()
    for name, value in values.items():
        whole = not isinstance(value, dict) or prefix + name == "launcher.sbatch" or prefix == "sweep."
        found |= {prefix + name} if whole else leaves(value, f"{prefix}{name}.")
    return found


def error_of(key: str, value) -> str:
    """The line that refuses a config with this value, or "" if it is let through."""
    config = copy.deepcopy(COMPOSED)
    *sections, name = key.split(".")
    section = config
    for part in sections:
        section = section[part]
    if name == "mixed_over":  # refused where nothing is mixed
        section["mixed"] = ["D1", "D4"]
    section[name] = value
    try:
        typed(config)
    except UsageError as error:
        return str(error)
    return ""


def limits(key) -> list[tuple[str, float]]:
    """[(">=", 1), ...] of what the page says is allowed."""
    return [(sign, float(number)) for sign, number in re.findall(r"([≥≤<>]) ([\d.]+)", key.allowed)]


def words(key) -> list[str]:
    """The choices of a key that takes one of several words."""
    found = [w for w in key.allowed.split(", ") if w != "null"]
    return (
        found if key.type.startswith("text") and len(found) > 1 and all(re.fullmatch(r"\w+", w) for w in found) else []
    )


def test_the_page_is_what_make_docs_writes():
    assert PAGE.read_text() == page(), "run `make docs` and commit docs/reference/keys.md"


def test_every_key_is_on_the_page_with_its_meaning():
    assert set(KEYS) == leaves(COMPOSED)
    for name, key in KEYS.items():
        assert len(key.text) > 20, name
        assert key.allowed or key.type == "true or false", f"{name}: its docstring does not say what is allowed"


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if limits(key) and not name.startswith("sweep.")])
def test_what_lies_beyond_the_limits_is_refused(name):
    key = KEYS[name]
    whole = "whole" in key.type or key.type == "any"
    for sign, limit in limits(key):
        step = 1 if whole else limit / 2 or 1e-3
        beyond = {"≥": limit - step, "≤": limit + step, ">": limit, "<": limit}[sign]
        line = error_of(name, int(beyond) if whole else beyond)
        assert line.startswith(f"{name}:"), f"{beyond}: {line!r}"


# Adaptation alone mixes patterns: elsewhere every word is refused.
NEVER_SET = ("train.pretrain.mixed_over", "train.sft.mixed_over")


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if words(key) and name not in NEVER_SET])
def test_every_word_that_is_allowed_is_let_through_and_no_other(name):
    for word in words(KEYS[name]):
        assert not error_of(name, word).startswith(f"{name}:"), word
    assert error_of(name, "another").startswith(f"{name}:")


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if "null" in key.type])
def test_null_is_let_through_where_the_page_says_so(name):
    assert ("null" in KEYS[name].allowed) == (not error_of(name, None).startswith(f"{name}:"))
