"""What becomes of jobs of `launcher=slurm`, by stand-ins for SLURM's commands, and by submitit's local executor, which
runs the same jobs as processes of this machine. On a real cluster: tests/sweeps/slurm/."""

import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_runs import TINY, ratplus_here, wait_for
from made_cells import entry, settle
from pretended_slurm import SLURM, submitted_command

from ratplus.records.record import read_record
from ratplus.sweeps.define.compose import compose_cells, compose_one
from ratplus.sweeps.define.manifest import plan_cells
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch import array_task
from ratplus.sweeps.launch import slurm as launch_slurm
from ratplus.sweeps.launch.work import work_items


def test_a_job_that_ends_without_a_record_is_recorded_by_the_next_status(place, cluster):
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM]
    assert ratplus_here(place, *words).returncode == 0
    (cluster / "queue").write_text("1001 RUNNING\n1002_0 PENDING\n1002_1 PENDING\n")
    assert json.loads(ratplus_here(place, "status", "out", "--json").stdout)["counts"] == {"queued": 2}
    assert not list((place / "out").glob("*/*/record.json"))
    # The pretraining ends on a broken node, and nothing of ours ran there; a cell is left out on purpose.
    (logs,) = (place / "out" / "logs" / "slurm").iterdir()
    (logs / "1001_0_log.err").write_text("slurmstepd: error: execve(): python: No such file or directory\n")
    (logs / "1002_0_log.out").write_text("not started: its pretraining failed\n")
    (cluster / "queue").write_text("1002_1 PENDING\n")
    done = ratplus_here(place, "status", "out", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["counts"] == {"queued": 1, "failed": 1}
    (error,) = (cell["error"] for cell in told["cells"] if cell["error"])
    assert error.startswith("JobEnded: batch job 1001 ended and left no record; it printed last: slurmstepd: error")
    (record,) = (place / "out").glob("*/*/record.json")
    assert record.parts[-3] == "pretrain"
    before = record.read_bytes()
    ratplus_here(place, "status", "out")
    assert record.read_bytes() == before  # once
    # `retry=failed` finds it, and the next death is told as the next one.
    assert "submitted" in ratplus_here(place, *words, "retry=failed").stdout
    found = json.loads(record.read_text())
    assert (found["error"]["attempt"], found["error"]["traceback"][-1][:10]) == (1, "slurmstepd")
    (cluster / "queue").write_text("")
    ratplus_here(place, "status", "out")
    jobs = json.loads((place / "out" / "jobs.json").read_text())["submissions"]
    found, number = json.loads(record.read_text()), jobs[-1]["jobs"][record.parts[-2]]
    assert len(jobs) == 2
    assert number != "1001"
    # A submission is dated from before its first job: that may fail before the last one is submitted.
    assert datetime.fromisoformat(jobs[-1]["time"]).timestamp() <= (cluster / f"{number}.sh").stat().st_mtime
    assert found["error"]["message"].startswith(f"batch job {number} ended and left no record")
    assert found["error"]["attempt"] == 2


def test_the_end_of_a_lost_job_is_told_as_slurm_knows_it(place, cluster):
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM]
    assert ratplus_here(place, *words).returncode == 0
    (cluster / "ended-1001").write_text("JobId=1001 JobName=x JobState=FAILED Reason=NonZeroExitCode ExitCode=127:0 "
                                        "NodeList=node[7-8] BatchHost=node7\n")  # fmt: skip
    (error,) = {cell["error"] for cell in json.loads(ratplus_here(place, "status", "out", "--json").stdout)["cells"]}
    assert error == (
        "JobEnded: batch job 1001 ended (FAILED, exit code 127, on node7) and left no record; it printed nothing"
    )
    (record,) = (read_record(path.parent) for path in (place / "out").glob("*/*/record.json"))
    # Of the pretraining's own job, once, though the jobs of two cells ended without a record too.
    assert (record["stage"], record["error"]["host"], record["error"]["attempt"]) == ("pretrain", "node7", 1)


def test_logs_of_earlier_versions_are_found(place, cluster):
    words = ["sweep", *TINY, "output=out", *SLURM]
    assert ratplus_here(place, *words).returncode == 0
    jobs = json.loads((place / "out" / "jobs.json").read_text())
    for row in jobs["submissions"]:
        row["id"] = "0a1b2c3d"
        del row["launcher"]
    (place / "out" / "jobs.json").write_text(json.dumps(jobs))
    (place / "out" / "logs" / "slurm" / "1001_0_log.err").write_text("bus error\n")
    assert "it printed last: bus error" in ratplus_here(place, "status", "out").stdout


