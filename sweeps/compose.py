"""From overrides to cells: Hydra composes, dataclasses validate, and nothing starts before every cell is valid."""

from __future__ import annotations

import difflib
import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ratplus.config import Config

ConfigStore.instance().store(name="schema", node=Config)

# Keys that two cells of one sweep folder may differ in without being named as an axis.
NATURAL_AXES = ("model", "pattern", "seed")
# How and where cells run; differences here are nobody's business.
RUNTIME = ("run", "logger", "launcher", "trainer", "output", "sweep", "retry", "max_failures", "dry_run")

# What a word on the command line may begin with.
_SECTIONS = {f.name for f in fields(Config)} | {"experiment"}


class UsageError(ValueError):
    """A user's mistake; the message is one line: which key or file, what was given, what is allowed."""


@dataclass
class Composed:
    """One composed cell: its typed config, the overrides that make it, and the chosen names of the config groups."""

    config: Config
    overrides: list[str]
    choices: dict[str, str] = field(default_factory=dict)
    axes: list[str] = field(default_factory=list)


@contextmanager
def hydra_session(config_dir: str | None = None):
    """Hydra's search path: our shipped configs, and a folder of the user's if given."""
    GlobalHydra.instance().clear()
    extra = []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UsageError(f"--config-dir {config_dir}: no such folder")
        extra = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"]
    with initialize_config_module("ratplus.conf", version_base="1.3", job_name="ratplus"):
        yield extra


def compose_cells(overrides: list[str], config_dir: str | None = None, sweep: bool = True) -> list[Composed]:
    """Every cell that the overrides ask for, in a fixed order and without repeats.

    Args:
        overrides: as on Hydra's command line; `a=1,2`, `glob(*)` and `range()` make axes.
        sweep: also expand the grid and points of the chosen `sweep` group.

    Raises:
        UsageError: any mistake in any cell.
    """
    with hydra_session(config_dir) as extra:
        parsed = _parse(overrides)
        fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
        swept = [o for o in parsed if o.is_sweep_override()]
        given = [_plain_key(o.get_key_element()) for o in parsed]
        own_axes = {_plain_key(o.get_key_element()) for o in swept}
        _refuse_odd_axes(own_axes)
        axes = set(own_axes)
        choices = [
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] for o in swept
        ]  # fmt: skip
        cells: dict[str, Composed] = {}
        grids: dict[tuple, list[list[str]]] = {}
        composed: dict = {}
        for combination in product(*choices):
            line = [*fixed, *combination]
            about_sweep = tuple(o for o in line if re.match(r"[+~]*(experiment|sweep)\b", o))
            if about_sweep not in grids:
                grids[about_sweep] = _grid(list(about_sweep) + extra, given, own_axes, composed) if sweep else [[]]
            for point in grids[about_sweep]:
                axes |= {o.partition("=")[0] for o in point}
                words = point + line
                config, chosen = _compose(words + extra, composed)
                key = repr({k: v for k, v in asdict(config).items() if k not in RUNTIME})
                cells.setdefault(key, Composed(config, words, chosen))
        if not cells:
            raise UsageError(f"{' '.join(o.input_line for o in swept)}: matches nothing, so there is no cell to run")
        for cell in cells.values():
            cell.axes = sorted(axes)
        return list(cells.values())


def compose_one(overrides: list[str], config_dir: str | None = None) -> Composed:
    """The single cell of a command that takes no sweep.

    Raises:
        UsageError: a mistake, or an override that asks for several values.
    """
    with hydra_session(config_dir) as extra:
        several = [o.input_line for o in _parse(overrides) if o.is_sweep_override()]
        if several:
            raise UsageError(f"{several[0]}: several values; add -m to run them all, or use `ratplus sweep`")
        config, chosen = _compose(overrides + extra, {})
        return Composed(config, overrides, chosen)


def typed(plain) -> Config:
    """A validated Config of plain values (nested dicts).

    Raises:
        UsageError: unknown key, wrong type, or impossible value.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    except OmegaConfBaseException as error:
        raise UsageError(_omegaconf_line(error)) from None
    except ValueError as error:
        raise UsageError(str(error)) from None


# ---- composition --------------------------------------------------------------------------------------------------


def _compose(overrides: list[str], composed: dict) -> tuple[Config, dict]:
    """Config and chosen names. `composed` keeps what Hydra made of equal group choices: composing takes it 0.2 s."""
    # Plain `key=value` words change values of a composed config; everything else chooses what it is composed of.
    values = [o for o in _parse(overrides) if o.type == OverrideType.CHANGE and _is_value(o.key_or_group)]
    lines = {o.input_line for o in values}
    chosen_by = tuple(o for o in overrides if o not in lines)
    try:
        if chosen_by not in composed:
            composed[chosen_by] = compose("config", overrides=list(chosen_by), return_hydra_config=True)
        cfg = composed[chosen_by].copy()
        for o in values:
            OmegaConf.update(cfg, o.key_or_group, o.value())
        chosen = {k: v for k, v in cfg.hydra.runtime.choices.items() if not k.startswith("hydra")}
        plain = {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v
                 for k, v in cfg.items() if k != "hydra"}  # fmt: skip
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_hydra_line(error)) from None
    return typed(plain), chosen


def _is_value(key: str) -> bool:
    """True for a key that is no config group and not Hydra's own."""
    if key.startswith("hydra") or "@" in key or "/" in key:
        return False
    return not GlobalHydra.instance().config_loader().get_group_options(key)


