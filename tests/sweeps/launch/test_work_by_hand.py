"""What a job is made of, whether it starts, what its end means, and what a cluster is asked for: tables by hand."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_cells import entry, settle

from ratplus.checkpoint.facts import CheckpointError
from ratplus.config.run import LauncherSection
from ratplus.data.corpus import CorpusError
from ratplus.records.record import ForeignRecord, RecordError
from ratplus.sweeps.batch.sbatch_options import check_gpus, resources, sbatch_options
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch import array_task, progress
from ratplus.sweeps.launch.array_task import count_failure, why_not
from ratplus.sweeps.launch.cell import code_of
from ratplus.sweeps.launch.child import STOPPED
from ratplus.sweeps.launch.progress import ProgressFile, at_work, job_file, read_progress
from ratplus.sweeps.launch.work import WorkItem, work_items
from ratplus.training.errors import Diverged, LayoutError


def test_names_of_items():
    cell = entry("m", 4)
    for last, seed, sparse, name in (
        ("evaluate", 0, False, "m D4"), ("evaluate", 2, False, "m D4 seed=2"), ("pretrain", 0, False, "m pretrain"),
        ("pretrain", 2, False, "m seed=2 pretrain"), ("pretrain", 0, True, "m D4 pretrain"), ("adapt", 0, True, "m D4"),
    ):  # fmt: skip
        item = WorkItem({**cell, "seed": seed, "config": {"train": {"pretrain": {"sparse": sparse}}}}, last, None)
        assert item.name == name
        assert item.id == cell["stages"][last]


def test_items_of_cells_that_share_stages():
    a, b, other = entry("m", 1), entry("m", 2), entry("n", 1)
    twin = {**b, "label": "the same"}
    items = work_items([a, b, twin, other], "evaluate")
    assert [(item.last, item.entry["label"], item.entry["model"], item.needs) for item in items] == [
        ("pretrain", "D1", "m", None), ("pretrain", "D1", "n", None),
        ("evaluate", "D1", "m", a["stages"]["pretrain"]), ("evaluate", "D2", "m", b["stages"]["pretrain"]),
        ("evaluate", "D1", "n", other["stages"]["pretrain"]),
    ]  # fmt: skip
    assert [item.last for item in work_items([a, b, other], "pretrain")] == ["pretrain", "pretrain"]


def test_a_job_holds_all_that_a_process_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {
        **entry("m", 1), "corpus": {"sha256": "x"}, "run": {"run": {"threads": None}},
        "config": {"model": {"vocab_size": 99, "name": "m"}, "seed": 3},
    }  # fmt: skip
    item = WorkItem(made, "adapt", made["stages"]["pretrain"])
    job = item.job(Path("out"), 5)
    assert {key: job[key] for key in ("id", "last", "needs", "stages", "corpus", "threads", "folder", "cwd")} == {
        "id": made["stages"]["adapt"], "last": "adapt", "needs": made["stages"]["pretrain"], "stages": made["stages"],
        "corpus": {"sha256": "x"}, "threads": 5, "folder": str(tmp_path / "out"), "cwd": str(tmp_path),
    }  # fmt: skip
    assert (job["vocab_size"], job["config"]["run"]["threads"], job["config"]["seed"]) == (99, 5, 3)
    own = WorkItem({**made, "run": {"run": {"threads": 2}}}, "adapt", None).job(Path("out"), 5)
    assert (own["config"]["run"]["threads"], own["threads"]) == (2, 5)
    json.dumps(job)


def test_a_job_that_should_not_start_any_more(tmp_path):
    cell = entry("m", 1)
    job = {
        "id": "a" * 12, "folder": str(tmp_path), "needs": cell["stages"]["pretrain"], "max_failures": 2,
        "submission": "s",
    }  # fmt: skip
    assert why_not(job) == ""
    settle(tmp_path, cell, "done", "pretrain")
    assert why_not(job) == ""
    count_failure(job)
    count_failure(job)
    assert why_not(job) == "", "one job counts once"
    count_failure({**job, "id": "b" * 12})
    assert why_not(job) == "max_failures=2 is reached"
    assert why_not({**job, "max_failures": 3}) == why_not({**job, "max_failures": None}) == ""
    assert why_not({**job, "submission": "t"}) == "", "each submission has its own count"
    settle(tmp_path, cell, "failed", "pretrain")
    assert why_not({**job, "max_failures": None}) == "its pretraining failed"
    assert why_not({**job, "max_failures": None, "needs": None}) == ""
    count_failure({**job, "submission": "u", "max_failures": None})
    assert not list(tmp_path.glob("logs/failures-u/*"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckpointError("x"), 2), (CorpusError("x"), 2), (LayoutError("x"), 2), (RecordError("x"), 2),
        (ForeignRecord("x"), 2), (Diverged("x"), 1), (ValueError("x"), 1), (OSError("x"), 1), (RuntimeError("x"), 1),
        (MemoryError(), 1),
    ],
)  # fmt: skip
def test_codes_of_errors(error, code):
    assert code_of(error) == code


def test_progress_is_written_twice_a_second_and_at_the_end(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    file = ProgressFile(tmp_path / "a.progress.json")
    assert read_progress(file.path) == {}

    def at(now: float, done: int, **numbers) -> int:
        clock[0] = now
        file.write("adapt", done, 10, numbers)
        return read_progress(file.path)["done"]

    assert at(100.0, 1, loss=2, lr=1.0) == 1
    assert read_progress(file.path) == {"stage": "adapt", "done": 1, "total": 10, "loss": 2.0}
    assert at(100.5, 2) == 1
    assert at(100.51, 3) == 3
    assert at(100.6, 10) == 10, "the end of a stage is always told"
    assert "loss" not in read_progress(file.path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.progress.json"]
    file.remove()
    assert list(tmp_path.iterdir()) == []
    file.remove()


@pytest.mark.parametrize(
    "text",
    [
        "[]", "{}", '{"stage": 1, "done": 1, "total": 2}', '{"stage": "a", "done": "1", "total": 2}',
        '{"stage": "a", "done": 1}', '{"stage": "a", "done": 1, "total": true}', "{",
    ],
)  # fmt: skip
def test_progress_of_others(tmp_path, text):
    (tmp_path / "x").write_text(text)
    assert read_progress(tmp_path / "x") == {}


def test_who_is_at_work_is_noted_while_it_works(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "abc.log").write_text("12345")
    with at_work(tmp_path, "abc"):
        content = json.loads(job_file(tmp_path, "abc").read_text())
        assert (content["id"], content["log_start"], len(content["processes"])) == ("abc", 5, 1)
        assert content["processes"][0]["pid"] == os.getpid()
    assert not job_file(tmp_path, "abc").exists()
    with at_work(tmp_path, "new"):
        assert json.loads(job_file(tmp_path, "new").read_text())["log_start"] == 0


# ---- what a cluster is asked for -------------------------------------------------------------------------------

SLURM = LauncherSection(kind="slurm", workers=None, threads=None)
OWN = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "time": "minutes",
    "cpus-per-task": "cpus", "mem": "memory_gb", "signal": "grace_seconds",
}  # fmt: skip
OURS = (
    "array", "dependency", "error", "input", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output",
    "parsable", "requeue", "test-only", "wait", "wrap",
)  # fmt: skip


def asked(**options) -> LauncherSection:
    return replace(SLURM, sbatch={name.replace("__", "-"): value for name, value in options.items()})


@pytest.mark.parametrize("option", [*OWN, *OURS])
def test_options_that_are_the_launchers(option):
    for name in (option, option.replace("-", "_")):
        line = f"that is launcher.{OWN[option]}" if option in OWN else "the launcher itself decides this option"
        with pytest.raises(UsageError, match=f"launcher.sbatch: {name}=x: {line}"):
            sbatch_options(replace(SLURM, sbatch={name: "x"}))


def test_options_as_sbatch_takes_them():
    found = sbatch_options(
        asked(gpu__bind="closest", exclusive=True, licenses=False, comment=None, nodelist=["a", "b"], nice=0)
    )
    assert found == {"gpu_bind": "closest", "exclusive": True, "nodelist": "a,b", "nice": 0}


@pytest.mark.parametrize(
    ("keys", "options", "resource"),
    [
        ({}, {}, {"cpus_per_task": 1}), ({"cpus": 4}, {}, {"cpus_per_task": 4}),
        ({"memory_gb": 2.5}, {}, {"cpus_per_task": 1, "mem_gb": 2.5}),
        ({"memory_gb": 2.5}, {"mem__per__cpu": "1G"}, {"cpus_per_task": 1}),
        ({"memory_gb": 2.5}, {"mem__per__gpu": "1G"}, {"cpus_per_task": 1}),
        ({"gpus": 2}, {}, {"cpus_per_task": 1, "gpus_per_node": 2}), ({"gpus": 0}, {}, {"cpus_per_task": 1}),
        ({"gpus": 2}, {"gpus": "h100:2"}, {"cpus_per_task": 1}),
        ({"gpus": 2}, {"gpus__per__node": 2}, {"cpus_per_task": 1}),
        ({"gpus": 2}, {"gpus__per__socket": 2}, {"cpus_per_task": 1}),
        ({"gpus": 2}, {"gpus__per__task": 2}, {"cpus_per_task": 1}),
        ({"gpus": 2}, {"gres": "gpu:a100:2"}, {"cpus_per_task": 1}),
        ({"gpus": 2}, {"gres": "disk:1"}, {"cpus_per_task": 1, "gpus_per_node": 2}),
    ],
)  # fmt: skip
def test_cpus_memory_and_gpus_are_asked_for_once(keys, options, resource):
    assert resources(replace(asked(**options), **keys)) == resource


def test_a_gpu_for_each_process():
    check_gpus(replace(SLURM, gpus=2), 2, "auto")
    check_gpus(replace(SLURM, gpus=None), 4, "auto")
    check_gpus(replace(SLURM, gpus=1), 4, "cpu")
    for accelerator in ("auto", "cuda"):
        with pytest.raises(UsageError, match="trainer.devices=3 processes, one a GPU; give launcher.gpus=3"):
            check_gpus(replace(SLURM, gpus=2), 3, accelerator)


@pytest.mark.parametrize("executor", ["slurm", "local"])
@pytest.mark.parametrize("code", [0, 1, 2, -signal.SIGKILL, *STOPPED])
def test_what_the_end_of_a_jobs_process_means_to_the_others(tmp_path, monkeypatch, capsys, code, executor):
    """A failure counts; an end well, or of a process that was told to stop, does not."""
    pytest.importorskip("submitit")
    slept: list[float] = []
    child = SimpleNamespace(
        process=SimpleNamespace(poll=lambda: code), finish=lambda: code, ending=lambda: "" if code == 0 else "odd"
    )
    monkeypatch.setattr(array_task, "Child", lambda job: child)
    monkeypatch.setattr(array_task.time, "sleep", slept.append)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    job: Any = {
        "id": "a" * 12, "folder": str(tmp_path), "cwd": str(tmp_path / "there"), "needs": None, "max_failures": 1,
        "submission": "s",
    }  # fmt: skip
    assert array_task.ArrayTask()(job) == child.ending()
    assert Path.cwd() == tmp_path / "there"
    assert capsys.readouterr().out == (child.ending() or "done") + "\n"
    failed = code in (1, 2, -signal.SIGKILL)
    assert why_not(job) == ("max_failures=1 is reached" if failed else "")
    # A preempted job that leaves early would not be queued again by SLURM.
    assert slept == ([array_task._HOLD_SECONDS] if code in STOPPED and executor == "slurm" else [])
    started: list = []
    monkeypatch.setattr(array_task, "Child", started.append)
    if failed:
        assert array_task.ArrayTask()(job) == "max_failures=1 is reached"
        assert started == [], "the others are not started"
        assert capsys.readouterr().out == "not started: max_failures=1 is reached\n"
