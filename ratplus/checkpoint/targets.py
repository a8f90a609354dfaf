"""Where `import` and `export` may write: in place of nothing that somebody may miss. Torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ratplus.checkpoint.facts import CONFIG_FILE, WEIGHTS_FILE, CheckpointError
from ratplus.records.reading import read_json
from ratplus.records.record import RECORD_FILE, STAGES

_ID = re.compile(r"[0-9a-f]{12}")


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is a model folder of our own; none, or a damaged one, is not."""
    try:
        words = read_json(folder / CONFIG_FILE)
    except (OSError, ValueError):
        return False
    return isinstance(words, dict) and {"model", "sha256"} <= words.keys()


def is_stage_folder(folder: Path) -> bool:
    """Whether a folder is a stage's of a sweep: by its place or, where somebody moved it, by its record."""
    if folder.parent.name in STAGES and _ID.fullmatch(folder.name):
        return True
    try:
        record = read_json(folder / RECORD_FILE)
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and {"stage", "checksum"} <= record.keys()


def check_target(target: Path, source: Path) -> None:
    """Refuse a target that may never be written to: inside a stage's folder, or the source itself.

    Raises:
        CheckpointError: one line that says so.
    """
    # Links are followed, since a link to a stage's folder leads into it.
    whole = Path(os.path.realpath(target))
    for folder in (whole, *whole.parents):
        if is_stage_folder(folder):
            raise CheckpointError(
                f"{target}: lies in the folder of a stage of a sweep, whose weights belong to its record; choose "
                "another target"
            )
    origin = Path(os.path.realpath(source))
    if whole == origin or whole in (origin / WEIGHTS_FILE, origin / CONFIG_FILE):
        raise CheckpointError(
            f"{target}: is what is to be read, and it would take the place of the model folder itself; "
            "choose another target"
        )
    if origin in (whole / WEIGHTS_FILE, whole / CONFIG_FILE):
        raise CheckpointError(f"{target}: holds the file that would be read, {source}; choose another target")


def check_file(target: Path, force: bool) -> None:
    """Refuse to put a file where there is something already; with `force`, where it is no plain file.

    Raises:
        CheckpointError: one line that says what is there.
    """
    if not os.path.lexists(target):  # a link that leads nowhere is somebody's as well
        return
    if not force:
        raise CheckpointError(f"{target}: exists already; choose another target, or replace it with --force")
    if not target.is_file():
        raise CheckpointError(f"{target}: is not a plain file, so --force does not replace it; choose another target")


def check_free(folder: Path, names: Iterable[str], what: str) -> None:
    """Refuse a folder in which one of these names is taken.

    Raises:
        CheckpointError: one line that names the first of them; `what` says whose it may be.
    """
    for name in names:
        if os.path.lexists(folder / name):
            raise CheckpointError(
                f"{folder}: holds {name} of {what} already; choose another target, or replace it with --force"
            )
