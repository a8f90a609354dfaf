"""The W&B runs of a sweep as plain data, built from its records, curves and manifest alone, without W&B.

The mirror of a running stage and `ratplus sync` both build their runs here, so both send the same, and a sweep can be
rebuilt in W&B from its folder at any time. One run a stage (id = stage id, group = sweep, job_type =
stage), and one of job_type `report` with the result tables and figures.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from ratplus.costs.facts import PatternFacts, pattern_facts
from ratplus.records.curve import CURVE_FILE, curve_rows
from ratplus.records.lines import last_line
from ratplus.records.manifest import Entry, evaluations, read_manifest
from ratplus.records.record import STAGES, TRAINING, Record, canonical_json
from ratplus.records.secrets import scrub_tree
from ratplus.records.status import stage_state
from ratplus.sweeps.define.manifest import cell_config, planned_stages

# The files that ratplus.checkpoint.save writes; config.json holds the SHA-256 of the weights.
MODEL_FILES = ("model.safetensors", "config.json")
_MOST_MEDIA_BYTES = 64 << 20  # of a table or figure of report/
# Results that the report's run has as lines over dilations.
BY_DILATION = ("loss", "perplexity", "next_token_accuracy", "recall_accuracy")


@dataclass
class RunSpec:
    """One W&B run, complete.

    Attributes:
        rows: the curve, each with its absolute `step`; strictly rising.
        exit_code: 0 done, 1 failed, 255 interrupted; None while the stage is at work.
        written_at: ISO time of the record, for the rows' time stamps.
        files: table CSVs and figure PNGs of the report, or model files to keep as an artifact.
    """

    id: str
    name: str
    group: str
    job_type: str
    tags: list[str]
    config: dict
    rows: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    exit_code: int | None = 0
    written_at: str | None = None
    files: list[Path] = field(default_factory=list)

    def checksum(self) -> str:
        """A hash of all that W&B should have. Weights count by size alone, since config.json has their SHA-256."""
        weights = MODEL_FILES[0]
        files = [(p.name, p.stat().st_size if p.name == weights else p.read_bytes().hex()) for p in self.files]
        plain = asdict(self) | {"files": files}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


# ---- stages -------------------------------------------------------------------------------------------------------


def stage_head(stage: str, stage_id: str, config: dict, parent: str | None, cell: dict, sweep: str, tags=()) -> RunSpec:
    """Make the run of a stage whose result is not known yet.

    Args:
        config: the stage's own, as in its record.
        cell: plain resolved config of a cell that the stage belongs to.
        sweep: name of the sweep.
        tags: the user's.
    """
    model = cell["model"]["name"]
    facts = {"stage": stage, "sweep": sweep, "model_name": model, "recurrence": cell["model"]["recurrence"]}
    label = None
    if stage != "pretrain":  # pretraining is shared by all patterns
        found = pattern_facts(config["pattern"], cell["model"], config["context"])
        label = found.pattern
        facts |= {"pattern_label": label, **_plotted(found)}
    resolved = _resolved(stage, cell)
    return RunSpec(
        id=stage_id,
        name=" ".join(part for part in (model, label, stage) if part),
        group=sweep,
        job_type=stage,
        tags=[t for t in dict.fromkeys((model, stage, label, *tags)) if t and len(t) <= 64],
        config=scrub_tree({**resolved, **facts, **config, "parent": parent}),
    )


def _resolved(stage: str, cell: dict) -> dict:
    """The part of a cell's resolved config that a stage depends on, itself or through its parents."""
    later = set(TRAINING[TRAINING.index(stage) + 1 :]) if stage in TRAINING else set()
    if not cell["train"].get("sft", {}).get("steps"):
        later.add("sft")  # the cell has no such stage
    train = {k: v for k, v in cell["train"].items() if k not in later}
    kept = {"model": {k: v for k, v in cell["model"].items() if k not in ("name", "vocab_size")}, "train": train}
    return kept | {"seed": cell["seed"]}


