"""Every number in a config is let through at the limits that its key's line says, and refused beyond them."""

import re
from dataclasses import fields, is_dataclass

import pytest

from ratplus.config.cell import Config
from ratplus.sweeps.define.key_reference import field_texts
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.typed import typed

_LIMIT = re.compile(r"([≥≤<>]) (\d[\d.]*)")
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
    **{f"launcher.{name}": {"launcher.kind": "slurm"}
       for name in ("cpus", "minutes", "requeues", "grace_seconds", "memory_gb", "array_size")},
}  # fmt: skip
# At their limit these break another rule, such as that a head has an even number of channels.
COUPLED = (
    "data.eos", "data.bos", "model.d_head", "model.rope_factor", "pattern.only_layer", "pattern.only_head",
    "pattern.snap", "pattern.kernel",
)  # fmt: skip


def limits(prefix: str = "", section: type = Config):
    """(key, whether it is whole, {sign: number}) of every field with limits."""
    texts, bare = field_texts(section), section()
    for field in fields(section):
        value = getattr(bare, field.name)
        if is_dataclass(value):
            yield from limits(f"{prefix}{field.name}.", type(value))
        elif field.name in texts and prefix + field.name not in COUPLED:
            allowed = texts[field.name].partition(" Allowed: ")[2].partition(" (")[0]
            found = {sign: float(number.rstrip(".")) for sign, number in _LIMIT.findall(allowed)}
            if found:
                yield prefix + field.name, "float" not in str(field.type), found


def refusal(key: str, value) -> str:
    """What is said of a config with this value; empty if it is taken."""
    plain: dict = {}
    for whole, given in {**BESIDE.get(key, {}), key: value}.items():
        *sections, name = whole.split(".")
        place = plain
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = given
    try:
        typed(plain)
    except UsageError as error:
        return str(error)
    return ""


ALL = list(limits())


@pytest.mark.parametrize(("key", "whole", "signs"), ALL, ids=[key for key, *_ in ALL])
def test_a_number_is_taken_at_its_limits_and_refused_beyond(key, whole, signs):
    small = 1 if whole else 1e-9
    for sign, limit in signs.items():
        inside = {"≥": limit, "≤": limit, ">": limit + small, "<": limit - small}[sign]
        beyond = {"≥": limit - small, "≤": limit + small, ">": limit, "<": limit}[sign]
        inside, beyond = (int(x) if whole else x for x in (inside, beyond))
        # At a limit another key may not go with the value, which is another rule.
        assert not refusal(key, inside).startswith(f"{key}: ")
        assert key.rpartition(".")[2] in refusal(key, beyond)


def test_most_keys_with_numbers_have_limits():
    assert len(ALL) > 100
