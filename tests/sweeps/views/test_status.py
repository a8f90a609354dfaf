"""`ratplus status`: what it makes of a sweep folder, for people and for scripts. Folders are written by hand here."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pretended_slurm import pretend_slurm
from rich.console import Console

from ratplus.records.lock import FolderLock
from ratplus.records.record import stage_id, write_record
from ratplus.sweeps.batch.jobs_file import add_jobs
from ratplus.sweeps.views import status_text
from ratplus.sweeps.views.sweep_view import SweepView

RATPLUS = str(Path(sys.executable).with_name("ratplus"))


def make_sweep(folder: Path, cells: int, models: int = 2) -> list[dict]:
    """A manifest of `cells` cells over `models` models; returns its entries."""
    entries = []
    for i in range(cells):
        model, dilation = f"model{i % models}", i // models + 1
        pretrain = stage_id("pretrain", {"model": model}, None)
        adapt = stage_id("adapt", {"pattern": dilation}, pretrain)
        evaluate = stage_id("evaluate", {"pattern": dilation}, adapt)
        entries.append(
            {
                "id": evaluate, "model": model, "pattern": {}, "pattern_name": "", "label": f"D{dilation}", "seed": 0,
                "stages": {"pretrain": pretrain, "adapt": adapt, "evaluate": evaluate}, "overrides": [], "axes": {},
                "swept": [], "config": {"model": {"name": model}, "dilation": dilation}, "corpus": {}, "run": {},
            }
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"format": 1, "name": folder.name, "cells": entries}))
    return entries


def finish(folder: Path, entry: dict, stage: str, seconds: float = 10.0, error: dict | None = None) -> None:
    parents = {"pretrain": None, "adapt": entry["stages"]["pretrain"], "evaluate": entry["stages"]["adapt"]}
    config = {"model": entry["model"]} if stage == "pretrain" else {"pattern": entry["config"]["dilation"]}
    write_record(
        folder / stage / entry["stages"][stage], stage=stage, config=config, parent=parents[stage],
        status="done" if error is None else "failed", metrics={}, timing={"seconds": seconds}, provenance={},
        error=error,
    )  # fmt: skip


def text_of(view: SweepView) -> str:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for part in status_text._parts(view):
        console.print(part)
    return console.export_text()


@pytest.fixture
def sweep(tmp_path):
    """4 cells: done, failed for the second time, at work on its adaptation, not begun."""
    folder = tmp_path / "out"
    done, failed, running, _missing = entries = make_sweep(folder, 4, models=1)
    finish(folder, done, "pretrain", seconds=100)
    for stage, seconds in (("adapt", 30), ("evaluate", 10)):
        finish(folder, done, stage, seconds)
    finish(folder, failed, "adapt", error={"type": "BadLogits", "message": "first\nNaN in [logits]", "attempt": 2})
    (folder / "logs").mkdir()
    news = {"stage": "adapt", "done": 5, "total": 10, "loss": 2.5}
    (folder / "logs" / f"{running['id']}.progress.json").write_text(json.dumps(news))
    with FolderLock(folder / "adapt" / running["stages"]["adapt"]):
        yield folder, entries


def test_each_cell_is_told_once(sweep):
    folder, entries = sweep
    view = SweepView(folder)
    assert [cell["id"] for cell in view.cells] == [entry["id"] for entry in entries]
    done, failed, running, missing = view.cells
    assert (done["status"], done["error"], done["progress"], done["attempt"]) == ("done", "", None, None)
    assert (failed["status"], failed["stage"], failed["attempt"]) == ("failed", "adapt", 2)
    assert failed["error"] == "BadLogits: NaN in [logits]"
    assert (running["status"], running["stage"]) == ("running", "adapt")
    assert running["progress"] == {"stage": "adapt", "done": 5, "total": 10, "loss": 2.5}
    assert missing["status"] == "missing"
    assert view.counts == {"done": 1, "running": 1, "failed": 1, "missing": 1}
    assert view.bad
    assert not view.settled
    text = text_of(view)
    assert "running (adapt 5/10)" in text
    assert "model0 D2 (adapt, attempt 2): BadLogits: NaN in [logits]" in text
    assert "1 done, 1 running, 1 failed, 1 missing; about 65 s left, 1 at once as now" in text


def test_work_on_a_cell_tells_more_than_that_it_failed_before(sweep):
    folder, entries = sweep
    failed = entries[1]
    finish(folder, failed, "evaluate", error={"type": "Bad", "message": "luck", "attempt": 1})
    assert SweepView(folder).cells[1]["status"] == "failed"
    with FolderLock(folder / "adapt" / failed["stages"]["adapt"]):
        found = SweepView(folder).cells[1]
    assert (found["status"], found["stage"], found["error"]) == ("running", "adapt", "")


def test_time_left(sweep):
    """Two cells of 40 s are left, of which 15 s are done, by one worker; a failed cell is nobody's work."""
    folder, entries = sweep
    assert SweepView(folder).eta_seconds == pytest.approx(2 * 40 - 15)
    with FolderLock(folder / "adapt" / entries[3]["stages"]["adapt"]):
        assert SweepView(folder).running_stages == 2
        assert SweepView(folder).eta_seconds == pytest.approx((2 * 40 - 15) / 2)


