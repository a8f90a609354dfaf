"""Small parts of launching, each case: parameters of a batch job, a forked process, a worker, records of lost work."""

import os
import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ratplus.config.run import LauncherSection
from ratplus.records.status import State
from ratplus.sweeps.batch.slurm import SlurmError
from ratplus.sweeps.launch import fork_server, local, lost_work, worker
from ratplus.sweeps.launch import slurm as launch_slurm
from ratplus.sweeps.launch.lost_work import _has_ended, _message, _start, _tells, _unrecorded

# ---- a batch job --------------------------------------------------------------------------------------------------


class Executor:
    """submitit's, which keeps what it is given."""

    made: Any

    def __init__(self, logs, **given):
        self.logs, self.given, self.parameters = logs, given, {}
        Executor.made = self

    def update_parameters(self, **given):
        self.parameters |= given


@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_what_a_cluster_is_asked_for(monkeypatch, tmp_path, cluster):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    monkeypatch.setattr(sys, "executable", "/a b/python")
    keys = dict(kind="slurm", workers=None, threads=None, cluster=cluster, minutes=7, requeues=3, grace_seconds=99,
                array_size=50)  # fmt: skip
    plain = launch_slurm._executor(tmp_path / "my sweep", tmp_path, LauncherSection(**keys), set())
    assert (plain.logs, plain.given) == (tmp_path, {
        "cluster": cluster, "slurm_max_num_timeout": 3, "slurm_python": "'/a b/python' -P", "local_max_num_timeout": 3,
        "local_python": "'/a b/python' -P",
    })  # fmt: skip
    asked = {
        "name": "ratplus-my sweep", "timeout_min": 7, "tasks_per_node": 1, "nodes": 1, "slurm_partition": None,
        "slurm_account": None, "slurm_qos": None, "slurm_constraint": None, "slurm_signal_delay_s": 99,
        "slurm_array_parallelism": 50, "slurm_dependency": None, "slurm_setup": None,
        "slurm_srun_args": ["--cpus-per-task", "1"], "slurm_additional_parameters": {"requeue": True},
    }  # fmt: skip
    resources = {"cpus_per_task", "mem_gb", "gpus_per_node"}
    assert {key: value for key, value in plain.parameters.items() if key not in resources} == asked
    own = LauncherSection(**keys | dict(
        partition="p", account="a", qos="q", constraint="c", cpus=4, setup=["module load x"], workers=5, gpus=0,
        sbatch={"nice": 9}, memory_gb=2.0,
    ))  # fmt: skip
    found = launch_slurm._executor(tmp_path / "s", tmp_path, own, {"12", "11"}).parameters
    assert found == asked | {
        "name": "ratplus-s", "slurm_partition": "p", "slurm_account": "a", "slurm_qos": "q", "slurm_constraint": "c",
        "slurm_array_parallelism": 5, "slurm_dependency": "afterany:11:12", "slurm_setup": ["module load x"],
        "slurm_srun_args": ["--cpus-per-task", "4"], "cpus_per_task": 4, "mem_gb": 2.0,
        "slurm_additional_parameters": {"requeue": True, "nice": 9},
    }  # fmt: skip


@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_what_was_submitted_is_taken_back(monkeypatch, tmp_path, cluster):
    told: list = []
    handles = [SimpleNamespace(cancel=lambda: told.append("handle"))] * 2
    submission: Any = SimpleNamespace(jobs={}, arrays=["7", "8"], handles=handles, cluster=cluster, id="i")
    monkeypatch.setattr(launch_slurm, "cancel", lambda arrays: told.append(arrays))
    monkeypatch.setattr(launch_slurm, "remove_jobs", lambda *words: told.append(words))
    assert launch_slurm._take_back(tmp_path, submission) == ""
    assert told == []
    submission.jobs = {"a": "7_0"}
    line = launch_slurm._take_back(tmp_path, submission)
    assert line == "what this call had submitted before (jobs 7 8) is cancelled"
    assert told == [*([["7", "8"]] if cluster == "slurm" else ["handle"] * 2), (tmp_path, "i")]
    for error in (SlurmError("away"), OSError("full")):
        monkeypatch.setattr(launch_slurm, "remove_jobs", lambda *_, error=error: (_ for _ in ()).throw(error))
        assert launch_slurm._take_back(tmp_path, submission) == (
            f"what this call had submitted before (jobs 7 8) could not be cancelled ({error}): `scancel 7 8`"
        )


