"""A lock on a stage folder that survives a dead holder, also on network file systems.

The lock is a file created exclusively; its holder rewrites a beat counter every few seconds (a lease). A waiter judges
death by its own monotonic clock, counting how long the beat has not changed, so neither clock jumps nor skew between
hosts matter; a holder that was a process of this host and is gone is replaced at once.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ratplus.records.atomic import tell_lost, unsupported, write_atomically
from ratplus.records.process import gone, identity, is_identity
from ratplus.records.reading import read_json

LOCK_FILE = "lock.json"
BEAT_SECONDS = 2.0
LEASE_SECONDS = 30.0
SILENT_SECONDS = 600.0
_UNREADABLE = "unreadable"
_TOKEN = re.compile(r"\w{1,64}")


class LockLost(RuntimeError):
    """Another process took the lock over because this one stood still for longer than the lease."""


class FolderLock:
    """Exclusive work on a folder: `with FolderLock(folder): ...`.

    Args:
        folder: made if needed; the lock is `<folder>/lock.json`.
        on_wait: called once with the holder's description when the lock is held by somebody else.
        lease: seconds without a beat after which a holder on another host counts as dead.
    """

    def __init__(self, folder: Path, on_wait: Callable[[str], None] | None = None, lease: float = LEASE_SECONDS):
        self.path = Path(folder) / LOCK_FILE
        self.lease = lease
        self.on_wait = on_wait
        self.token = uuid.uuid4().hex
        self._beat = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FolderLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        told = False
        seen, since = None, time.monotonic()
        while not self._create():
            holder: dict | None = _read(self.path)
            if holder is None:
                # Released between our two looks, or damaged.
                try:
                    holder = {"token": _UNREADABLE, "beat": self.path.lstat().st_size}  # a link may lead nowhere
                except FileNotFoundError:
                    continue
            state = (holder.get("token"), holder.get("beat"))
            if state != seen:
                seen, since = state, time.monotonic()
            if (gone(holder) or time.monotonic() - since > self.lease) and self._take_over(holder["token"]):
                break
            if self.on_wait and not told:
                known = "pid" in holder
                self.on_wait(
                    f"process {holder['pid']} on {holder.get('host')}" if known else f"damaged lock {self.path}"
                )
                told = True
            time.sleep(0.2)
        self._thread = threading.Thread(target=self._keep_beating, name="ratplus-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.held():
            _remove_temporaries(self.path, but=self.token)
            self.path.unlink(missing_ok=True)

    def held(self) -> bool:
        """True while the lock file is still ours."""
        holder = _read(self.path)
        return holder is not None and holder.get("token") == self.token

    def check(self) -> None:
        """Raise LockLost unless the lock is still ours; call it before publishing a result."""
        if not self.held():
            raise LockLost(f"{self.path}: another process took over while this one stood still")

    def _content(self) -> str:
        return json.dumps(
            {
                "token": self.token,
                "beat": self._beat,
                **identity(),
            }
        )

    def _write(self) -> None:
        # No process outlives a loss of power, so neither need its lock; a busy disk takes a second to sync a beat.
        write_atomically(self.path, self._content(), durable=False)

    def _create(self) -> bool:
        # Written under another name and linked into place: whoever sees the lock sees it whole, and link, unlike
        # O_EXCL on old NFS, fails for all but one.
        own = self.path.with_name(f".{LOCK_FILE}.{self.token}.tmp")
        try:
            own.write_text(self._content())
            os.link(own, self.path)
            return True
        except FileExistsError:
            return False
        except FileNotFoundError:
            if not self.path.parent.is_dir():
                raise
            return False  # a holder that left has tidied up
        except OSError as error:
            if not unsupported(error):
                raise
            return self._create_without_links()
        finally:
            own.unlink(missing_ok=True)

    def _create_without_links(self) -> bool:
        """Create the lock where there are no hard links; a waiter may see it half written, and waits for its beat."""
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with open(handle, "w") as file:
            file.write(self._content())
        tell_lost(
            "hard links", self.path.parent, "the lock is a file created exclusively, which two hosts can both "
            "succeed in where the mount does not pass that on: run a sweep there from one host at a time",
        )  # fmt: skip
        return True

    def _take_over(self, stale: str) -> bool:
        """Replace a dead holder's lock. A claim named after its token lets only one waiter do so."""
        claim = self.path.with_name(f".{LOCK_FILE}.{stale}.claim.tmp")
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            # The claimant may have died too; a live one needs milliseconds, so its claim is void after a while.
            time.sleep(min(self.lease, 1.0))
            holder = _read(self.path)
            if stale == (_UNREADABLE if holder is None else holder.get("token")):
                claim.unlink(missing_ok=True)
            return False
        try:
            holder = _read(self.path)
            if holder is None and stale == _UNREADABLE:
                self.path.unlink(missing_ok=True)  # damaged; the next round creates it anew
                return False
            if holder is None or holder.get("token") != stale:
                return False
            self._write()
            return True
        except FileNotFoundError:
            return False  # a holder that left has tidied up
        finally:
            claim.unlink(missing_ok=True)

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            if not self.held():
                return
            self._beat += 1
            try:
                self._write()
            except OSError:
                continue  # a full or hanging disk: try again at the next beat


def is_locked(folder: Path) -> bool:
    """True if a stage folder is being worked on: its lock exists, and its holder seems to be alive.

    A holder on another host cannot be asked. That a waiter may take its lock over is decided by waiting; here, at a
    glance, its last beat counts as its last when it is older than clocks of two hosts should differ.
    """
    path = Path(folder) / LOCK_FILE
    holder = _read(path)
    if holder is None or gone(holder):
        return False
    try:
        # A file from the future (a clock that was set back, or somebody's trick) would be locked for years.
        return abs(time.time() - path.stat().st_mtime) < SILENT_SECONDS
    except FileNotFoundError:
        return False


def clear_lock(folder: Path) -> None:
    """Remove what killed holders and waiters left in a folder whose work is done, unless somebody holds its lock."""
    path = Path(folder) / LOCK_FILE
    if not is_locked(folder):
        _remove_temporaries(path)
        path.unlink(missing_ok=True)


def _remove_temporaries(path: Path, but: str | None = None) -> None:
    """Remove the unfinished files of a lock. One that a live waiter has just made is among them, and made anew.

    Args:
        path: of the lock.
        but: token of a lock whose claim stays: whoever made it may be about to take that lock over.
    """
    for temporary in path.parent.glob(f".{LOCK_FILE}.*.tmp"):
        if but is None or but not in temporary.name:
            with suppress(OSError):  # somebody else's is no reason to fail
                temporary.unlink()


def _read(path: Path) -> dict | None:
    """The holder that a lock file names; None for no file, and for one that no FolderLock wrote."""
    try:
        holder = read_json(path, follow=False)
    except (OSError, ValueError):
        return None
    # The token becomes part of a file's name, and the number is asked of the system.
    whole = is_identity(holder) and isinstance(holder.get("token"), str) and _TOKEN.fullmatch(holder["token"])
    return holder if whole else None
