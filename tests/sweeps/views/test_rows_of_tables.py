"""Rows that `dry_run=true`, `ratplus plan` and `ratplus status` show, each field by hand."""

import json

import pytest

from ratplus.costs.budget import forward_flops, parameters
from ratplus.costs.of_model import model_cost
from ratplus.pattern import Pattern
from ratplus.records.lock import FolderLock
from ratplus.records.record import STAGES, stage_id, write_record
from ratplus.sweeps.batch.jobs_file import JobsUnknown
from ratplus.sweeps.batch.reasons import LiveJob
from ratplus.sweeps.define.compose import compose_cells
from ratplus.sweeps.views import cost_plan, dry_run, status_text, sweep_view
from ratplus.sweeps.views.sweep_view import SweepView

WORDS = ["model=ratplus_nano", "data.recall.fraction=0", "train.context=64", "train.pretrain.steps=7",
         "train.pretrain.batch=3"]  # fmt: skip


def cells(*words: str):
    return compose_cells([*WORDS, *words])


# ---- dry_run ------------------------------------------------------------------------------------------------------

KEY = ("pretrain", "p" * 12)


def shared(cell, axes=None) -> dict:
    return dry_run._pretrain_row(KEY, cell, axes or {}, 99, {KEY: "missing"}, {KEY: 1234567})


def test_the_row_of_a_pretraining():
    (cell,) = cells("seed=3", "train.pretrain.arl=false")
    axes = {"model.layers": 2, "data.path": "x", "train.context": 64, "train.pretrain.lr": 1,
            "train.pretrain.arl": False,
            "train.pretrain.sparse": True, "train.adapt.lr": 2, "train.contexts": 5}  # fmt: skip
    assert shared(cell, axes) == {
        "pretraining": "p" * 12, "model": "ratplus_nano", "seed": 3, "model.layers": 2, "data.path": "x",
        "train.context": 64, "train.pretrain.lr": 1, "train.contexts": 5, "with": "dense",
        "parameters": parameters(cell.config.model.build(99, 64)), "tokens": 7 * 3 * 64, "FLOPs": "1.23e+06",
        "status": "missing",
    }  # fmt: skip
    (sparse,) = cells("train.pretrain.sparse=true", "train.pretrain.arl=false", "pattern.dilation=4")
    assert shared(sparse)["with"] == "D4"
    (taught,) = cells("train.pretrain.arl=true")
    assert shared(taught)["with"] == f"dense, ARL {taught.config.train.pretrain.arl_pattern.label}"


def test_the_row_of_given_weights(tmp_path, monkeypatch):
    from dataclasses import replace

    (cell,) = cells()
    given = replace(cell, config=replace(cell.config, model=replace(cell.config.model, init_from=str(tmp_path))))
    monkeypatch.setattr(dry_run, "parameters", lambda shape: 5)
    assert {key: shared(given)[key] for key in ("with", "tokens", "parameters")} == {
        "with": "given weights", "tokens": 0, "parameters": 5,
    }  # fmt: skip


@pytest.mark.parametrize("selects", [True, False])
def test_the_row_of_a_cell(selects):
    (cell,) = cells("pattern.dilation=4")
    model = cell.config.model.build(99, 64)
    entry = {
        "id": "e" * 12, "model": "m", "label": "D4", "seed": 1, "axes": {"lr": 2},
        "config": {"model": {"vocab_size": 99}},
        "stages": {"pretrain": "p", "adapt": "a", "evaluate": "e"},
    }  # fmt: skip
    states = {("pretrain", "p"): "done", ("adapt", "a"): "failed"}
    flops = {("pretrain", "p"): 10**6, ("adapt", "a"): 2000, ("evaluate", "e"): 345}
    spent = model_cost(model, cell.config.patterns, 64, 2 if cell.config.train.precision == "bf16" else 4)
    found = dry_run._cell_row(cell, entry, states, flops, STAGES, selects)
    assert found == {
        "id": "e" * 12, "model": "m", "pattern": "D4", "seed": 1, "lr": 2, "pretrain": "done", "adapt": "failed",
        "sft": "–", "evaluate": "–", "FLOPs": "2.34e+03", "attention": f"{spent.attention_flops_ratio:.3f}",
        "KV bytes": spent.cache_bytes, **({"KV read": f"{spent.kv_read_per_head:g}"} if selects else {}),
    }  # fmt: skip
    assert list(found)[:5] == ["id", "model", "pattern", "seed", "lr"]


