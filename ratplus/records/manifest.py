"""`sweep.json`: the cells that a sweep folder was asked for; how it is read. `ratplus.sweeps` writes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from ratplus.records.limits import check_shape
from ratplus.records.lines import first_line
from ratplus.records.reading import read_json, refuse_links
from ratplus.records.record import STAGES, RecordError, is_id

FORMAT = 1
MANIFEST_FILE = "sweep.json"
# Of a name, and of an axis with its value. The label of a hybrid names each of its heads.
MOST_CHARACTERS = 200_000
MOST_AXES = 1_000
MOST_ADDED = 100  # suites that were added to a cell
_SIZES = ("layers", "d_model", "d_head", "query_heads", "vocab_size")
# Sections of a cell that are objects where they are there; outer ones first.
_SECTIONS = (
    "config.model", "config.data", "config.data.recall", "config.train", "config.train.pretrain", "config.train.adapt",
    "config.train.sft", "config.eval", "config.pattern", "run.logger", "run.run", "run.launcher", "run.trainer",
)  # fmt: skip


class Added(TypedDict):
    """A suite that a finished cell was asked later (`ratplus evaluate --add`): one more evaluation of the same model.

    Attributes:
        id: of the evaluate stage.
        suite: what the user called it.
        eval: the plain section `eval` of that stage: what it asks beyond the cell's own evaluation.
    """

    id: str
    suite: str
    eval: dict[str, Any]


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
        added: suites that were added later.
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
    added: NotRequired[list[Added]]


# Not Entry.__required_keys__: where annotations are texts, Python takes every key for required.
_NEEDED = Entry.__annotations__.keys() - {"pattern_name", "added"}


class Manifest(TypedDict):
    """What `sweep.json` holds; cells are added, never forgotten."""

    format: int
    name: str
    cells: list[Entry]


# Folders that a pack was brought out to -> the pack, as the user gave it.
_packs: dict[Path, Path] = {}


def remember_pack(folder: Path, pack: Path) -> None:
    """Note that a temporary folder has what is in a pack."""
    _packs[folder] = pack


def given_as(folder: Path | str) -> str:
    """What the user calls a sweep folder: the pack that it was brought out of, else the folder itself."""
    return str(_packs.get(Path(folder), folder))


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
        for key in sorted(_NEEDED - cell.keys()):
            raise RecordError(f"{path}: cell number {number} lacks the key {key!r}; run the sweep again")
        if problem := _misshapen(cell):
            raise RecordError(f"{path}: cell number {number} is not understood ({problem}); run the sweep again")
    name = manifest.setdefault("name", folder.name)
    if not isinstance(name, str) or not name.isprintable() or len(name) > MOST_CHARACTERS:
        raise RecordError(f"{path}: damaged (its name is no text); run the sweep again, finished cells are kept")
    return manifest


def evaluations(cells: Iterable[Entry]) -> list[Entry]:
    """The cells, each followed by its added suites as cells of their own: the same model with another evaluation."""
    return [one for cell in cells for one in (cell, *(added_entry(cell, added) for added in cell.get("added", [])))]


def added_entry(cell: Entry, added: Added) -> Entry:
    """A suite that was added to a cell, as the cell that it would be on its own."""
    own: dict[str, Any] = {k: v for k, v in cell.items() if k != "added"}
    own |= {
        "id": added["id"],
        "stages": {**cell["stages"], "evaluate": added["id"]},
        "config": {**cell["config"], "eval": added["eval"]},
    }
    return cast(Entry, own)


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
    axes = {f"axes.{number}": f"{key}={value}" for number, (key, value) in enumerate(cell["axes"].items(), start=1)}
    for key, text in ({key: str(cell.get(key, "")) for key in ("model", "label", "pattern_name")} | axes).items():
        if not text.isprintable():
            return f"{key} holds control characters"
        if len(text) > MOST_CHARACTERS:
            return f"{key} has {len(text):,} characters, of which at most {MOST_CHARACTERS:,} are read"
    if len(axes) > MOST_AXES:
        return f"it has {len(axes):,} axes"
    if unknown := cell["stages"].keys() - set(STAGES):
        return f"stage {min(unknown)!r}"
    if missing := {"pretrain", "evaluate"} - cell["stages"].keys():
        return f"it has no stage {min(missing)}"
    ids = {"id": cell["id"]} | {f"stages.{stage}": value for stage, value in cell["stages"].items()}
    for name, value in ids.items():
        if not is_id(value):
            return f"{name} is {str(value)[:40]!r}, not an id of 12 hex digits"
    sections = {"config": cell["config"], "run": cell["run"]}
    for whole in _SECTIONS:
        outer, _, name = whole.rpartition(".")
        inner = sections[outer].get(name, {})
        if not isinstance(inner, dict):
            return f"{whole} is a {type(inner).__name__}"
        sections[whole] = inner
    for name, kind in (("config.model.name", str), ("config.data.source", str), ("run.logger.tags", list)):
        outer, _, key = name.rpartition(".")
        if not isinstance(value := sections[outer].get(key, kind()), kind):
            return f"{name} is a {type(value).__name__}"
    if not all(isinstance(tag, str) for tag in sections["run.logger"].get("tags", [])):
        return "run.logger.tags hold what is no text"
    if not all(isinstance(key, str) for key in cell["swept"]):
        return "swept holds what is no text"
    if problem := _odd_added(cell.get("added", [])):
        return problem
    return _odd_numbers(cell)


def _odd_added(added: object) -> str:
    if not isinstance(added, list) or len(added) > MOST_ADDED:
        return f"added is no list of at most {MOST_ADDED} suites"
    for one in added:
        if not isinstance(one, dict) or not is_id(one.get("id")) or not isinstance(one.get("eval"), dict):
            return "added holds what is no suite with an id"
        name = one.get("suite")
        if not isinstance(name, str) or not name.isprintable() or len(name) > 100:
            return "the name of an added suite is no text"
    return ""


def _odd_numbers(cell: dict) -> str:
    """Which size of a cell no model has, or would fill the memory of whoever makes a table of it; empty if none."""
    config = cell["config"]
    model = {k: v for k, v in config.get("model", {}).items() if k in _SIZES}
    context = config.get("train", {}).get("context", 1)
    try:
        check_shape(model)
        check_shape({"max_len": context})
    except ValueError as error:
        return first_line(error).replace("model.max_len", "train.context", 1)
    if not 0 <= cell["seed"] < 1 << 63:
        return f"seed is {cell['seed']}"
    return ""
