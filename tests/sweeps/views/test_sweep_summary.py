"""The few lines that the end of a log shows of a sweep folder."""

from types import SimpleNamespace

import pytest

from ratplus.records.record import stage_id, write_record
from ratplus.sweeps.views import sweep_summary
from ratplus.sweeps.views.sweep_summary import _shown, all_done, done, summary


def test_results_in_their_units():
    metrics = {
        "loss": {"value": 1.23456, "stderr": 0.012345},
        "recall_accuracy": {"value": 0.5, "stderr": None},
        "niah_single_1_substring": {"value": 0.25, "stderr": 0.125},
        "perplexity": {"value": 3.4, "stderr": 0.1},
    }
    assert _shown(metrics) == {
        "loss": "1.2346 ± 0.0123", "recall (%)": "50.0 ± 0.0", "niah_single_1 (%)": "25.0 ± 12.5",
    }  # fmt: skip
    assert _shown({"loss": {"value": 2.0, "stderr": None}}) == {"loss": "2.0000 ± 0.0000"}


def test_an_evaluation_that_was_asked_for_needles_alone():
    found = _shown({"niah_single_1_substring": {"value": 0.25, "stderr": 0.125}})
    assert found == {"loss": "not asked", "niah_single_1 (%)": "25.0 ± 12.5"}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Two cells of one pretraining; `finish` writes a record of a stage of one."""
    pretrain = stage_id("pretrain", {"model": 0}, None)
    cells = []
    for number in (0, 1):
        adapt = stage_id("adapt", {"cell": number}, pretrain)
        stages = {"pretrain": pretrain, "adapt": adapt, "evaluate": stage_id("evaluate", {"cell": number}, adapt)}
        cells.append({"model": "m", "label": f"D{number + 1}", "stages": stages})
    (tmp_path / "sweep.json").touch()
    monkeypatch.setattr(sweep_summary, "read_manifest", lambda folder: {"cells": cells})

    def finish(number: int, stage: str, metrics=None, status="done", **timing) -> None:
        stages = cells[number]["stages"]
        parent = {"pretrain": None, "adapt": stages["pretrain"], "evaluate": stages["adapt"]}[stage]
        config = {"model": 0} if stage == "pretrain" else {"cell": number}
        write_record(
            tmp_path / stage / stages[stage], stage=stage, config=config, parent=parent, status=status, timing=timing,
            metrics=metrics or {}, provenance={}, error=None if status == "done" else {"type": "E", "message": "m"},
        )  # fmt: skip

    def write(number: int, stage: str, text: str, name="curve.csv") -> None:
        place = tmp_path / stage / cells[number]["stages"][stage]
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)

    (tmp_path / "logs").mkdir()
    return SimpleNamespace(folder=tmp_path, cells=cells, finish=finish, write=write)


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_results_runs_and_last_words(sweep):
    sweep.finish(0, "pretrain", train_seconds=12.345)
    sweep.write(0, "pretrain", "step,tokens,loss\n1,10,5.0\n4,40,3.14159\n")
    sweep.finish(0, "adapt", train_seconds=0.0)
    sweep.write(0, "adapt", "step,lr\n1,0.1\n")
    sweep.finish(0, "evaluate", {"loss": {"value": 1.5, "stderr": 0.25, "count": 3}})
    sweep.write(1, "adapt", "step,tokens,loss\n1,10,2.5\n")
    logs = sweep.folder / "logs"
    stages = [cell["stages"] for cell in sweep.cells]
    (logs / f"{stages[0]['pretrain']}.log").write_text("of a stage that is done\n")
    (logs / f"{stages[0]['evaluate']}.log").write_text("of a cell that is done\n")
    (logs / f"{stages[1]['evaluate']}.log").write_text("a\nb\nc\x1b\nd\n" + "e" * 297)
    results, runs, *words = summary(sweep.folder)
    assert table(results) == [
        ["model", "pattern", "loss"], ["m", "D1", "1.5000", "±", "0.2500"], ["m", "D2", "missing"],
    ]  # fmt: skip
    adapted = {stages[0]["adapt"]: ["adapt", "m", "D1", "done"],
               stages[1]["adapt"]: ["adapt", "m", "D2", "unfinished", "1", "10", "2.500"]}  # fmt: skip
    header = ["stage", "model", "pattern", "state", "steps", "tokens", "loss", "seconds"]
    assert [row for row in table(runs)[:2]] == [header, ["pretrain", "m", "done", "4", "40", "3.142", "12.3"]]
    assert table(runs)[2:] == [adapted[key] for key in sorted(adapted)]
    assert words == [f"{stages[1]['evaluate']}.log:  | {'e' * 297}"], "300 characters"


def test_the_last_three_lines_of_a_log_that_can_be_read(sweep):
    logs, cell = sweep.folder / "logs", sweep.cells[0]["stages"]
    path = logs / f"{cell['evaluate']}.log"
    path.write_text("a\nb\nc\nd\n")
    (logs / f"{cell['pretrain']}.log").symlink_to(path)
    link, last = sorted(summary(sweep.folder)[2:], key=len, reverse=True)
    assert last == f"{path.name}: b | c | d"
    assert link.startswith(f"{cell['pretrain']}.log: ")
    assert "b | c" not in link
    sweep.finish(0, "pretrain")
    assert summary(sweep.folder)[2:] == [last], "a pretraining that is done has no last words"


def test_only_what_is_done_counts(sweep):
    place = sweep.folder / "evaluate" / sweep.cells[0]["stages"]["evaluate"]
    assert done(place) is None
    sweep.finish(0, "evaluate", status="failed")
    assert done(place) is None
    sweep.finish(0, "evaluate", {"loss": {"value": float("inf"), "stderr": None, "count": 1}})
    assert done(place) is None, "earlier versions called it done"
    sweep.finish(0, "evaluate")
    assert done(place)["id"] == place.name
    assert not all_done(sweep.folder)
    sweep.finish(1, "evaluate")
    assert all_done(sweep.folder)
    (place / "record.json").write_text("{")
    assert done(place) is None
    assert not all_done(sweep.folder)
    sweep.cells.clear()
    assert not all_done(sweep.folder)
    assert summary(sweep.folder) == []
    (sweep.folder / "sweep.json").unlink()
    assert not all_done(sweep.folder)
    assert summary(sweep.folder) == []
