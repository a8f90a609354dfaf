"""Orders of rank 0 and how it dismisses the others: by a store in memory, with stand-ins for their processes."""

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from ratplus.config.run import RunSection, TrainerSection
from ratplus.training import team as team_module
from ratplus.training.errors import Interrupted, LayoutError, PeerFailed
from ratplus.training.ranks import Place
from ratplus.training.team import Team, _Environment


class Child:
    """A process that ends after so many looks at it, or by as many signals."""

    def __init__(self, looks: int = 0, signals: int = 1):
        self.looks, self.signals, self.told = looks, signals, []

    exitcode = None

    def is_alive(self) -> bool:
        self.looks -= 1
        return self.looks >= 0 and self.signals > 0

    def terminate(self) -> None:
        self.told.append("terminate")
        self.signals -= 1

    def kill(self) -> None:
        self.told.append("kill")
        self.signals -= 1

    def join(self, seconds) -> None:
        self.told.append(seconds)


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self):
        self.now, self.naps = 50.0, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds) -> None:
        self.naps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(team_module, "time", found)
    return found


THREE = Place(world=3)


def make(place: Place = THREE, strategy: str = "ddp", threads=None, **keys) -> Any:
    return Team(place, TrainerSection(strategy, place.world), RunSection(accelerator="cpu", threads=threads), **keys)


def orders_in(store: dist.Store) -> list[dict]:
    found = []
    while store.check([f"order/{len(found) + 1}"]):
        found.append(json.loads(store.get(f"order/{len(found) + 1}")))
    return found


# ---- the other ranks -----------------------------------------------------------------------------------------------


@pytest.fixture
def follower(monkeypatch, clock) -> Any:
    made, store = make(Place(1, 3, 1)), dist.HashStore()
    monkeypatch.setattr(made, "_connect", lambda: setattr(made, "_store", store))
    made.held = store
    return made


def test_orders_are_followed_up_to_the_leave(follower):
    given = [{"do": "train", "stage": "pretrain"}, {"do": "train", "stage": "adapt"}]
    for number, order in enumerate([*given, {"do": "leave", "record": {"stage": "eval"}, "error": None}], start=1):
        follower.held.set(f"order/{number}", json.dumps(order))
    followed = follower.orders()
    assert [next(followed), next(followed)] == given
    assert follower.number == 2
    assert follower.held.add("left", 0) == 0
    assert list(followed) == []
    assert follower.held.add("left", 0) == 1
    assert follower.result == {"stage": "eval"}


def test_an_order_is_waited_for(follower, clock):
    def come(seconds):
        clock.naps.append(seconds)
        if len(clock.naps) == 3:
            follower.held.set("order/1", json.dumps({"do": "leave", "record": None, "error": None}))

    clock.sleep = come
    assert list(follower.orders()) == []
    assert clock.naps == [0.1] * 3


def test_a_leave_with_an_error_is_a_failure_of_rank_0(follower):
    follower.held.set("order/1", json.dumps({"do": "leave", "record": None, "error": "disk is full"}))
    with pytest.raises(PeerFailed, match=r"^rank 0 ended with: disk is full$") as caught:
        list(follower.orders())
    assert caught.value.failure["type"] == "PeerFailed"
    assert follower.held.add("left", 0) == 1


def test_rank_0_that_has_gone(follower, monkeypatch):
    def gone():
        raise dist.DistNetworkError("closed")

    monkeypatch.setattr(follower, "_connect", gone)
    with pytest.raises(PeerFailed, match=r"^rank 0 has gone; its record or its own output says why$") as caught:
        list(follower.orders())
    assert caught.value.failure == {"type": "DistNetworkError", "message": str(caught.value), "traceback": []}


# ---- rank 0 --------------------------------------------------------------------------------------------------------


def test_nobody_is_dismissed_where_nobody_was_started(clock):
    with make() as team:
        team.children = [Child(99)]
    assert (team.children[0].told, clock.naps, team.number) == ([], [], 0)


def test_ranks_are_started_once_and_ordered_twice(monkeypatch):
    class Store(dist.HashStore):
        port = 4321

    places, store = [], Store()
    monkeypatch.setattr(team_module, "_store_of_this_machine", lambda: store)

    def start(place):
        places.append(place)
        return Child()

    with make(start=start) as team:
        for stage in ("pretrain", "adapt"):
            with team.training({"stage": stage}):
                pass
        team.result = {"stage": "eval"}
        assert len(team.children) == 2
    assert places == [Place(1, 3, 1, port=4321), Place(2, 3, 2, port=4321)]
    assert orders_in(store) == [
        {"do": "train", "stage": "pretrain"},
        {"do": "train", "stage": "adapt"},
        {"do": "leave", "record": {"stage": "eval"}, "error": None},
    ]


@pytest.mark.parametrize(("error", "line"), [(ValueError("odd"), "odd"), (KeyboardInterrupt(), "KeyboardInterrupt")])
def test_an_error_is_told_when_the_others_are_dismissed(clock, error, line):
    team = make()
    team._store = dist.HashStore()
    with pytest.raises(type(error)), team:
        raise error
    assert orders_in(team.store) == [{"do": "leave", "record": None, "error": line}]


@pytest.mark.parametrize(("error", "seconds"), [(None, 30.0), (ValueError("odd"), 5.0)])
def test_patience_with_ranks_that_do_not_leave(clock, error, seconds):
    """A rank that stays is asked to end, and then made to."""
    team = make(Place(world=4))
    team._store, team.children = dist.HashStore(), [Child(10**6), Child(10**6, signals=2), Child(0)]
    team.result = None
    team.__exit__(type(error) if error else None, error, None)
    assert sum(clock.naps) == pytest.approx(seconds, abs=0.11)
    assert [child.told for child in team.children] == [["terminate", 5], ["terminate", 5, "kill", 5], []]


