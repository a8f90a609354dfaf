"""Workers of a preparation while another input fails: none goes on with a file that takes hours."""

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ratplus.data.corpus import CorpusError
from ratplus.data.prepare import shard_work
from ratplus.data.prepare.inputs import Input
from ratplus.data.prepare.shard_work import Job, Settings, work

SETTINGS = Settings("text", None, "hash", 0.1, 0)


@pytest.fixture
def threads(monkeypatch):
    """Threads in the place of processes, which take seconds to start."""
    context = SimpleNamespace(Queue=queue.Queue, Event=threading.Event)
    monkeypatch.setattr(shard_work, "get_context", lambda kind: context)
    monkeypatch.setattr(shard_work, "_begin_worker", lambda news, stop: shard_work._worker.update(news=news, stop=stop))
    monkeypatch.setattr(shard_work, "_worker", {})
    monkeypatch.setattr(
        shard_work, "ProcessPoolExecutor",
        lambda workers, context, begin, arguments: ThreadPoolExecutor(workers, "", begin, arguments),
    )  # fmt: skip


def jobs(tmp_path, count: int) -> list[Job]:
    source = cast("Input", SimpleNamespace(name="a.txt"))
    return [Job(i, source, Path(tmp_path), SETTINGS, None, "bytes", "bytes", None, None, 1 << 20) for i in range(count)]


@pytest.mark.parametrize("error", [CorpusError("c.jsonl, line 1: no text"), KeyboardInterrupt()])
def test_one_failure_stops_the_others_between_two_reports(threads, tmp_path, monkeypatch, error):
    begun, ends = threading.Event(), []

    def tokenize(job: Job, report: Any) -> dict:
        if job.index == 0:
            assert begun.wait(10)
            raise error
        try:
            begun.set()
            for done in range(500):
                report(job.index, done, done)
                time.sleep(0.01)
        except CorpusError as stopped:
            ends.append(str(stopped))
        return {"index": job.index}

    monkeypatch.setattr(shard_work, "tokenize", tokenize)
    told: list = []
    progress = cast("Any", SimpleNamespace(report=lambda *news: told.append(news)))
    with pytest.raises(type(error)):
        work(jobs(tmp_path, 2), 2, progress)
    assert ends == ["prepare: stopped, since another input failed"]
    assert told[0] == (1, 0, 0)


def test_records_of_all_inputs_come_back_under_their_numbers(threads, tmp_path, monkeypatch):
    def tokenize(job: Job, report: Any) -> dict:
        report(job.index, 7, 3)
        return {"index": job.index, "of": job.index * 10}

    monkeypatch.setattr(shard_work, "tokenize", tokenize)
    for workers in (1, 2):
        told: list = []
        progress = cast("Any", SimpleNamespace(report=lambda *news, told=told: told.append(news)))
        found = work(jobs(tmp_path, 3), workers, progress)
        assert found == {i: {"index": i, "of": i * 10} for i in range(3)}
        assert sorted(told) == [(0, 7, 3), (1, 7, 3), (2, 7, 3)]
