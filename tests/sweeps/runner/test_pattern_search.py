"""`ratplus search` around the search itself: the length of its rows, timings that are kept, what a dry run prices."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from ratplus.config.model import ModelConfig
from ratplus.config.search import SearchSection
from ratplus.pattern import Pattern
from ratplus.search import latency, splits
from ratplus.search.budgets import Budget
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.runner import pattern_search

SHAPE = ModelConfig(vocab_size=50, layers=2, d_model=32, d_head=8, max_len=64)
CANDIDATES = [Pattern(), Pattern(4), Pattern(16)]


def found(weights="w") -> Any:
    return SimpleNamespace(name="m", folder=Path("m"), weights=weights, shape=SHAPE, corpus=None, recall=None)


class Made(Exception):
    """Ends a search where its rows are made."""


@pytest.mark.parametrize(("length", "taken"), [(None, 64), (64, 64), (16, 16), (65, None)])
def test_rows_are_as_long_as_asked_or_as_the_model_takes(monkeypatch, length, taken):
    def make(section, corpus, recall, length):
        raise Made(length)

    monkeypatch.setattr(pattern_search, "locate", lambda section, overrides: found())
    monkeypatch.setattr(splits, "make_splits", make)
    section = SearchSection(model="m", length=length)
    if taken is None:
        with pytest.raises(UsageError, match="length: got 65; m takes at most 64 tokens"):
            pattern_search.search(section, [])
        return
    with pytest.raises(Made) as made:
        pattern_search.search(section, [])
    assert made.value.args == (taken,)


def test_timings_are_kept_for_a_search_of_the_same(monkeypatch, tmp_path):
    """Another timing would lead a resumed search to another choice; one of something else is no timing of this."""
    timed = []

    def decode_ms(model, maps, length):
        timed.append(length)
        return {m.label: 1.0 + len(timed) / (1 + place) for place, m in enumerate(maps)}

    monkeypatch.setattr(latency, "decode_ms", decode_ms)
    section = SearchSection(model="m")

    def fitted(candidates=CANDIDATES, length=64, weights="w"):
        return pattern_search._latency_fit(section, found(weights), None, candidates, length, tmp_path)

    first = fitted()
    assert fitted() == first
    assert timed == [64]
    for other in ({"candidates": [*CANDIDATES, Pattern(32)]}, {"length": 32}, {"weights": "v"}):
        fitted(**other)
        assert len(timed) == 2, other
        fitted()
        timed[1:] = []
    kept = tmp_path / "latency.json"
    whole = json.loads(kept.read_text())
    for text in ("{", "[1]", json.dumps(whole | {"decode_ms": None}), json.dumps({"decode_ms": whole["decode_ms"]})):
        kept.write_text(text)
        fitted()
        assert len(timed) == 2, text
        assert json.loads(kept.read_text()).keys() == whole.keys()
        timed[1:] = []


def test_timings_of_a_file_are_taken_in_place_of_own_ones(monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "decode_ms", None)
    row = {"batch": 1, "context": 64, "heads": 4}
    rows = [row | {"pattern": label, "decode_ms_p50": ms} for label, ms in (("D1", 3.0), ("D4", 2.0), ("D16", 1.5))]
    (tmp_path / "bench.json").write_text(json.dumps({"rows": rows}))
    section = SearchSection(model="m", bench=str(tmp_path / "bench.json"))
    fitted = pattern_search._latency_fit(section, found(), None, CANDIDATES, 64, tmp_path)
    assert fitted.points == 3
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (12600, "3.5 h")],
)
def test_how_long_it_takes_in_words(seconds, text):
    assert pattern_search.duration(seconds) == text


@pytest.mark.parametrize(("over", "units"), [("layers", 2), ("heads", 8)])
def test_a_plan_counts_the_units_that_are_searched(over, units):
    section = SearchSection(model="m", over=over, anchor="dense", screen=False)
    plan = pattern_search._plan(section, found(), CANDIDATES, [Budget.parse("kv:0.5")])
    assert plan["substitutions in the dense model"] == units * 2 * 3 / 4


@pytest.mark.parametrize(("first", "passes", "each"), [(60.0, 2, "2.00"), (61.0, 1, "61.00")])
def test_a_dry_run_times_the_second_pass_unless_the_first_takes_long(monkeypatch, capsys, first, passes, each):
    clock, took, asked = [0.0], [first, 2.0], []

    def losses(patterns, split):
        clock[0] += took[len([x for x in asked if x == "pass"])]
        asked.append("pass")

    def probes(section, found, splits, store):
        return SimpleNamespace(dense=None, forget=lambda: asked.append("forget"), losses=losses)

    monkeypatch.setattr(pattern_search, "_probes", probes)
    monkeypatch.setattr(pattern_search.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(pattern_search, "_plan", lambda *_: {"exchanges": 20.0, "verify": 5.5})
    section: Any = SearchSection(model="m")
    assert pattern_search._dry_run(section, found(), CANDIDATES, [], {}, 64) == 0
    assert asked == ["forget", "pass"] * passes, "what a pass left would make the next one look quick"
    about = pattern_search.duration(25.5 * float(each))
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["exchanges", "20.0", "passes"], ["verify", "5.5", "passes"],
        ["at", "most", "25.5", "passes,", each, "s", "each:", "about", *about.split()],
    ]  # fmt: skip


def test_a_dry_run_prices_all_budgets_but_latency(monkeypatch, capsys):
    """A time is known only once it was measured, which a dry run does not do."""
    asked = []

    def probes(section, found, splits, store):
        return SimpleNamespace(dense=None, forget=lambda: None, losses=lambda patterns, split: asked.append(split))

    monkeypatch.setattr(pattern_search, "_probes", probes)
    rows = SimpleNamespace(inputs=np.zeros((3, 64)))
    made: Any = {"search": SimpleNamespace(groups={"text": rows}, tokens=192, documents=5)}

    def dry(*budgets):
        section = SearchSection(model="m")
        return pattern_search._dry_run(
            section, cast("Any", found()), CANDIDATES, [*map(Budget.parse, budgets)], made, 64
        )

    assert dry("latency:0.5", "kv:0.5") == 0
    assert dry("latency:0.5") == 0
    assert asked == ["search"] * 4, "the first pass sets the machine up, the second is timed"
    assert "search split: 192 tokens, 5 documents; rows: 3 of text" in capsys.readouterr().out
    with pytest.raises(ValueError, match="got kv:0.01; the cheapest candidate, D16, costs"):
        dry("latency:0.5", "kv:0.01")
