"""The `sweep` group: from `grid`, `zip`, `points`, `seeds` and `exclude` of a sweep file to lists of overrides."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from itertools import product

from ratplus.config.cell import Config
from ratplus.pattern import is_whole
from ratplus.sweeps.define.mistakes import UsageError

# More cells than anybody runs: a slip of a digit would otherwise fill the memory before it is told.
MOST_CELLS = 100_000
# The keys of the `sweep` section, each with what it is (docs/reference/keys.md is made of these lines too).
KEYS = {
    "name": "Name of the sweep, and of its folder below outputs/. Allowed: a text without /.",
    "grid": "Every combination of these values. Allowed: a mapping {key: value or values}.",
    "zip": "Pairs instead of combinations: first values with first, second with second. "
    "Allowed: a mapping {key: values}, all equally long.",
    "points": "Settings of coupled keys, each a small grid of its own; the others are combined with each. "
    "Allowed: a list of mappings {key: value or values}.",
    "seeds": "How many seeds (0, 1, ...), or which. Null takes `seed`. Allowed: ≥ 1, a list of seeds, null.",
    "exclude": "Cells to leave out: those that match all keys of one of these. "
    "Allowed: a list of mappings {key: value or values}.",
}


def expand(spec: dict, decided: set[str], given: set[str]) -> list[list[str]]:
    """List the overrides of each cell: product(grid) × zip × points × seeds, without what the command line decides.

    A group that the command line chooses (`pattern=...`) or makes an axis of (`pattern.window=0,64`) replaces all that
    the sweep file says about it, so a shipped sweep can be run with other patterns or one model.

    Args:
        spec: the `sweep` section. `grid`: {key: values}, every combination; `zip`: {key: values}, first with first,
            second with second; `points`: a list of {key: value or values}, each a small grid of its own; `seeds`: how
            many, or which.
        decided: groups about which the command line decides; `given`: keys that it sets.

    Raises:
        UsageError: an unknown key, or a value of the wrong shape.
    """
    if unknown := set(spec) - set(KEYS):
        raise UsageError(f"sweep.{sorted(unknown)[0]}: unknown key; allowed: {', '.join(KEYS)}")

    def kept(mapping, where: str) -> dict:
        if not isinstance(mapping, dict):
            raise UsageError(f"{where}: got {mapping!r}; it must be a mapping from keys to values")
        return {k: v for k, v in mapping.items() if k.partition(".")[0] not in decided and k not in given}

    def combinations(mapping, where: str) -> list[list[str]]:
        values = kept(mapping, where).values()
        if math.prod(len(v) if isinstance(v, list) else 1 for v in values) > MOST_CELLS:
            raise UsageError(f"{where}: asks for more than {MOST_CELLS:,} cells")
        lists = [[f"{k}={override_value(v)}" for v in (vs if isinstance(vs, list) else [vs])] for k, vs in
                 kept(mapping, where).items()]  # fmt: skip
        return [list(c) for c in product(*lists)]

    points = spec.get("points") or [{}]
    if not isinstance(points, list):
        raise UsageError(f"sweep.points: got {points!r}; it must be a list of mappings")
    choices = [
        combinations(spec.get("grid") or {}, "sweep.grid"),
        _paired(kept(spec.get("zip") or {}, "sweep.zip")),
        [p for i, point in enumerate(points) for p in combinations(point, f"sweep.points[{i}]")],
        combinations({"seed": _seeds(spec["seeds"])}, "sweep.seeds") if spec.get("seeds") is not None else [[]],
    ]
    if math.prod(map(len, choices)) > MOST_CELLS:
        raise UsageError(
            f"sweep: asks for {math.prod(map(len, choices)):,} cells; at most {MOST_CELLS:,} are made at once"
        )
    return [[word for part in combination for word in part] for combination in product(*choices)]


def _paired(mapping: dict) -> list[list[str]]:
    for key, values in mapping.items():
        if not isinstance(values, list):
            raise UsageError(f"sweep.zip.{key}: got {values!r}; it must be a list")
    lengths = {key: len(values) for key, values in mapping.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        raise UsageError(f"sweep.zip: paired lists must be equally long; {counts}")
    if not mapping:
        return [[]]
    return [[f"{k}={override_value(v)}" for k, v in zip(mapping, values)] for values in zip(*mapping.values())]


def _seeds(seeds) -> list[int]:
    if is_whole(seeds) and 1 <= seeds <= MOST_CELLS:
        return list(range(seeds))
    if isinstance(seeds, list) and seeds:
        return seeds
    raise UsageError(f"sweep.seeds: got {seeds!r}; give how many (1 to {MOST_CELLS}) or a list of seeds")


def excluded(rules, config: Config, chosen: dict[str, str]) -> bool:
    """True if a cell matches one of the sweep's `exclude` rules: {key: value or values}, all of which must hold.

    A key is a config group (`model`, `pattern`: compared with the chosen name) or a config key (`pattern.window`).

    Raises:
        UsageError: a rule of the wrong shape, or a key that no cell has.
    """
    for index, rule in enumerate(rules):
        where = f"sweep.exclude[{index}]"
        if not isinstance(rule, dict) or not rule:
            raise UsageError(f"{where}: got {rule!r}; it must be a mapping from keys to values")
        if all(_matches(value, _value(key, config, chosen, where)) for key, value in rule.items()):
            return True
    return False


def _matches(wanted, value) -> bool:
    # A list is a choice of values, unless it is the value itself (a hybrid's dilations).
    return value == wanted or (isinstance(wanted, list) and value in wanted)


def _value(key: str, config: Config, chosen: dict[str, str], where: str):
    if key in chosen:
        return chosen[key]
    found = asdict(config)
    for name in key.split("."):
        if not isinstance(found, dict) or name not in found:
            raise UsageError(f"{where}: {key}: unknown key; give a config group or a config key")
        found = found[name]
    return found


# What Hydra takes as a text without quotes: it knows ASCII alone. What looks like a number, a truth value or null is no
# text: the revision 12e4567 of a data set would be infinite.
_PLAIN = re.compile(r"[\w./@%+:-]+", re.ASCII)
_NO_TEXT = re.compile(r"null|true|false|[+-]?(?:inf|nan|[\d._]+(?:e[+-]?\d+)?)", re.ASCII | re.IGNORECASE)


def override_value(value) -> str:
    """Write a value (None, bool, number, text, list, dict) in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(override_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{override_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str) and (not _PLAIN.fullmatch(value) or _NO_TEXT.fullmatch(value)):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
