"""`ratplus pack`: a sweep as one file to hand on: records, samples, curves, notes, the page, and a hash of each.

No weights, no training states, no logs. Secrets and absolute paths of this machine are masked; where that changes a
record, its checksum is that of the masked record, while its id, a hash of its config, stays true. The same folder gives
the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ratplus.records.atomic import new_file
from ratplus.records.lines import first_line
from ratplus.records.manifest import MANIFEST_FILE, evaluations, read_manifest
from ratplus.records.reading import open_plain, parse_json, read_bytes
from ratplus.records.record import RECORD_FILE, STAGES, Record, RecordError, read_record, record_text, with_checksum
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.share.layout import ENDING, FORMAT, PACK_FILE, STAGE_FILES, is_member
from ratplus.sweeps.share.masking import Mask

_TEXTS = (".html", ".md", ".csv", ".tex")
_WHEN = (1980, 1, 1, 0, 0, 0)


@dataclass
class Packed:
    """What was packed: the file, its size, how many files and stages are in it, and lines on what is not."""

    path: Path
    bytes: int = 0
    files: int = 0
    stages: int = 0
    left_out: list[str] = field(default_factory=list)


def pack(folder: Path, out: Path | None = None) -> Packed:
    """Write a sweep folder as one zip file, beside it unless `out` says where.

    Raises:
        RecordError: no sweep folder.
        UsageError: `out` is not a file's name that ends in .zip, or something else is there.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    whole = folder.resolve()
    out = whole.with_name(whole.name + ENDING) if out is None else Path(out)
    if out.suffix != ".zip":
        raise UsageError(f"--out: got {out}; a pack is a zip file: give a name that ends in {ENDING}")
    if os.path.lexists(out) and not _is_ours(out):
        raise UsageError(f"{out}: is there and is no pack; it is not replaced")
    packed = Packed(out)
    with new_file(out) as file, zipfile.ZipFile(file, "w") as archive:
        writer = _Writer(archive, Mask(Path.home(), Path.cwd(), whole))
        cells = [cell | {"run": {}} for cell in manifest["cells"]]
        plain = writer.mask.tree({**manifest, "cells": cells})
        writer.add(MANIFEST_FILE, (json.dumps(plain, indent=1) + "\n").encode())
        used = {(stage, i) for entry in evaluations(manifest["cells"]) for stage, i in entry["stages"].items()}
        for stage, identity in sorted(used, key=lambda key: (STAGES.index(key[0]), key[1])):
            packed.stages += _add_stage(writer, folder / stage / identity, f"{stage}/{identity}", packed.left_out)
        for place in ("bench", "report"):
            _add_files(writer, folder / place, place, packed.left_out)
        facts = {"format": FORMAT, "name": writer.mask.text(manifest["name"]), "left_out": packed.left_out}
        writer.add(PACK_FILE, (json.dumps({**facts, "files": writer.hashes}, indent=1) + "\n").encode())
        packed.files = len(writer.hashes)
    packed.bytes = out.stat().st_size
    return packed


def _is_ours(out: Path) -> bool:
    """Whether a file, and no link to one, is a pack; not every zip file is."""
    try:
        with open_plain(out, follow=False) as file, zipfile.ZipFile(file) as archive:
            return PACK_FILE in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


class _Writer:
    """Files of a pack, one after another, all with the same time and rights; `hashes` are of those so far."""

    def __init__(self, archive: zipfile.ZipFile, mask: Mask):
        self._archive, self.mask = archive, mask
        self.hashes: dict[str, str] = {}

    def add(self, name: str, data: bytes) -> None:
        info = zipfile.ZipInfo(name, _WHEN)
        info.create_system, info.external_attr = 3, 0o644 << 16  # as on POSIX, wherever it is packed
        info.compress_type = zipfile.ZIP_DEFLATED
        self._archive.writestr(info, data, compresslevel=6)
        self.hashes[name] = hashlib.sha256(data).hexdigest()


def _add_stage(writer: _Writer, folder: Path, name: str, left_out: list[str]) -> int:
    """Add a stage's files; returns 1, or 0 where it has no record or one that cannot be handed on."""
    try:
        record = read_record(folder)
    except RecordError as error:
        left_out.append(writer.mask.text(f"{name}: {first_line(error)}"))
        return 0
    if record is None:
        return 0
    clean: dict[str, Any] = writer.mask.tree(record)
    if clean["config"] != record["config"]:
        left_out.append(f"{name}: its config holds a secret or a path of this machine, and its id is a hash of that")
        return 0
    same = clean == record
    data = (
        read_bytes(folder / RECORD_FILE, follow=False)
        if same
        else record_text(with_checksum(cast(Record, clean))).encode()
    )
    writer.add(f"{name}/{RECORD_FILE}", data)
    there = set(os.listdir(folder))  # most of ten thousand folders have few of the files, and each look takes its time
    for file in STAGE_FILES:
        if file != RECORD_FILE and file in there:
            _add_file(writer, folder / file, f"{name}/{file}", left_out)
    return 1


def _add_files(writer: _Writer, folder: Path, place: str, left_out: list[str]) -> None:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False))
    except OSError:
        return  # there is none
    for name in names:
        if is_member(f"{place}/{name}"):
            _add_file(writer, folder / name, f"{place}/{name}", left_out)


def _add_file(writer: _Writer, path: Path, name: str, left_out: list[str]) -> None:
    try:
        data = read_bytes(path, follow=False)
        if path.suffix in _TEXTS and name.startswith("report/"):
            data = writer.mask.page(data.decode()).encode()
        elif path.suffix == ".json":
            plain = parse_json(data)
            clean = writer.mask.tree(plain)
            data = data if clean == plain else (json.dumps(clean) + "\n").encode()
        elif path.suffix not in (".png", ".pdf"):
            # A line at a time, so that a number of megabytes is no text to remember.
            lines = data.decode().split("\n")
            data = "\n".join(map(writer.mask.line, lines)).encode()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        left_out.append(writer.mask.text(f"{name}: {first_line(error)}"))
        return
    writer.add(name, data)
