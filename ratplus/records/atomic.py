"""Writing files so that a crash leaves a whole file or none, and removing what killed writers left."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

# What file systems (exFAT, SMB, FUSE mounts of cloud storage) answer where they lack an operation of POSIX.
_UNSUPPORTED = frozenset(
    (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EMLINK)
)
_told: set[str] = set()


@contextmanager
def new_file(path: str | Path, durable: bool = True) -> Generator[BinaryIO]:
    """A file to write to, which takes its name only when the block ends well; otherwise nothing is left of it.

    Temporary name `.<name>.*.tmp` in the same folder, fsync, rename, fsync of the folder. A file system without fsync
    or chmod gets the file all the same, with one warning.

    Args:
        durable: whether it must outlive a loss of power; if not, nothing is synced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            try:
                if durable:
                    os.fsync(file.fileno())
            except OSError as error:
                _tolerate(error, path, "fsync", "what is written may be lost when the machine loses power")
        try:
            # mkstemp makes files private; a result is as readable as any other file of this user.
            os.chmod(temporary, 0o666 & ~_umask())
        except OSError as error:
            _tolerate(error, path, "chmod", "files may be readable for this user alone")
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file had no room
        raise
    if durable:
        sync_folder(path.parent)


def tell_lost(operation: str, place: Path, what: str) -> None:
    """Say once in this process what is lost on a file system that refuses an optional operation."""
    if operation not in _told:
        _told.add(operation)
        print(f"warning: {place}: this file system has no {operation}; {what}", file=sys.stderr, flush=True)


def unsupported(error: OSError) -> bool:
    """Whether an error says that a file system has no such operation, rather than that the operation went wrong."""
    return error.errno in _UNSUPPORTED


def _tolerate(error: OSError, path: Path, operation: str, what: str) -> None:
    if not unsupported(error):
        raise error
    tell_lost(operation, path.parent, what)


def write_atomically(path: str | Path, data: bytes | str, durable: bool = True) -> None:
    r"""Write a whole file or none of it. Half of a surrogate pair, such as a file's name may hold, becomes `\ud800`."""
    with new_file(path, durable) as file:
        file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the file system allows it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Delete what killed writers left in a folder; only under its lock, or when nobody writes there any more."""
    for path in Path(folder).glob(".*.tmp"):
        if "lock" not in path.name:
            path.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
