"""Reads W&B's own files back without W&B's server: frames of a LevelDB log, each a protobuf Record."""

import json
import time
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32768


def frames(data: bytes):
    """Payloads of a .wandb file: 7 bytes of file header, then blocks of records (checksum, length, type, payload)."""
    at, parts = 7, []
    while at + 7 <= len(data):
        if _BLOCK - at % _BLOCK < 7:  # the rest of a block is too short for a header
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield b"".join(parts)
            parts = []


def read_run(folder: Path) -> dict:
    """id, group, job_type, name, tags, config, history (rows), summary, exit_code, artifacts of an offline run."""
    (path,) = folder.glob("*.wandb")
    run = {"config": {}, "history": [], "summary": {}, "exit_code": None, "artifacts": []}
    for frame in frames(path.read_bytes()):
        record = Record.FromString(frame)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            told = record.run
            run |= {"id": told.run_id, "group": told.run_group, "job_type": told.job_type, "name": told.display_name}
            run["tags"] = list(told.tags)
            run["config"] |= _items(told.config.update)
        elif kind == "config":
            run["config"] |= _items(record.config.update)
        elif kind == "history":
            run["history"].append(_items(record.history.item))
        elif kind == "summary":
            run["summary"] |= _items(record.summary.update)
        elif kind == "exit":
            run["exit_code"] = record.exit.exit_code
        elif kind == "artifact":
            run["artifacts"].append(MessageToDict(record.artifact))
    return run


def _items(items) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def offline_runs(sweep: Path) -> dict[str, dict]:
    """{run id: run} of a sweep's offline runs; two of one id are a mistake."""
    runs = [read_run(folder) for folder in sweep.glob("wandb/offline-run-*")]
    end = time.monotonic() + 20
    # Seen once, on a busy machine: the process that writes for W&B had not written the run's first record when it was
    # said to be finished.
    while not all("id" in run for run in runs) and time.monotonic() < end:
        time.sleep(0.2)
        runs = [read_run(folder) for folder in sweep.glob("wandb/offline-run-*")]
    assert len({run["id"] for run in runs}) == len(runs)
    return {run["id"]: run for run in runs}