def _plotted(facts: PatternFacts) -> dict:
    """What to plot results against: kv_entries and kv_read are a head's mean, kv_bytes of all layers, as in reports."""
    return {
        "dilation": facts.dilation,
        "window": facts.window,
        "sinks": facts.sinks,
        "method": facts.method,
        "kv_entries": facts.cost.kv_entries_per_head,
        "kv_read": facts.cost.kv_read_per_head,
        "kv_read_exact": facts.cost.kv_read_exact,
        "kv_bytes": facts.cost.cache_bytes,
        "kv_ratio": facts.cost.kv_ratio,
        "attention_flops_ratio": facts.cost.attention_flops_ratio,
    }


def add_result(run: RunSpec, folder: Path, record: Record | None, checkpoints: bool = False) -> RunSpec:
    """Complete a stage's run from its folder: add its curve, and its record if it has one."""
    run.rows = [row_of(run.job_type, row) for row in curve_rows(folder / CURVE_FILE)]
    # These stand in the summary of evaluations alone, so that a plot against them shows no other stage.
    run.summary = {k: v for k, v in run.config.items() if k in _SUMMARY_FACTS and run.job_type == "evaluate"}
    run.summary["status"] = record["status"] if record else "interrupted"
    run.exit_code = {"done": 0, "failed": 1, "interrupted": 255}[run.summary["status"]]
    if record is None:
        return run
    run.written_at = _time_of(record)
    for name, metric in record["metrics"].items():
        run.summary[name] = metric["value"]
        if metric.get("stderr") is not None:
            run.summary[f"{name}_stderr"] = metric["stderr"]
    run.summary |= {f"timing/{name}": value for name, value in record["timing"].items()}
    if record["error"]:
        run.summary["error"] = f"{record['error']['type']}: {record['error']['message']}"
    run.summary = scrub_tree(run.summary)
    run.config["provenance"] = scrub_tree(record["provenance"])
    if checkpoints and record["status"] == "done" and run.job_type != "evaluate":
        run.files = [folder / name for name in MODEL_FILES if _is_plain(folder / name)]
    return run


def _time_of(record: Record) -> str | None:
    """When a record was written, in ISO form; None where it says nothing that is a time."""
    text = record["provenance"].get("written_at")
    if not isinstance(text, str):
        return None
    try:
        datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return text


def _is_plain(path: Path) -> bool:
    """Whether a file may be sent: one of the folder, and not a link to another file of this machine."""
    return path.is_file() and not path.is_symlink()


def _is_media(path: Path) -> bool:
    """Whether a file of report/ may be sent: none of ours has more than a few megabytes."""
    return _is_plain(path) and path.stat().st_size <= _MOST_MEDIA_BYTES


_SUMMARY_FACTS = (
    "dilation", "window", "sinks", "kv_entries", "kv_read", "kv_bytes", "kv_ratio", "attention_flops_ratio",
)  # fmt: skip


def row_of(stage: str, row: dict) -> dict:
    """A row of a curve as W&B gets it: the loss also under its stage's name, since a panel can't ask for one stage."""
    return row | ({f"{stage}_loss": row["loss"]} if "loss" in row else {})


# ---- a whole sweep ------------------------------------------------------------------------------------------------


