"""The training state on disk: weights, optimizer and step of an unfinished run, and what it must continue with."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from ratplus.checkpoint.facts import CheckpointError
from ratplus.checkpoint.untrusted import check_claims, check_plain, check_unpacked
from ratplus.config.train import RecipeSection
from ratplus.records.atomic import new_file, sync_folder
from ratplus.training.spec import Layout, Rows, Shares

_FORMAT = 1
_NAME = re.compile(r"training-(\d{8})-([0-9a-f]{16})\.pt")
ONE_RANK: Shares = {"strategy": "single", "ranks": 1}


def save_state(folder: Path, stage_id: str, step: int, content: dict) -> Path:
    """Write `training-<step>-<hash>.pt`; the name carries the content's hash, so damage is seen on loading.

    Args:
        step: number of steps done.
        content: "model" and "optimizer" (state_dicts of whole tensors, whatever trained them), "report", "reads"
            (`what_it_reads`) and "layouts" (`layouts_of`).
    """
    unnamed = folder / f"training-{step:08d}.pt"  # which is no state yet
    with new_file(unnamed) as file:
        hashing = _Hashing(file)
        try:
            torch.save({"format": _FORMAT, "stage_id": stage_id, "step": step, **content}, cast("BinaryIO", hashing))
        except RuntimeError as error:
            raise (hashing.error or error) from None
    path = folder / f"training-{step:08d}-{hashing.sha256.hexdigest()[:16]}.pt"
    os.replace(unnamed, path)
    sync_folder(folder)
    for old in _states(folder):
        if old != path:
            old.unlink(missing_ok=True)
    return path


class _Hashing:
    """A file whose content is hashed on the way, so that a state of 100 GB is in memory once."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None  # torch would only say that the file is not as long as it should be

    def write(self, data) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def load_state(folder: Path, stage_id: str, reads: dict | None = None) -> dict | None:
    """The newest training state of a stage, or None.

    Args:
        reads: `what_it_reads` of the run that wants to continue.

    Raises:
        CheckpointError: truncated, altered, of another stage, or of a run that reads other data at some step.
    """
    paths = _states(folder)
    if not paths:
        return None
    path = paths[-1]
    check_plain(path)
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest()[:16] != path.stem.rpartition("-")[2]:
            raise CheckpointError(
                f"{path}: training state is truncated or altered; delete it to train this stage again"
            )
    check_unpacked(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model, optimizer = state["model"], state["optimizer"]["state"]
        tensors = [*model.values(), *(t for own in optimizer.values() for t in own.values() if isinstance(t, Tensor))]
        state["stage_id"], int(state["step"]), state["report"].items(), optimizer, state.get("reads", {}).items()
    except Exception as error:  # torch raises half a dozen types for damaged files
        raise CheckpointError(
            f"{path}: is no training state ({type(error).__name__}); delete it to train this stage again"
        ) from None
    check_claims(tensors, path)
    if state["stage_id"] != stage_id:
        raise CheckpointError(f"{path}: training state of stage {state['stage_id']}, not {stage_id}; move it away")
    for key, now in (reads or {}).items():
        was = state.get("reads", {}).get(key, now)
        if was != now:
            raise CheckpointError(
                f"{path}: {key} was {was} when this state was saved and is {now} now, which changes what the remaining "
                "steps read or do; set it back, or delete the file to train this stage again"
            )
    return state


def what_it_reads(recipe: RecipeSection, batches: Rows, purpose: str) -> dict:
    """All that decides what a step reads and does, by the key that a user knows it by.

    The number of ranks and the micro-batch are not among it: every step's rows are made for all ranks and then dealt,
    so these change the order of float sums only.
    """
    facts = {f"train.{purpose}.{key}": value for key, value in asdict(recipe).items() if key != "micro_batch"}
    facts |= {"train.context": batches.context, "seed": batches.seed, "data.recall.fraction": batches.recall_fraction}
    return facts


def layouts_of(state: dict | None, layout: Shares) -> list[Layout]:
    """How the steps of a run were shared out so far, with `layout` for those from now on; oldest first.

    A training state of before a key existed is taken to have had the value that `layout` has, except for `compile`:
    before that key existed, nothing was compiled.
    """
    if state is None:
        return [{"from_step": 0, **layout}]
    before: list[Layout] = state.get("layouts") or [Layout(from_step=0, **ONE_RANK)]
    known = {"compile": False} | {key: value for key, value in before[-1].items() if key != "from_step"}
    if all(known.get(key, value) == value for key, value in layout.items()):
        return before
    return [*before, Layout(from_step=state["step"], **layout)]


def _states(folder: Path) -> list[Path]:
    """Training states by step, oldest first."""
    return sorted(p for p in folder.glob("training-*.pt") if _NAME.fullmatch(p.name))
