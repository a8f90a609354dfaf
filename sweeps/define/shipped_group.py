"""A section as one of our own files fills it, without Hydra.

Hydra takes 0.1 to 0.3 CPU-seconds for each composition, since it reads and merges every file and its own settings anew.
Most words choose a group whose file touches nothing but its own section, and there is nothing to decide in that: the
file is laid over the defaults of the dataclass. Whatever is not that simple is left to Hydra.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ratplus import conf
from ratplus.sweeps.define.typed import SECTIONS

_PACKAGE = re.compile(r"^#\s*@package", re.MULTILINE)


def shipped_section(group: str, choice: str, experiment: str | None) -> dict | None:
    """The unresolved values of section `group` under one of its shipped choices.

    Args:
        experiment: name of the shipped experiment that is merged over all groups, if any.

    Returns:
        None where Hydra has to say: there is no such file, it touches more than its section, or the experiment touches
        this section as well.
    """
    over = _content("experiment", experiment) if experiment is not None else {}
    if over is None or group in over:
        return None
    layers = _layers(group, choice, ())
    if layers is None:
        return None
    try:
        merged = OmegaConf.merge(OmegaConf.structured(SECTIONS[group]), *layers)
    except OmegaConfBaseException:
        return None  # Hydra names the file
    return cast("dict", OmegaConf.to_container(merged))


def _layers(group: str, choice: str, above: tuple[str, ...]) -> list[dict] | None:
    """What a file and the files of its group that it is laid over say, the last one last."""
    content = _content(group, choice)
    if content is None or choice in above or _is_for_another_section(group, choice):
        return None
    own = {key: value for key, value in content.items() if key != "defaults"}
    defaults = content.get("defaults", ["_self_"])
    if not isinstance(defaults, list) or "_self_" not in defaults:
        return None
    layers: list[dict] = []
    for name in defaults:
        if name == "_self_":
            layers.append(own)
            continue
        below = _layers(group, name, (*above, choice)) if isinstance(name, str) and re.fullmatch(r"\w+", name) else None
        if below is None:
            return None
        layers += below
    return layers


def _content(group: str, choice: str) -> dict | None:
    try:
        content = OmegaConf.to_container(OmegaConf.load(_file(group, choice)))
    except FileNotFoundError:
        return None
    return cast("dict", content) if isinstance(content, dict) else None


def _is_for_another_section(group: str, choice: str) -> bool:
    return _PACKAGE.search(_file(group, choice).read_text(encoding="utf-8")) is not None


def _file(group: str, choice: str) -> Path:
    return Path(conf.__path__[0]) / group / f"{choice}.yaml"
