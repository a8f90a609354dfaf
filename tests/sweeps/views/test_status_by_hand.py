"""Time left, marks and words of `ratplus status`, of cells and records whose times are chosen."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ratplus.costs.budget import forward_flops, parameters
from ratplus.records.lock import FolderLock
from ratplus.records.record import STAGES, stage_id, write_record
from ratplus.sweeps.batch.reasons import LiveJob
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.views import status_text, sweep_view
from ratplus.sweeps.views.cost_plan import Throughput, print_costs
from ratplus.sweeps.views.sweep_view import SweepView, summary

TIMES = {"pretrain": 100.0, "adapt": 30.0, "sft": 50.0, "evaluate": 10.0}


class Folder:
    """A sweep of cells with a fine-tuning stage each, two of a pretraining; stages are finished one by one."""

    def __init__(self, path: Path, cells: int, sft: bool = True):
        self.path, self.entries = path, []
        for number in range(cells):
            stages, parent = {}, None
            for stage in STAGES:
                if stage == "sft" and not sft:
                    continue
                parent = stages[stage] = stage_id(stage, self.config(stage, number), parent)
            self.entries.append({
                "id": stages["evaluate"], "model": "m", "pattern": {}, "label": f"D{number}", "seed": 0,
                 "stages": stages,
                "axes": {}, "swept": [], "config": {}, "corpus": {}, "run": {},
            })  # fmt: skip
        self.write()

    @staticmethod
    def config(stage: str, number: int) -> dict:
        return {"model": number // 2} if stage == "pretrain" else {"cell": number}

    def write(self):
        self.path.mkdir(exist_ok=True)
        (self.path / "sweep.json").write_text(json.dumps({"format": 1, "name": "x", "cells": self.entries}))

    def place(self, number: int, stage: str) -> Path:
        return self.path / stage / self.entries[number]["stages"][stage]

    def finish(self, number: int, *stages: str, error: dict | None = None, seconds: float | None = None):
        known = list(self.entries[number]["stages"])
        for stage in stages:
            before = known[: known.index(stage)]
            parent = self.entries[number]["stages"][before[-1]] if before else None
            write_record(
                self.place(number, stage), stage=stage, config=self.config(stage, number), parent=parent,
                status="failed" if error else "done", metrics={}, provenance={}, error=error,
                timing={"seconds": TIMES[stage] if seconds is None else seconds},
            )  # fmt: skip

    def progress(self, number: int, stage: str, done: int, total: int):
        (self.path / "logs").mkdir(exist_ok=True)
        news = {"stage": stage, "done": done, "total": total}
        (self.path / "logs" / f"{self.entries[number]['id']}.progress.json").write_text(json.dumps(news))


@pytest.mark.parametrize("sft", [True, False])
@pytest.mark.parametrize(("stage", "done", "total"), [("adapt", 3, 10), ("evaluate", 0, 0), ("evaluate", 5, 5)])
def test_time_left_is_what_the_finished_cells_took(tmp_path, sft, stage, done, total):
    """Cell 0 is done. Cell 1 shares its pretraining and is at work; cells 2 and 3 share one that is not begun."""
    folder = Folder(tmp_path / "x", 4, sft)
    folder.finish(0, *folder.entries[0]["stages"])
    folder.progress(1, stage, done, total)
    own = [name for name in ("adapt", "sft", "evaluate") if sft or name != "sft"]
    each = sum(TIMES[name] for name in own)
    spent = sum(TIMES[name] for name in own[: own.index(stage)]) + (TIMES[stage] * done / total if total else 0)
    with FolderLock(folder.place(1, stage)):
        view = SweepView(folder.path)
        assert view.running_stages == 1
        assert view.eta_seconds == pytest.approx(3 * each + TIMES["pretrain"] - spent)
        with FolderLock(folder.place(2, "pretrain")):  # two cells wait for one stage
            view = SweepView(folder.path)
            assert view.counts == {"done": 1, "running": 3}
            assert view.running_stages == 2
            assert view.eta_seconds == pytest.approx((3 * each + TIMES["pretrain"] - spent) / 2)
    folder.finish(2, "pretrain", error={"type": "T", "message": "m"})
    with FolderLock(folder.place(1, stage)):
        left = SweepView(folder.path)
        assert left.counts["failed"] == 2
        assert left.eta_seconds == pytest.approx(each - spent), "nobody works on what failed"


def test_time_left_is_a_mean_and_never_less_than_none(tmp_path):
    folder = Folder(tmp_path / "x", 3, sft=False)
    for number, seconds in ((0, 10.0), (1, 30.0)):
        folder.finish(number, "pretrain", "adapt", "evaluate", seconds=seconds)
    with FolderLock(folder.place(2, "evaluate")):
        # The pretraining of 0 and 1 is one, whose record is the later one's.
        assert SweepView(folder.path).eta_seconds == pytest.approx(20.0 + 30.0)
    folder.finish(2, "pretrain", "adapt", seconds=30.0)
    folder.progress(2, "evaluate", 30, 10)  # further than it said it would go
    with FolderLock(folder.place(2, "evaluate")):
        assert SweepView(folder.path).eta_seconds == 0.0


def test_what_a_cell_and_its_suites_are_told_to_be(tmp_path):
    folder = Folder(tmp_path / "x", 2, sft=False)
    folder.finish(0, "pretrain", "adapt", "evaluate")
    added = stage_id("evaluate", {"cell": "more"}, folder.entries[0]["stages"]["adapt"])
    folder.entries[0]["added"] = [{"suite": "ruler", "id": added, "eval": {}}]
    folder.write()
    view = SweepView(folder.path)
    assert view.cells[0]["added"] == [{"suite": "ruler", "id": added, "status": "missing", "error": ""}]
    assert (view.settled, view.bad) == (False, False)
    folder.finish(1, "evaluate", error={"type": "T", "message": "m", "attempt": 3})
    view = SweepView(folder.path)
    assert (view.cells[1]["stage"], view.cells[1]["error"], view.cells[1]["attempt"]) == ("evaluate", "T: m", 3)
    assert (view.settled, view.bad, status_text.exit_code(view)) == (False, True, 1)
    write_record(
        folder.path / "evaluate" / added, stage="evaluate", config={"cell": "more"}, status="failed", metrics={},
        parent=folder.entries[0]["stages"]["adapt"], timing={}, provenance={}, error={"type": "U", "message": "n"},
    )  # fmt: skip
    folder.finish(1, "evaluate")
    view = SweepView(folder.path)
    assert view.cells[0]["added"][0] == {"suite": "ruler", "id": added, "status": "failed", "error": "U: n"}
    assert view.counts == {"done": 2}
    assert (view.settled, view.bad, status_text.exit_code(view)) == (True, True, 1)


@pytest.mark.parametrize(("attempt", "words"), [(None, ""), (1, ""), (2, ", attempt 2")])
def test_an_attempt_is_told_from_the_second_on(tmp_path, capsys, attempt, words):
    folder = Folder(tmp_path / "x", 2, sft=False)
    for number in (0, 1):
        error = {"type": "T", "message": f"m{number}"} | ({} if attempt is None else {"attempt": attempt})
        folder.finish(number, "evaluate", error=error)
    status_text.print_status(SweepView(folder.path))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "T: m" in line] == [f"m D{n} (evaluate{words}): T: m{n}" for n in (0, 1)]


def test_a_job_tells_only_of_a_cell_without_a_result(tmp_path, monkeypatch):
    """A job may still be ending when its cell is done; and what a failed cell wrote of its progress is old."""
    folder = Folder(tmp_path / "x", 4, sft=False)
    folder.finish(0, "pretrain", "adapt", "evaluate")
    folder.finish(1, "evaluate", error={"type": "T", "message": "m", "attempt": 3})
    folder.finish(3, "evaluate", error={"type": "T", "message": "m"})
    folder.progress(3, "evaluate", 3, 10)
    added = stage_id("evaluate", {"cell": "more"}, folder.entries[0]["stages"]["adapt"])
    write_record(
        folder.path / "evaluate" / added, stage="evaluate", config={"cell": "more"}, status="done", metrics={},
        parent=folder.entries[0]["stages"]["adapt"], timing={}, provenance={},
    )  # fmt: skip
    folder.entries[0]["added"] = [{"suite": "ruler", "id": added, "eval": {}}]
    folder.write()
    items = [*(folder.entries[number]["id"] for number in range(3)), added]
    jobs = {item: LiveJob(str(number), "queued", "Priority") for number, item in enumerate(items)}
    monkeypatch.setattr(sweep_view, "live_jobs", lambda folder, is_open: jobs)
    monkeypatch.setattr(sweep_view, "record_lost_jobs", lambda *_: 0)
    with FolderLock(folder.place(2, "evaluate")):
        cells = SweepView(folder.path).cells
    assert [(cell["status"], cell["stage"], cell["error"], cell["attempt"]) for cell in cells] == [
        ("done", "", "", None), ("queued", "", "", None), ("running", "evaluate", "", None),
        ("failed", "evaluate", "T: m", None),
    ]  # fmt: skip
    assert [(cell["job"], cell["reason"]) for cell in cells] == [
        ("0", None), ("1", "Priority"), ("2", None), (None, None),
    ]  # fmt: skip
    assert [cell["progress"] for cell in cells] == [None] * 4
    assert cells[0]["added"] == [{"suite": "ruler", "id": added, "status": "done", "error": ""}]


def test_a_loss_that_is_noticed_while_looking_is_told_at_once(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "x", 2, sft=False)
    folder.finish(0, "pretrain", "adapt", "evaluate")
    done, lost = (entry["id"] for entry in folder.entries)
    asked = {}

    def live_jobs(path, is_open):
        asked.update({item: is_open(item) for item in (done, lost, "of another sweep")})
        return {}

    def record_lost_jobs(path, jobs, is_open):
        folder.finish(1, "evaluate", error={"type": "JobEnded", "message": "m"})
        return 1

    monkeypatch.setattr(sweep_view, "live_jobs", live_jobs)
    monkeypatch.setattr(sweep_view, "record_lost_jobs", record_lost_jobs)
    view = SweepView(folder.path)
    assert asked == {done: False, lost: True, "of another sweep": True}
    assert [cell["error"] for cell in view.cells] == ["", "JobEnded: m"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""), (0.4, "; about 0 s left, 3 at once as now"), (120.0, "; about 120 s left, 3 at once as now"),
        (121.0, "; about 2 min left, 3 at once as now"), (7200.0, "; about 120 min left, 3 at once as now"),
        (7201.0, "; about 2 h left, 3 at once as now"), (36000.0, "; about 10 h left, 3 at once as now"),
    ],
)  # fmt: skip
def test_units_of_time_left(seconds, words):
    view = SimpleNamespace(eta_seconds=seconds, running_stages=3)
    assert status_text._time_left(view) == words


def test_statuses_are_counted_in_their_order():
    assert summary(["missing", "failed", "done", "failed", "queued", "damaged", "running"]) == (
        "1 done, 1 running, 1 queued, 2 failed, 1 missing, 1 damaged"
    )
    assert summary([]) == "no cells"


# ---- ratplus plan ----------------------------------------------------------------------------------------------


def test_hours_of_a_gpu():
    assert Throughput(0.5, 100.0).hours(tokens=1, flops=int(0.5 * 100e12 * 7200)) == pytest.approx(2.0)
    assert Throughput(0.5, 100.0, 1000.0).hours(tokens=1000 * 3600 * 3, flops=1) == pytest.approx(3.0)
    assert str(Throughput(0.4, 989.0)) == "40% of 989 TFLOP/s a GPU"
    assert str(Throughput(0.4, 989.0, 5e4)) == "every stage at 50000 tokens a second and GPU"


def test_a_plan_counts_what_distinct_stages_cost(capsys):
    """Two patterns of one model: one pretraining, two adaptations, two evaluations."""
    words = ["data.recall.fraction=0", "train.pretrain.arl=false", "eval.cloze.items=0", "train.context=256"]
    cells = [compose_one([*words, f"pattern.dilation={dilation}"]) for dilation in (1, 16)]
    config = cells[0].config
    model = config.model.build(257, 256)
    print_costs(cells, None, Throughput(0.5, 1e-6))
    text = capsys.readouterr().out
    assert f"ratplus_tiny: {parameters(model):,} parameters (4 layers, d_model 96, 3 heads of 32, vocab" in text
    assert "vocabulary 257)" in text
    lines = [line.split() for line in text.splitlines()]
    rows = {words[0]: words for words in lines if words and words[0] in STAGES}
    assert [rows[stage][1] for stage in ("pretrain", "adapt", "evaluate")] == ["1", "2", "2"]
    recipe = config.train.pretrain
    flops = 3 * recipe.steps * recipe.batch * forward_flops(model, None, 256)
    assert f"{recipe.steps * recipe.batch * 256:,}" in rows["pretrain"]
    assert f"{flops:.3g}" in rows["pretrain"] or f"{flops:.4g}" in rows["pretrain"]
    print_costs(cells[:1], 300, Throughput(0.5, 1e-6))
    assert "vocabulary 300)" in capsys.readouterr().out


@pytest.mark.parametrize("fails", [False, True])
def test_a_watched_status_is_printed_when_it_changes_until_all_is_settled(tmp_path, monkeypatch, capsys, fails):
    folder, waited = Folder(tmp_path / "x", 1, sft=False), []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:  # after a look that saw nothing new
            folder.finish(0, "pretrain", "adapt")
            folder.finish(0, "evaluate", error={"type": "T", "message": "m"} if fails else None)

    monkeypatch.setattr(status_text.time, "sleep", wait)
    assert status_text.watch(folder.path, 2.5) == (1 if fails else 0)
    assert waited == [2.5, 2.5]
    shown = capsys.readouterr().out
    assert shown.count(f"\n{folder.path}\n") == 2
    assert "1 missing" in shown.split(str(folder.path))[1]
    assert ("1 failed" if fails else "1 done") in shown.split(str(folder.path))[2]