def sweep_runs(folder: Path, checkpoints: bool | None = None) -> tuple[list[RunSpec], list[str]]:
    """Every stage of a sweep folder that left something, parents first, and one line for each that can't be told of.

    A stage that is at work has `exit_code=None`. Stages that have not begun are left out.

    Raises:
        RecordError: the folder is no sweep folder, or its manifest is damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    runs: dict[str, RunSpec] = {}
    problems, seen = [], set()
    for stage in STAGES:
        for entry in evaluations(manifest["cells"]):
            stage_id = entry["stages"].get(stage)
            if stage_id is None or stage_id in seen:
                continue
            seen.add(stage_id)
            own = folder / stage / stage_id
            state = stage_state(own)
            if state.status == "damaged":
                problems.append(state.error)
                continue
            record = state.record
            if record is None and not (own / CURVE_FILE).exists():
                continue
            logger = entry["run"].get("logger", {})
            try:
                facts = _stage_facts(entry, stage) if record is None else (record["config"], record["parent"])
                if facts is None:
                    problems.append(f"{stage}/{stage_id}: left by another version of the code; only a curve, no record")
                    continue
                run = stage_head(stage, stage_id, *facts, entry["config"], manifest["name"], logger.get("tags", ()))
            except (KeyError, TypeError, ValueError) as error:
                what = f"without the key {error}" if isinstance(error, KeyError) else f"not understood: {error}"
                problems.append(last_line(f"{stage}/{stage_id}: {what}"))
                continue
            keep = logger.get("checkpoints", False) if checkpoints is None else checkpoints
            runs[stage_id] = add_result(run, own, record, keep)
            if state.status == "running":
                runs[stage_id].exit_code = None
    return list(runs.values()), problems


def _stage_facts(entry: Entry, stage: str) -> tuple[dict, str | None] | None:
    """Config and parent of a stage that has no record yet, from the manifest; None if they don't hash to its id."""
    from ratplus.sweeps.define.typed import typed

    config = typed(cell_config(entry))
    stages = planned_stages(config, entry["corpus"], entry["config"]["model"]["vocab_size"])
    found = next(s for s in stages if s.name == stage)
    return (found.config, found.parent) if found.id == entry["stages"][stage] else None


def report_run(folder: Path, runs: list[RunSpec]) -> RunSpec | None:
    """The run with a sweep's tables and figures; None before `ratplus report` has written any.

    Its id follows from the sweep's name and first cell, so it stays when cells are added.
    """
    manifest = read_manifest(folder)
    files = [p for kind in ("csv", "png") for p in sorted(folder.glob(f"report/*.{kind}")) if _is_media(p)]
    if not files or not manifest["cells"]:
        return None
    text = canonical_json(["report", manifest["name"], manifest["cells"][0]["id"]])
    done = {run.id: run for run in runs if run.job_type == "evaluate" and run.exit_code == 0}
    return RunSpec(
        id=hashlib.sha256(text.encode()).hexdigest()[:12],
        name=f"{manifest['name']} report",
        group=manifest["name"],
        job_type="report",
        tags=["report"],
        config={"sweep": manifest["name"], "stage": "report"},
        rows=_by_dilation(manifest["cells"], done),
        summary={"cells": len(manifest["cells"]), "cells_done": sum(cell["id"] in done for cell in manifest["cells"])},
        files=files,
    )


def _by_dilation(cells: list[Entry], done: dict[str, RunSpec]) -> list[dict]:
    """A row a dilation (nothing else is seen), with each model's results there: W&B can't draw a line through runs.

    Results are means over seeds; cells that differ in another axis are lines of their own.
    """
    found: dict[int, dict[str, list[float]]] = {}
    for cell in cells:
        run = done.get(cell["id"])
        # A window, sinks or selected blocks stand behind the dilation in the label.
        if run is None or run.config["pattern_label"] != f"D{run.config['dilation']}":
            continue
        summary = run.summary
        line = " ".join([cell["model"], *(f"{key}={value}" for key, value in cell["axes"].items())])
        for name in BY_DILATION:
            if isinstance(summary.get(name), (int, float)) and math.isfinite(summary[name]):
                values = found.setdefault(summary["dilation"], {})
                values.setdefault(f"by_dilation/{name}/{line}", []).append(summary[name])
    return [
        {"step": step, "by_dilation/dilation": dilation}
        | {name: math.fsum(values) / len(values) for name, values in found[dilation].items()}
        for step, dilation in enumerate(sorted(found))
    ]
