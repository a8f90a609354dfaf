"""What a cell's status is, when its stages have different ones."""

from itertools import combinations
from pathlib import Path

from ratplus.records.status import State, cell_state

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
