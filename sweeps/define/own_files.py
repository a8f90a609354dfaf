"""What is looked for in config files of the user's: keys left open (`???`), which somebody must give, and what has no
effect.

Hydra merges files into our typed schema, and OmegaConf drops a `???` there in favour of the default. So the files that
were chosen are read here once more, each for itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from omegaconf import MISSING

from ratplus import conf
from ratplus.records.record import flatten
from ratplus.sweeps.define.mistakes import UsageError

NO_EFFECT = (
    "has no effect, since ratplus composes with Hydra but does not run under it; output= names the folder of a sweep, "
    "launcher= how it runs"
)
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)


def open_keys(config_dir: str, chosen: Mapping[str, str]) -> set[str]:
    """Keys that a chosen file marks with `???` and that no later one gives a value.

    Args:
        config_dir: the user's folder of config groups.
        chosen: config group -> name of the choice.
    """
    unset: set[str] = set()
    # An experiment may touch every section, and is merged last; other groups fill sections of their own.
    for group, choice in sorted(chosen.items(), key=lambda item: item[0] == "experiment"):
        for root in (Path(config_dir), Path(conf.__path__[0])):
            path = root / group / f"{choice}.yaml"
            if path.is_file():
                for key, value in _values(path, group).items():
                    (unset.add if is_open(value) else unset.discard)(key)
                break
    return unset


def refuse_hydra_section(config_dir: str, chosen: Mapping[str, str]) -> None:
    """Refuse a chosen file of the user's that sets what Hydra does with a program that runs under it.

    Args:
        config_dir: the user's folder of config groups.
        chosen: config group -> name of the choice.

    Raises:
        UsageError: names the file and the key.
    """
    for group, choice in chosen.items():
        path = Path(config_dir) / group / f"{choice}.yaml"
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            continue
        keys = [str(key) for key in flatten({str(key): value for key, value in content.items()})]
        keys += [word for item in content.get("defaults") or [] for word in (item if isinstance(item, dict) else ())]
        package = found[1] if (found := _PACKAGE.search(text)) else ""
        own = [key for key in keys if re.match(r"(override +)?/?hydra(\b|/)", str(key))]
        if own or package.partition(".")[0] == "hydra":
            raise UsageError(f"{path}: {own[0] if own else package}: {NO_EFFECT}")


def refuse_hidden(config_dir: str, chosen: Mapping[str, str]) -> None:
    """Refuse a file of the user's that nothing reads, since a shipped one has its name: a chosen one, and config.yaml.

    Hydra takes the first file that it finds, and looks among ours first. A copy of a shipped file says the same and
    passes.

    Args:
        config_dir: the user's folder of config groups.
        chosen: config group -> name of the choice.

    Raises:
        UsageError: names the file.
    """
    for group, choice in [("", "config"), *chosen.items()]:
        own, shipped = (root / group / f"{choice}.yaml" for root in (Path(config_dir), Path(conf.__path__[0])))
        if own.is_file() and shipped.is_file() and own.read_bytes() != shipped.read_bytes():
            raise UsageError(f"{own}: is not read, since ratplus has a file of that name; give it another one")


def refuse_open(plain: dict) -> None:
    """Refuse a composed config in which a value is still `???`.

    Raises:
        UsageError: names the first such key.
    """
    for key, value in flatten(plain).items():
        if is_open(value):
            raise UsageError(open_line(key))


def open_line(key: str) -> str:
    """The line for a key that must be given."""
    return f"{key}: must be given, since a config file or word says ???; add {key}=<value>"


def is_open(value) -> bool:
    """Whether a value, or an item of a list, is `???`."""
    return value == MISSING or (isinstance(value, list) and any(is_open(item) for item in value))


def _values(path: Path, group: str) -> dict:
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        return {}
    package = found[1] if (found := _PACKAGE.search(text)) else group.replace("/", ".")
    where = "" if package == "_global_" else f"{package}."
    return flatten({str(key): value for key, value in content.items() if key != "defaults"}, where)
