"""What `evaluate --add` asks of a cell, given what it has been asked: by hand, of configs alone."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ratplus.config.eval import EvalSection
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.launch.launch import Ended
from ratplus.sweeps.runner import add_suite as adding
from ratplus.sweeps.runner.add_suite import _not_yet_asked, _own_parts, _run, _same_tasks, _without, add_suite

USUAL = compose_one([]).config


def section(*words: str) -> EvalSection:
    return compose_one(list(words)).config.eval


def cell(own: EvalSection = USUAL.eval, *added: EvalSection) -> Any:
    config = {"train": {"context": 512}}
    return {
        "id": "c" * 12, "stages": {"adapt": "a", "evaluate": "e"}, "config": config | {"eval": asdict(own)},
        "added": [{"id": f"{i}" * 12, "suite": "s", "eval": asdict(one)} for i, one in enumerate(added)],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], []), (["eval.text_rows=3"], ["text_rows"]), (["eval.recall_rows=0"], []),
        (["eval.cloze.items=3"], ["cloze"]),
        (["eval.tasks=[piqa]", "eval.niah.tasks=[niah_single_1]"], ["niah", "harness"]),
        (["eval.positions.width=32"], ["positions"]), (["eval.efficiency.enabled=true"], ["efficiency"]),
    ],
)  # fmt: skip
def test_parts_in_which_a_suite_asks_more_than_usual(words, parts):
    asked = compose_one(words).config
    assert _own_parts(asked, USUAL.eval) == parts


@pytest.mark.parametrize("part", adding._OFF)
def test_a_part_is_left_out(part):
    whole = section("eval.tasks=[piqa]", "eval.niah.tasks=[niah_single_1]", "eval.positions.width=32",
                    "eval.efficiency.enabled=true")  # fmt: skip
    names = set(adding._OFF)
    there = whole.science(512)
    assert {name for name in names if there.get(name)} == names
    left = _without(whole, part).science(512)
    assert {name for name in names if left.get(name)} == names - {part}
    assert {name: left[name] for name in names - {part}} == {name: there[name] for name in names - {part}}


def test_a_part_of_its_own_is_asked_alone():
    asked = section("eval.niah.tasks=[niah_single_1]", "eval.text_rows=7")
    found, known = _not_yet_asked(asked, ["niah"], cell(), "x")
    assert known is None
    assert {name for name in adding._OFF if found.science(512).get(name)} == {"niah"}
    assert found.niah == asked.niah


def test_a_part_that_was_asked_is_not_asked_again():
    asked = section("eval.niah.tasks=[niah_single_1]", "eval.tasks=[piqa]")
    only = _not_yet_asked(asked, ["niah"], cell(), "x")[0]
    found, known = _not_yet_asked(asked, ["niah", "harness"], cell(USUAL.eval, only), "x")
    assert known is None
    assert {name for name in adding._OFF if found.science(512).get(name)} == {"harness"}
    there = cell(USUAL.eval, section("eval.text_rows=3"), only)
    found, known = _not_yet_asked(asked, ["niah"], there, "x")
    assert known == there["added"][1], "the suite that asks just that goes on"
    assert found == only
    own = replace(only, batch=USUAL.eval.batch)
    found, known = _not_yet_asked(asked, ["niah"], cell(own), "x")
    assert known is None, "the cell's own evaluation is no added suite"
    assert not any(found.science(512).get(name) for name in adding._OFF)


def test_losses_by_position_are_of_the_rows_of_the_cells_own_loss():
    asked = section("eval.positions.width=32", "eval.text_rows=7", "eval.recall_rows=9")
    own = section("eval.text_rows=5", "eval.recall_rows=6")
    found, known = _not_yet_asked(asked, ["positions"], cell(own), "x")
    assert known is None
    assert (found.text_rows, found.recall_rows, found.positions.width) == (5, 6, 32)
    assert not found.cloze.items
    found, _ = _not_yet_asked(asked, ["positions", "text_rows"], cell(section("eval.text_rows=0")), "x")
    assert (found.text_rows, found.recall_rows) == (7, USUAL.eval.recall_rows)
    again, known = _not_yet_asked(asked, ["positions"], cell(own, found), "x")
    assert (again.text_rows, again.recall_rows, again.positions.width) == (0, 0, 0), "they have been asked"


def test_a_part_with_other_settings_is_refused():
    asked = section("eval.niah.tasks=[niah_single_1]", "eval.niah.samples=3")
    earlier = _not_yet_asked(section("eval.niah.tasks=[niah_single_1]"), ["niah"], cell(), "x")[0]
    for there in (cell(earlier), cell(USUAL.eval, earlier)):
        with pytest.raises(UsageError) as told:
            _not_yet_asked(asked, ["niah"], there, "ruler")
        assert str(told.value).startswith(
            f"--add ruler: cell {'c' * 12} has been asked eval.niah with other settings ("
        )
        assert str(told.value).endswith("choose another folder with `ratplus sweep ... output=`")


def test_other_tasks_of_the_harness_may_be_asked_with_other_settings():
    one = _not_yet_asked(section("eval.tasks=[piqa]"), ["harness"], cell(), "x")[0]
    other = section("eval.tasks=[arc_easy]", "eval.harness.limit=3")
    found, known = _not_yet_asked(other, ["harness"], cell(USUAL.eval, one), "x")
    assert (known, found.tasks) == (None, ["arc_easy"])
    both = section("eval.tasks=[arc_easy,piqa]", "eval.harness.limit=3")
    with pytest.raises(UsageError, match=r"has been asked eval.harness with other settings"):
        _not_yet_asked(both, ["harness"], cell(USUAL.eval, one), "x")


@pytest.mark.parametrize(
    ("there", "here", "same"),
    [
        (["a"], ["b"], False), (["a", "b"], ["b"], True), ([{"task": "a", "n": 1}], ["a"], True),
        ([{"task": "a"}], ["b"], False),
        ([{"file": "a.yaml", "sha256": "1"}], [{"file": "a.yaml", "sha256": "2"}], True),
        ([{"file": "a.yaml"}], ["a"], False), ([{"task": "x", "file": "a.yaml"}], ["x"], True), ([], ["a"], False),
    ],
)  # fmt: skip
def test_tasks_of_one_name(there, here, same):
    assert _same_tasks({"tasks": there}, {"tasks": here}) is same


# ---- the call -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["pattern=D4", "model=m", "eval=ruler", "output=x", "evaluate.x=1", "seed=1"])
def test_words_that_may_not_follow(word):
    with pytest.raises(UsageError) as told:
        add_suite("ruler", Path("F"), ["eval.text_rows=3", word], None)
    assert str(told.value) == (
        f"--add ruler: got {word}; allowed beside it: eval.KEY=..., and keys of how it is run: run, logger, launcher, "
        "trainer, retry, max_failures, dry_run"
    )


@pytest.fixture
def planned(monkeypatch):
    """What a call plans and runs: `made.plan` is what there is to do, of four cells."""
    new = {"c1": {"id": "e1"}, "c2": {"id": "e2"}}
    made = SimpleNamespace(plan=(new, 0, [{"id": "e1"}, {"id": "e2"}]), calls=[], code=0)
    states = {"e1": "done", "e2": "missing"}
    monkeypatch.setattr(adding, "check_store", lambda *words: made.calls.append(("store", *words)))
    monkeypatch.setattr(adding, "read_manifest", lambda folder: {"cells": [1, 2, 3, 4]})
    monkeypatch.setattr(adding, "_plan", lambda *words: made.calls.append(("plan", *words[:4])) or made.plan)
    monkeypatch.setattr(adding, "stage_state", lambda place: SimpleNamespace(status=states[place.name]))
    monkeypatch.setattr(adding, "_run", lambda *words: made.calls.append(("run", *words[:3])) or made.code)
    return made


@pytest.mark.parametrize(
    ("untrained", "result", "words", "code"),
    [(0, 0, [], 0), (2, 0, [], 1), (0, 3, [], 3), (2, 3, [], 3), (2, 3, ["dry_run=true"], 0)],
)
def test_what_a_call_says_and_returns(planned, capsys, untrained, result, words, code):
    import json

    planned.plan, planned.code = (*planned.plan[:1], untrained, *planned.plan[2:]), result
    new, _, ready = planned.plan
    folder = Path("F")
    for as_json in (False, True):
        planned.calls.clear()
        given = ["eval.niah.tasks=[niah_single_1]", "run.store=s", *words]
        assert add_suite("default", folder, given, None, as_json) == code
        ran = [("run", folder, new, ready)]
        assert planned.calls == [
            ("store", "s", folder), ("plan", [1, 2, 3, 4], folder, "default", ["niah"]), *([] if words else ran),
        ]  # fmt: skip
        said = capsys.readouterr()
        left = f"; {untrained} are not trained yet: run the sweep first, then this again" if untrained else ""
        line = f"default: 1 of 4 cells are asked{left}\n"
        if as_json:
            assert said.err == line
            states = [{"cell": "c1", "id": "e1", "status": "done"}, {"cell": "c2", "id": "e2", "status": "missing"}]
            assert json.loads(said.out) == {
                "format": 1, "folder": "F", "suite": "default", "untrained": untrained, "cells": states,
            }  # fmt: skip
        else:
            assert (said.out, said.err) == (line, "")


def test_a_suite_that_asks_nothing_more(planned):
    with pytest.raises(UsageError) as told:
        add_suite("default", Path("F"), [], None)
    assert str(told.value) == (
        "--add default: it asks nothing beyond eval=default; add a key, such as eval.tasks=[piqa]"
    )
    assert planned.calls == []


@pytest.mark.parametrize(
    ("ended", "reported"), [(Ended(0), True), (Ended(1), True), (Ended(2), False), (Ended(0, complete=False), False)]
)
def test_cells_are_noted_before_they_are_run(monkeypatch, ended, reported):
    calls: list = []
    monkeypatch.setattr(adding, "add_suites", lambda *words: calls.append(("add", *words)))
    monkeypatch.setattr("ratplus.sweeps.launch.launch.launch", lambda *words: calls.append(("launch", *words)) or ended)
    monkeypatch.setattr("ratplus.sweeps.runner.cells.final_report", lambda *words: calls.append(("report", *words)))
    folder, ready = Path("F"), [{"id": "e"}]
    assert _run(folder, {"c": "new"}, ready, USUAL) == ended.code
    assert calls == [
        ("add", folder, {"c": "new"}), ("launch", ready, folder, "evaluate", USUAL),
        *[("report", folder, USUAL.logger)] * reported,
    ]  # fmt: skip
    calls.clear()
    assert _run(folder, {}, [], USUAL) == 0
    assert calls == []
