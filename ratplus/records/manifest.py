"""`sweep.json`: the cells that a sweep folder was asked for; how it is read. `ratplus.sweeps` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ratplus.records.reading import read_json, refuse_links
from ratplus.records.record import STAGES, RecordError, is_id

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
        RecordError: no sweep folder; the file is damaged, of another format, or one of its cells lacks a key or is
            misshapen.
        LinkError: something in the folder is a link.
    """
    folder = Path(folder)
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder; give the output folder of a sweep, such as outputs/demo")
    check_links(folder)
    try:
        manifest = read_json(path, follow=False)
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
        if problem := _misshapen(cell):
            raise RecordError(f"{path}: cell number {number} is not understood ({problem}); run the sweep again")
    if not isinstance(manifest.get("name", ""), str) or not manifest.get("name", "").isprintable():
        raise RecordError(f"{path}: damaged (its name is no text); run the sweep again, finished cells are kept")
    return manifest


def check_links(folder: Path) -> None:
    """Refuse a sweep folder in which a folder, a stage or a log is a link; raises LinkError."""
    refuse_links(folder, (*STAGES, "logs"))


def _misshapen(cell: dict) -> str:
    """What in a cell is not as `Entry` has it; empty if all is. Ids become names of folders, so they are nothing else.

    A cell of which `sweep.json` lacks a key is told by its own line.
    """
    kinds = {
        "model": str, "pattern": dict, "label": str, "seed": int, "stages": dict, "axes": dict, "swept": list,
        "config": dict, "corpus": dict, "run": dict,
    }  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(cell[key], kind):
            return f"{key} is a {type(cell[key]).__name__}"
    if not isinstance(cell.get("pattern_name", ""), str):
        return "pattern_name is no text"
    for key in ("model", "label", "pattern_name"):
        if not str(cell.get(key, "")).isprintable():
            return f"{key} holds control characters"
    if not all(isinstance(key, str) and f"{key}{value}".isprintable() for key, value in cell["axes"].items()):
        return "axes hold control characters"
    if unknown := cell["stages"].keys() - set(STAGES):
        return f"stage {min(unknown)!r}"
    if missing := {"pretrain", "evaluate"} - cell["stages"].keys():
        return f"it has no stage {min(missing)}"
    ids = {"id": cell["id"]} | {f"stages.{stage}": value for stage, value in cell["stages"].items()}
    for name, value in ids.items():
        if not is_id(value):
            return f"{name} is {str(value)[:40]!r}, not an id of 12 hex digits"
    for outer, names in (("config", ("model", "data", "train")), ("run", ("logger",))):
        for name in names:
            if not isinstance(cell[outer].get(name, {}), dict):
                return f"{outer}.{name} is a {type(cell[outer][name]).__name__}"
    return ""
