"""Plain values as a `Config`: every key known, every value of its type and possible."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, make_dataclass
from typing import Any, cast, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ratplus.config.cell import Config
from ratplus.records.record import flatten
from ratplus.sweeps.define.hydra_errors import omegaconf_line
from ratplus.sweeps.define.mistakes import UsageError

# Section -> its dataclass, which gives its defaults.
SECTIONS = {f.name: f.default_factory for f in fields(Config) if is_dataclass(f.default_factory)}
_TYPES = get_type_hints(Config)
_Scalars = make_dataclass(
    "_Scalars", [(f.name, _TYPES[f.name], f.default) for f in fields(Config) if f.name not in SECTIONS]
)
# Of a section's name ("" for the keys without one) and its values: what they are as dataclasses.
_typed: dict[tuple[str, str], object] = {}


def typed(plain: dict) -> Config:
    """Validate plain values (nested dicts); returns them as a Config.

    The values may stand in a folder that somebody else wrote, so nothing in them is resolved.

    Raises:
        UsageError: unknown key, wrong type, or impossible value.
    """
    _refuse_interpolation(plain)
    with _told():
        sections = {name: _section(name, plain.get(name, {})) for name in SECTIONS}
        others = {name: value for name, value in plain.items() if name not in SECTIONS}
        if (key := ("", repr(others))) not in _typed:
            _typed[key] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(_Scalars), others))
        scalars = copy.deepcopy(_typed[key])
        return Config(**sections, **vars(scalars))


def typed_section(name: str, plain: dict) -> Any:
    """One section alone, of a cell of which no more is asked: a whole one takes ten times as long; errors likewise."""
    _refuse_interpolation({name: plain})
    with _told():
        return _section(name, plain)


def _refuse_interpolation(plain: dict) -> None:
    if "${" in repr(plain):
        key, value = next((k, v) for k, v in flatten(plain).items() if "${" in repr((k, v)))
        raise UsageError(f"{key}: got {value!r}; ${{...}} is resolved in config files and overrides alone")


@contextmanager
def _told() -> Generator[None]:
    """What a value lacks, as a user's mistake."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise UsageError(omegaconf_line(error)) from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def _section(name: str, plain):
    """Validate one section. Cells of a sweep share most of their sections, and validating one takes milliseconds."""
    key = (name, repr(plain))
    if key not in _typed:
        # The section stands under its name here, so that errors name the whole key.
        schema = OmegaConf.create({name: OmegaConf.structured(SECTIONS[name])})
        _typed[key] = OmegaConf.to_object(cast(DictConfig, OmegaConf.merge(schema, {name: plain}))[name])
    return copy.deepcopy(_typed[key])
