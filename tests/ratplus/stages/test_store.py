"""`run.store`: what one sweep has done, another takes; and what is wrong with a store costs no result."""

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from ratplus.config.cell import Config
from ratplus.config.run import RunSection
from ratplus.records.lock import LockLost
from ratplus.records.record import read_record, write_record
from ratplus.stages.run_stage import Result, Surroundings, run_stage
from ratplus.stages.stage_ids import Stage
from ratplus.stages.store import ENTRY_FILE, Shared, check_store, is_stored

STAGE = Stage("pretrain", {"seed": 0}, None)


class Sweep:
    """A sweep folder whose one stage writes weights; it counts how often it worked."""

    def __init__(self, root: Path, store: Path | None):
        self.root, self.lines, self.worked = root, [], 0
        self.folder = STAGE.folder(root)
        self.config = Config(run=RunSection(accelerator="cpu", store=None if store is None else str(store)))

    def work(self, stage, folder, log, lock):
        self.worked += 1
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "config.json").write_text("{}")
        (folder / "training-3.pt").write_bytes(b"state")
        sha256 = hashlib.sha256(b"weights").hexdigest()  # as a training stage gives it
        return Result({"parameters": {"value": 7.0, "stderr": None, "count": 1}}, weights_sha256=sha256)

    def run(self, work=None):
        return run_stage(STAGE, Surroundings(self.root, print_line=self.lines.append), self.config, work or self.work)


@pytest.fixture
def places(tmp_path):
    store = tmp_path / "store"
    return Sweep(tmp_path / "one", store), Sweep(tmp_path / "two", store), store / "pretrain" / STAGE.id


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_one_sweep_has_done_another_takes(places):
    one, two, entry = places
    (one.folder).mkdir(parents=True)
    (one.folder / "note.txt").write_text("mine")
    record = one.run()
    assert names(entry) == {"record.json", "model.safetensors", "config.json", ENTRY_FILE}
    hashes = json.loads((entry / ENTRY_FILE).read_text())["files"]
    assert hashes == {
        name: hashlib.sha256((entry / name).read_bytes()).hexdigest() for name in names(entry) - {ENTRY_FILE}
    }
    assert two.run() == record == read_record(two.folder)
    assert (one.worked, two.worked) == (1, 0)
    assert names(two.folder) == {"record.json", "model.safetensors", "config.json"}
    assert (two.folder / "model.safetensors").samefile(one.folder / "model.safetensors")  # no bytes of their own
    assert not (two.folder / "record.json").samefile(one.folder / "record.json")  # what may be rewritten has
    assert f"pretrain {STAGE.id}: taken from the store" in two.lines[-1]


def test_without_a_store_nothing_is_shared(places, tmp_path):
    places[0].run()
    alone = Sweep(tmp_path / "three", None)
    alone.run()
    assert alone.worked == 1


