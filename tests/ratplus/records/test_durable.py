"""What is written survives a loss of power: bytes are synced before the name, and the folder after it."""

import json
import os
import stat
import time
from contextlib import suppress

import pytest

import ratplus.records.lock as lock_module
from ratplus.records.atomic import new_file, write_atomically
from ratplus.records.lock import LOCK_FILE, FolderLock
from ratplus.records.process import identity
from ratplus.records.record import stage_id, write_record
from ratplus.stages.store import ENTRY_FILE, claimed
from ratplus.training.state import save_state


@pytest.fixture
def seen(monkeypatch):
    """What is asked of the disk, in order: ("sync", "file" or "folder") and ("name", the new name)."""
    events: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.replace

    def fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        events.append(("sync", kind))
        sync(descriptor)

    def replace(source, target):
        events.append(("name", os.path.basename(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return events


def test_a_file(seen, tmp_path):
    write_atomically(tmp_path / "a.json", "{}")
    assert seen == [("sync", "file"), ("name", "a.json"), ("sync", "folder")]


def test_a_file_that_fails_gets_no_name(seen, tmp_path):
    with suppress(RuntimeError), new_file(tmp_path / "a.json") as file:
        file.write(b"x")
        raise RuntimeError
    assert seen == []
    assert list(tmp_path.iterdir()) == []


def test_a_lock_has_nobody_wait_for_the_disk(seen, tmp_path, monkeypatch):
    """No holder outlives a loss of power, and a kill while a busy disk syncs a beat would leave an unfinished file."""
    monkeypatch.setattr(lock_module, "BEAT_SECONDS", 0.01)
    dead = {"token": "t", "beat": 0, **identity(), "started": "0"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(dead))
    with FolderLock(tmp_path):
        while seen.count(("name", LOCK_FILE)) < 3:  # the takeover, and beats
            time.sleep(0.01)
    assert not [event for event in seen if event[0] == "sync"]


def test_a_training_state(seen, tmp_path):
    path = save_state(tmp_path, "0" * 12, 3, {"model": {}})
    assert seen[0] == ("sync", "file")
    assert seen[-2:] == [("name", path.name), ("sync", "folder")]
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_a_stage_that_is_stored_and_one_that_is_taken(seen, tmp_path):
    """The names of its files are on disk before the entry that counts on them, and all of a stage before it is used."""
    identity = stage_id("adapt", {}, None)
    folder, other = (tmp_path / name / "adapt" / identity for name in ("one", "two"))
    record = write_record(
        folder, stage="adapt", config={}, parent=None, status="done", metrics={}, timing={}, provenance={}
    )
    for name in ("config.json", "samples.jsonl"):
        (folder / name).write_text("{}")
    said: list[str] = []
    with claimed(str(tmp_path / "store"), "adapt", identity, folder, said.append) as shared:
        assert shared is not None
        seen.clear()
        shared.give(folder, record)
        named = max(seen.index(("name", name)) for name in ("config.json", "record.json", "samples.jsonl"))
        assert ("sync", "folder") in seen[named : seen.index(("name", ENTRY_FILE))]
        seen.clear()
        assert shared.take(other) == record
        # The record last, since it says that the stage is whole.
        names = [name for kind, name in seen if kind == "name" and not name.startswith(".")]
        assert names == ["config.json", "samples.jsonl", "record.json"]
        assert ("sync", "folder") in seen[seen.index(("name", "record.json")) :]