def test_no_time_is_told_without_ground(tmp_path):
    (entry,) = make_sweep(tmp_path, 1)
    assert SweepView(tmp_path).eta_seconds is None
    with FolderLock(tmp_path / "pretrain" / entry["stages"]["pretrain"]):
        assert SweepView(tmp_path).eta_seconds is None
    for stage in ("pretrain", "adapt", "evaluate"):
        finish(tmp_path, entry, stage)
    view = SweepView(tmp_path)
    assert view.eta_seconds is None
    assert view.settled
    assert not view.bad


def test_queued_cells(sweep, tmp_path, monkeypatch):
    """Jobs that squeue knows are queued or running, also those of cells that failed before; others are not."""
    folder, entries = sweep
    notes = pretend_slurm(tmp_path, monkeypatch)
    jobs = {entry["id"]: f"77_{i}" for i, entry in enumerate(entries[:3])}
    add_jobs(folder, {"id": "a" * 8, "time": "", "cluster": "slurm", "jobs": jobs})
    queue = notes / "queue"
    queue.write_text("77_0 COMPLETED None\n77_1 PENDING Priority\n77_2 CONFIGURING None\n9_9 RUNNING None\n")
    view = SweepView(folder)
    assert [c["status"] for c in view.cells] == ["done", "queued", "running", "missing"]
    assert [c["job"] for c in view.cells] == [None, "77_1", "77_2", None]
    assert [c["reason"] for c in view.cells] == [None, "Priority", None, None]
    assert view.notes == ["queued, with SLURM's reason: 1 Priority"]
    assert view.counts["queued"] == 1
    assert not view.bad

    folder_of_done = folder / "evaluate" / entries[0]["id"]
    (folder_of_done / "record.json").write_text("{")
    assert SweepView(folder).cells[0]["status"] == "damaged"
    queue.write_text("77_0 PENDING\n77_1 RUNNING\n77_2 COMPLETING\n")
    assert [c["status"] for c in SweepView(folder).cells] == ["queued", "running", "running", "missing"]
    (notes / "down").touch()
    assert "queued jobs are not known: " in text_of(SweepView(folder))
    assert "squeue: slurm_load_jobs error" in text_of(SweepView(folder))
    (folder / "jobs.json").write_text("{")
    assert "jobs.json: damaged" in text_of(SweepView(folder))


def test_the_job_of_a_pretraining_is_not_its_cells(tmp_path, monkeypatch):
    entries = make_sweep(tmp_path, 2)
    notes = pretend_slurm(tmp_path, monkeypatch)
    jobs = {entries[0]["stages"]["pretrain"]: "7"}
    add_jobs(tmp_path, {"id": "a" * 8, "time": "", "cluster": "slurm", "jobs": jobs})
    (notes / "queue").write_text("7 PENDING Resources\n")
    view = SweepView(tmp_path)
    assert [(cell["status"], cell["job"], cell["reason"]) for cell in view.cells] == [("missing", None, None)] * 2
    assert view.notes == ["pretrainings that are queued: 1 (7)", "queued, with SLURM's reason: 1 Resources"]