# ---- plan ---------------------------------------------------------------------------------------------------------


def test_rows_of_patterns():
    made = cells("pattern.label='D1','D4','D1'", "seed=0,1")
    model = made[0].config.model.build(257, 64)
    rows = cost_plan._pattern_rows(made, model)
    assert [row["pattern"] for row in rows] == ["D1", "D4"]
    of_label = {cell.config.patterns.label: cell for cell in made}
    for row, cell in zip(rows, of_label.values()):
        spent = model_cost(model, cell.config.patterns, 64, 2 if cell.config.train.precision == "bf16" else 4)
        assert row == {
            "pattern": cell.config.patterns.label, "attention FLOPs": f"{spent.attention_flops:.4g}",
            "of dense": f"1/{1 / spent.attention_flops_ratio:.1f}",
            "all FLOPs": f"{forward_flops(model, cell.config.patterns, 64) / forward_flops(model, Pattern(), 64):.1%}",
            "KV bytes a sequence": f"{spent.cache_bytes:,}", "KV entries of dense": f"1/{1 / spent.kv_ratio:.1f}",
        }  # fmt: skip
    assert rows[0]["of dense"] == "1/1.0"
    selecting = cells("pattern.label='D4','top2x8'")
    rows = cost_plan._pattern_rows(selecting, model)
    for row, cell in zip(rows, selecting):
        spent = model_cost(model, cell.config.patterns, 64, 4)
        assert row["attention FLOPs"] == f"{spent.attention_flops + spent.selection_flops:.4g}"
    assert [row["KV read of dense"] for row in rows] == ["1/4.0", "1/8.0"]
    assert (cost_plan._part(0.25), cost_plan._part(0)) == ("1/4.0", "0")


# ---- status -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Three cells, of which the first two share a pretraining."""
    entries = []
    for number in range(3):
        stages, parent = {}, None
        for stage in ("pretrain", "adapt", "evaluate"):
            config = {"model": number // 2} if stage == "pretrain" else {"cell": number}
            parent = stages[stage] = stage_id(stage, config, parent)
        entries.append({
            "id": parent, "model": "m", "pattern": {}, "label": f"D{number}", "seed": 0, "stages": stages, "axes": {},
            "swept": [], "config": {}, "corpus": {}, "run": {},
        })  # fmt: skip

    def finish(number: int, *names: str, seconds: float | None = 10.0, error=None) -> None:
        stages, parent = entries[number]["stages"], None
        for stage in ("pretrain", "adapt", "evaluate"):
            if stage in names:
                config = {"model": number // 2} if stage == "pretrain" else {"cell": number}
                write_record(
                    tmp_path / stage / stages[stage], stage=stage, config=config, parent=parent,
                    status="failed" if error else "done", metrics={}, error=error, provenance={},
                    timing={} if seconds is None else {"seconds": seconds},
                )  # fmt: skip
            parent = stages[stage]

    def write() -> None:
        (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "name": "x", "cells": entries}))

    write()
    finish.entries, finish.write, finish.path = entries, write, tmp_path
    return finish


ERROR = {"type": "T", "message": "m"}


def test_a_failed_pretraining_takes_no_time_any_more(folder):
    """Its cells are queued as jobs again; the pretraining itself is not among these, so nobody runs it."""
    folder(0, "pretrain", "adapt", "evaluate")
    folder(2, "pretrain", error=ERROR)
    busy = folder.path / "adapt" / folder.entries[1]["stages"]["adapt"]
    with FolderLock(busy), pytest.MonkeyPatch.context() as patch:
        jobs = {folder.entries[2]["id"]: LiveJob("5", "queued", "Dependency")}
        patch.setattr(sweep_view, "live_jobs", lambda *_: jobs)
        view = SweepView(folder.path)
        assert view.counts == {"done": 1, "running": 1, "queued": 1}
        assert view.eta_seconds == pytest.approx(20.0 + 20.0)
        (folder.path / "pretrain" / folder.entries[2]["stages"]["pretrain"] / "record.json").unlink()
        assert SweepView(folder.path).eta_seconds == pytest.approx(20.0 + 20.0 + 10.0)


