"""`sweep.json`: the cells that a sweep folder was asked for; how it is read. `ratplus.sweeps` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ratplus.records.record import RecordError

FORMAT = 1
MANIFEST_FILE = "sweep.json"


class Entry(TypedDict):
    """A cell of a sweep, finished or not.

    Attributes:
        id: of the cell, which is that of its evaluate stage.
        model: name of the model.
        pattern: `PatternMap.to_dict()`; `label` is its short form, `pattern_name` the name of its config group.
        seed: of the cell.
        stages: stage name -> stage id.
        axes: whole key -> value, of the keys in which the cells of this folder differ beside model, pattern and seed.
        swept: keys that the call which added the cell had as axes.
        config: the plain resolved config, without what does not change results.
        corpus: `Corpus.identity`.
        run: `run`, `logger`, `launcher` and `trainer` of the config.
    """

    id: str
    model: str
    pattern: dict[str, Any]
    pattern_name: NotRequired[str]
    label: str
    seed: int
    stages: dict[str, str]
    axes: dict[str, Any]
    swept: list[str]
    config: dict[str, Any]
    corpus: dict[str, Any]
    run: dict[str, Any]


class Manifest(TypedDict):
    """What `sweep.json` holds; cells are added, never forgotten."""

    format: int
    name: str
    cells: list[Entry]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a sweep folder.

    Raises:
        RecordError: no sweep folder; the file is damaged, of another format, or one of its cells lacks a key.
    """
    folder = Path(folder)
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder; give the output folder of a sweep, such as outputs/demo")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{folder}: holds no {MANIFEST_FILE}, so it is not the output folder of a sweep") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: damaged ({error}); run the sweep again, finished cells are kept") from None
    if isinstance(manifest, dict) and manifest.get("format") != FORMAT:
        raise RecordError(f"{path}: format {manifest.get('format')!r}; this version reads format {FORMAT}")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("cells"), list):
        raise RecordError(f"{path}: damaged (no list of cells); run the sweep again, finished cells are kept")
    for number, cell in enumerate(manifest["cells"], start=1):
        if not isinstance(cell, dict):
            raise RecordError(
                f"{path}: cell number {number} is not understood (not a JSON object); run the sweep again"
            )
        for key in sorted(Entry.__required_keys__ - cell.keys()):
            raise RecordError(f"{path}: cell number {number} lacks the key {key!r}; run the sweep again")
    return manifest
