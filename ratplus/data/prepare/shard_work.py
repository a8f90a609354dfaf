"""Tokenizing input files into shards, in several processes: a shard is its files and then its record."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from ratplus.data.corpus import DTYPES, SPLITS, CorpusError, check_ids, dtype_of, held_out
from ratplus.data.prepare.documents import batches
from ratplus.data.prepare.inputs import Input
from ratplus.data.prepare.progress import Progress
from ratplus.data.round_trip import RoundTrip
from ratplus.data.tokenizer import Tokenizer, load_tokenizer
from ratplus.records.atomic import new_file, write_atomically
from ratplus.records.reading import read_json

FOLDER = "shards"


@dataclass(frozen=True)
class Settings:
    """What decides the streams of given inputs, beside the tokenizer: see DataSection."""

    column: str
    separator: str | None
    split: str
    validation_fraction: float
    validation_files: int

    @property
    def rule(self) -> str:
        if self.split == "file":
            return f"the last {self.validation_files} of the input files are validation"
        return f"blake2b-64 of the document's text < {self.validation_fraction} * 2^64 goes to validation"


@dataclass(frozen=True)
class Job:
    """One input for one worker."""

    index: int
    source: Input
    folder: Path
    settings: Settings
    validation: bool | None  # the whole input's split, or None where each document's hash decides
    tokenizer: str  # as load_tokenizer takes it
    tokenizer_name: str
    eos: int | None
    bos: int | None
    longest: int  # bytes of the longest line that is read


def work(jobs: list[Job], workers: int, progress: Progress) -> dict[int, dict]:
    """Do all jobs; {index: shard record}."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        return {job.index: tokenize(job, progress.report) for job in jobs}
    context = get_context("spawn")
    news, stop = context.Queue(), context.Event()
    records = {}
    with ProcessPoolExecutor(workers, context, _begin_worker, (news, stop)) as pool:
        listener = threading.Thread(target=_listen, args=(news, progress), daemon=True)
        listener.start()
        try:
            for future in as_completed([pool.submit(_tokenize_in_worker, job) for job in jobs]):
                record = future.result()
                records[record["index"]] = record
        except BrokenProcessPool:
            raise CorpusError(
                "prepare: a worker process died, most often for want of memory; run it again with fewer data.workers: "
                "finished input files are kept"
            ) from None
        except BaseException:
            stop.set()  # a file may take an hour; the others need not finish theirs
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            news.put(None)
            listener.join()
    return records


def _listen(news, progress: Progress) -> None:
    while (told := news.get()) is not None:
        progress.report(*told)


_worker: dict = {}


def _begin_worker(news, stop) -> None:
    _worker.update(news=news, stop=stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent tells us
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # A killed parent must not leave workers that write into a folder which the next run works on.
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _tokenize_in_worker(job: Job) -> dict:
    def report(*told) -> None:
        if _worker["stop"].is_set():
            raise CorpusError("prepare: stopped, since another input failed")
        _worker["news"].put(told)

    return tokenize(job, report)


@lru_cache(maxsize=1)
def _tokenizer(which: str, eos: int | None, bos: int | None) -> Tokenizer:
    return load_tokenizer(which, eos, tried=True, bos=bos)  # whoever began the work has loaded it


def _paths(job: Job) -> dict[str, Path]:
    return {split: job.folder / f"{job.index:05}-{split}.bin" for split in SPLITS}


def _record_path(job: Job) -> Path:
    return job.folder / f"{job.index:05}.json"


def kept(job: Job) -> dict | None:
    """The record of a shard that is whole and still of this input; None to do it again."""
    try:
        record = read_json(_record_path(job))
        if record["name"] != job.source.name:
            return None
        if record["stamp"] != job.source.stamp() and record["sha256"] != job.source.sha256():
            return None
        for split, path in _paths(job).items():
            facts = record["splits"][split]
            if facts["tokens"] and (path.stat().st_size != facts["bytes"] or _sha256(path) != facts["sha256"]):
                return None
        return record
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenize(job: Job, report: Callable[[int, int, int], None]) -> dict:
    """Make the shards of one input and their record. `report` is told (index, input bytes read, tokens)."""
    tokenizer = _tokenizer(job.tokenizer, job.eos, job.bos)
    if tokenizer.name != job.tokenizer_name:
        raise CorpusError(f"data.tokenizer={job.tokenizer}: the file changed meanwhile; run prepare again")
    vocab, source, settings = tokenizer.vocab_size, job.source, job.settings
    dtype = DTYPES[dtype_of(vocab)]
    eos = np.array([tokenizer.eos_id], dtype=dtype)
    stamp, sha256 = source.stamp(), source.sha256()
    with ExitStack() as stack:
        shards = {split: _Shard(path, stack) for split, path in _paths(job).items()}
        sample = RoundTrip()
        for texts, done in batches(source, settings.column, settings.separator, job.longest):
            for text, ids in zip(texts, tokenizer.encode_batch(texts)):
                sample.look(tokenizer, text)
                check_ids(ids, vocab, source.name)
                validation = job.validation
                if validation is None:
                    validation = held_out(text.encode(), settings.validation_fraction)
                shards["validation" if validation else "train"].add(ids.astype(dtype), eos)
            report(job.index, done, sum(shard.tokens for shard in shards.values()))
        if source.stamp() != stamp:
            raise CorpusError(f"{source.name}: it changed while it was read; run prepare again")
        facts = {split: shard.facts() for split, shard in shards.items()}
    for split, path in _paths(job).items():
        if not facts[split]["tokens"]:
            path.unlink()  # an empty file cannot be mapped into memory
    record = {"index": job.index, "name": source.name, "stamp": stamp, "sha256": sha256, "splits": facts}
    record["round_trip"] = sample.facts()
    write_atomically(_record_path(job), json.dumps(record, indent=1) + "\n")
    report(job.index, source.bytes, sum(f["tokens"] for f in facts.values()))
    return record


class _Shard:
    """One split's ids of an input, on their way to the disk."""

    def __init__(self, path: Path, stack: ExitStack):
        self.path, self.file = path, stack.enter_context(new_file(path))
        self.hash = hashlib.sha256()
        self.tokens = self.documents = self.bytes = 0

    def add(self, ids: np.ndarray, eos: np.ndarray) -> None:
        for part in (ids, eos):
            data = part.data  # the bytes of a long document are not copied
            self.file.write(data)
            self.hash.update(data)
            self.bytes += data.nbytes
        self.tokens += len(ids) + 1
        self.documents += 1

    def facts(self) -> dict:
        return {
            "file": f"{FOLDER}/{self.path.name}", "tokens": self.tokens, "documents": self.documents,
            "bytes": self.bytes, "sha256": self.hash.hexdigest(),
        }  # fmt: skip