def test_a_disk_without_hard_links_gets_copies(places, monkeypatch):
    one, two, entry = places
    one.run()

    real = os.link

    def refuse(source, target):
        if Path(source).name == "model.safetensors":
            raise OSError(18, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr("ratplus.stages.store.os.link", refuse)
    two.run()
    assert two.worked == 0
    assert not (two.folder / "model.safetensors").samefile(entry / "model.safetensors")
    assert (two.folder / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["model.safetensors", "record.json", ENTRY_FILE, "config.json"])
def test_a_damaged_entry_is_not_used_and_is_replaced(places, name, tmp_path):
    one, two, entry = places
    one.run()
    (entry / name).unlink()  # rather than through the link, which would damage the sweep as well
    (entry / name).write_text('{"format": 1, "files": {"../../x": "0"}}' if name == ENTRY_FILE else "damaged")
    two.run()
    assert two.worked == 1
    assert any("the stage is done here and put there again" in line for line in two.lines)
    assert names(two.folder) == {"record.json", "model.safetensors", "config.json"}
    three = Sweep(tmp_path / "three", entry.parents[1])
    three.run()
    assert three.worked == 0


@pytest.mark.parametrize(
    "content",
    [
        {"format": 2}, {"files": None}, {"files": {}}, {"files": {"config.json": "0"}}, {"files": {"record.json": 1}},
        {"files": {"record.json": "0", "lock.json": "0"}}, {"files": {"record.json": "0", "entry.json": "0"}},
        {"files": {"record.json": "0", "a/b": "0"}}, [1],
    ],
)  # fmt: skip
def test_an_entry_of_another_kind_is_damaged(places, content):
    one, two, entry = places
    one.run()
    good = json.loads((entry / ENTRY_FILE).read_text())
    assert is_stored(str(entry.parents[1]), "pretrain", STAGE.id)
    (entry / ENTRY_FILE).write_text(json.dumps(good | content if isinstance(content, dict) else content))
    assert not is_stored(str(entry.parents[1]), "pretrain", STAGE.id)
    two.run()
    assert two.worked == 1
    assert any(line.startswith(f"{entry}: damaged (") for line in two.lines)
    again = json.loads((entry / ENTRY_FILE).read_text())
    assert (again["format"], again["files"].keys()) == (good["format"], good["files"].keys())
    assert is_stored(str(entry.parents[1]), "pretrain", STAGE.id)


def test_the_record_of_a_failure_in_an_entry_is_not_taken(places):
    """Such as a copy by hand may have left."""
    one, two, entry = places
    record = one.run()
    body = {key: record[key] for key in ("stage", "config", "parent", "timing", "provenance")}
    write_record(entry, **body, status="failed", metrics={}, error={"type": "T", "message": "m"})
    hashes = json.loads((entry / ENTRY_FILE).read_text())
    hashes["files"]["record.json"] = hashlib.sha256((entry / "record.json").read_bytes()).hexdigest()
    (entry / ENTRY_FILE).write_text(json.dumps(hashes))
    assert two.run()["status"] == "done"
    assert two.worked == 1
    assert any("not used (its record is not of a finished stage)" in line for line in two.lines)


def test_what_a_killed_process_left_in_an_entry_is_cleared(places):
    one, _, entry = places
    entry.mkdir(parents=True)
    old = entry / ".config.json.store.tmp"
    old.write_text("half")
    store = entry.parents[1] / "store.json"
    store.write_text('{"format": 1, "made": "earlier"}')
    one.run()
    assert not old.exists()
    assert json.loads(store.read_text())["made"] == "earlier", "a store says once that it is one"


def test_nothing_is_stored_by_who_has_lost_the_lock(places):
    one, _, entry = places
    record = one.run()
    (entry / ENTRY_FILE).unlink()

    class Lost:
        def check(self):
            raise LockLost("another process has it")

    Shared(entry, cast("Any", Lost()), one.lines.append).give(one.folder, record)
    assert not (entry / ENTRY_FILE).exists()
    assert one.lines[-1].startswith(f"{entry}: not stored (another process has it); the sweep has the stage")


def test_a_link_in_an_entry_is_not_followed(places, tmp_path):
    one, two, entry = places
    one.run()
    (tmp_path / "secret").write_bytes(b"weights")
    (entry / "model.safetensors").unlink()
    (entry / "model.safetensors").symlink_to(tmp_path / "secret")
    two.run()
    assert two.worked == 1


def test_a_failure_is_not_shared(places):
    one, two, entry = places

    def fail(*_):
        raise RuntimeError("odd")

    with pytest.raises(RuntimeError):
        one.run(fail)
    assert not (entry / ENTRY_FILE).exists()
    assert two.run()["status"] == "done"
    assert one.run()["status"] == "done"  # tried again, it takes what the other did
    assert (one.worked, two.worked) == (0, 1)


def test_a_store_that_cannot_be_written_costs_no_result(places, tmp_path):
    (tmp_path / "file").write_text("x")
    one = Sweep(tmp_path / "one", tmp_path / "file")
    assert one.run()["status"] == "done"
    assert any(line.startswith(f"run.store={tmp_path / 'file'}: not used (") for line in one.lines)


def test_a_full_disk_costs_no_result(places, monkeypatch):
    one, _, entry = places

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ratplus.stages.store._link_or_copy", full)
    assert one.run()["status"] == "done"
    assert any("not stored" in line for line in one.lines)
    assert not (entry / ENTRY_FILE).exists()


def test_two_sweeps_at_once_do_it_once(places):
    one, two, _ = places
    begun, waited = threading.Event(), threading.Event()

    def slow(*arguments):
        begun.set()
        assert waited.wait(60)
        return one.work(*arguments)

    first = threading.Thread(target=one.run, args=(slow,))
    first.start()
    assert begun.wait(60)
    two.lines = Told(waited)
    record = two.run()
    first.join()
    assert record["status"] == "done"
    assert (one.worked, two.worked) == (1, 0)
    assert f"pretrain {STAGE.id}: another sweep is at it (process {os.getpid()}" in two.lines[0]


class Told(list):
    """Lines that are told to a person; the first lets the other sweep go on."""

    def __init__(self, event):
        super().__init__()
        self._event = event

    def append(self, line):
        super().append(line)
        self._event.set()


def test_a_sweep_folder_is_no_store(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    for sweep in ("sweep", "other"):
        with pytest.raises(ValueError, match="is a sweep folder; a store is a folder of its own"):
            check_store(str(tmp_path / "sweep"), tmp_path / sweep)
    check_store(str(tmp_path / "store"), tmp_path / "sweep")
    check_store(None, tmp_path / "sweep")
    with pytest.raises(ValueError, match="run.store: got 'a"):
        RunSection(store="a\nb")