# ---- processes of this machine ------------------------------------------------------------------------------------


def test_a_forked_process_becomes_what_was_asked_for(monkeypatch, tmp_path):
    """All that would change this process is a stand-in."""
    done: list = []
    for name in ("setsid", "dup2", "close", "chdir"):
        monkeypatch.setattr(fork_server.os, name, lambda *words, name=name: done.append((name, *words)))
    monkeypatch.setattr(fork_server.os, "environ", {"OLD": "1"})
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setattr(sys, "path", ["/kept", "/b"])
    monkeypatch.setattr(fork_server, "import_module", lambda name: SimpleNamespace(work=lambda: done.append(name) or 5))
    wanted = {
        "cwd": "/there", "environment": {"A": "1", "PYTHONPATH": "/a::/b:/c"}, "words": ["w", "x"],
        "function": "some.module:work",
    }  # fmt: skip
    assert fork_server._begin(wanted, 11, 12) == 5
    assert done == [
        ("setsid",), ("dup2", 11, 1), ("dup2", 12, 2), ("close", 11), ("close", 12), ("chdir", "/there"), "some.module",
    ]  # fmt: skip
    assert fork_server.os.environ == wanted["environment"]
    assert sys.argv == ["w", "x"]
    assert sys.path == ["/a", "/c", "/kept", "/b"]
    del wanted["environment"]["PYTHONPATH"]
    fork_server._begin(wanted, 11, 12)
    assert sys.path == ["/a", "/c", "/kept", "/b"]


