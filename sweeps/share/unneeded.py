"""What a sweep folder, or a store of stages, need not keep: stages that nobody names, and what killed work left.

Never what a manifest names, and never what is being worked on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from ratplus.records.lock import FolderLock, is_locked
from ratplus.records.manifest import evaluations, read_manifest
from ratplus.records.reading import refuse_links
from ratplus.records.record import STAGES, is_id
from ratplus.records.status import stage_state
from ratplus.stages.store import STORE_FILE
from ratplus.sweeps.define.mistakes import UsageError


@dataclass
class Unneeded:
    """A stage's folder that nobody names, or a file of a finished stage that it needs no more.

    Attributes:
        path: what would be removed.
        why: in words.
        bytes: what it holds.
        frees: the part of these that no other name (a hard link) holds.
    """

    path: Path
    why: str
    bytes: int
    frees: int


def unneeded(folder: Path, sweeps: Iterable[Path] | None = None) -> list[Unneeded]:
    """What a folder need not keep.

    Args:
        folder: of a sweep, or a store of `run.store`.
        sweeps: of a store: the sweep folders that use it.

    Raises:
        RecordError: neither a sweep folder nor a store, or one of `sweeps` is none.
        UsageError: a store, and nobody says which sweeps use it; or the other way round.
        LinkError: something in the folder is a link.
    """
    folder = Path(folder)
    is_store = (folder / STORE_FILE).is_file()
    if is_store and sweeps is None:
        raise UsageError(f"{folder}: is a store; say which sweeps use it with --sweeps FOLDER (those under it count)")
    if not is_store and sweeps is not None:
        raise UsageError(f"--sweeps: of a store of run.store; {folder} is none, and its sweep.json says what it needs")
    refuse_links(folder, STAGES)
    named = {
        (stage, identity)
        for sweep in (sweeps if sweeps is not None else [folder])
        for entry in evaluations(read_manifest(sweep)["cells"])
        for stage, identity in entry["stages"].items()
    }
    found = []
    for stage in STAGES:
        for place in sorted((folder / stage).glob("*")):
            if not is_id(place.name) or not place.is_dir() or is_locked(place):
                continue
            if (stage, place.name) not in named:
                why = "no sweep names it" if is_store else "sweep.json does not name it"
                found.append(_held(place, f"{stage} {place.name}: {why}", _files(place)))
            elif not is_store and stage_state(place).status == "done":
                left = [path for path in _files(place) if _is_leftover(path)]
                found += [_held(path, f"{stage} {place.name} is done: left by its training", [path]) for path in left]
    return found


def remove(folder: Path, found: list[Unneeded], sweeps: Iterable[Path] | None = None) -> list[Unneeded]:
    """Remove what `unneeded` found, if it still is; returns what was removed.

    Nobody adds cells to the sweep meanwhile, and what has been named or begun since is kept.
    """
    removed = []
    with FolderLock(folder) if sweeps is None else nullcontext():
        still = {item.path for item in unneeded(folder, sweeps)}
        for item in found:
            if item.path not in still:
                continue
            if item.path.is_dir():
                shutil.rmtree(item.path)
            else:
                item.path.unlink(missing_ok=True)
            removed.append(item)
    return removed


def _is_leftover(path: Path) -> bool:
    """A training state, or a file that a killed process did not finish; of a folder that is not locked."""
    unfinished = path.name.startswith(".") and path.name.endswith(".tmp")
    return unfinished or (path.name.startswith("training-") and path.suffix == ".pt")


def _files(folder: Path) -> list[Path]:
    return sorted(Path(place) / name for place, _, names in os.walk(folder) for name in names)


def _held(path: Path, why: str, files: list[Path]) -> Unneeded:
    stats = [file.lstat() for file in files]
    return Unneeded(path, why, sum(s.st_size for s in stats), sum(s.st_size for s in stats if s.st_nlink == 1))