def test_of_many_finished_cells_some_are_enough(folder, monkeypatch):
    """A stage without a time counts as none."""
    for number, seconds in ((0, 10.0), (1, 30.0)):
        folder(number, "pretrain", "adapt", "evaluate", seconds=seconds)
    with FolderLock(folder.path / "evaluate" / folder.entries[2]["id"]):
        assert SweepView(folder.path).eta_seconds == pytest.approx(2 * 20.0 - 20.0 + 30.0)
        monkeypatch.setattr(sweep_view, "_SAMPLE", 1)
        # Of two cells the first alone, whose pretraining has the record of the second.
        assert SweepView(folder.path).eta_seconds == pytest.approx(2 * 10.0 - 10.0 + 30.0)
        folder(0, "pretrain", "adapt", "evaluate", seconds=None)
        assert SweepView(folder.path).eta_seconds == 0.0
    assert sweep_view._mean([]) == 0.0


def test_suites_of_a_cell_whose_job_is_there(folder, monkeypatch):
    folder(0, "pretrain", "adapt", "evaluate")
    parent = folder.entries[0]["stages"]["adapt"]
    added = [
        {"suite": name, "id": stage_id("evaluate", {"cell": name}, parent), "eval": {}} for name in ("a", "b", "c")
    ]
    folder.entries[0]["added"] = added
    folder.write()
    for one in added[:2]:
        write_record(
            folder.path / "evaluate" / one["id"], stage="evaluate", config={"cell": one["suite"]}, parent=parent,
            status="failed", metrics={}, timing={}, provenance={}, error=ERROR,
        )  # fmt: skip
    jobs = {one["id"]: LiveJob("5", "running") for one in added[1:]}
    monkeypatch.setattr(sweep_view, "live_jobs", lambda *_: jobs)
    monkeypatch.setattr(sweep_view, "record_lost_jobs", lambda *_: 0)
    found = SweepView(folder.path).added
    assert [(one["status"], one["error"]) for one in found] == [("failed", "T: m"), ("running", ""), ("running", "")]


def test_a_queue_that_is_not_known_is_told_and_so_are_pretrainings_that_wait(folder, monkeypatch):
    def away(*_):
        raise JobsUnknown("squeue is away")

    monkeypatch.setattr(sweep_view, "live_jobs", away)
    assert SweepView(folder.path).notes == ["queued jobs are not known: squeue is away"]
    ids = [folder.entries[number]["stages"]["pretrain"] for number in (0, 2)]
    jobs = {ids[0]: LiveJob("71", "queued", "Priority"), ids[1]: LiveJob("72", "running"),
            folder.entries[0]["id"]: LiveJob("73", "queued", "Dependency")}  # fmt: skip
    monkeypatch.setattr(sweep_view, "live_jobs", lambda *_: jobs)
    monkeypatch.setattr(sweep_view, "record_lost_jobs", lambda *_: 0)
    view = SweepView(folder.path)
    assert view.notes == [
        "pretrainings that are queued: 1 (71)", "queued, with SLURM's reason: 1 Priority, 1 Dependency",
    ]  # fmt: skip
    assert [(cell["status"], cell["job"]) for cell in view.cells] == [
        ("queued", "73"),
        ("missing", None),
        ("missing", None),
    ]