def test_ranks_that_leave_are_not_waited_for_any_longer(clock):
    team = make()
    team._store, team.children, team.result = dist.HashStore(), [Child(2), Child(4)], None
    team.__exit__(None, None, None)
    assert len(clock.naps) == 6  # each is looked at while those before it have ended
    assert [child.told for child in team.children] == [[], []]


@pytest.mark.parametrize(("left", "naps"), [(0, 2), (1, 1), (2, 0), (3, 0)])
def test_ranks_of_others_say_that_they_have_left(clock, left, naps):
    team = make(Place(world=3, starter="srun", port=1))
    team._store, team.result = dist.HashStore(), None
    team.store.add("left", left)

    def leave(seconds):
        clock.naps.append(seconds)
        team.store.add("left", 1)

    clock.sleep = leave
    team.__exit__(None, None, None)
    assert clock.naps == [0.1] * naps


def test_a_store_that_has_gone_with_its_ranks(monkeypatch):
    team = make()
    team._store, team.children, team.result = dist.HashStore(), [Child(5)], None
    monkeypatch.setattr(team, "_order", lambda order: (_ for _ in ()).throw(dist.DistError("closed")))
    team.__exit__(None, None, None)
    assert team.children[0].told == ["terminate", 5]


# ---- every rank ----------------------------------------------------------------------------------------------------


@pytest.fixture
def threads(monkeypatch):
    """Threads of torch as this test sets them, put back at its end."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("world", "given", "within"), [(2, None, 3), (3, None, 2), (8, None, 1), (2, 7, 7)])
def test_ranks_of_a_machine_share_its_threads(threads, world, given, within):
    """Unless the user says how many; and they are as before when the run ends."""
    with make(Place(world=world), threads=given).together():
        assert torch.get_num_threads() == within
        assert os.environ["OMP_NUM_THREADS"] == str(within)
    assert torch.get_num_threads() == 7


def test_threads_that_the_user_named_stay(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with make().together():
        assert os.environ["OMP_NUM_THREADS"] == "5"


@pytest.fixture
def parted(monkeypatch) -> list:
    found: list = []
    monkeypatch.setattr(Team, "_part", lambda self: found.append(self))
    return found


def test_an_interruption_is_no_failure(parted):
    team = make()
    team._store = dist.HashStore()
    with pytest.raises(Interrupted), team.together():
        raise Interrupted(15)
    assert not team.store.check(["failure/0"])
    assert parted == [team]


@pytest.mark.parametrize("cuda", [False, True])
def test_a_failure_of_its_own_and_of_another(parted, cuda):
    team = make()
    team.cuda, team._store = cuda, dist.HashStore()
    own = ValueError("odd")
    with pytest.raises(ValueError, match="odd") as caught, team.together():
        raise own
    assert caught.value is own
    later = ValueError("later")
    with pytest.raises(PeerFailed, match="odd") as told, team.together():
        raise later
    assert told.value.__cause__ is later
    assert len(parted) == (0 if cuda else 2)  # a broken NCCL group is not left
    with team.together():
        pass
    assert len(parted) == (1 if cuda else 3)


def test_more_devices_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    trainer = TrainerSection("ddp", 3)
    with pytest.raises(LayoutError, match=r"^trainer.devices: got 3; this process sees 2 CUDA devices$"):
        Team(Place(world=3), trainer, RunSection(accelerator="auto"))
    assert Team(Place(world=2), TrainerSection("ddp", 2), RunSection(accelerator="auto")).cuda
    assert not Team(Place(world=3), trainer, RunSection(accelerator="cpu")).cuda


@pytest.mark.parametrize(("strategy", "kind"), [("ddp", DDPStrategy), ("fsdp", ModelParallelStrategy)])
def test_what_lightning_is_told(strategy, kind):
    told = make(Place(2, 3, 2), strategy).lightning()
    assert isinstance(told.pop("strategy"), kind)
    (place,) = told.pop("plugins")
    assert isinstance(place, _Environment)
    assert told == {"devices": 3, "num_nodes": 1, "use_distributed_sampler": False}


def test_a_place_as_lightning_asks_for_it():
    found = _Environment(Place(5, 8, 1, 2, "10.0.0.1", 4321, "srun"))
    assert (found.global_rank(), found.world_size(), found.local_rank(), found.node_rank()) == (5, 8, 1, 2)
    assert (found.main_address, found.main_port, found.creates_processes_externally) == ("10.0.0.1", 4321, True)
    found.set_world_size(8)
    found.set_global_rank(5)
    for wrong in (lambda: found.set_world_size(7), lambda: found.set_global_rank(4)):
        with pytest.raises(AssertionError):
            wrong()


def test_numbers_of_all_ranks(monkeypatch):
    """Of a group of one, each sum and largest number is its own; what is asked for is the sum and the largest."""
    asked = []
    monkeypatch.setattr(dist, "all_reduce", lambda value, op=dist.ReduceOp.SUM: asked.append((op, value.clone())))
    weight = torch.tensor(2.0, requires_grad=True)
    sums = make().sums([weight, torch.tensor(3.0)])
    assert [(float(value), value.requires_grad) for value in sums] == [(2.0, False), (3.0, False)]
    assert make().largest(3, 9, 4) == [3, 9, 4]
    assert [op for op, _ in asked] == [dist.ReduceOp.SUM, dist.ReduceOp.MAX]


def test_ranks_of_one_machine_meet_on_loopback(monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(team_module, "Path", lambda _: SimpleNamespace(exists=lambda: True))
    team_module._meet_on_loopback()
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "ib0")
