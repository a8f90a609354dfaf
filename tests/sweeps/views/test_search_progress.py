"""Plain lines on how far a search is, at times that are chosen."""

import pytest

from ratplus.sweeps.views import search_progress
from ratplus.sweeps.views.search_progress import SearchProgress


@pytest.fixture
def clock(monkeypatch):
    """The time that the search sees, in seconds; it starts at 1000."""
    now = [1000.0]
    monkeypatch.setattr(search_progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_at_a_phase_and_every_twenty_seconds(clock, capsys):
    with SearchProgress({"probe": 60.0, "verify": 40.0}) as shown:
        for seconds, step in (
            (0, lambda: shown.phase("probe")), (10, lambda: shown.advance(10)), (20, lambda: shown.advance(20)),
            (21, lambda: shown.advance(25)), (30, lambda: shown.phase("verify")), (45, lambda: shown.advance(80)),
            (60, lambda: shown.advance(120)),
        ):  # fmt: skip
            clock[0] = 1000.0 + seconds
            step()
    assert capsys.readouterr().err.splitlines() == [
        "search: probe, 0 of at most 100 passes",
        # 25 of 100 passes took 21 s.
        "search: probe, 25 of at most 100 passes, at most 63 s left",
        "search: verify, 25 of at most 100 passes, at most 90 s left",
        "search: verify, 120 of at most 100 passes, at most 0 s left",
    ]


def test_a_terminal_has_a_bar_that_goes_when_the_search_ends(clock, capsys, monkeypatch):
    monkeypatch.setattr(search_progress.sys.stderr, "isatty", lambda: True, raising=False)
    with SearchProgress({"probe": 60.4, "verify": 40.2}) as shown:
        (task,) = shown._bars.tasks
        assert (task.description, task.completed, task.total, task.fields["note"]) == ("search", 0, 101, "")
        assert shown._bars.live.is_started
        assert shown._bars.live.transient is True
        assert shown._bars.console.stderr is True
        shown.phase("probe")
        shown.advance(12.6)
        assert (task.description, task.completed) == ("probe", 13)
        shown.phase("verify")
        assert (task.description, task.completed) == ("verify", 13)
    assert not shown._bars.live.is_started
    assert "search: " not in capsys.readouterr().err, "no line beside the bar"
