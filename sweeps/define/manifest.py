"""`sweep.json`: which cells a sweep folder was asked for, so that a missing one is seen as missing.

Torch-free. Cells are added, never forgotten: running a sweep again with more patterns extends the folder.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from ratplus.config.cell import Config
from ratplus.data.corpus import Corpus
from ratplus.data.recall import RecallTask
from ratplus.data.sources import corpus_of
from ratplus.evaluation.checks import check_suites
from ratplus.records.atomic import remove_temporaries, write_atomically
from ratplus.records.lock import FolderLock
from ratplus.records.manifest import FORMAT, MANIFEST_FILE, Added, Entry, check_links, read_manifest
from ratplus.records.record import STAGES, ForeignRecord, RecordError, flatten, read_record
from ratplus.stages.stage_ids import Plan, plan
from ratplus.sweeps.define.compose import NATURAL_AXES, RUNTIME, Composed
from ratplus.sweeps.define.mistakes import UsageError


def sweep_folder(composed: list[Composed]) -> Path:
    """The folder of these cells: `output` of their config, else outputs/<sweep.name>.

    Raises:
        UsageError: the cells name different folders.
    """
    config = composed[0].config
    folders = {cell.config.output for cell in composed}
    if len(folders) > 1:
        raise UsageError("output: one sweep has one folder; give a single value")
    if config.output:
        # The name stands in job scripts and in the lines of a terminal.
        if not config.output.isprintable():
            raise UsageError(f"output: got {config.output!r}; a folder's name has no control characters or line breaks")
        return Path(config.output)
    name = (config.sweep or {}).get("name") or "adhoc"
    if not isinstance(name, str) or not name.isprintable() or name in (".", "..") or "/" in name or "\\" in name:
        raise UsageError(f"sweep.name: got {name!r}; it names a folder of outputs/, so it is one plain word without /")
    return Path("outputs") / name


def plan_cells(composed: list[Composed]) -> list[Entry]:
    """Plan cells; returns their manifest entries, with the ids of their stages.

    The corpora of the cells are prepared and opened, since their content enters the ids.

    Raises:
        UsageError: a corpus too short for the context.
        ValueError: an evaluation that could not run.
    """
    corpora: dict[str, Corpus] = {}
    checked: set[str] = set()
    entries = []
    for cell in composed:
        data, context = cell.config.data, cell.config.train.context
        key = repr({k: v for k, v in asdict(data).items() if k != "recall"})
        if key not in corpora:
            corpora[key] = corpus_of(data)
        corpus = corpora[key]
        for split, stream in (("train", corpus.train), ("validation", corpus.validation)):
            if len(stream) <= context:
                raise UsageError(
                    f"train.context={context}: the {split} split of {corpus.folder} holds only {len(stream)} tokens; "
                    "use a shorter context, more text or another data.validation_fraction"
                )
        suites = repr((key, context, asdict(cell.config.eval), asdict(cell.config.train.sft)))
        if suites not in checked:
            check_suites(cell.config, corpus)
            checked.add(suites)
        entries.append(entry_of(cell, plan(cell.config, corpus.identity, corpus.vocab_size), corpus.identity))
    return entries


def entry_of(cell: Composed, stages: Plan, corpus: dict) -> Entry:
    """The manifest entry of a planned cell; `name_axes` fills in its `axes` once all cells are known."""
    config = asdict(cell.config)
    config["model"]["vocab_size"] = stages.vocab_size
    return {
        "id": stages.evaluate.id,
        "model": cell.config.model.name,
        "pattern": cell.config.patterns.to_dict(),
        "pattern_name": cell.choices.get("pattern", ""),
        "label": cell.config.patterns.label,
        "seed": cell.config.seed,
        "stages": {stage.name: stage.id for stage in stages},
        "axes": {},
        "swept": cell.axes,
        "config": {k: v for k, v in config.items() if k not in RUNTIME},
        "corpus": corpus,
        "run": {k: config[k] for k in ("run", "logger", "launcher", "trainer")},
    }


def science(entry: Entry) -> dict:
    """The values that decide a cell's result beside its pattern and seed, flat: `{"train.pretrain.lr": 4e-3, ...}`."""
    # The manifests of older versions lack keys that came later, which had the value of today's default.
    flat = _defaults() | flatten({**entry["config"], "corpus": entry["corpus"]})
    for key in (
        "seed",
        "eval.batch",
        "data.root",
        "data.path",
        "data.source",
        "data.workers",
        "data.lossy",
        "data.longest_mib",
        "model.name",
    ):
        flat.pop(key, None)
    # Active recurrence learning follows the model unless it is set by hand.
    if flat["train.pretrain.arl"] == flat["model.recurrence"]:
        flat["train.pretrain.arl"] = "as the model"
    return {k: v for k, v in flat.items() if not k.startswith("pattern.") and not k.endswith(".micro_batch")}


@lru_cache(maxsize=1)
def _defaults() -> dict:
    return flatten({k: v for k, v in asdict(Config()).items() if k not in RUNTIME})