def test_waiting_for_jobs_that_leave_nothing_ends_in_failure(place, cluster):
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM, "launcher.wait=true"]
    done = ratplus_here(place, *words)  # the queue is empty at once
    assert done.returncode == 1
    assert "2 of 2 cells failed" in done.stderr
    assert "batch job 1001 ended and left no record; it printed nothing" in done.stderr


def test_jobs_that_can_never_start_end_the_waiting(place, cluster):
    (cluster / "queue").write_text("1001 PENDING PartitionTimeLimit\n1002_0 PENDING Dependency\n")
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM, "launcher.wait=true"]
    done = ratplus_here(place, *words)
    assert done.returncode == 1
    assert (
        "1 job (1001) can never start, SLURM says PartitionTimeLimit (more time than is allowed); change "
        in done.stderr
    )
    assert "launcher.minutes=240: `scancel 1001`, then the same command again" in done.stderr


def test_changed_keys_of_queued_jobs_are_told(place, cluster):
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM, "launcher.partition=gpu"]
    assert ratplus_here(place, *words).returncode == 0
    (cluster / "queue").write_text("1001 RUNNING None\n1002_0 PENDING Dependency\n1002_1 PENDING Dependency\n")
    assert "given now" not in ratplus_here(place, *words).stdout
    again = ratplus_here(place, *words[:-1], "launcher.partition=cpu", "launcher.minutes=60", "launcher.wait=false")
    assert again.returncode == 0
    assert (
        "3 jobs are queued or running with launcher.partition=gpu launcher.minutes=240 and stay so (given now: "
        "launcher.partition=cpu launcher.minutes=60); to change that: `scancel 1001 1002`, then the same command again"
    ) in again.stdout


@pytest.mark.parametrize("requeues", [0, 2])
def test_a_job_is_queued_again_as_often_as_it_may_be(place, cluster, monkeypatch, requeues):
    """Each time its limit nears, as SLURM's signal says; then what happened is recorded. The child has no time to
    train: it is told to stop as soon as it is there."""
    from submitit.core.job_environment import SignalHandler
    from submitit.core.utils import DelayedSubmission, UncompletedJobError

    monkeypatch.chdir(place)
    cells = plan_cells(compose_cells([*TINY, "output=out"]))
    words = [*SLURM, "launcher.minutes=5", f"launcher.requeues={requeues}", "max_failures=1"]
    launcher = compose_one(words).config.launcher
    submission = launch_slurm.submit(work_items(cells, "pretrain"), Path("out"), "pretrain", launcher, 1)
    (handle,) = submission.handles
    queued_again = []
    environment = SimpleNamespace(global_rank=0, _requeue=queued_again.append)

    def start() -> None:
        job = DelayedSubmission.load(handle.paths.submitted_pickle)
        # Of a job of so few minutes every moment counts as near its end.
        handler = SignalHandler(environment, handle.paths, job)
        before = signal.signal(signal.SIGUSR2, handler.checkpoint_and_try_requeue)
        try:
            threading.Thread(target=signal_when_it_runs).start()
            job.result()
        finally:
            signal.signal(signal.SIGUSR2, before)

    def signal_when_it_runs() -> None:
        wait_for(lambda: list(place.glob("out/logs/*.job.json")))
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGUSR2)

    for _ in range(requeues):
        with pytest.raises(SystemExit):
            start()
    assert len(queued_again) == requeues
    assert not list(place.glob("out/pretrain/*/record.json"))
    with pytest.raises(UncompletedJobError, match="timed-out too many times"):
        start()
    assert len(queued_again) == requeues
    (record,) = (read_record(path.parent) for path in place.glob("out/pretrain/*/record.json"))
    assert record["status"] == "failed"
    assert record["error"]["type"] == "TimeLimit"
    assert f"reached its limit of 5 minutes more than {requeues} times" in record["error"]["message"]
    (counted,) = place.glob("out/logs/failures-*/*")
    assert counted.name == cells[0]["stages"]["pretrain"]


def test_a_job_that_came_too_late_does_not_start(tmp_path):
    cell = entry("a", 1)
    job = {
        "id": "x",
        "folder": str(tmp_path),
        "needs": cell["stages"]["pretrain"],
        "max_failures": 1,
        "submission": "s",
    }
    assert array_task.why_not(job) == ""
    array_task.count_failure(job | {"id": "y"})
    assert array_task.why_not(job) == "max_failures=1 is reached"
    assert array_task.why_not(job | {"submission": "later"}) == ""
    settle(tmp_path, cell, "failed", "pretrain")
    assert array_task.why_not(job) == "its pretraining failed"


