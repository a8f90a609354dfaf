"""What a rank makes of another one's end: by a store in memory, without processes."""

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from ratplus.config.run import RunSection, TrainerSection
from ratplus.training import team as team_module
from ratplus.training.errors import PeerFailed
from ratplus.training.ranks import Place
from ratplus.training.team import Team, _lost_contact

KILLED, ENDED, ALIVE = SimpleNamespace(exitcode=-9), SimpleNamespace(exitcode=3), SimpleNamespace(exitcode=None)
OTHER = {"type": "Diverged", "message": "rank 1 on a: loss is NaN", "traceback": []}


@pytest.fixture
def team(monkeypatch) -> Any:
    """Rank 0 of three, of which none has come up."""
    monkeypatch.setattr(team_module, "_MEET_SECONDS", 0.05)
    monkeypatch.setattr(team_module, "_POLL_SECONDS", 0.01)
    made: Any = Team(Place(world=3), TrainerSection("ddp", 3), RunSection(accelerator="cpu"))
    made._store, made.number = dist.HashStore(), 1
    return made


@pytest.mark.parametrize("child", [KILLED, ENDED])
def test_a_rank_that_ended_before_training_is_not_waited_for(team, child):
    team.children = [ALIVE, child]
    with pytest.raises(dist.DistError, match="a rank failed before training began"):
        team.meet()


def test_a_failure_that_was_told_before_training_ends_the_waiting(team):
    team.children = [ALIVE, ALIVE]
    team.store.set("failure/1", json.dumps(OTHER))
    with pytest.raises(dist.DistError, match="a rank failed before training began"):
        team.meet()


def test_of_an_earlier_run_no_failure_counts(team):
    team.children = [ALIVE, ALIVE]
    team.store.set("failure/0", json.dumps(OTHER))
    with pytest.raises(TimeoutError, match="only 1 of 3 ranks came up within 0 s"):
        team.meet()


def test_ranks_meet_when_the_last_one_has_come(team, monkeypatch):
    """In a group of their own for each run, so that nothing of an earlier one is in it."""
    waits: list[float] = []
    groups: list[dict] = []

    def sleep(seconds):
        waits.append(seconds)
        team.store.add("ready/1", 1)

    monkeypatch.setattr(team_module, "_MEET_SECONDS", 30.0)
    monkeypatch.setattr(team_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    monkeypatch.setattr(team_module, "_meet_on_loopback", lambda: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **keys: groups.append({"backend": backend} | keys))
    team.meet()
    assert waits == [0.01] * 2
    (group,) = groups
    assert (group["backend"], group["rank"], group["world_size"]) == ("gloo", 0, 3)
    group["store"].set("x", "1")
    assert team.store.check(["group/1/x"])


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo] Connection closed by peer"), True), (RuntimeError("NCCL error: a remote process"), True),
        (dist.DistError("anything"), True), (RuntimeError("shapes do not match"), False),
        # A rank's own mistake, whatever words it has.
        (ValueError("data.path: no connection.txt"), False), (OSError("Connection refused"), False),
    ],
)  # fmt: skip
def test_what_a_closed_line_looks_like(error, lost):
    assert _lost_contact(error) is lost


def test_the_first_failure_is_everyones(team):
    own = ValueError("odd")
    assert team._cause(own) is own
    told = json.loads(team.store.get("failure/1"))
    assert (told["type"], told["message"]) == ("ValueError", "odd")
    later = team._cause(RuntimeError("another"))
    assert isinstance(later, PeerFailed)
    assert str(later) == "odd"


def test_a_closed_line_is_blamed_on_who_closed_it(team):
    closed = RuntimeError("Connection reset by peer")
    team.children = [ALIVE, KILLED]
    assert "rank 2 was killed by SIGKILL (out of memory?)" in str(team._cause(closed))
    team.children = [ENDED, ALIVE]
    assert "rank 1 ended with exit code 3; its own output says why" in str(team._cause(closed))
    # What a rank said before it ended says more than that it did.
    team.store.set("failure/1", json.dumps(OTHER))
    assert "loss is NaN" in str(team._cause(closed))


def test_a_rank_of_its_own_machine_says_where_it_failed(team):
    team.place = Place(1, 3, 1)
    error = team._cause(ValueError("odd"))
    told = json.loads(team.store.get("failure/1"))
    assert isinstance(error, ValueError)
    assert told["message"].startswith("rank 1 on ")
    assert told["message"].endswith(": odd")