@pytest.mark.parametrize(
    ("result", "code", "said"),
    [(0, 0, ""), (3, 3, ""), (KeyboardInterrupt(), 130, ""), (ValueError("odd"), 1, "ValueError: odd\n")],
)
def test_a_worker_shuts_others_out_before_it_begins(monkeypatch, capsys, result, code, said):
    done: list = []
    monkeypatch.setattr(worker, "shut_out", lambda: done.append("shut"))
    monkeypatch.setattr(worker, "guard_output", lambda: done.append("guard"))

    def main(path):
        done.append(path)
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(worker, "main", main)
    monkeypatch.setattr(sys, "argv", ["worker", "a.job.json"])
    assert worker.work() == code
    assert done == ["shut", "guard", "a.job.json"]
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("orphaned", [True, False])
def test_a_worker_stops_once_nobody_watches(monkeypatch, tmp_path, orphaned):
    import json

    sent, ran = [], []
    path, progress = tmp_path / "a.job.json", tmp_path / "a.progress.json"
    path.write_text(json.dumps({
        "processes": [{"pid": 1}], "command": ["c"], "progress": str(progress), "config": "C", "stages": "S",
        "folder": str(tmp_path), "last": "adapt",
    }))  # fmt: skip
    parents = iter([5, 6 if orphaned else 5, 6 if orphaned else 5])
    monkeypatch.setattr(worker.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(worker.os, "kill", lambda *words: sent.append(words))
    monkeypatch.setattr(sys, "argv", ["before"])
    before = signal.getsignal(signal.SIGUSR2)

    def run_cell(config, stages, folder, last, show, print_line):
        told = json.loads(path.read_text())["processes"]
        ran.append((config, stages, folder, last, sys.argv, told[0], told[1]["pid"]))
        show("adapt", 1, 9, {"loss": 2.0})
        assert progress.exists()
        return 7

    monkeypatch.setattr(worker, "run_cell", run_cell)
    try:
        assert worker.main(str(path)) == 7
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert ran == [("C", "S", tmp_path, "adapt", ["c"], {"pid": 1}, os.getpid())]
    assert sent == ([(os.getpid(), signal.SIGTERM)] if orphaned else [])
    assert (path.exists(), progress.exists()) == (not orphaned, not orphaned)


@pytest.mark.parametrize(
    ("items", "workers", "platform", "there", "begun"),
    [(4, 2, "linux", False, True), (3, 2, "linux", False, False), (4, 2, "darwin", False, False),
     (4, 2, "linux", True, False), (4, 3, "linux", False, False)],
)  # fmt: skip
def test_a_server_is_started_where_it_pays(monkeypatch, items, workers, platform, there, begun):
    started: list = []
    monkeypatch.setattr(local.sys, "platform", platform)
    monkeypatch.setattr(local, "worker_environment", lambda threads: {"threads": str(threads)})
    monkeypatch.setattr(local, "server_for", lambda environment: "server" if there else None)
    monkeypatch.setattr(local, "start_server", started.append)
    local.warm_up(items, workers, 3)
    assert started == [{"threads": "3"}] * begun


@pytest.mark.parametrize("state", ["none", "not ready", "ready", "gone"])
def test_a_worker_is_forked_where_there_is_a_server(monkeypatch, state):
    calls: list = []

    def fork(*words, **named):
        calls.append((words, named))
        if state == "gone":
            raise ConnectionError
        return "forked"

    server = SimpleNamespace(ready=lambda: state != "not ready", fork=fork)
    monkeypatch.setattr(local, "server_for", lambda environment: None if state == "none" else server)
    monkeypatch.setattr(local, "start_process", lambda *words: ("fresh", *words))
    found = local.start_forked("a.job.json", {"A": "1"}, "/there", 7)
    assert found == ("forked" if state == "ready" else ("fresh", "a.job.json", {"A": "1"}, "/there", 7))
    assert calls == [(
        ("ratplus.sweeps.launch.worker:work", ["worker", "a.job.json"]),
        {"environment": {"A": "1"}, "cwd": "/there", "stdout": 7, "stderr": 7},
    )] * (state in ("ready", "gone"))  # fmt: skip


@pytest.mark.parametrize(
    ("allowed", "slot", "count", "given"),
    [
        ("", 0, 1, None), ("3", 0, 1, "3"), ("3", 5, 2, "3"), ("3,5,7", 0, 2, "3,5"), ("3,5,7", 1, 2, "7,3"),
        ("3,5,7", 2, 1, "7"), ("3,5,7", 0, 9, "3,5,7"), ("3,5", 1, 0, ""), (None, 1, 2, "10,0"), (",4,", 0, 1, "4"),
    ],
)  # fmt: skip
def test_gpus_of_a_slot(monkeypatch, allowed, slot, count, given):
    """Those of the machine are 0, 2 and 10, in the order of their numbers."""
    monkeypatch.setattr(local, "_gpus", lambda: ["0", "2", "10"])
    if allowed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert local.gpu_environment(slot, count) == ({} if given is None else {"CUDA_VISIBLE_DEVICES": given})


def test_gpus_of_the_machine_in_the_order_of_their_numbers(monkeypatch, tmp_path):
    for name in ("nvidia10", "nvidia2", "nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(local, "Path", lambda name: tmp_path)
    assert local._gpus() == ["0", "2", "10"]
    monkeypatch.setattr(local, "Path", lambda name: tmp_path / "no")
    assert local._gpus() == []


# ---- lost work ----------------------------------------------------------------------------------------------------

RECORD: Any = {"provenance": {"written_at": "2026-01-02T00:00:00+00:00"}}


@pytest.mark.parametrize(
    ("state", "submitted", "unrecorded"),
    [
        (State("missing"), "x", True), (State("done"), "2027", False), (State("running"), "x", False),
        (State("damaged"), "x", False), (State("failed"), "2026-01-03T00:00:00+00:00", False),
        (State("failed", record=RECORD), "2026-01-03T00:00:00+00:00", True),
        (State("failed", record=RECORD), "2026-01-02T00:00:00+00:00", False),
        (State("failed", record=RECORD), "2026-01-01T00:00:00+00:00", False),
        (State("done", record=RECORD), "2026-01-03T00:00:00+00:00", False),
        (State("failed", record=RECORD), "odd", False),
        (State("failed", record={"provenance": {}}), "2026-01-03T00:00:00+00:00", False),
        (State("failed", record=RECORD), "2026-01-03T00:00:00", False),
    ],
)  # fmt: skip
def test_whether_a_record_is_of_before_a_job(state, submitted, unrecorded):
    assert _unrecorded(state, submitted) is unrecorded


def test_whether_a_record_tells_of_the_work_since_a_time(tmp_path):
    stages = {"adapt": "a", "evaluate": "e"}
    path = tmp_path / "adapt" / "a" / "record.json"
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (100.0, 100.0))
    failed = State("failed", "adapt")
    for state, since, tells in (
        (State("done"), 999.0, True), (State("damaged"), 999.0, True), (State("missing"), 0.0, False),
        (State("running"), 0.0, False), (failed, 99.0, True), (failed, 100.0, True), (failed, 101.0, False),
        (State("failed", "evaluate"), 1.0, False),
    ):  # fmt: skip
        assert _tells(state, stages, tmp_path, since) is tells


@pytest.mark.parametrize(
    ("start", "found"),
    [(5, 5), (0, 0), (-1, 0), (True, 0), ("5", 0), (None, 0), ((1 << 62) - 1, (1 << 62) - 1), (1 << 62, 0), (1.5, 0)],
)
def test_where_a_log_begins(start, found):
    assert _start({"log_start": start}) == found
    assert _start({}) == 0


WHO: Any = {"host": "h", "space": "s", "pid": 5, "started": "t"}


@pytest.mark.parametrize(
    ("content", "progress", "lines", "begin", "end"),
    [
        ({"processes": [WHO | {"pid": 4}, WHO]}, {}, [], "process 5 on h ended without a record, as", "goes down"),
        ({}, {}, ["a", "b"], "the process ended without a record, as", "goes down; it printed last: b"),
        ({"processes": []}, {"done": 3, "total": 9, "stage": "adapt"}, [], "the process ended",
         "goes down; it was at 3 of 9 of adapt"),
        ({"processes": "odd"}, {}, [], "the process ended", "goes down"),
        ({"processes": [WHO, "odd"]}, {"done": 3, "total": 9, "stage": "adapt"}, ["x"], "the process ended",
         "; it was at 3 of 9 of adapt; it printed last: x"),
    ],
)  # fmt: skip
def test_a_lost_process_in_words(content, progress, lines, begin, end):
    text = _message(content, progress, lines)
    assert text.startswith(begin)
    assert text.endswith(end)


def test_when_nobody_is_at_work(monkeypatch, tmp_path):
    """Where processes can be seen they decide; elsewhere a silence of all files does."""
    sight, ended, now = {4: True, 5: True}, {4: True, 5: True}, [0.0]
    monkeypatch.setattr(lost_work, "in_sight", lambda one: sight[one["pid"]])
    monkeypatch.setattr(lost_work, "gone", lambda one: ended[one["pid"]])
    monkeypatch.setattr(lost_work.time, "time", lambda: now[0])
    both = {"processes": [WHO | {"pid": 4}, WHO]}
    place = tmp_path / "place"
    place.mkdir()
    assert _has_ended(both, [place])
    ended[5] = False
    assert not _has_ended(both, [place])
    os.utime(place, (1000.0, 1000.0))
    silent = lost_work.SILENT_SECONDS
    sight[5] = False
    for at, over in ((1000.0 + silent, False), (1001.0 + silent, True)):
        now[0] = at
        assert _has_ended(both, [place]) is over
        assert _has_ended({"processes": []}, [place, tmp_path / "no"]) is over
        assert _has_ended({"processes": ["odd"]}, [place]) is over
    (place / "lock.json").touch()
    os.utime(place / "lock.json", (1500.0, 1500.0))
    os.utime(place, (1000.0, 1000.0))
    assert not _has_ended({}, [place])


def test_files_of_a_sweep_folder_that_are_links_are_not_read(monkeypatch, tmp_path):
    """Who made the folder may have laid them."""
    import json

    from ratplus.records.reading import LinkError
    from ratplus.sweeps.launch.progress import read_progress

    there, link = tmp_path / "there.json", tmp_path / "link.json"
    there.write_text(json.dumps({"stage": "adapt", "done": 1, "total": 2, "processes": []}))
    link.symlink_to(there)
    assert read_progress(there)["done"] == 1
    assert read_progress(link) == {}
    monkeypatch.setattr(worker, "run_cell", lambda *_, **__: pytest.fail("the job was read"))
    before = signal.getsignal(signal.SIGUSR2)
    try:
        with pytest.raises((OSError, LinkError)):
            worker.main(str(link))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert link.is_symlink()
    item = "0123456789ab"
    monkeypatch.setattr(lost_work, "read_manifest", lambda folder: {"cells": []})
    monkeypatch.setattr(lost_work, "items_of", lambda cells, wanted: {item: SimpleNamespace(state=looked.append)})
    looked: list = []
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{item}.job.json").symlink_to(there)
    assert lost_work.record_lost_processes(tmp_path, {}) == 0
    assert looked == []
