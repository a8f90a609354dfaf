"""From overrides to cells: Hydra composes, dataclasses validate, and nothing starts before every cell is valid."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import islice, product
from pathlib import Path
from typing import cast

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ratplus import conf
from ratplus.config.cell import Config
from ratplus.config.pattern import EACH
from ratplus.records.record import flatten
from ratplus.records.secrets import secret_finder
from ratplus.sweeps.define import grid
from ratplus.sweeps.define.given_model import take_shape
from ratplus.sweeps.define.hydra_errors import config_file_line, hydra_line
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.override_words import PATH_KEYS, expand_home, home_of, refuse_words
from ratplus.sweeps.define.own_files import (
    NO_EFFECT,
    open_keys,
    open_line,
    refuse_hidden,
    refuse_hydra_section,
    refuse_open,
)
from ratplus.sweeps.define.pattern_labels import labels_as_keys
from ratplus.sweeps.define.set_values import with_values
from ratplus.sweeps.define.typed import SECTIONS, typed
from ratplus.sweeps.define.yaml_aliases import refuse_many_aliases

ConfigStore.instance().store(name="schema", node=Config)

# Keys that two cells of one sweep folder may differ in without being named as an axis.
NATURAL_AXES = ("model", "pattern", "seed")
# Sections that say how and where cells run. They change no result, so cells may differ in them.
RUNTIME = (
    "run", "logger", "launcher", "trainer", "output", "sweep", "retry", "max_failures", "dry_run", "objective",
)  # fmt: skip


@dataclass
class Composed:
    """One composed cell: typed config, chosen names of the config groups, and the keys that its sweep varies."""

    config: Config
    choices: dict[str, str] = field(default_factory=dict)
    axes: list[str] = field(default_factory=list)


@contextmanager
def hydra_session(config_dir: str | None = None):
    """Let Hydra search the shipped configs, and the user's folder if given; gives the overrides for that folder."""
    GlobalHydra.instance().clear()
    extra = []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UsageError(f"--config-dir {config_dir}: no such folder")
        refuse_many_aliases(config_dir)
        extra = [f"hydra.searchpath=[file://{os.path.realpath(config_dir)}]"]
    with initialize_config_module("ratplus.conf", version_base="1.3", job_name="ratplus"):
        yield extra


def compose_cells(overrides: list[str], config_dir: str | None = None, sweep: bool = True) -> list[Composed]:
    """Compose every cell that the overrides ask for, in a fixed order and without repeats.

    Args:
        overrides: as on Hydra's command line; `a=1,2`, `glob(*)` and `range()` make axes.
        sweep: also expand the chosen `sweep` group (grid, zip, points, seeds, exclude).

    Raises:
        UsageError: any mistake in any cell.
    """
    with hydra_session(config_dir) as extra:
        composer = _Composer(extra, config_dir)
        overrides = labels_as_keys([expand_home(word) for word in overrides], config_dir)
        parsed = composer.parse(overrides)
        fixed = [word for word, o in zip(overrides, parsed) if not o.is_sweep_override()]
        swept = [(word, o) for word, o in zip(overrides, parsed) if o.is_sweep_override()]
        given = {plain_key(o.get_key_element()) for o in parsed}
        own_axes = {plain_key(o.get_key_element()) for _, o in swept}
        refuse_odd_axes(own_axes)
        # A choice or an axis replaces the group; a single value of a key is applied on top of every cell.
        decided = {key for key in given if "." not in key} | {key.partition(".")[0] for key in own_axes}
        axes = set(own_axes)
        choices = [_values(o) for _, o in swept]
        cells: dict[str, Composed] = {}
        specs: dict[tuple, dict] = {}
        dropped = 0
        for combination in product(*choices):
            line = [*fixed, *combination]
            about_sweep = tuple(o for o in line if re.match(r"[+~]*(experiment|sweep)\b", o))
            if about_sweep not in specs:
                # Other words may give what these files leave open, so nothing is missing yet.
                specs[about_sweep] = (composer.compose(list(about_sweep), whole=False)[0].sweep or {}) if sweep else {}
            spec = specs[about_sweep]
            for point in grid.expand(spec, decided, given):
                axes |= {o.partition("=")[0] for o in point}
                config, chosen = composer.compose(labels_as_keys(point, config_dir) + line)
                for one in each_place(config):
                    if grid.excluded(spec.get("exclude") or [], one, chosen):
                        dropped += 1
                        continue
                    cells.setdefault(_what_it_is(one), Composed(one, chosen))
        if not cells:
            asked = " ".join(word for word, _ in swept)
            raise UsageError(f"sweep.exclude: it leaves none of {dropped} cells" if dropped else
                             f"{asked}: matches nothing, so there is no cell to run")  # fmt: skip
        for cell in cells.values():
            cell.axes = sorted(axes)
        return list(cells.values())


