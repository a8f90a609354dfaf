"""What is shown of a running sweep, on a terminal and elsewhere."""

from types import SimpleNamespace

import pytest

from ratplus.sweeps.launch import display
from ratplus.sweeps.launch.display import SweepDisplay


def worker(slot, name, **progress):
    return SimpleNamespace(slot=slot, item=SimpleNamespace(name=name), progress=lambda: progress)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(display.time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def bars(monkeypatch):
    """A display as on a terminal, and what its bars show: {description: task}."""
    monkeypatch.setattr(display.sys.stderr, "isatty", lambda: True, raising=False)
    with SweepDisplay(5) as shown:
        yield shown, lambda: {task.description: task for task in shown._progress.tasks if task.visible}


def test_lines_tell_what_begins_and_how_it_ends(capsys):
    with SweepDisplay(4) as shown:
        for kind, name, text in (
            ("start", "a [x]", ""), ("end", "a [x]", ""), ("end", "b", "out of memory"), ("skip", "c", "a failed"),
            ("tick", "d", ""),
        ):  # fmt: skip
            shown.event(kind, SimpleNamespace(name=name), [], text)
    assert capsys.readouterr().err.splitlines() == [
        "[0/4] a [x]: started", "[1/4] a [x]: done", "[2/4] b: FAILED: out of memory", "[3/4] c: skipped: a failed",
    ]  # fmt: skip


def test_without_a_terminal_a_line_now_and_then_tells_how_far_all_are(capsys, clock):
    workers = [worker(0, "a", stage="pretrain", done=3, total=10, loss=1.25), worker(1, "b")]
    with SweepDisplay(5) as shown:
        clock.now += 20
        shown.event("tick", None, workers, "")
        assert capsys.readouterr().err == ""
        clock.now += 1
        shown.event("tick", None, workers, "")
        assert capsys.readouterr().err == "a: pretrain 3/10, loss 1.250; b: starting (21 s)\n"
        clock.now += 9
        shown.event("end", SimpleNamespace(name="a"), [], "")
        shown.event("end", SimpleNamespace(name="b"), [], "")
        capsys.readouterr()
        clock.now += 20  # as long as that after any line
        shown.event("tick", None, workers[1:], "")
        assert capsys.readouterr().err == ""
        clock.now += 10
        shown.event("tick", None, [], "")
        assert capsys.readouterr().err == ""
        shown.event("tick", None, workers[1:], "")
        assert capsys.readouterr().err == "b: starting (60 s, about 90 s left)\n"


def test_a_terminal_has_a_bar_of_the_sweep_and_one_of_each_worker(bars):
    shown, visible = bars
    shown.event(
        "start", SimpleNamespace(name="a"), [worker(0, "a"), worker(1, "b", stage="adapt", done=2, total=8)], ""
    )
    assert list(visible()) == ["sweep", "a: starting", "b: adapt"]
    assert (visible()["a: starting"].total, visible()["a: starting"].fields["note"]) == (None, "")
    shown.event("tick", None, [worker(1, "b", stage="adapt", done=3, total=8, loss=0.5)], "")
    task = visible()["b: adapt"]
    assert (task.completed, task.total, task.fields["note"]) == (3, 8, "loss 0.500")
    assert list(visible()) == ["sweep", "b: adapt"]
    shown.event("end", SimpleNamespace(name="b"), [worker(0, "c", stage="pretrain", done=0, total=4)], "")
    assert list(visible()) == ["sweep", "c: pretrain"]  # in the place of the first
    assert (visible()["sweep"].completed, visible()["sweep"].total) == (1, 5)
    assert len(shown._progress.tasks) == 3


def test_the_time_of_a_bar_begins_anew_with_another_stage(bars):
    shown, visible = bars
    shown.event("tick", None, [worker(0, "a", stage="pretrain", done=7, total=8)], "")
    begun = visible()["a: pretrain"].start_time
    shown.event("tick", None, [worker(0, "a", stage="pretrain", done=8, total=8)], "")
    assert visible()["a: pretrain"].start_time == begun
    shown.event("tick", None, [worker(0, "a", stage="adapt", done=1, total=2)], "")
    assert visible()["a: adapt"].start_time > begun
