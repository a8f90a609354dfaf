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


# What a key needs beside it to mean something.
BESIDE = {
    "model.d_model": {"model.query_heads": 1}, "model.d_state": {"model.mixer": "mamba2"},
    "model.rope_original": {"model.rope_scaling": "yarn", "model.rope_factor": 2.0},
    "model.rope_low": {"model.rope_scaling": "llama3", "model.rope_factor": 2.0, "model.rope_original": 64,
                       "model.rope_high": 4.0},
    "model.rope_high": {"model.rope_scaling": "llama3", "model.rope_factor": 2.0, "model.rope_original": 64,
                        "model.rope_low": 1e-12},
    "pattern.top": {"pattern.dilation": None},
    "pattern.block": {"pattern.top": 2}, "pattern.seed": {"pattern.top": 2, "pattern.score": "random"},
    "pattern.observe": {"pattern.dilation": None, "pattern.snap": 64, "eval.text_rows": 0, "eval.recall_rows": 0,
                        "train.adapt.steps": 0},
    "eval.efficiency.memory_gb": {"eval.efficiency.enabled": True}, "trainer.devices": {"trainer.strategy": "ddp"},
    **{f"train.{stage}.mixed_over": {f"train.{stage}.mixed": ["D1", "D4"]} for stage in STAGES},
}  # fmt: skip
# At their limit these break another rule of their own, such as that a head has an even number of channels.
COUPLED = ("model.d_head", "pattern.kernel")


def error_of(key: str, value, beside: dict | None = None) -> str:
    """The line that refuses a config with this value, and those of `beside`, or "" if it is let through."""
    config = copy.deepcopy(COMPOSED)
    for whole, given in {**(beside or {}), key: value}.items():
        *sections, name = whole.split(".")
        section = config
        for part in sections:
            section = section[part]
        section[name] = given
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
def test_a_number_is_taken_at_its_limits_and_refused_beyond(name):
    key = KEYS[name]
    whole = "whole" in key.type or key.type == "any"
    small = 1 if whole else 1e-9
    for sign, limit in limits(key):
        inside = {"≥": limit, "≤": limit, ">": limit + small, "<": limit - small}[sign]
        beyond = {"≥": limit - small, "≤": limit + small, ">": limit, "<": limit}[sign]
        inside, beyond = (int(x) if whole else x for x in (inside, beyond))
        line = error_of(name, beyond, BESIDE.get(name))
        assert line.startswith(f"{name}:"), f"{beyond}: {line!r}"
        line = error_of(name, inside, BESIDE.get(name))
        if name == "pattern.top" and limit == 1:  # allowed with pattern.first=false alone, as the page says
            line = error_of(name, inside, BESIDE[name] | {"pattern.first": False, "pattern.score": "mean"})
        assert name in COUPLED or not line.startswith(f"{name}:"), f"{inside}: {line!r}"


# Adaptation alone mixes patterns: elsewhere every word is refused.
NEVER_SET = ("train.pretrain.mixed_over", "train.sft.mixed_over")


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if words(key) and name not in NEVER_SET])
def test_every_word_that_is_allowed_is_let_through_and_no_other(name):
    for word in words(KEYS[name]):
        assert not error_of(name, word, BESIDE.get(name)).startswith(f"{name}:"), word
    assert error_of(name, "another", BESIDE.get(name)).startswith(f"{name}:")


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if "null" in key.type])
def test_null_is_let_through_where_the_page_says_so(name):
    assert ("null" in KEYS[name].allowed) == (not error_of(name, None).startswith(f"{name}:"))
