"""What a cell's status is, when its stages have different ones."""

from itertools import combinations
from pathlib import Path

import pytest

from ratplus.records.lock import FolderLock
from ratplus.records.record import stage_id, write_record
from ratplus.records.status import State, cell_state, stage_state

ORDER = ("running", "damaged", "failed", "missing")
STAGES = {"pretrain": "a", "adapt": "b", "evaluate": "c"}


def state(**states: str) -> State:
    def look(folder: Path) -> State:
        return State(states.get(folder.parent.name, "missing"), folder.parent.name)

    return cell_state(Path("sweep"), STAGES, look=look)


def status(**states: str) -> str:
    return state(**states).status


def test_the_most_telling_stage_counts():
    for first, second in combinations(ORDER, 2):
        assert status(pretrain=first, evaluate=second) == first
        assert status(pretrain=second, evaluate=first) == first
        assert status(pretrain="done", adapt=first, evaluate=second) == first
    assert status(pretrain="failed", adapt="running", evaluate="done") == "done"


def test_of_stages_with_the_same_status_the_latest_is_told():
    for same in ("running", "damaged", "failed"):
        assert state(pretrain=same, adapt=same, evaluate=same).stage == "evaluate"
        assert state(pretrain=same, adapt=same).stage == "adapt"
        assert state(pretrain=same, evaluate=same).stage == "evaluate"
        assert state(pretrain=same).stage == "pretrain"


def test_a_cell_is_looked_at_up_to_the_stage_that_is_asked_for():
    def look(folder: Path) -> State:
        return State({"pretrain": "done", "adapt": "failed", "evaluate": "running"}[folder.parent.name])

    assert cell_state(Path("sweep"), STAGES, look=look).status == "running"
    assert cell_state(Path("sweep"), STAGES, "adapt", look).status == "failed"
    assert cell_state(Path("sweep"), STAGES, "pretrain", look).status == "done"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ({"type": "ValueError", "message": "first\nlast"}, "ValueError: last"),
        ({"type": "ValueError", "message": "line\nValueError: again"}, "ValueError: again"),
        ({"type": "ValueError", "message": ""}, "ValueError"), ({"type": "", "message": "x"}, "unknown error: x"),
        (None, "unknown error"),
    ],
)  # fmt: skip
def test_a_stage_by_its_record_and_its_lock(tmp_path, error, told):
    folder = tmp_path / "sweep/adapt" / stage_id("adapt", {}, None)
    common = dict(stage="adapt", config={}, parent=None, metrics={}, timing={}, provenance={})
    assert stage_state(folder) == State("missing", "adapt")
    with FolderLock(folder):
        assert stage_state(folder) == State("running", "adapt")
        record = write_record(folder, **common, status="failed", error=error and error | {"traceback": []})
        assert stage_state(folder) == State("running", "adapt"), "it is tried again"
    assert stage_state(folder) == State("failed", "adapt", told, record)
    record = write_record(folder, **common, status="done")
    with FolderLock(folder):
        assert stage_state(folder) == State("done", "adapt", record=record)
    (folder / "record.json").write_text("{")
    state = stage_state(folder)
    assert (state.status, state.record) == ("damaged", None)
    assert state.error.startswith(f"adapt/{folder.name}/record.json: not a whole record")