def test_of_what_is_done_no_cluster_is_asked(tmp_path, monkeypatch):
    (entry,) = make_sweep(tmp_path, 1)
    notes = pretend_slurm(tmp_path, monkeypatch)
    (notes / "unreachable").write_text("Slurmctld(primary) at c is DOWN")
    stages = {stage: entry["stages"][stage] for stage in ("pretrain", "evaluate")}
    jobs = {identity: f"7_{i}" for i, identity in enumerate(stages.values())}
    add_jobs(tmp_path, {"id": "a" * 8, "time": "", "cluster": "slurm", "jobs": jobs})
    (note,) = SweepView(tmp_path).notes
    assert note.endswith("SLURM's controller cannot be reached: Slurmctld(primary) at c is DOWN")
    for stage in ("pretrain", "adapt", "evaluate"):
        finish(tmp_path, entry, stage)
    assert SweepView(tmp_path).notes == []


def test_json_and_watch(sweep):
    """As scripts and logs get them: nothing but JSON on stdout; a watch that ends when all is settled."""
    folder, entries = sweep
    done = subprocess.run([RATPLUS, "status", str(folder), "--json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1  # a cell failed
    assert done.stderr == ""
    content = json.loads(done.stdout)
    assert set(content) == {"format", "folder", "counts", "running_stages", "eta_seconds", "notes", "cells"}
    assert content["format"] == 1
    assert {
        "id", "model", "label", "seed", "axes", "status", "stage", "error", "attempt", "job", "reason",
        "progress", "note", "added",
    } == set(content["cells"][0])  # fmt: skip
    assert content["counts"] == {"done": 1, "running": 1, "failed": 1, "missing": 1}

    for words, message in ((["--watch", "0"], "--watch: got 0"), (["--json", "--watch"], "--watch and --json: choose")):
        wrong = subprocess.run([RATPLUS, "status", str(folder), *words], capture_output=True, text=True, timeout=60)
        assert wrong.returncode == 2
        assert message in wrong.stderr

    process = subprocess.Popen(
        [RATPLUS, "status", str(folder), "--watch", "0.2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = [process.stdout.readline() for _ in range(4)]
    assert any(str(folder) in line for line in first)
    time.sleep(0.5)
    assert process.poll() is None
    for entry in entries[1:]:
        for stage in ("adapt", "evaluate"):
            finish(folder, entry, stage)
    rest, stderr = process.communicate(timeout=30)
    assert process.returncode == 0
    assert stderr == ""
    assert rest.rstrip().endswith("4 done")


def test_ctrl_c_leaves_a_watch(sweep):
    import signal

    folder, _ = sweep
    process = subprocess.Popen(
        [RATPLUS, "status", str(folder), "--watch", "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that started the tests in the background made them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == ""


def test_a_large_sweep_is_told_in_counts(tmp_path):
    entries = make_sweep(tmp_path, 200, models=2)
    for entry in entries[:20]:
        finish(tmp_path, entry, "evaluate")
    for entry in entries[20:40]:
        finish(tmp_path, entry, "evaluate", error={"type": "Bad", "message": "luck", "attempt": 1})
    text = text_of(SweepView(tmp_path))
    assert len(text.splitlines()) < 30
    assert "... and 10 more; --json lists all" in text
    assert "20 done, 20 failed, 160 missing" in text


def test_brackets_in_names_are_no_markup(tmp_path):
    entries = make_sweep(tmp_path, 1, models=1)
    entries[0]["label"] = "layers[D1x2,/D16]"
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "name": "x", "cells": entries}))
    assert "layers[D1x2,/D16]" in text_of(SweepView(tmp_path))
