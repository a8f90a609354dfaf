"""A timed sweep's decisions: what is measured, planned, called, printed and packed; the work itself is a stand-in."""

import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ratplus.sweeps.define.compose import compose_cells
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.runner import timed_sweep
from ratplus.sweeps.runner.timed_sweep import Commands, StepTime, choose_steps

WORDS = ["model=ratplus_nano", "data.recall.fraction=0", "train.pretrain.steps=200", "train.adapt.steps=20"]


@pytest.fixture
def cells():
    return compose_cells([*WORDS, "output=out"])


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(timed_sweep.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def place(tmp_path, monkeypatch, clock):
    """The current folder; `place.done` says whether the sweep's cells are."""
    monkeypatch.chdir(tmp_path)
    made = SimpleNamespace(path=tmp_path, done=True, clock=clock, calls=[], code=0)
    monkeypatch.setattr(timed_sweep, "all_done", lambda folder: made.done)
    monkeypatch.setattr(timed_sweep, "summary", lambda folder: ["first table", "second"])

    def ratplus(words, until):
        made.calls.append((words, until))
        clock[0] += 50.0
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "sweep.json").touch()
        (tmp_path / "out" / f"{words[0]}.txt").write_text("x")
        return made.code

    def measured(overrides, deadline):
        made.calls.append((overrides, deadline))
        clock[0] += 100.0
        return [StepTime("m", 1.0, 1, 1, 1e3)]

    made.commands = Commands(ratplus, measured)
    return made


def test_a_sweep_that_is_done_in_time(place, cells, capsys):
    assert timed_sweep.run(cells, ["a=1"], 1400.0, place.path / "o", None, place.commands) == 0
    # 400 s, of which measuring took 100, starts and the report take 60; a step of the model, and a tenth of adaptation.
    steps = int(0.85 * (300.0 - 60.0) / 1.1)
    adapt = round(steps / 10)
    words = ["sweep", "a=1", f"train.pretrain.steps={steps}", f"train.adapt.steps={adapt}"]
    assert place.calls == [(["a=1"], 1400.0), (words, 1380.0)]
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "timed_sweep: m: 1000.0 ms a step, 1,000 tokens a second (passes over each token: 1)",
        f"timed_sweep: train.pretrain.steps={steps} train.adapt.steps={adapt}; 300 s are left",
    ]  # fmt: skip
    text = f"ratplus {' '.join(words)}\n\nfirst table\n\nsecond"
    archive = place.path / "o" / "out.tar.gz"
    assert said.out == f"{archive}: {archive.stat().st_size / 1e6:.2f} MB\n{text}\n"
    assert (place.path / "o" / "out.txt").read_text() == text + "\n"


@pytest.mark.parametrize(("deadline", "until"), [(1400.0, 1400.0), (1060.0, 1070.0)])
def test_what_is_left_over_is_reported_within_the_time_or_its_own(place, cells, deadline, until):
    """The records are packed before the figures are drawn, and then all once more."""
    place.code, place.done = 1, False
    packed = []
    pack = timed_sweep.pack
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timed_sweep, "pack", lambda *words: packed.append(place.clock[0]) or pack(*words))
        assert timed_sweep.run(cells, ["a=1"], deadline, place.path / "o", 7, place.commands) == 1
    assert [words for words, _ in place.calls] == [
        ["sweep", "a=1", "train.pretrain.steps=7", "train.adapt.steps=1"], ["report", "out"],
    ]  # fmt: skip
    assert [time for _, time in place.calls] == [deadline - 20.0, until]
    assert packed == [1050.0, 1100.0]
    with tarfile.open(place.path / "o" / "out.tar.gz") as archive:
        assert archive.getnames() == ["out/report.txt", "out/sweep.json", "out/sweep.txt"]


def test_a_sweep_that_failed_before_it_began_has_nothing_to_report(place, cells):
    gone = Commands(ratplus=lambda words, until: place.calls.append(words) or 2)
    place.done = False
    assert timed_sweep.run(cells, [], 1400.0, place.path / "o", 7, gone) == 1
    assert len(place.calls) == 1


def test_what_is_printed_is_cut(place, cells, monkeypatch, capsys):
    monkeypatch.setattr(timed_sweep, "MOST_PRINTED", 20)
    timed_sweep.run(cells, ["a=1"], 1400.0, place.path / "o", 7, place.commands)
    assert (place.path / "o" / "out.txt").read_text() == "ratplus sweep a=1 tr\n"


