"""The folder lock: one worker at a time, dead holders are replaced, live ones never."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time

import pytest

import ratplus.records.atomic as atomic_module
import ratplus.records.lock as lock_module
import ratplus.records.process as process
from ratplus.records.lock import LOCK_FILE, FolderLock, LockLost, clear_lock, is_locked


def test_only_one_at_a_time(tmp_path):
    inside, most, done = [], [], []

    def work():
        for _ in range(5):
            with FolderLock(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.01)
                inside.pop()
                done.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert max(most) == 1
    assert len(done) == 20
    assert list(tmp_path.iterdir()) == []


def hold(folder, ready):
    with FolderLock(folder):
        ready.set()
        time.sleep(60)


def test_a_killed_holder_is_replaced_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(30)
    assert is_locked(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert not is_locked(tmp_path)
    started = time.monotonic()
    with FolderLock(tmp_path):
        assert time.monotonic() - started < 5
    assert list(tmp_path.iterdir()) == []


def foreign(tmp_path, **changes):
    content = {"token": "t", "beat": 0, "host": "elsewhere", "pid": 1, "started": None} | changes
    (tmp_path / LOCK_FILE).write_text(json.dumps(content))


def test_a_silent_holder_on_another_host_is_replaced_after_the_lease(tmp_path):
    foreign(tmp_path)
    waited = []
    started = time.monotonic()
    with FolderLock(tmp_path, on_wait=waited.append, lease=1.0):
        assert 0.9 < time.monotonic() - started < 10
    assert waited == ["process 1 on elsewhere"]


def test_a_damaged_lock_is_told_and_replaced_after_the_lease(tmp_path):
    for content in ("{", "[]", '{"token": "t"}'):
        (tmp_path / LOCK_FILE).write_text(content)
        waited = []
        with FolderLock(tmp_path, on_wait=waited.append, lease=0.3):
            pass
        assert waited == [f"damaged lock {tmp_path / LOCK_FILE}"]


def test_a_beating_holder_is_never_replaced(tmp_path):
    foreign(tmp_path)
    stop = threading.Event()

    def beat():
        count = 0
        while not stop.wait(0.2):
            count += 1
            foreign(tmp_path, beat=count)
        (tmp_path / LOCK_FILE).unlink()

    beater = threading.Thread(target=beat)
    beater.start()
    threading.Timer(3.0, stop.set).start()
    started = time.monotonic()
    with FolderLock(tmp_path, lease=1.0):
        assert time.monotonic() - started > 2.9
    beater.join()


def test_a_reused_pid_is_not_the_holder(tmp_path):
    space = process._space()
    for started, locked in ((process._start_time(os.getpid()), True), ("0", False)):
        foreign(tmp_path, host=socket.gethostname(), space=space, pid=os.getpid(), started=started)
        assert is_locked(tmp_path) == locked
    # The same numbers in another container say nothing about our processes.
    foreign(tmp_path, host=socket.gethostname(), space="other", pid=os.getpid(), started="0")
    assert is_locked(tmp_path)


def test_a_lock_without_a_beat_for_long_is_nobodys(tmp_path):
    """Of a holder on another host, which cannot be asked: it was killed together with its machine."""
    foreign(tmp_path)
    assert is_locked(tmp_path)
    long_ago = time.time() - lock_module.SILENT_SECONDS - 1
    os.utime(tmp_path / LOCK_FILE, (long_ago, long_ago))
    assert not is_locked(tmp_path)


def test_damaged_lock_file(tmp_path):
    (tmp_path / LOCK_FILE).write_text("{")
    with FolderLock(tmp_path, lease=0.5):
        pass
    assert list(tmp_path.iterdir()) == []


def test_losing_the_lock_is_seen(tmp_path):
    with FolderLock(tmp_path) as lock:
        lock.check()
        foreign(tmp_path)
        with pytest.raises(LockLost, match="another process took over"):
            lock.check()
    # A lock that is not ours any more is left alone.
    assert (tmp_path / LOCK_FILE).exists()


def test_many_waiters_on_a_dead_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "BEAT_SECONDS", 0.2)
    foreign(tmp_path)
    inside, most = [], []

    def work():
        with FolderLock(tmp_path, lease=0.6):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.3)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(most) == 4
    assert max(most) == 1


def test_a_file_system_that_lacks_hard_links_chmod_and_fsync(tmp_path, monkeypatch, capsys):
    """Lock, files and takeover work all the same, and what is lost is said once for each operation."""

    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(atomic_module, "_told", set())
    for name in ("link", "chmod", "fsync"):
        monkeypatch.setattr(os, name, refuse)
    for _ in range(2):
        test_only_one_at_a_time(tmp_path)
        with FolderLock(tmp_path) as lock:
            lock.check()
            atomic_module.write_atomically(tmp_path / "a", "text")
        assert (tmp_path / "a").read_text() == "text"
        (tmp_path / "a").unlink()
    told = capsys.readouterr().err
    assert [told.count(f"this file system has no {name}; ") for name in ("hard links", "chmod", "fsync")] == [1, 1, 1]


def test_a_refusal_that_is_no_missing_operation_is_none(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_module.write_atomically(tmp_path / "a", "text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["dangling link", "pipe", "folder", "link to a lock", "claimed"])
def test_what_is_no_lock_is_removed_after_the_lease(tmp_path, kind):
    """A stage folder that somebody sent: whoever works there may not wait for ever."""
    path = tmp_path / "lock.json"
    if kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a lock":
        (tmp_path / "x").write_text("mine")
        path.symlink_to(tmp_path / "x")
    else:
        path.write_text("no lock")
        (tmp_path / ".lock.json.unreadable.claim.tmp").touch()  # of a waiter that died
    assert not is_locked(tmp_path)
    if kind == "folder":
        with pytest.raises(OSError), FolderLock(tmp_path, lease=0.1):
            pass
        return
    with FolderLock(tmp_path, lease=0.1) as lock:
        assert lock.held()
    assert not path.exists()
    if kind == "link to a lock":
        assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.parametrize("pid", [0, -1, 1 << 31, True, "1", 1.5, None])
def test_odd_process_numbers_are_never_asked_for(tmp_path, monkeypatch, pid):
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("asked"))
    lock = {"token": "a", "beat": 1, "host": socket.gethostname(), "space": process._space(), "pid": pid}
    (tmp_path / "lock.json").write_text(json.dumps(lock))
    assert not is_locked(tmp_path)


def test_a_lock_from_the_future_is_nobodys(tmp_path):
    (tmp_path / "lock.json").write_text(json.dumps({"token": "a", "beat": 1, "host": "elsewhere", "pid": 5}))
    assert is_locked(tmp_path)
    os.utime(tmp_path / "lock.json", (time.time() + 1e6,) * 2)
    assert not is_locked(tmp_path)
    (tmp_path / "lock.json").write_text(json.dumps({"token": "a", "beat": 1, "host": "\x1b[2J", "pid": 5}))
    assert not is_locked(tmp_path)


def killed_at_work(tmp_path):
    """What processes leave that were killed while they took, beat, claimed or waited for a lock."""
    names = ["0123abcd", "k2_x9z", "0123abcd.claim", "unreadable.claim"]
    for name in names:
        (tmp_path / f".lock.json.{name}.tmp").write_text("")
    (tmp_path / ".lock.json.folder.tmp").mkdir()  # nobody's work, and no reason to fail
    (tmp_path / ".curve.csv.x.tmp").touch()


def test_what_killed_holders_and_waiters_left_goes_with_the_lock(tmp_path):
    killed_at_work(tmp_path)
    with FolderLock(tmp_path):
        (tmp_path / ".lock.json.later.tmp").touch()
    assert {p.name for p in tmp_path.iterdir()} == {".curve.csv.x.tmp", ".lock.json.folder.tmp"}


def test_what_killed_holders_left_in_a_folder_whose_work_is_done(tmp_path):
    foreign(tmp_path)
    killed_at_work(tmp_path)
    before = set(tmp_path.iterdir())
    clear_lock(tmp_path)
    assert set(tmp_path.iterdir()) == before  # somebody seems to be at work
    foreign(tmp_path, host=socket.gethostname(), space=process._space(), started="0")
    clear_lock(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".curve.csv.x.tmp", ".lock.json.folder.tmp"}


@pytest.mark.parametrize("operation", ["link", "replace"])
def test_a_waiter_whose_unfinished_file_is_tidied_up_tries_again(tmp_path, monkeypatch, operation):
    """By a holder that leaves at that moment; `replace` is the takeover from a holder that has died."""
    if operation == "replace":
        foreign(tmp_path, host=socket.gethostname(), space=process._space(), started="0")
    real, taken = getattr(os, operation), []

    def after_tidying(source, target):
        if not taken:
            taken.append(source)
            os.unlink(source)
        real(source, target)

    monkeypatch.setattr(os, operation, after_tidying)
    with FolderLock(tmp_path) as lock:
        assert lock.held()
    assert len(taken) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_removed_is_not_waited_for(tmp_path, monkeypatch):
    def gone(*_args):
        shutil.rmtree(tmp_path / "a")
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "link", gone)
    with pytest.raises(FileNotFoundError), FolderLock(tmp_path / "a"):
        pass