@pytest.mark.slow
def test_jobs_as_processes_end_to_end(place, monkeypatch):
    """submitit's local executor: the same jobs, waited for, with the report at the end; no pickle is read here."""
    from submitit.core import utils

    monkeypatch.setattr(utils, "pickle_load", lambda path: pytest.fail(f"{path} was unpickled"))
    words = ["sweep", "-m", *TINY, "pattern=dense,dilated", "output=out", *SLURM, "launcher.cluster=local"]
    done = ratplus_here(place, *words, "launcher.wait=true")
    assert done.returncode == 0, done.stderr
    assert "submitted 3 jobs (1 pretrainings, 2 cells)" in done.stdout
    assert "2 done; table: out/report/accuracy_vs_dilation.md" in done.stdout
    again = ratplus_here(place, *words)
    assert again.returncode == 0
    assert "submitted" not in again.stdout  # nothing is left to do


@pytest.mark.slow
def test_a_preempted_job_saves_queues_again_and_continues(place, cluster, request):
    """The submitted script itself, run by a pretended srun: SIGUSR2 mid-training, then a second start of the job."""
    words = [*TINY, "train.pretrain.steps=600", "run.checkpoint_seconds=1000", "output=out", *SLURM]
    assert ratplus_here(place, "pretrain", *words).returncode == 0
    (pickled,) = (place / "out" / "logs" / "slurm").glob("*/*_submitted.pkl")
    environment = os.environ | {"SLURM_JOB_ID": "1001", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    environment |= {"SUBMITIT_EXECUTOR": "slurm"}  # as the script exports

    started = []
    request.addfinalizer(lambda: [process.kill() for process in started])  # when an assertion fails

    def start():
        # The script's last command in place of the shell, so that there is one process to end.
        command = [str(cluster.parent / "tools" / "srun"), *submitted_command(cluster / "1001.sh")]
        started.append(subprocess.Popen(command, cwd=place, env=environment, start_new_session=True))
        return started[-1]

    # As SLURM does, to every process of the job: the cell's own worker must not die of it.
    job = start()
    wait_for(
        lambda: (
            list(place.glob("out/pretrain/*/curve.csv"))
            and "\n50," in next(place.glob("out/pretrain/*/curve.csv")).read_text()
        )
    )
    for pid in processes("ratplus.sweeps.launch.worker", place) + processes("submitit.core._submit", place):
        os.kill(pid, signal.SIGUSR2)
    job.wait(60)
    assert (cluster / "scontrol").read_text() == "requeue 1001\n"
    assert not list(place.glob("out/pretrain/*/record.json"))
    (state,) = place.glob("out/pretrain/*/training-*.pt")
    saved = int(state.name.split("-")[1])
    assert saved >= 50
    assert pickled.exists()

    job = start()
    job.wait(240)
    (record,) = (json.loads(p.read_text()) for p in place.glob("out/pretrain/*/record.json"))
    assert record["status"] == "done"
    assert record["timing"]["resumed_at_step"] == saved


def processes(module: str, place: Path) -> list[int]:
    """The one process that runs a module on a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if b"python" in command and module.encode() in command and str(place).encode() in command:
                found.append(int(process.name))
    assert len(found) == 1, (module, found)
    return found


@pytest.mark.parametrize(("new", "refused"), [(16, False), (17, True)])
def test_of_local_jobs_those_that_run_already_do_not_count(tmp_path, monkeypatch, new, refused):
    items = [SimpleNamespace(id=f"{i}") for i in range(new + 3)]
    live = {item.id: "runs" for item in items[:3]}
    monkeypatch.setattr(launch_slurm, "live_jobs", lambda folder, wanted: live)
    started = []
    monkeypatch.setattr(launch_slurm, "_submit_new", lambda new, *_: started.extend(new))
    launcher = compose_one([*SLURM, "launcher.cluster=local"]).config.launcher
    if refused:
        with pytest.raises(UsageError, match="cluster=local: 17 jobs would all start at once; .* at most 16"):
            launch_slurm.submit(items, tmp_path, "evaluate", launcher, None)
        assert not started
    else:
        assert launch_slurm.submit(items, tmp_path, "evaluate", launcher, None).already == live
        assert started == items[3:]