def compose_one(overrides: list[str], config_dir: str | None = None) -> Composed:
    """Compose the single cell of a command that takes no sweep.

    Raises:
        UsageError: a mistake, or an override that asks for several values.
    """
    with hydra_session(config_dir) as extra:
        composer = _Composer(extra, config_dir)
        overrides = labels_as_keys([expand_home(word) for word in overrides], config_dir)
        several = [o.input_line for o in composer.parse(overrides) if o.is_sweep_override()]
        if several:
            raise UsageError(f"{several[0]}: several values; add -m to run them all, or use `ratplus sweep`")
        config, chosen = composer.compose(overrides)
        if len(each_place(config)) > 1:
            raise UsageError(f"pattern.only_layer or only_head: {EACH} makes several cells; use `ratplus sweep`")
        return Composed(each_place(config)[0], chosen)


def finished(
    plain: dict, chosen: Mapping[str, str], given: set[str], config_dir: str | None, whole: bool = True
) -> Config:
    """The typed config of a cell that has been composed and resolved, with home folders and the shape of `init_from`.

    Args:
        plain: the composed values, which are changed in place.
        chosen: config group -> name of the choice.
        given: keys of the words that it was composed with.
        config_dir: the user's folder of config groups.
        whole: refuse a value that a file leaves open (`???`) and no word gives.

    Raises:
        UsageError: a value that is not allowed, left open or a secret.
    """
    holds_secret = secret_finder()
    for key, value in flatten(plain).items():
        _refuse_secret(key, value, holds_secret)
    if whole:
        refuse_open(plain)
        if config_dir is not None:
            refuse_hidden(config_dir, chosen)
            if unset := open_keys(config_dir, chosen) - given:
                raise UsageError(open_line(min(unset)))
    _expand_homes(plain)
    take_shape(plain, given)
    return typed(plain)


def each_place(config: Config) -> list[Config]:
    """The cells that `pattern.only_layer=each` and `pattern.only_head=each` stand for; else the config alone."""
    pattern, model = config.pattern, config.model
    heads = model.kv_heads or model.heads
    asked = [(pattern.only_layer, model.layers), (pattern.only_head, heads)]
    if EACH not in (pattern.only_layer, pattern.only_head):
        return [config]
    places = product(*(range(count) if value == EACH else [value] for value, count in asked))
    return [replace(config, pattern=replace(pattern, only_layer=layer, only_head=head)) for layer, head in places]


def _what_it_is(config: Config) -> str:
    """A text that two configs share if they differ in nothing but how and where they run."""
    return repr([getattr(config, f.name) for f in fields(config) if f.name not in RUNTIME])


# ---- composition --------------------------------------------------------------------------------------------------


