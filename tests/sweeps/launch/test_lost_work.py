"""A process that is killed outright, with nobody left who would record it: the next look at the sweep does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cli_runs import RATPLUS, TINY, Started, leftovers, ratplus_here, wait_for

from ratplus.records import process
from ratplus.records.lock import SILENT_SECONDS, FolderLock
from ratplus.records.record import read_record
from ratplus.sweeps.batch.jobs_file import add_jobs
from ratplus.sweeps.define.compose import compose_cells
from ratplus.sweeps.define.manifest import add_cells, plan_cells
from ratplus.sweeps.launch import lost_work
from ratplus.sweeps.launch.child import Child
from ratplus.sweeps.launch.lost_work import record_lost, record_lost_jobs
from ratplus.sweeps.launch.progress import at_work, job_file
from ratplus.sweeps.launch.work import WorkItem


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("Sphinx of black quartz, judge my vow. " * 600)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def item(place) -> WorkItem:
    """A cell that a sweep folder was asked for, and nothing more."""
    (cell,) = plan_cells(compose_cells([*TINY, "output=out"]))
    add_cells(Path("out"), "out", [cell])
    (place / "out" / "logs").mkdir()
    return WorkItem(cell, "evaluate", None)


def note(item: WorkItem, *processes: dict, log_start: int = 0) -> Path:
    path = job_file(Path("out"), item.id)
    path.write_text(json.dumps({"id": item.id, "processes": processes, "log_start": log_start}))
    return path


def ended() -> dict:
    """The identity of a process that has been."""
    code = "import json; from ratplus.records.process import identity; print(json.dumps(identity()))"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def error_of(item: WorkItem, stage: str = "pretrain") -> dict:
    record = read_record(Path("out") / stage / item.entry["stages"][stage])
    assert record is not None
    assert record["error"] is not None
    return dict(record["error"])


@pytest.mark.parametrize(
    ("printed", "recorded"),
    [("", True), ("a line\nanother", True), ("done\n", False), ("not started: its pretraining failed\n", False)],
)
def test_a_job_that_ended_without_a_record_is_lost_unless_it_says_why(item, printed, recorded):
    jobs = {"id": "f" * 32, "time": "2026-01-01T00:00:00+00:00", "cluster": "local", "jobs": {item.id: "77"}}
    logs = Path("out/logs/slurm") / jobs["id"]
    logs.mkdir(parents=True)
    (logs / "77_0_log.out").write_text(printed)
    add_jobs(Path("out"), jobs | {"launcher": {}})
    assert record_lost_jobs(Path("out"), {}, lambda _: False) == 0
    assert record_lost_jobs(Path("out"), {item.id: None}) == 0  # it has not ended
    assert record_lost_jobs(Path("out"), {}) == recorded
    if recorded:
        said = f"it printed last: {printed.splitlines()[-1]}" if printed else "it printed nothing"
        assert error_of(item)["message"] == f"batch job 77 ended and left no record; {said}"


def test_a_command_that_is_killed_outright_reads_as_failed(place):
    """SIGKILL of the very process that trains, as the kernel's out-of-memory killer does it."""
    words = ["pretrain", *TINY, "output=out", "train.pretrain.steps=100000"]
    running = Started(place, *words)
    wait_for(lambda: list(place.glob("out/logs/*.progress.json")))
    assert "1 running" in ratplus_here(place, "status", "out").stdout
    running.kill()
    running.communicate(timeout=60)
    done = ratplus_here(place, "status", "out", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["counts"]) == (1, {"failed": 1})
    error = told["cells"][0]["error"]
    assert error.startswith(f"ProcessEnded: process {running.pid} on {socket.gethostname()} ended without a record")
    assert "of 100000 of pretrain" in error
    assert not list(place.glob("out/logs/*.json"))


def test_a_lost_process_is_recorded_once_and_again_after_another_death(item):
    for attempt in (1, 2):
        (Path("out") / "logs" / f"{item.id}.log").write_text("of an earlier attempt\nCUDA error: uncorrectable ECC\n")
        path = note(item, ended(), log_start=len("of an earlier attempt\n"))
        record_lost(Path("out"), [item])
        error = error_of(item)
        assert (error["type"], error["attempt"]) == ("ProcessEnded", attempt)
        assert error["message"].endswith("it printed last: CUDA error: uncorrectable ECC")
        assert error["traceback"] == ["CUDA error: uncorrectable ECC"]
        assert not path.exists()
        record_lost(Path("out"), [item])
        assert error_of(item)["attempt"] == attempt


def test_retry_failed_finds_it_though_nobody_looked(item, place, monkeypatch):
    note(item, ended())
    started = []
    monkeypatch.setattr("ratplus.sweeps.launch.launch.run_cell", lambda *_, **__: started.append(1) or 0)
    assert ratplus_here(place, "sweep", *TINY, "output=out", "retry=none").returncode == 1
    assert started == []
    assert ratplus_here(place, "sweep", *TINY, "output=out", "retry=failed").returncode == 0
    assert started == [1]