def name_axes(cells: list[Entry]) -> None:
    """Set each cell's `axes`: the keys in which cells of one model name, pattern and seed differ, over the folder.

    Derived from all cells, not from what one call swept: tables must never take different experiments for seeds.
    """
    groups: dict[str, list[dict]] = {}
    flats = [science(cell) for cell in cells]
    for cell, flat in zip(cells, flats):
        groups.setdefault(repr((cell["model"], cell["label"], cell["seed"])), []).append(flat)
    keys = {k for group in groups.values() for flat in group for k in flat if flat[k] != group[0].get(k)}
    for cell, flat in zip(cells, flats):
        arl = cell["config"]["train"]["pretrain"]["arl"]
        flat["train.pretrain.arl"] = arl
        cell["axes"] = {key: flat[key] for key in sorted(keys) if arl or not key.startswith("train.pretrain.arl_")}


def cell_config(entry: Entry) -> dict:
    """The plain config of a manifest entry's cell, as `typed` takes it."""
    model = {k: v for k, v in entry["config"]["model"].items() if k != "vocab_size"}
    return {**entry["config"], **entry["run"], "model": model}


def planned_stages(config: Config, corpus: dict, vocab_size: int) -> Plan:
    """The stages of a cell whose corpus was opened when it was planned, without opening that again.

    Args:
        corpus: `Corpus.identity`, as the manifest has it.
        vocab_size: of the model, with the symbols of the recall task.
    """
    recall = config.data.recall
    symbols = RecallTask.of(recall, 0).vocab_size if recall.fraction > 0 else 0
    return plan(config, corpus, vocab_size - symbols)


def check_cells(folder: Path, entries: list[Entry]) -> list[Entry]:
    """Read the cells that a folder already has; none if it has no manifest.

    Raises:
        UsageError: they belong to another config than `entries`.
    """
    old = read_manifest(folder)["cells"] if (folder / MANIFEST_FILE).exists() else []
    _refuse_incomparable(folder, old, entries)
    return old


def add_cells(folder: Path, name: str, entries: list[Entry]) -> None:
    """Write or extend the manifest; cells already there keep their place.

    Raises:
        UsageError: the folder holds cells of another config, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_links(folder)
        with FolderLock(folder):
            old = check_cells(folder, entries)
            remove_temporaries(folder)
            added = {cell["id"]: cell["added"] for cell in old if "added" in cell}
            entries = [e | {"added": added[e["id"]]} if e["id"] in added else e for e in entries]
            cells = {cell["id"]: cell for cell in _not_superseded(old, entries)} | {e["id"]: e for e in entries}
            name_axes(list(cells.values()))
            manifest = {"format": FORMAT, "name": name, "cells": list(cells.values())}
            write_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"output={folder}: cannot be written ({error.strerror or error})") from None


def add_suites(folder: Path, suites: dict[str, Added]) -> None:
    """Write down suites that cells are asked beside their own evaluation.

    Args:
        suites: by the id of the cell; one that it has already is left as it is.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        with FolderLock(folder):
            manifest = read_manifest(folder)
            remove_temporaries(folder)
            for cell in manifest["cells"]:
                new, there = suites.get(cell["id"]), cell.get("added", [])
                if new is not None and new["id"] not in {known["id"] for known in there}:
                    cell["added"] = [*there, new]
            write_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror or error})") from None


def _not_superseded(old: list[Entry], new: list[Entry]) -> list[Entry]:
    """The old cells, without those that `new` has under another id because an older version of ratplus made that id.

    If both stayed, tables would take the two for seeds. The old records stay where they are.
    """

    def identity(cell: Entry) -> str:
        return json.dumps([cell["model"], cell["pattern"], cell["seed"], science(cell)], sort_keys=True, default=str)

    ids = {identity(cell): cell["id"] for cell in new}
    kept = [cell for cell in old if ids.get(identity(cell), cell["id"]) == cell["id"]]
    if len(kept) < len(old):
        print(
            f"{len(old) - len(kept)} cells of this folder have other ids in this version and are run anew; "
            "their old records stay, but are no longer reported",
            file=sys.stderr,
        )
    return kept


def _refuse_incomparable(folder: Path, old: list[Entry], new: list[Entry]) -> None:
    """Refuse cells that differ in more than model, pattern, seed and swept keys: one table cannot compare them."""
    known = {stage_id for cell in (*old, *new) for stage_id in cell["stages"].values()}
    for path in (p for stage in STAGES for p in folder.glob(f"{stage}/*/record.json") if not old):
        if path.parent.name not in known:
            raise UsageError(
                f"{path}: a record of another config, in a folder without {MANIFEST_FILE}; "
                "choose another folder with output=..."
            )
    if not old:
        return
    axes = {*NATURAL_AXES, *(a for cell in (*old, *new) for a in cell["swept"])}

    def fixed(cell: Entry) -> dict:
        return {k: v for k, v in science(cell).items() if not any(k == a or k.startswith(f"{a}.") for a in axes)}

    there, here = fixed(old[0]), fixed(new[0])
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            raise UsageError(
                f"{folder}: holds cells with {key}={there.get(key)}, this call asks for {key}={here.get(key)}; "
                "choose another folder with output=..., or make it an axis of the sweep"
            )


def check_records(folder: Path, entries: list[Entry]) -> None:
    """Refuse a folder in which a record lies under an id that its content does not have (ForeignRecord).

    Damaged records are no reason to refuse: the stage is done again.
    """
    for stage in STAGES:
        for stage_id in {entry["stages"][stage] for entry in entries if stage in entry["stages"]}:
            try:
                read_record(folder / stage / stage_id)
            except ForeignRecord:
                raise
            except RecordError:
                continue
