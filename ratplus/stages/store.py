"""`run.store`: finished stages that sweeps share, so that equal work is done once and found by the others; torch-free.

A store is `<store>/<stage>/<id>/`, each entry with the files of a finished stage and `entry.json`, the hash of each,
which is written last. Weights are hard links where the disk allows it, everything else is copied. Whoever works on a
stage holds the entry's lock meanwhile: another sweep that wants the same stage waits, and takes the result.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from ratplus.records.atomic import new_file, remove_temporaries, sync_folder, write_atomically
from ratplus.records.lines import first_line
from ratplus.records.lock import LOCK_FILE, FolderLock, LockLost
from ratplus.records.manifest import MANIFEST_FILE
from ratplus.records.note import NOTE_FILE
from ratplus.records.reading import open_plain, read_json
from ratplus.records.record import RECORD_FILE, Record, read_record, unfit_metric

FORMAT = 1
STORE_FILE = "store.json"  # tells a folder that is a store
ENTRY_FILE = "entry.json"
_LINKED = "model.safetensors"
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)
_PIECE = 1 << 20


def check_store(store: str | None, sweep: Path) -> None:
    """Refuse a store that is a sweep folder.

    Raises:
        ValueError: one line for the user.
    """
    if store is not None and (Path(store).resolve() == Path(sweep).resolve() or (Path(store) / MANIFEST_FILE).exists()):
        raise ValueError(
            f"run.store={store}: is a sweep folder; a store is a folder of its own, beside those of sweeps"
        )


def is_stored(store: str | None, stage: str, identity: str) -> bool:
    """Whether a store has a finished stage, as far as can be told without reading all of it: hashes are not checked."""
    if store is None:
        return False
    entry = Path(store) / stage / identity
    try:
        return all((entry / name).is_file() for name in _files_of(entry)) and _finished(entry) is not None
    except (OSError, ValueError):
        return False


def _finished(entry: Path) -> Record | None:
    """The record of an entry, if it is that of a finished stage."""
    record = read_record(entry)
    return None if record is None or record["status"] != "done" or unfit_metric(record) else record


class Shared:
    """One stage in a store, whose lock this process holds."""

    def __init__(self, entry: Path, lock: FolderLock, print_line: Callable[[str], None]):
        self._entry, self._lock, self._print = entry, lock, print_line

    def take(self, folder: Path) -> Record | None:
        """Bring the finished stage into a sweep's stage folder; None if there is none, or a damaged one."""
        try:
            files = _files_of(self._entry)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._print(f"{self._entry}: damaged ({first_line(error)}); the stage is done here and put there again")
            return None
        temporary: list[tuple[Path, Path]] = []
        try:
            record = _finished(self._entry)
            if record is None:
                raise ValueError("its record is not of a finished stage")
            folder.mkdir(parents=True, exist_ok=True)
            for name, sha256 in files.items():
                target = folder / f".{name}.store.tmp"
                temporary.append((target, folder / name))
                _link_or_copy(self._entry / name, target, link=name == _LINKED)
                if _sha256(target) != sha256:
                    raise ValueError(f"{name} has another hash than it was stored with")
        except (OSError, ValueError) as error:
            for path, _ in temporary:
                path.unlink(missing_ok=True)
            self._print(f"{self._entry}: not used ({first_line(error)}); the stage is done here and put there again")
            return None
        # The record last: it says that the stage is whole.
        for path, target in sorted(temporary, key=lambda pair: pair[1].name == RECORD_FILE):
            os.replace(path, target)
        sync_folder(folder)
        self._print(f"{self._entry.parent.name} {self._entry.name}: taken from the store {self._entry.parents[1]}")
        return record

    def give(self, folder: Path, record: Record) -> None:
        """Put a finished stage into the store. What cannot be written there is said, and costs nothing else."""
        try:
            self._lock.check()
            entry = self._entry
            (entry / ENTRY_FILE).unlink(missing_ok=True)
            remove_temporaries(entry)
            files = {}
            for path in sorted(folder.iterdir()):
                if not _is_result(path):
                    continue
                target = entry / f".{path.name}.store.tmp"
                target.unlink(missing_ok=True)
                _link_or_copy(path, target, link=path.name == _LINKED)
                os.replace(target, entry / path.name)
                known = record.get("weights_sha256") if path.name == _LINKED else None
                files[path.name] = known or _sha256(entry / path.name)
            sync_folder(entry)
            write_atomically(entry / ENTRY_FILE, json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n")
        except (OSError, ValueError, LockLost) as error:
            self._print(f"{self._entry}: not stored ({first_line(error)}); the sweep has the stage all the same")


@contextmanager
def claimed(store: str | None, stage: str, identity: str, folder: Path, print_line: Callable[[str], None]) -> Generator:
    """Hold the entry of a stage in a store; gives a `Shared`, or None where there is no store, or none to be used.

    Args:
        folder: the stage's own, in its sweep, whose lock the caller holds.
    """
    entry = None if store is None else Path(store) / stage / identity
    if entry is None or entry.resolve() == folder.resolve():
        yield None
        return
    lock = FolderLock(entry, on_wait=lambda who: print_line(f"{stage} {identity}: another sweep is at it ({who})"))
    try:
        if not (entry.parents[1] / STORE_FILE).exists():
            write_atomically(entry.parents[1] / STORE_FILE, json.dumps({"format": FORMAT}) + "\n")
        lock.__enter__()
    except OSError as error:
        print_line(f"run.store={store}: not used ({error.strerror or error})")
        yield None
        return
    try:
        yield Shared(entry, lock, print_line)
    finally:
        lock.__exit__(None, None, None)


def _files_of(entry: Path) -> dict[str, str]:
    """{name: SHA-256} of an entry; FileNotFoundError if there is none, ValueError if it is none of ours."""
    plain = read_json(entry / ENTRY_FILE, follow=False, most=1 << 20)
    files = plain.get("files") if isinstance(plain, dict) and plain.get("format") == FORMAT else None
    if not isinstance(files, dict) or RECORD_FILE not in files:
        raise ValueError(f"{ENTRY_FILE} is not of format {FORMAT}")
    for name, sha256 in files.items():
        if not _NAME.fullmatch(name) or not isinstance(sha256, str) or name in (LOCK_FILE, ENTRY_FILE):
            raise ValueError(f"{ENTRY_FILE} names {name[:100]!r}")
    return files


def _is_result(path: Path) -> bool:
    """Whether a file of a stage folder belongs to its result: no lock, no training state, nobody's note."""
    personal = path.name in (LOCK_FILE, NOTE_FILE, ENTRY_FILE) or path.name.startswith("training-")
    return not personal and _NAME.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


def _link_or_copy(source: Path, target: Path, link: bool) -> None:
    target.unlink(missing_ok=True)
    if link and not source.is_symlink():
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or one without hard links
    with open_plain(source, follow=False) as file, new_file(target) as copy:
        shutil.copyfileobj(file, copy, _PIECE)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_plain(path, follow=False) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
