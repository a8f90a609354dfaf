"""`pattern=D16-W64` and `pattern=mixed[D1,D64|D64,D1]`: a label in the place of a file of the group `pattern`."""

from __future__ import annotations

import re
from pathlib import Path

from ratplus import conf
from ratplus.pattern.labels import is_label
from ratplus.pattern.map_labels import is_map_label
from ratplus.sweeps.define.grid import override_value
from ratplus.sweeps.define.mistakes import UsageError

# Commas within brackets belong to a label.
_PARTS = re.compile(r"(?:[^,\[]|\[[^\]]*\])+")


def labels_as_keys(words: list[str], config_dir: str | None) -> list[str]:
    """The words of a command, with each `pattern=` of labels as the key `pattern.label`.

    A file of the group that has the name of a label is meant by that name.

    Raises:
        UsageError: labels and names of files in one list.
    """
    return [_as_key(word, config_dir) for word in words]


def _as_key(word: str, config_dir: str | None) -> str:
    key, _, value = word.partition("=")
    if key not in ("pattern", "pattern.label") or not value:
        return word
    quoted = len(value) > 1 and value[0] in "'\"" and value[0] == value[-1]
    parts = _PARTS.findall(value[1:-1] if quoted else value)
    if key == "pattern.label":
        return word if quoted or "[" not in value else f"{key}=" + ",".join(_text(part) for part in parts)
    labels = [part for part in parts if _is_label(part.strip()) and not _is_file(part.strip(), config_dir)]
    if not labels:
        return word
    if len(labels) < len(parts):
        other = next(part for part in parts if part not in labels)
        raise UsageError(
            f"{word}: {labels[0].strip()} is a label and {other.strip()} is none; give labels alone (dense is D1) or "
            "names of files alone"
        )
    return "pattern.label=" + ",".join(_text(part) for part in parts)


def _text(label: str) -> str:
    # Hydra takes a bracket for the start of a list.
    return override_value(label.strip()) if "[" in label else f'"{label.strip()}"'


def _is_label(text: str) -> bool:
    return is_label(text) or is_map_label(text)


def _is_file(name: str, config_dir: str | None) -> bool:
    folders = [Path(conf.__path__[0]), *([Path(config_dir)] if config_dir else [])]
    return any((folder / "pattern" / f"{name}.yaml").is_file() for folder in folders)