def test_steps_that_are_asked_for_or_were_begun_with(place, cells, capsys):
    with pytest.raises(UsageError, match="--steps: got 0; it must be ≥ 1"):
        timed_sweep.run(cells, [], 1400.0, place.path / "o", 0, place.commands)
    timed_sweep.run(cells, [], 1400.0, place.path / "o", 1, place.commands)
    assert place.calls[0][0][1:] == ["train.pretrain.steps=1", "train.adapt.steps=1"]
    for steps, adapt in ((100, 10), (200, 20), (1000, 20), (14, 1), (16, 2)):
        assert timed_sweep._adapt_steps(cells, steps) == adapt
    train = {"train": {"pretrain": {"steps": 33}, "adapt": {"steps": 5}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timed_sweep, "read_manifest", lambda folder: {"cells": [{"config": train}, {"config": None}]})
        place.calls.clear()
        timed_sweep.run(cells, [], 1400.0, place.path / "o", 1, place.commands)
    assert place.calls[0][0][1:] == ["train.pretrain.steps=33", "train.adapt.steps=5"]


def test_the_fewest_steps_that_are_worth_it(cells):
    """Each takes 1.1 s with its part of the adaptation."""
    time = [StepTime("m", 1.0, 1, 1, 1e3)]

    def left(steps: float) -> float:
        return 60.0 + steps * 1.1 / 0.85

    assert choose_steps(cells, time, left(20.01)) == (20, 2)
    with pytest.raises(UsageError) as told:
        choose_steps(cells, time, left(19.99))
    assert str(told.value) == (
        "--seconds: 86 s are left, and 1.1 s go to a step of every model: that is time for 19 steps, and at least 20 "
        "are worth it; give more seconds or smaller models"
    )
    with pytest.raises(UsageError, match="time for 0 steps"):
        choose_steps(cells, time, 0.0)
    few = compose_cells([*WORDS, "train.pretrain.steps=5", "train.adapt.steps=0"])
    assert choose_steps(few, time, 60.0 + 5.01 / 0.85) == (5, 0), "more than five are not asked for"


@pytest.mark.parametrize(("sparse", "arl"), [(False, True), (True, False)])
def test_what_is_timed_is_the_pretraining_of_the_cells(monkeypatch, sparse, arl):
    import torch

    from ratplus.data import sources
    from ratplus.training import run as running

    words = [
        *WORDS,
        "train.context=64",
        f"train.pretrain.sparse={str(sparse).lower()}",
        "pattern.dilation=4",
        f"train.pretrain.arl={str(arl).lower()}",
        "train.pretrain.batch=3",
        "seed=5",
        "run.threads=1",
    ]
    cells, runs, made = compose_cells(words), [], []
    batches = SimpleNamespace(vocab_size=99, train=lambda *given: made.append(given) or [
        (SimpleNamespace(size=100), None), (SimpleNamespace(size=28), None),
    ])  # fmt: skip
    now = iter((10.0, 13.0))

    def train(model, run, folder, watch):
        runs.append((model, run, folder))
        for done in range(1, 10):
            watch.progress(done, 9, {})

    monkeypatch.setattr(timed_sweep, "_by_pretraining", lambda cells: {"p": cells * 3})
    monkeypatch.setattr(sources, "corpus_of", lambda data: "text")
    monkeypatch.setattr("ratplus.data.batches.Batches.of", lambda config, corpus: batches)
    monkeypatch.setattr(running, "train", train)
    monkeypatch.setattr(timed_sweep.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert timed_sweep.measure(cells) == [StepTime("ratplus_nano", 0.5, 2 if arl else 1, 3, 256.0)]
    ((model, run, folder),) = runs
    config = cells[0].config
    assert (run.patterns, run.recipe.steps, run.recipe.batch) == (config.patterns if sparse else None, 9, 3)
    assert (model.config.vocab_size, model.config.max_len) == (99, 64)
    assert not folder.exists()
    assert made == [(run.recipe, "pretrain", 0)]


# ---- processes ----------------------------------------------------------------------------------------------------


class Process:
    """One that ends with a code, after so many waits that were too short."""

    def __init__(self, *answers: Any):
        self.answers, self.told = list(answers), []

    def wait(self, *seconds):
        self.told.append(("wait", *seconds))
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def send_signal(self, number):
        self.told.append(number)

    def kill(self):
        self.told.append("kill")


LATE = subprocess.TimeoutExpired("x", 1)


@pytest.mark.parametrize(
    ("until", "answers", "code", "told"),
    [
        (1030.0, [3], 3, [("wait", 30.0)]), (990.0, [0], 0, [("wait", 0)]),
        (1030.0, [LATE, 143], 143, [("wait", 30.0), signal.SIGTERM, ("wait", 40.0)]),
        (1030.0, [LATE, LATE, -9], -9, [("wait", 30.0), signal.SIGTERM, ("wait", 40.0), "kill", ("wait",)]),
        (1030.0, [KeyboardInterrupt()], None, [("wait", 30.0), signal.SIGTERM]),
    ],
)  # fmt: skip
def test_a_command_has_its_time_and_then_that_to_save(monkeypatch, clock, capsys, until, answers, code, told):
    process, started = Process(*answers), []
    monkeypatch.setattr(timed_sweep.subprocess, "Popen", lambda words: started.append(words) or process)
    if code is None:
        with pytest.raises(KeyboardInterrupt):
            timed_sweep.run_ratplus(["sweep", "a=1"], until)
    else:
        assert timed_sweep.run_ratplus(["sweep", "a=1"], until) == code
    assert process.told == told
    (words,) = started
    assert words[:3] == [sys.executable, "-P", "-c"]
    assert words[4:] == ["sweep", "a=1"]
    late = "timed_sweep: the time is up: the sweep saves and stops\n"
    assert capsys.readouterr().err == (late if len(answers) > 1 else "")


@pytest.mark.parametrize(("deadline", "left"), [(1100.0, 80.0), (1010.0, 1)])
def test_steps_are_timed_in_a_process_of_their_own(monkeypatch, clock, deadline, left):
    calls, code = [], [0]

    def run(words, timeout):
        calls.append((words, timeout))
        if code[0] is None:
            raise LATE
        Path(words[-1]).write_text(json.dumps([vars(StepTime("m", 0.5, 2, 3, 9.0))]))
        return SimpleNamespace(returncode=code[0])

    monkeypatch.setattr(timed_sweep.subprocess, "run", run)
    assert timed_sweep.measure_apart(["a=1"], deadline) == [StepTime("m", 0.5, 2, 3, 9.0)]
    ((words, timeout),) = calls
    scratch = str(Path(words[-1]).parent)
    assert timeout == left
    assert words == [
        sys.executable, "-P", "-m", "ratplus.sweeps.runner.timed_sweep", "a=1", "--seconds", "0", "--out", scratch,
        "--step-times", f"{scratch}/times.json",
    ]  # fmt: skip
    code[0] = 1
    with pytest.raises(UsageError, match="timing the first steps failed; what it said stands above"):
        timed_sweep.measure_apart(["a=1"], deadline)
    code[0] = None
    with pytest.raises(UsageError, match=f"--seconds: timing the first steps alone takes more than {left:.0f} s"):
        timed_sweep.measure_apart(["a=1"], deadline)


def test_the_words_of_the_command(tmp_path, monkeypatch, clock, capsys):
    given = []
    monkeypatch.setattr(timed_sweep, "run", lambda cells, *words: given.append((len(cells), *words)) or 1)
    out = str(tmp_path / "o")
    assert timed_sweep.main([*WORDS, "--seconds", "9.5", "--out", out, "--steps", "3"]) == 1
    assert timed_sweep.main([*WORDS, "pattern.dilation=1,4", "--seconds", "9.5", "--out", out]) == 1
    assert given == [
        (1, WORDS, 1009.5, tmp_path / "o", 3, None),
        (2, [*WORDS, "pattern.dilation=1,4"], 1009.5, tmp_path / "o", None, None),
    ]  # fmt: skip
    for missing in (["--out", out], ["--seconds", "9"]):
        with pytest.raises(SystemExit):
            timed_sweep.main([*WORDS, *missing])
    with pytest.raises(SystemExit):
        timed_sweep.main(["--seconds", "9", "--out", out])
    assert capsys.readouterr().err.startswith("usage: python -m ratplus.sweeps.runner.timed_sweep ")
    monkeypatch.setattr(timed_sweep, "measure", lambda cells: [StepTime("m", 0.5, 2, len(cells), 9.0)])
    times = tmp_path / "t.json"
    assert timed_sweep.main([*WORDS, "--seconds", "0", "--out", out, "--step-times", str(times)]) == 0
    assert json.loads(times.read_text()) == [vars(StepTime("m", 0.5, 2, 1, 9.0))]


def test_what_is_packed(tmp_path):
    for name in ("sweep.json", "a/b.json", "a/.hidden", "a/m.safetensors", "a/t.pt", "a/x.tmp", "r/f.pdf", "r/t.tex",
                 "r/f.png"):  # fmt: skip
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_text("x")
    archive = tmp_path / "new" / "a.tar.gz"
    archive.parent.mkdir()
    assert timed_sweep.pack(tmp_path / "f", archive) == archive
    with tarfile.open(archive) as packed:
        assert packed.getnames() == ["f/a/b.json", "f/r/f.png", "f/sweep.json"]