def _parse(overrides: list[str]):
    try:
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
    except HydraException as error:
        raise UsageError(_hydra_line(error)) from None
    for override in parsed:
        if override.is_delete():
            raise UsageError(f"{override.input_line}: a cell needs all of its groups; choose another one instead")
    return parsed


def _refuse_odd_axes(axes: set[str]) -> None:
    for axis in sorted(axes):
        if axis.partition(".")[0] in RUNTIME:
            raise UsageError(f"{axis}: cannot have several values; it says how cells run, not what they are")


def _plain_key(key: str) -> str:
    return key.lstrip("+~").partition("@")[0].replace("/", ".")


def _grid(about_sweep: list[str], given: list[str], axes: set[str], composed: dict) -> list[list[str]]:
    """Override lists of the sweep group's grid × points, less what the command line itself decides.

    A group that the command line chooses (`pattern=...`) or makes an axis of (`pattern.window=0,64`) replaces all that
    the sweep file says about it, so a shipped sweep can be run with other patterns or one model.

    Args:
        given: keys that the command line sets; `axes`: those that it gives several values.
    """
    config, _ = _compose(about_sweep, composed)
    spec = config.sweep or {}
    unknown = set(spec) - {"name", "grid", "points"}
    if unknown:
        raise UsageError(f"sweep.{sorted(unknown)[0]}: unknown key; allowed: name, grid, points")
    # A choice or an axis replaces the group; a single value of a key is applied on top of every cell.
    decided = {key for key in given if "." not in key} | {key.partition(".")[0] for key in axes}

    def expand(mapping: dict, where: str) -> list[list[str]]:
        if not isinstance(mapping, dict):
            raise UsageError(f"{where}: got {mapping!r}; it must be a mapping from keys to values")
        kept = {k: v for k, v in mapping.items() if k.partition(".")[0] not in decided and k not in given}
        lists = [[f"{k}={_word(v)}" for v in (vs if isinstance(vs, list) else [vs])] for k, vs in kept.items()]
        return [list(c) for c in product(*lists)]

    grid = expand(spec.get("grid") or {}, "sweep.grid")
    points = [p for i, point in enumerate(spec.get("points") or [{}]) for p in expand(point, f"sweep.points[{i}]")]
    return [a + b for a in grid for b in points]


def _word(value) -> str:
    """A value as Hydra's override grammar writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(_word(v) for v in value) + "]"
    return str(value)


# ---- one clear line per mistake -----------------------------------------------------------------------------------


def _hydra_line(error: Exception) -> str:
    text = str(error)
    if found := re.search(r"Could not find '([^']+)'(?:\s+Available options in '[^']+':\n((?:\t.*\n?)+))?", text):
        group, _, choice = found[1].rpartition("/")
        options = ", ".join((found[2] or "").split())
        return f"{group}={choice}: no such choice" + (f"; available: {options}" if options else "")
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(found[1])
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OmegaConfBaseException):
            return _omegaconf_line(cause)
    return " ".join(text.partition("See https")[0].split())


def _omegaconf_line(error: OmegaConfBaseException) -> str:
    first = str(error).splitlines()[0].strip()
    key = getattr(error, "full_key", None) or ""
    if "not in" in first and key:
        return _unknown_key(key)
    if found := re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", first):
        kinds = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
        return f"{key}: got {found[1]!r}; it must be {kinds.get(found[2], found[2])}"
    return f"{key}: {first}" if key else first


def _unknown_key(key: str) -> str:
    key = key.lstrip("+~")
    known = _known_keys(asdict(Config()))
    parent, _, name = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent] if parent else sorted(_SECTIONS)
    # A typo in the last word is likelier than a wrong group.
    names = [k.rpartition(".")[2] for k in siblings]
    close = [f"{parent}.{n}".lstrip(".") for n in difflib.get_close_matches(name, names, n=1, cutoff=0.6)]
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    if close:
        return f"{key}: unknown key; did you mean {close[0]}?"
    return f"{key}: unknown key; allowed: {', '.join(siblings or sorted(_SECTIONS))}"


def _known_keys(plain: dict, prefix: str = "") -> list[str]:
    keys = []
    for name, value in plain.items():
        keys += _known_keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return keys
