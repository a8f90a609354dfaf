"""`ratplus evaluate --add SUITE FOLDER`: one more suite for the cells of a finished sweep, in its own folder.

Only what the suite asks beyond `eval=default` is asked, and only of cells that have not been asked it: each gets
another evaluate stage below its trained model, whose id holds what was asked, like that of any other. `sweep.json`
lists it as added to the cell, and whatever reads the folder shows its results in the cell's row.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from ratplus.config.cell import Config
from ratplus.config.eval import EvalSection
from ratplus.data.corpus import Corpus
from ratplus.data.sources import made_corpus
from ratplus.evaluation.checks import check_suites
from ratplus.records.manifest import Added, Entry, added_entry, evaluations, read_manifest
from ratplus.records.status import stage_state
from ratplus.stages.stage_ids import plan
from ratplus.stages.store import check_store
from ratplus.sweeps.define.collector import seldom_collected
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.manifest import add_suites, cell_config
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.typed import typed, typed_section
from ratplus.sweeps.launch.cell import EXIT_FAILED

# The words that may follow: what is asked, and how and where it is run.
_MAY_FOLLOW = ("eval", "run", "logger", "launcher", "trainer", "retry", "max_failures", "dry_run")
_RUNTIME = ("run", "logger", "launcher", "trainer", "retry", "max_failures", "dry_run")
_ROWS = ("text_rows", "recall_rows")
# Each part of a suite, with the values that leave it out.
_OFF: dict[str, dict[str, Any]] = {
    "text_rows": {"text_rows": 0}, "recall_rows": {"recall_rows": 0}, "efficiency": {"enabled": False},
    "cloze": {"items": 0}, "niah": {"tasks": []}, "positions": {"width": 0}, "harness": {"tasks": []},
}  # fmt: skip


def add_suite(suite: str, folder: Path, words: list[str], config_dir: str | None, as_json: bool = False) -> int:
    """Ask the trained cells of a sweep folder one more suite; returns the exit code.

    Args:
        suite: a choice of the config group `eval`.
        words: overrides of `eval.*`, and of how and where it is run.
        as_json: print one JSON document instead, once it has ended.

    Raises:
        UsageError: not understood, nothing new, or a cell was asked the same with other settings.
        CorpusError: the corpus of a cell is not made here: the folder may be somebody else's.
    """
    for word in words:
        if word.lstrip("+~").partition("=")[0].partition(".")[0] not in _MAY_FOLLOW or word.startswith("eval="):
            raise UsageError(f"--add {suite}: got {word}; allowed beside it: eval.KEY=..., and keys of how it is run: "
                             f"{', '.join(_RUNTIME)}")  # fmt: skip
    asked = compose_one([f"eval={suite}", *words], config_dir).config
    parts = _own_parts(asked, compose_one([], config_dir).config.eval)
    if not parts:
        raise UsageError(f"--add {suite}: it asks nothing beyond eval=default; add a key, such as eval.tasks=[piqa]")
    check_store(asked.run.store, folder)
    with seldom_collected():
        manifest = read_manifest(folder)
        new, untrained, ready = _plan(manifest["cells"], folder, suite, parts, asked)
    todo = [entry for entry in ready if stage_state(folder / "evaluate" / entry["id"]).status != "done"]
    left = f"; {untrained} are not trained yet: run the sweep first, then this again" if untrained else ""
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        print(f"{suite}: {len(todo)} of {len(manifest['cells'])} cells are asked{left}")
        code = 0 if asked.dry_run else _run(folder, new, ready, asked) or (EXIT_FAILED if untrained else 0)
    if as_json:
        states = [
            {"cell": cell, "id": added["id"], "status": stage_state(folder / "evaluate" / added["id"]).status}
            for cell, added in new.items()
        ]
        print(json.dumps({"format": 1, "folder": str(folder), "suite": suite, "untrained": untrained, "cells": states}))
    return code


def _run(folder: Path, new: dict[str, Added], ready: list[Entry], asked: Config) -> int:
    if not ready:
        return 0
    add_suites(folder, new)
    from ratplus.sweeps.launch.launch import launch
    from ratplus.sweeps.runner.cells import final_report

    ended = launch(ready, folder, "evaluate", asked)
    if ended.complete and ended.code in (0, EXIT_FAILED):
        final_report(folder, asked.logger)
    return ended.code


def _own_parts(asked: Config, default: EvalSection) -> list[str]:
    """The parts in which a suite asks something that `eval=default` does not."""
    context = asked.train.context
    usual, own = default.science(context), asked.eval.science(context)
    return [part for part in _OFF if part in own and own[part] and own[part] != usual.get(part)]


def _plan(
    cells: list[Entry], folder: Path, suite: str, parts: list[str], asked: Config
) -> tuple[dict[str, Added], int, list[Entry]]:
    """({cell id: what is added to it}, cells without a trained model, entries of the added evaluations)."""
    corpora: dict[str, Corpus] = {}
    checked: set[str] = set()
    new: dict[str, Added] = {}
    ready, untrained = [], 0
    # How it is run is what this call says, never what a folder says that may be somebody else's.
    runtime = {key: asdict(asked)[key] for key in ("run", "logger", "launcher", "trainer")}
    for cell in cells:
        section, known = _not_yet_asked(asked.eval, parts, cell, suite)
        if not any(section.science(cell["config"]["train"]["context"]).get(part) for part in _OFF):
            continue  # the cell has been asked all of it
        config = typed({**cell_config(cell), **runtime, "eval": asdict(section)})
        key = repr(asdict(config.data))
        if key not in corpora:
            corpora[key] = made_corpus(config.data, cell["corpus"])
        corpus = corpora[key]
        stages = plan(config, corpus.identity, corpus.vocab_size)
        if stages.trained.id != cell["stages"].get(stages.trained.name):
            raise UsageError(
                f"--add {suite}: the corpus or the code has changed since cell {cell['id']} was run, so its model "
                "cannot be asked about the same text; run the sweep again"
            )
        if stage_state(stages.trained.folder(folder)).status != "done":
            untrained += 1
            continue
        suites = repr((key, asdict(config.eval)))
        if suites not in checked:
            check_suites(config, corpus)
            checked.add(suites)
        added: Added = known or {"id": stages.evaluate.id, "suite": suite, "eval": asdict(section)}
        new[cell["id"]] = added
        ready.append(cast(Entry, {**added_entry(cell, added), "run": runtime}))
    return new, untrained, ready


def _not_yet_asked(section: EvalSection, parts: list[str], cell: Entry, suite: str) -> tuple[EvalSection, Added | None]:
    """(what of a suite a cell has not been asked, other parts left out; the added suite that asks just that, if any).

    Raises:
        UsageError: it has been asked the same part with other settings, whose results would have the same names.
    """
    context = cell["config"]["train"]["context"]
    for part in _OFF:
        section = section if part in parts else _without(section, part)
    # Losses by position are of the rows that the cell's own loss is of, so these are read again.
    own = _eval_of(cell)
    rows = {part: getattr(own, part) for part in _ROWS if part not in parts}
    section = replace(section, **rows) if section.positions.width else section
    added = [None, *cell.get("added", [])]
    for one, known in zip(evaluations([cell]), added):
        earlier, wanted = (own if one is cell else _eval_of(one)).science(context), section.science(context)
        if known is not None and earlier == wanted:
            return section, known
        for part in _OFF:
            there, here = earlier.get(part), wanted.get(part)
            if not there or not here or part in rows:
                continue
            if there != here and (part != "harness" or _same_tasks(there, here)):
                raise UsageError(
                    f"--add {suite}: cell {cell['id']} has been asked eval.{part} with other settings ({there}), and a "
                    "table has one column for both; choose another folder with `ratplus sweep ... output=`"
                )
            section = _without(section, part) if there == here else section
        if not section.positions.width:
            section = replace(section, **dict.fromkeys(rows, 0))
    return section, None


def _eval_of(cell: Entry) -> EvalSection:
    return typed_section("eval", cell["config"].get("eval", {}))


def _same_tasks(there: dict, wanted: dict) -> bool:
    def names(harness: dict) -> set[str]:
        tasks = [task if isinstance(task, dict) else {"task": task} for task in harness["tasks"]]
        return {str(task.get("task", task.get("file"))) for task in tasks}

    return bool(names(there) & names(wanted))


def _without(section: EvalSection, part: str) -> EvalSection:
    if part == "harness":
        return replace(section, tasks=[])
    value = _OFF[part]
    inner = value if part in value else {part: replace(getattr(section, part), **value)}
    return replace(section, **inner)
