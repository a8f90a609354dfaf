"""What is made of a worker's end, and when its process group is ended; no worker of ours is started."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_cells import entry, settle

from ratplus.sweeps.launch import child as launch_child
from ratplus.sweeps.launch.child import Child, folder_log, start_process, tail, worker_environment

NOBODY = 1 << 30  # no process has that number


class Ended:
    """A process that has ended with a code; `log` is what it printed."""

    def __init__(self, code: int | None):
        self.pid, self.returncode, self.polls = NOBODY, code, 0

    def poll(self):
        self.polls += 1
        return self.returncode


@pytest.fixture
def job(tmp_path) -> dict[str, Any]:
    cell = entry("m", 1)
    return {
        "id": cell["stages"]["evaluate"], "last": "evaluate", "stages": cell["stages"], "folder": str(tmp_path / "out"),
        "cwd": str(tmp_path), "threads": 3,
    }  # fmt: skip


@pytest.fixture
def deaths(monkeypatch) -> list:
    told: list = []
    monkeypatch.setattr(launch_child, "record_death", lambda job, *words: told.append(words))
    return told


@pytest.fixture(autouse=True)
def groups(monkeypatch) -> list:
    """The process groups that were ended, instead of being so."""
    told: list = []
    monkeypatch.setattr(launch_child.os, "killpg", lambda *words: told.append(words))
    return told


def ended(job, code: int | None, *printed: str) -> Child:
    def start(job_file, environment, cwd, output):
        os.write(output, "".join(f"{line}\n" for line in printed).encode())
        return Ended(code)

    return Child(job, start=start)


def test_what_a_worker_is_started_with(job, tmp_path, monkeypatch):
    given = []
    monkeypatch.setenv("RAY_X", "1")
    monkeypatch.setenv("KEPT", "1")
    log = folder_log(job)
    assert log == tmp_path / "out" / "logs" / f"{job['id']}.log"
    log.parent.mkdir(parents=True)
    log.write_text("of an earlier attempt\n")
    progress = log.with_suffix(".progress.json")
    progress.write_text("old")

    def start(job_file, environment, cwd, output):
        content = json.loads(Path(job_file).read_text())
        given.append((job_file, environment, cwd, content))
        assert not progress.exists()
        os.write(output, b"new\n")
        return Ended(0)

    made = Child(job, {"CUDA_VISIBLE_DEVICES": "5", "OMP_NUM_THREADS": "9"}, start)
    ((path, environment, cwd, content),) = given
    assert (path, cwd) == (str(log.with_suffix(".job.json")), str(tmp_path))
    assert environment.items() >= {
        "KEPT": "1", "CUDA_VISIBLE_DEVICES": "5", "OMP_NUM_THREADS": "9", "MKL_NUM_THREADS": "3", "PYTHONSAFEPATH": "1",
    }.items()  # fmt: skip
    assert "RAY_X" not in environment
    assert {key: content[key] for key in job} == job
    assert (content["progress"], content["log_start"]) == (str(progress), len("of an earlier attempt\n"))
    assert [process["pid"] for process in content["processes"]] == [os.getpid()]
    assert made.ending() == ""
    made.process.returncode = 7
    assert made.ending() == "new", "lines of earlier attempts are not this one's"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("SLURM_JOB_ID", True), ("SLURM_ARRAY_JOB_ID", True), ("SLURM_ARRAY_TASK_ID", True),
        ("SLURM_JOB_PARTITION", True), ("SLURM_RESTART_COUNT", True), ("SLURM_JOB_ID_X", False),
        ("SLURM_PROCID", False),
        ("SUBMITIT_EXECUTOR", False), ("RAY_X", False), ("PMI_RANK", False), ("PMIX_RANK", False), ("SLURM", True),
        ("MY_RAY_X", True), ("PMIXED", True),
    ],
)  # fmt: skip
def test_variables_that_a_worker_inherits(monkeypatch, name, kept):
    monkeypatch.setenv(name, "v")
    assert (worker_environment(2).get(name) == "v") is kept


@pytest.mark.parametrize(
    ("code", "printed", "kind", "message", "ending"),
    [
        (1, (), "WorkerEnded", "the worker ended with exit code 1 and left no record", "exit code 1"),
        (3, ("a", "b"), "WorkerEnded", "the worker ended with exit code 3 and left no record; it printed last: b", "b"),
        (-9, ("a",), "SIGKILL", "killed by SIGKILL (out of memory?)", "killed by SIGKILL (out of memory?)"),
        (-11, (), "SIGSEGV", "killed by SIGSEGV", "killed by SIGSEGV"),
        (0, (), "WorkerEnded", "the worker ended with exit code 0, before its work was done and left no record",
         "exit code 1"),
        (0, ("x", "y"), "WorkerEnded",
         "the worker ended with exit code 0, before its work was done and left no record; it printed last: y", "y"),
    ],
)  # fmt: skip
def test_a_worker_that_left_no_record(job, deaths, groups, code, printed, kind, message, ending):
    made = ended(job, code, *printed)
    assert made.finish() == (code or 1)
    assert deaths == [(kind, message, list(printed))]
    assert made.ending() == ending
    assert groups == ([(NOBODY, signal.SIGKILL)] if code < 0 else []), "what a killed worker started goes too"
    assert [path.suffix for path in (Path(job["folder"]) / "logs").iterdir()] == [".log"]


@pytest.mark.parametrize("code", [-signal.SIGTERM, -signal.SIGINT, 143, 130])
def test_a_worker_that_was_told_to_stop_has_not_failed(job, deaths, groups, code):
    assert ended(job, code).finish() == code
    assert deaths == []
    assert groups == ([(NOBODY, signal.SIGKILL)] if code < 0 else [])


def test_a_worker_whose_work_is_done_or_told_of(job, deaths, tmp_path):
    folder, cell = Path(job["folder"]), entry("m", 1)
    made = ended(job, 1, "bad")
    settle(folder, cell, "failed", "adapt")  # the worker's own record
    assert made.finish() == 1
    again = ended(job, 0)
    settle(folder, cell, "done")
    assert again.finish() == 0
    assert deaths == []
    ended(job, 4, "after its record").finish()
    assert [words[0] for words in deaths] == ["WorkerEnded"], "a record of before tells nothing of this worker"


def test_stopping_a_process_that_obeys_and_one_that_does_not(job, groups, monkeypatch):
    """The clock and the process are pretended."""
    clock, sent, ends = [100.0], [], [0.0]
    monkeypatch.setattr(launch_child.os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(launch_child.time, "monotonic", lambda: clock[0])

    def sleep(seconds):
        clock[0] += 1.0
        if clock[0] >= ends[0]:
            made.process.returncode = -9

    monkeypatch.setattr(launch_child.time, "sleep", sleep)
    for at, killed in ((103.0, []), (108.0, [(NOBODY, signal.SIGKILL)] * 2)):
        clock[0], ends[0], sent[:], groups[:] = 100.0, at, [], []
        made = ended(job, None)
        made.stop(5.0)
        assert sent == [(NOBODY, signal.SIGTERM)]
        assert groups == killed, "only once the time is over"
        assert made.process.polls > 0
        assert [path.suffix for path in (Path(job["folder"]) / "logs").iterdir()] == [".log"]
    made = ended(job, 0)
    made.stop(5.0)
    assert len(sent) == 1, "one that has ended is sent nothing"


def test_a_process_group_that_has_gone_is_no_mistake(job, deaths, monkeypatch):
    for error in (ProcessLookupError, PermissionError):
        monkeypatch.setattr(launch_child.os, "killpg", lambda *_, error=error: (_ for _ in ()).throw(error()))
        assert ended(job, -11).finish() == -11


def test_the_process_of_a_worker(monkeypatch):
    given = []
    monkeypatch.setattr(launch_child.subprocess, "Popen", lambda *words, **named: given.append((words, named)))
    start_process("a.job.json", {"A": "1"}, "/there", 7)
    assert given == [(
        ([sys.executable, "-P", "-m", "ratplus.sweeps.launch.worker", "a.job.json"],),
        {"stdout": 7, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "cwd": "/there", "env": {"A": "1"},
         "start_new_session": True},
    )]  # fmt: skip


def test_the_last_lines_of_a_file(tmp_path):
    path = tmp_path / "log"
    assert tail(path) == tail(tmp_path) == []
    path.write_text("\n".join(f"line {i}" for i in range(60)) + "\n\n")
    assert tail(path) == [f"line {i}" for i in range(10, 60)]
    assert tail(path, len("line 0\n") * 10 + len("line 10\n") * 48) == ["line 58", "line 59"]
    assert tail(path, 10**6) == []
    path.write_bytes(b"a" * 30_000 + b"\n" + b"b" * 19_990 + b"\xff\n")
    first, last = tail(path)
    assert (len(first), set(first), last) == (7, {"a"}, "b" * 19_990 + "\ufffd")
    (tmp_path / "link").symlink_to(path)
    assert tail(tmp_path / "link") == []


def test_a_death_is_recorded_for_the_first_stage_that_is_not_done(tmp_path, monkeypatch):
    """The stages are pretended, so that no config is needed."""
    cell, written = entry("m", 1), []
    stages = [
        SimpleNamespace(name=name, id=key, config={"of": name}, parent=f"before {name}",
                        folder=lambda folder, name=name, key=key: folder / name / key)
        for name, key in cell["stages"].items()
    ]  # fmt: skip
    monkeypatch.setattr(launch_child, "typed", lambda config: config)
    monkeypatch.setattr(launch_child, "planned_stages", lambda *words: planned.append(words) or stages)
    monkeypatch.setattr(launch_child, "write_record", lambda target, **record: written.append((target, record)))
    monkeypatch.setattr(launch_child, "provenance", lambda: {"host": "h"})
    monkeypatch.setattr(launch_child, "describe_failure", lambda *words: {"told": words})
    monkeypatch.setattr(launch_child, "memory_advice", lambda *words: advice if words[0] == "K" else "wrong")
    planned: list = []
    job: Any = {
        "config": "c", "corpus": "text", "vocab_size": 9, "stages": cell["stages"], "folder": str(tmp_path),
        "last": "evaluate",
    }  # fmt: skip

    def died(host: str | None = None, **changes) -> tuple | None:
        written.clear()
        launch_child.record_death(job | changes, "K", "message", ["a", "b"], host)
        return written[0] if written else None

    advice = ""
    for done, at in ((None, "pretrain"), ("pretrain", "adapt"), ("adapt", "evaluate")):
        if done:
            settle(tmp_path, cell, "done", done)
        target = tmp_path / at / cell["stages"][at]
        assert died("there") == (target, {
            "stage": at, "config": {"of": at}, "parent": f"before {at}", "status": "failed", "metrics": {},
            "timing": {}, "provenance": {"host": "h"},
            "error": {"told": ("K", "message", ["a", "b"], target, "there")},
        })  # fmt: skip
    assert planned[-1] == ("c", "text", 9)
    advice = "use less"
    assert died()[1]["error"]["told"] == (
        "K", "message; use less", ["a", "b"], tmp_path / "evaluate" / job["stages"]["evaluate"], None,
    )  # fmt: skip
    assert died(last="adapt") is None, "what was asked for is done"
    assert died(stages={**cell["stages"], "adapt": "f" * 12}) is None, "another version makes other ids"
    monkeypatch.setattr(launch_child, "write_record", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    assert died() is None