def test_who_is_at_work_is_not_lost(item):
    own = process.identity()
    for processes in ([own], [ended(), own], [own, ended()]):
        path = note(item, *processes)
        record_lost(Path("out"), [item])
        assert path.exists()
    # A worker whose parent is gone goes on until it notices; its lock tells.
    note(item, ended(), ended())
    with FolderLock(Path("out") / "pretrain" / item.entry["stages"]["pretrain"]):
        record_lost(Path("out"), [item])
    assert job_file(Path("out"), item.id).exists()
    assert not list(Path("out").glob("*/*/record.json"))


@pytest.mark.parametrize("processes", [[{"host": "elsewhere", "space": "x", "pid": 1, "started": "1"}], [], "odd", [3]])
def test_processes_of_another_machine_are_lost_after_a_silence(item, processes):
    path = note(item)
    path.write_text(json.dumps({"processes": processes, "log_start": "odd"}))
    record_lost(Path("out"), [item])
    assert path.exists()
    long_ago = time.time() - SILENT_SECONDS - 1
    for place in (path, *Path("out").glob("*/*")):
        os.utime(place, (long_ago, long_ago))
    os.utime(path)  # one of them moved a moment ago
    record_lost(Path("out"), [item])
    assert path.exists()
    os.utime(path, (long_ago, long_ago))
    record_lost(Path("out"), [item])
    assert error_of(item)["type"] == "ProcessEnded"


def test_what_has_a_record_by_now_is_left_as_it_is(item):
    child = Child(item.job(Path("out"), 1))
    child.process.kill()
    child.process.wait()
    note(item, ended())
    time.sleep(0.05)
    child.finish()  # records the death, after the note was written
    before = error_of(item)
    assert before["type"] == "SIGKILL"
    note_of_before = note(item, ended())
    os.utime(note_of_before, (1, 1))
    record_lost(Path("out"), [item])
    assert error_of(item) == before
    assert not note_of_before.exists()


def test_a_queued_job_is_not_lost(item, monkeypatch):
    monkeypatch.setattr(lost_work, "live_jobs", lambda *_: {item.id: "a job that is queued"})
    path = note(item, ended())
    record_lost(Path("out"), [item])
    assert path.exists()


@pytest.mark.parametrize("name", ["../evaluate.job.json", "0123456789ab.job.json", "x.job.json"])
def test_a_stranger_s_note_writes_nothing_elsewhere(item, place, name):
    (Path("out") / "logs" / name).write_text(json.dumps({"processes": [ended()], "folder": str(place), "id": "../x"}))
    before = {path for path in place.rglob("*") if path.is_file()}
    record_lost(Path("out"), [item])
    assert {path for path in place.rglob("*") if path.is_file()} == before


def test_sigterm_outside_of_training_is_an_orderly_end(item, place, monkeypatch):
    def terminated(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("the signal must end this")

    monkeypatch.setattr("ratplus.sweeps.launch.launch.run_cell", terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert ratplus_here(place, "sweep", *TINY, "output=out").returncode == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(place.glob("out/logs/*.job.json"))


def test_a_worker_whose_parent_was_killed_tidies_up(item, place):
    """It saves and stops, which is no failure: the next run continues from there."""
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "train.pretrain.steps=100000", "output=sweep"]
    parent = subprocess.Popen([RATPLUS, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(place.glob("sweep/logs/*.progress.json")))
    assert len(json.loads(next(place.glob("sweep/logs/*.job.json")).read_text())["processes"]) == 2
    parent.kill()
    parent.wait()
    wait_for(lambda: not list(place.glob("sweep/logs/*.job.json")))
    wait_for(lambda: not list(place.glob("sweep/pretrain/*/lock.json")))
    assert json.loads(ratplus_here(place, "status", "sweep", "--json").stdout)["counts"] == {"missing": 2}
    assert list(place.glob("sweep/pretrain/*/training-*.pt"))


def test_what_was_killed_between_its_record_and_its_end_is_tidied_by_the_next_command(place):
    """Nobody does a finished cell again, so that a worker would look there; what a living process holds stays."""
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "output=out"]
    assert ratplus_here(place, *words).returncode == 0
    (pretrain,) = (place / "out" / "pretrain").iterdir()
    killed, living = sorted((place / "out" / "evaluate").iterdir())
    left = [killed / "lock.json", killed / ".record.json.x.tmp", pretrain / "training-4.pt"]
    with FolderLock(living):
        left[0].write_text(json.dumps(json.loads((living / "lock.json").read_text()) | ended()))
        for path in left[1:]:
            path.write_text("begun")
        assert set(left) < set(leftovers(place / "out"))
        assert ratplus_here(place, *words).returncode == 0
        assert leftovers(place / "out") == [living / "lock.json"]


def test_a_note_is_removed_however_the_work_ends(place):
    (place / "out" / "logs").mkdir(parents=True)
    with suppress(KeyboardInterrupt), at_work(Path("out"), "0123456789ab"):
        assert job_file(Path("out"), "0123456789ab").exists()
        raise KeyboardInterrupt
    assert not list((place / "out" / "logs").iterdir())