def test_notes_of_many_pretrainings_name_eight(folder, monkeypatch):
    for number in range(9):
        one = json.loads(json.dumps(folder.entries[0]))
        one["stages"]["pretrain"] = stage_id("pretrain", {"n": number}, None)
        folder.entries.append(one)
    folder.write()
    jobs = {e["stages"]["pretrain"]: LiveJob(str(i), "queued") for i, e in enumerate(folder.entries[3:])}
    monkeypatch.setattr(sweep_view, "live_jobs", lambda *_: jobs)
    monkeypatch.setattr(sweep_view, "record_lost_jobs", lambda *_: 0)
    assert SweepView(folder.path).notes == ["pretrainings that are queued: 9 (0 1 2 3 4 5 6 7)"]


def test_progress_is_of_the_stage_that_runs(folder):
    """What a worker wrote of a stage before, or of one without a step, is not shown."""
    folder(0, "pretrain")
    logs = folder.path / "logs"
    logs.mkdir()
    file = logs / f"{folder.entries[0]['id']}.progress.json"
    with FolderLock(folder.path / "adapt" / folder.entries[0]["stages"]["adapt"]):
        for content, shown in (
            ({"stage": "pretrain", "done": 5, "total": 5}, None), ({"stage": "adapt", "done": 5}, None),
            ({"stage": "adapt", "done": 5, "total": 9, "more": 1}, {"stage": "adapt", "done": 5, "total": 9}),
            ({"stage": "adapt", "done": 5, "total": 9, "loss": 1.5},
             {"stage": "adapt", "done": 5, "total": 9, "loss": 1.5}),
        ):  # fmt: skip
            file.write_text(json.dumps(content))
            assert SweepView(folder.path).cells[0]["progress"] == shown


@pytest.mark.parametrize(("bad", "more"), [(9, None), (10, None), (11, 1)])
def test_errors_and_notes_that_are_listed(folder, capsys, bad, more):
    entry = folder.entries[0]
    del folder.entries[1:]
    for number in range(1, bad):
        one = json.loads(json.dumps(entry)) | {"label": f"E{number}"}
        one["stages"]["evaluate"] = one["id"] = stage_id("evaluate", {"cell": number}, one["stages"]["adapt"])
        folder.entries.append(one)
    folder.write()
    for number, one in enumerate(folder.entries):
        write_record(
            folder.path / "evaluate" / one["id"], stage="evaluate", config={"cell": number}, status="failed",
            parent=one["stages"]["adapt"], metrics={}, timing={}, provenance={}, error=ERROR,
        )  # fmt: skip
        (folder.path / "evaluate" / one["id"] / "note.txt").write_text("seen\n")
    status_text.print_status(SweepView(folder.path))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("(evaluate): T: m") for line in lines) == min(bad, 10)
    assert sum(line.endswith(", note: seen") for line in lines) == min(bad, 10)
    assert [line for line in lines if line.startswith("...")] == (
        [f"... and {more} more; --json lists all", f"... and {more} more notes; --json lists all"] if more else []
    )
    assert lines[-1] == f"{bad} failed"


def test_a_watched_terminal_is_drawn_in_place(folder, monkeypatch):
    from rich import live

    made, shown = [], []

    class Live:
        def __init__(self, **given):
            made.append((given.pop("console").__class__.__name__, given))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, group, refresh):
            shown.append((len(group.renderables), refresh))

    slept = []

    def sleep(seconds):
        slept.append(seconds)
        for number in range(3):
            folder(number, "pretrain", "adapt", "evaluate")

    monkeypatch.setattr(live, "Live", Live)
    monkeypatch.setattr(status_text.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(status_text.time, "sleep", sleep)
    assert status_text.watch(folder.path, 1.5) == 0
    assert made == [("PipeConsole", {"auto_refresh": False, "vertical_overflow": "ellipsis"})]
    assert shown == [(3, True)] * 2
    assert slept == [1.5]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_status_is_as_wide_as_its_terminal_or_160_columns(folder, monkeypatch, terminal):
    made = []
    console = status_text.PipeConsole
    monkeypatch.setattr(status_text, "PipeConsole", lambda **given: made.append(given) or console(**given))
    monkeypatch.setattr(status_text.sys.stdout, "isatty", lambda: terminal, raising=False)
    status_text.print_status(SweepView(folder.path))
    assert made == [{"highlight": False, "width": None if terminal else 160}]
