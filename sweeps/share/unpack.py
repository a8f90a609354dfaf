"""Packs read as folders. A pack may be a stranger's: nothing of it is written outside a temporary folder of ours."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path

from ratplus.records.atomic import write_atomically
from ratplus.records.lines import first_line, plain
from ratplus.records.manifest import remember_pack
from ratplus.records.reading import MOST_BYTES as MOST_BYTES_EACH
from ratplus.records.reading import open_plain, parse_json
from ratplus.records.record import RecordError
from ratplus.sweeps.share.layout import ENDING, FORMAT, MOST_BYTES, MOST_FILES, PACK_FILE, is_member

_MOST_PACK_BYTES = 2 << 30
# In a folder with the report of a pack: what is there may be replaced by the next one.
_REPORT_MARK = ".ratplus-report"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Kept for as long as the process lasts, and removed at its end.
_places: list[tempfile.TemporaryDirectory] = []
# Where a pack's files are while the process lasts -> the pack.
_packs: dict[str, Path] = {}


class PackError(RecordError):
    """A pack is damaged, or holds what no pack of ours does."""


def is_pack(path: Path | str) -> bool:
    """Whether a path is meant as a pack: a file, whatever is in it."""
    return Path(path).is_file()


def as_folder(path: Path | str) -> Path:
    """A sweep folder as it is; a pack as a temporary folder with its records, which is read only.

    Pages and figures of the pack are checked and left where they are.

    Raises:
        PackError: no pack, a damaged one, or one that holds anything else than a pack of ours.
    """
    path = Path(path)
    if not is_pack(path):
        return path
    found = path.stat()
    folder = _opened(path.resolve(), found.st_mtime_ns, found.st_size)
    remember_pack(folder, path)
    return folder


def name_of(path: Path) -> str:
    """`demo` of `demo.pack.zip`."""
    return path.name.removesuffix(ENDING).removesuffix(".zip") or "pack"


def brought_out(paths: list[Path], given: Path) -> list[Path]:
    """Where files of a report are: as they are for a folder; of a pack they are copied to `<name>-report` beside it.

    Raises:
        PackError: something of that name is there that no report of a pack wrote.
    """
    if not is_pack(given):
        return paths
    place = given.with_name(f"{name_of(given)}-report")
    taken = [path.name for path in paths if os.path.lexists(place / path.name)]
    if place.is_symlink() or (taken and not (place / _REPORT_MARK).is_file()):
        what = f"holds {taken[0]} already" if taken and not place.is_symlink() else "is a link"
        raise PackError(f"{place}: {what}, and is not from `ratplus report` of a pack; move it away")
    write_atomically(place / _REPORT_MARK, "written by `ratplus report` of a pack, which replaces what is here\n")
    kept = []
    for path in paths:
        write_atomically(place / path.name, path.read_bytes())
        kept.append(place / path.name)
    return kept


@lru_cache(maxsize=64)
def _opened(path: Path, _changed: int, _size: int) -> Path:
    place = tempfile.TemporaryDirectory(prefix="ratplus-pack-")
    folder = Path(place.name) / name_of(path)
    folder.mkdir()
    try:
        with open_plain(path, most=_MOST_PACK_BYTES) as file, zipfile.ZipFile(file) as archive:
            _extract(archive, folder)
    except PackError as error:
        place.cleanup()
        raise PackError(f"{path}: {error}") from None
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError) as error:
        place.cleanup()
        raise PackError(
            f"{path}: neither a sweep folder nor a whole pack of `ratplus pack` ({first_line(error)})"
        ) from None
    except BaseException:
        place.cleanup()
        raise
    _places.append(place)
    _packs[str(folder)] = path
    return folder


def naming_packs(text: str) -> str:
    """A text, such as an error, in which each file of an unpacked pack is named by the pack and its place in it."""
    for folder, pack in _packs.items():
        text = text.replace(folder, str(pack))
    return text


def _extract(archive: zipfile.ZipFile, folder: Path) -> None:
    members = archive.infolist()
    if len(members) > MOST_FILES:
        raise PackError(f"it holds {len(members):,} files, of which at most {MOST_FILES:,} are read")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise PackError("it holds two files of one name")
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        plain_file = kind in (0, stat.S_IFREG) and not member.flag_bits & 0x1
        # Other ways of packing have libraries of their own, with errors and appetites of their own.
        if not is_member(member.filename) or not plain_file or member.compress_type not in _METHODS:
            raise PackError(f"it holds {plain(member.filename)[:100]!r}, which no pack of ours does")
    left = MOST_BYTES
    if PACK_FILE not in names:
        raise PackError(f"it has no {PACK_FILE}, so it is no pack of `ratplus pack`")
    about = parse_json(_content(archive, archive.getinfo(PACK_FILE), left))
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("files"), dict):
        raise PackError(f"{PACK_FILE}: not of format {FORMAT}, which this version reads")
    if about["files"].keys() != set(names) - {PACK_FILE}:
        raise PackError("it holds other files than were packed")
    made = {folder}
    for member in members:
        if member.filename == PACK_FILE:
            continue
        data = _content(archive, member, left)
        left -= len(data)
        if hashlib.sha256(data).hexdigest() != about["files"][member.filename]:
            raise PackError(f"{member.filename}: damaged, or altered since it was packed")
        if member.filename.startswith("report/"):
            continue
        path = folder / member.filename
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.write_bytes(data)


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo, left: int) -> bytes:
    """What a file of a pack unpacks to, never more than is left: what a zip says of sizes may be a lie."""
    most = min(left, MOST_BYTES_EACH)
    with archive.open(member) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise PackError(f"{member.filename}: it unpacks to more than {most:,} bytes, the most that is read")
    return data