class _Composer:
    """Composes with Hydra, which takes 0.1 s each time; so what the cells of a sweep share is composed only once."""

    def __init__(self, extra: list[str], config_dir: str | None):
        self.extra = extra  # overrides of every composition, such as the search path
        self._config_dir = config_dir
        self._loader = GlobalHydra.instance().config_loader()
        # What was composed of our own files alone is kept for the next call in this process, until one of them changes.
        self._composed: dict[tuple, tuple[dict, dict]] = {} if extra else _composed_of_shipped(_shipped_files())
        self._resolved: dict[str, dict] = {}
        self._groups: dict[str, bool] = {}
        self._parser = OverridesParser.create(config_loader=self._loader)
        self._parsed: dict[str, Override] = {}

    def compose(self, overrides: list[str], whole: bool = True) -> tuple[Config, dict[str, str]]:
        """Compose one cell; returns its typed config, and the chosen name of each config group.

        Args:
            whole: refuse a value that a file leaves open (`???`) and no word gives.
        """
        # Plain `key=value` words change values of a composed config; everything else chooses what it is composed of.
        values = [o for o in self.parse(overrides) if o.type == OverrideType.CHANGE and not self._is_group(o)]
        lines = {o.input_line for o in values}
        chosen_by = tuple(o for o in overrides if o not in lines)
        try:
            sections, chosen = self._chosen(chosen_by)
            plain = with_values(sections, values, self._resolved)
        except Exception as error:  # the YAML reader and Hydra let pass whatever a file of the user's makes them raise
            if line := config_file_line(error, self._config_dir, chosen_by):
                raise UsageError(line) from None
            if not isinstance(error, (HydraException, OmegaConfBaseException)):
                raise
            raise UsageError(hydra_line(error)) from None
        if whole and self._config_dir is not None:
            refuse_hydra_section(self._config_dir, chosen)
        given = {plain_key(o.get_key_element()) for o in self.parse(overrides)}
        return finished(plain, chosen, given, self._config_dir, whole), dict(chosen)

    def _chosen(self, words: tuple[str, ...]) -> tuple[dict, dict[str, str]]:
        """Compose group choices and other words that Hydra must see; returns unresolved config and chosen names.

        Groups that touch nothing but their own section are composed one by one and put together: a sweep over 2 models
        and 50 patterns needs 52 compositions, not 100. Where a choice touches more, all are composed at once.
        """
        if words in self._composed:
            return self._composed[words]
        groups = [w for w in words if re.fullmatch(r"\w+=\w+", w) and w.partition("=")[0] in SECTIONS]
        if len({w.partition("=")[0] for w in groups}) < len(groups):
            return self._by_hydra(words)  # a group is chosen twice, and Hydra's error says so
        rest = tuple(w for w in words if w not in groups)
        base = self._by_hydra(rest)
        sections, chosen = dict(base[0]), dict(base[1])
        for word in groups:
            group, _, choice = word.partition("=")
            if base[1].get(group) == choice:
                continue
            alone = self._by_hydra((*rest, word))
            if any(alone[0][k] != base[0][k] for k in base[0] if k != group):
                return self._by_hydra(words)
            sections[group], chosen[group] = alone[0][group], choice
        self._composed[words] = sections, chosen
        return sections, chosen

    def _by_hydra(self, words: tuple[str, ...]) -> tuple[dict, dict[str, str]]:
        if words not in self._composed:
            composed = compose("config", overrides=[*words, *self.extra], return_hydra_config=True)
            chosen = {k: v for k, v in composed.hydra.runtime.choices.items() if not k.startswith("hydra")}
            own = OmegaConf.masked_copy(composed, [str(k) for k in composed if k != "hydra"])
            self._composed[words] = cast("dict", OmegaConf.to_container(own)), chosen
        return self._composed[words]

    def parse(self, overrides: list[str]) -> list[Override]:
        """Each word as Hydra reads it. The cells of a sweep share their words, so each is read once."""
        for word in overrides:
            if word not in self._parsed:
                self._parsed[word] = self._parse(word, overrides)
        return [self._parsed[word] for word in overrides]

    def _parse(self, word: str, overrides: list[str]) -> Override:
        try:
            (override,) = self._parser.parse_overrides([word])
        except HydraException as error:
            refuse_words(overrides, self._parser)
            raise UsageError(hydra_line(error)) from None
        key = override.key_or_group
        if re.match(r"hydra\b", key) and key != "hydra.searchpath":
            raise UsageError(f"{word}: {key} {NO_EFFECT}")
        if key == "objective":
            raise UsageError(f"{word}: objective is what ratplus-hydra tells a sweeper of Hydra's; "
                             "`ratplus best --metric` chooses among the cells of a sweep")  # fmt: skip
        if not key:
            raise UsageError(f"{word!r}: no key before =; give key=value")
        if not override.is_sweep_override() and self._is_group(override):
            value = override.value()
            if not override.is_delete() and not isinstance(value, (str, dict, QuotedString)):
                raise UsageError(f"{word}: {key} takes the name of one choice, or {{key: value}}")
        if override.is_delete():
            raise UsageError(f"{word}: a cell needs all of its groups; choose another one instead")
        return override

    def _is_group(self, override) -> bool:
        """True if an override chooses a config group or sets a key of Hydra's own."""
        key = override.key_or_group
        if key.startswith("hydra") or "@" in key or "/" in key:
            return True
        if key not in self._groups and "." in key and self._config_dir is None:
            return False  # a key inside a section: none of our groups has a dot in its name
        if key not in self._groups:
            folders = [Path(root) / key for root in (conf.__path__[0], self._config_dir) if root is not None]
            self._groups[key] = any(any(folder.glob("*.yaml")) for folder in folders)
        return self._groups[key]


