"""Plain lines of a running sweep: what started, ended and is left, at times that are chosen."""

from types import SimpleNamespace

import pytest

from ratplus.sweeps.launch import display
from ratplus.sweeps.launch.display import SweepDisplay


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def worker(name: str, progress: dict):
    return SimpleNamespace(item=SimpleNamespace(name=name), slot=0, progress=lambda: progress)


def test_items_are_counted_as_they_end(clock, capsys):
    item = SimpleNamespace(name="ratplus_tiny layers[D1,D4]")
    with SweepDisplay(3) as shown:
        shown.event("start", item, [], "")
        shown.event("end", item, [], "")
        shown.event("end", item, [], "OSError: no room")
        shown.event("skip", item, [], "already done")
    assert capsys.readouterr().err.splitlines() == [
        f"[0/3] {item.name}: started", f"[1/3] {item.name}: done", f"[2/3] {item.name}: FAILED: OSError: no room",
        f"[3/3] {item.name}: skipped: already done",
    ]  # fmt: skip


def test_how_far_workers_are_is_told_every_twenty_seconds(clock, capsys):
    at_work = [
        worker("a", {"stage": "adapt", "done": 3, "total": 10, "loss": 1.23456}), worker("b", {}),
        worker("c", {"stage": "evaluate", "done": 0, "total": 4}),
    ]  # fmt: skip
    with SweepDisplay(5) as shown:
        for seconds in (20.0, 21.0, 41.0):
            clock[0] = 1000.0 + seconds
            shown.event("tick", None, at_work, "")
        clock[0] = 1100.0
        shown.event("tick", None, [], "")
        shown.event("end", SimpleNamespace(name="x"), at_work, "")
        shown.event("skip", SimpleNamespace(name="y"), at_work, "")
        clock[0] = 1150.0
        shown.event("tick", None, at_work[:1], "")
    told = "a: adapt 3/10, loss 1.235; b: starting; c: evaluate 0/4"
    assert capsys.readouterr().err.splitlines() == [
        f"{told} (21 s)", "[1/5] x: done", "[2/5] y: skipped",
        # Two of five took 150 s.
        "a: adapt 3/10, loss 1.235 (150 s, about 225 s left)",
    ]  # fmt: skip
