"""Big corpora: every input file becomes a shard of each split, by one of several processes, in constant memory.

A shard is written under a temporary name, and its record after it, so that a kill at any moment costs only the inputs
at work: the next run keeps what is whole and does the rest. Shards depend on their input and the settings alone, so the
streams are the same for every number of workers and of kills.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ratplus.data.corpus import MANIFEST_FILE, SPLITS, CorpusError, Verified, dtype_of, empty_split, write_manifest
from ratplus.data.prepare.inputs import Input
from ratplus.data.prepare.progress import Progress
from ratplus.data.prepare.shard_work import FOLDER, Job, Settings, kept, work
from ratplus.data.round_trip import check_loss, merged
from ratplus.data.tokenizer import Tokenizer
from ratplus.records.atomic import remove_temporaries, write_atomically
from ratplus.records.lock import FolderLock
from ratplus.records.reading import read_json

__all__ = ["Settings", "write_shards"]

PLAN_FILE = "preparing.json"


def write_shards(
    folder: Path, inputs: list[Input], settings: Settings, tokenizer: Tokenizer, workers: int,
    source: dict, print_line: Callable[[str], None] = print, lossy: float = 1.0, longest_mib: int = 64,
) -> Path:  # fmt: skip
    """Tokenize inputs into a corpus folder, or finish what an interrupted call began there.

    Args:
        inputs: in the order of the streams.
        tokenizer: as `load_tokenizer` returns it; workers read its file again.
        source: what the manifest says of where the text comes from; `files` is added.
        longest_mib: `data.longest_mib`.
        lossy: `data.lossy`. Shards of a corpus that is refused for it are kept, so that a higher limit costs nothing.

    Raises:
        CorpusError: too little room on the disk, a damaged input, another preparation begun in this folder, or a split
            that stayed empty.
    """
    folder = Path(folder)
    if settings.split == "file" and settings.validation_files >= len(inputs):
        raise CorpusError(
            f"data.validation_files={settings.validation_files}: there are {len(inputs)} input files, and training "
            "needs at least one; use fewer, or data.split=hash"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder, on_wait=lambda who: print_line(f"{folder}: waiting for {who}")) as lock:
        if (folder / MANIFEST_FILE).exists():
            return folder  # somebody made it while we waited
        remove_temporaries(folder)
        _agree(folder, inputs, settings, tokenizer)
        first_held_out = len(inputs) - settings.validation_files
        jobs = [
            Job(i, item, folder / FOLDER, settings, None if settings.split == "hash" else i >= first_held_out,
                 "bytes" if tokenizer.file is None else os.path.realpath(tokenizer.file), tokenizer.name,
                 None if tokenizer.file is None else tokenizer.eos_id, tokenizer.bos_id,
                 longest_mib << 20)
            for i, item in enumerate(inputs)
        ]  # fmt: skip
        (folder / FOLDER).mkdir(exist_ok=True)
        remove_temporaries(folder / FOLDER)
        records = {job.index: record for job in jobs if (record := kept(job)) is not None}
        if records:
            print_line(f"{folder}: {len(records)} of {len(jobs)} input files are done already")
        _check_space(folder, [job.source for job in jobs if job.index not in records], tokenizer)
        made = sum(job.source.bytes for job in jobs if job.index in records)
        progress = Progress(sum(item.bytes for item in inputs), made)
        try:
            records |= work([job for job in jobs if job.index not in records], workers, progress)
        finally:
            progress.close()
        lock.check()
        whole = merged(records[i].get("round_trip", {}) for i in range(len(jobs)))
        if said := check_loss(whole, tokenizer, lossy):
            print_line(f"{folder}: {said}")
        _check_splits(folder, list(records.values()), inputs, settings)
        return _finish(folder, [records[i] for i in range(len(jobs))], settings, tokenizer, source)


def _agree(folder: Path, inputs: list[Input], settings: Settings, tokenizer: Tokenizer) -> None:
    """Write down what is being made here; refuse to finish what was begun otherwise."""
    plan = {"settings": asdict(settings), "tokenizer": tokenizer.facts, "files": [item.name for item in inputs]}
    path = folder / PLAN_FILE
    try:
        begun = read_json(path)
    except (FileNotFoundError, ValueError):
        write_atomically(path, json.dumps(plan, indent=1) + "\n")
        return
    differing = [key for key in plan if begun.get(key) != plan[key]]
    if differing:
        raise CorpusError(
            f"{folder}: an interrupted preparation with another value of {', '.join(differing)} lies here; delete the "
            "folder to begin again"
        )


def _check_space(folder: Path, inputs: list[Input], tokenizer: Tokenizer) -> None:
    width = int(dtype_of(tokenizer.vocab_size).removeprefix("uint")) // 8
    needed = sum(item.text_bytes for item in inputs) * width // tokenizer.bytes_per_token
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CorpusError(
            f"{folder}: about {needed / 1e9:,.1f} GB of tokens are to come, but its disk has {free / 1e9:,.1f} GB free"
            "; choose another data.root, or fewer data.files"
        )


def _check_splits(folder: Path, records: list[dict], inputs: list[Input], settings: Settings) -> None:
    """Raise CorpusError for a split without a document, and say what would give it one."""
    for split in SPLITS:
        if any(record["splits"][split]["tokens"] for record in records):
            continue
        whole = all(item.kind == "text" for item in inputs) and settings.separator is None
        hint = (
            "; each text file is one document: data.separator=LINE says which line stands between documents "
            "(data.separator='' for an empty one)" if whole else ""
        )  # fmt: skip
        raise CorpusError(f"{folder}: {empty_split(split, settings.validation_fraction)}{hint}")


def _finish(folder: Path, records: list[dict], settings: Settings, tokenizer: Tokenizer, source: dict) -> Path:
    splits, verified = {}, Verified(folder)
    for split in SPLITS:
        shards = [r["splits"][split] for r in records if r["splits"][split]["tokens"]]
        # This is a hash of the shards' hashes. One of the whole stream would read hundreds of gigabytes once more.
        whole = hashlib.sha256("".join(s["sha256"] for s in shards).encode()).hexdigest()
        totals = {key: sum(shard[key] for shard in shards) for key in ("tokens", "documents", "bytes")}
        splits[split] = {
            "shards": shards,
            **totals,
            "sha256": whole,
            "sha256_of": "the shards' SHA-256, in hex, in order",
        }
        for shard in shards:
            verified.add(shard["file"], shard["sha256"])
    verified.save()
    files = [{"name": r["name"], "sha256": r["sha256"], "stamp": r["stamp"]} for r in records]
    write_manifest(
        folder, source={**source, "files": files}, tokenizer=tokenizer, splits=splits, split_rule=settings.rule
    )
    (folder / PLAN_FILE).unlink(missing_ok=True)
    return folder