def _shipped_files() -> tuple[tuple[str, int], ...]:
    """Our own config files with their times of change."""
    return tuple(sorted((str(p), p.stat().st_mtime_ns) for p in Path(conf.__path__[0]).rglob("*.yaml")))


@lru_cache(maxsize=1)
def _composed_of_shipped(_files: tuple) -> dict[tuple, tuple[dict, dict]]:
    return {}


def _refuse_secret(key: str, value, holds_secret: Callable[[str], str | None]) -> None:
    """Refuse a value that a config took from the environment and that would then stand in records, tables and W&B."""
    if isinstance(value, (list, tuple, dict)):
        for item in flatten(value).values() if isinstance(value, dict) else value:
            _refuse_secret(key, item, holds_secret)
    elif isinstance(value, str) and (name := holds_secret(value)) is not None:
        raise UsageError(
            f"{key}: holds the value of the environment variable {name}, a secret by its name; configs are written to "
            "records, tables and W&B, so libraries must take it from the environment themselves"
        )


def _values(override) -> list[str]:
    """The words of an override with several values, one a value."""
    try:
        # A range may hold more values than there is memory for.
        values = list(islice(override.sweep_string_iterator(), grid.MOST_CELLS + 1))
    except (HydraException, ArithmeticError, TypeError, ValueError):
        raise UsageError(
            f"{override.input_line}: its values cannot be listed; allowed: a,b,c, choice(a,b), range(start,stop,step), "
            "and glob(*) of a config group"
        ) from None
    if len(values) > grid.MOST_CELLS:
        raise UsageError(f"{override.input_line}: more than {grid.MOST_CELLS:,} values, the most that an axis may have")
    return [f"{override.get_key_element()}={value}" for value in values]


def _expand_homes(plain: dict) -> None:
    for key in PATH_KEYS:
        *parents, name = key.split(".")
        section = plain
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(section.get(name), str):
            section[name] = home_of(key, section[name])


def refuse_odd_axes(axes: set[str]) -> None:
    """Refuse axes of keys that change no result (UsageError)."""
    for axis in sorted(axes):
        if axis.partition(".")[0] in RUNTIME or axis.endswith(".micro_batch"):
            raise UsageError(f"{axis}: cannot have several values; it says how cells run, not what they are")


def plain_key(key: str) -> str:
    """`+train.adapt.lr` and `model@_global_` of a word as the key of a config."""
    return key.lstrip("+~").partition("@")[0].replace("/", ".")
