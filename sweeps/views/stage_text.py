"""The text of `ratplus show`: one stage's record as a person wants to read it, and the command that reproduces it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from ratplus.pattern import is_whole
from ratplus.records.find_stage import find_stage
from ratplus.records.lines import plain
from ratplus.records.manifest import Entry, evaluations, read_manifest
from ratplus.records.note import read_note
from ratplus.records.record import STAGES, Record, RecordError, read_record, unfit_metric
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.reproduce import command, differences
from ratplus.sweeps.views.text_table import columns

# More is nothing that a person reads, and a record may be a stranger's.
_MOST_LINES, _LONGEST = 2_000, 10_000


def print_stage(wanted: str, folder: str | None, as_json: bool = False) -> None:
    """Print the record of the stage whose id begins with `wanted`, from one sweep folder or all under outputs/.

    Raises:
        NoSuchStage, UsageError: no such id, several, or a damaged record.
    """
    sweep, stage, stage_id = find_stage(wanted, folder)
    try:
        record = read_record(sweep / stage / stage_id)
    except RecordError as error:
        raise UsageError(str(error)) from None
    cells = [c for c in evaluations(read_manifest(sweep)["cells"]) if c["stages"].get(stage) == stage_id]
    if as_json:
        print(json.dumps(record, indent=1))
        return
    lines = plain("\n".join(_lines(sweep, stage, stage_id, record, cells))).split("\n")
    for line in lines[:_MOST_LINES]:
        print(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}… ({len(line):,} characters; --json has all)")
    if len(lines) > _MOST_LINES:
        print(f"… and {len(lines) - _MOST_LINES:,} more lines; --json has all")


def _lines(sweep: Path, stage: str, stage_id: str, record: Record | None, cells: list[Entry]) -> list[str]:
    lines = [
        f"{stage} {stage_id}: {_status(record)}",
        f"  folder  {sweep / stage / stage_id}",
    ]
    if note := read_note(sweep / stage / stage_id):
        lines.append(f"  note    {note}")
    if record and record["parent"]:
        before = [s for s in STAGES[: STAGES.index(stage)] if s in cells[0]["stages"]]
        lines.append(f"  parent  {before[-1]} {record['parent']}")
    for cell in cells[:5]:
        axes = "".join(f" {k}={v}" for k, v in cell["axes"].items())
        lines.append(f"  cell    {cell['id']}  {cell['model']} {cell['label']} seed={cell['seed']}{axes}")
    if len(cells) > 5:
        lines.append(f"          and {len(cells) - 5} more")
    if record:
        lines += _outcome(record)
    return lines + _reproduce(stage, stage_id, record, cells[0])


def _status(record: Record | None) -> str:
    if record is None:
        return "missing"
    unfit = unfit_metric(record)
    return f"failed ({unfit}: training had diverged)" if unfit else record["status"]


def _outcome(record: Record) -> list[str]:
    lines = []
    if record["error"]:
        error = record["error"]
        facts = ", ".join(f"{k} {error[k]}" for k in ("host", "attempt") if k in error)
        lines += ["", f"error ({facts})", f"  {error['type']}: {error['message']}"]
        lines += [f"  | {line}" for line in error["traceback"]]
    if record["metrics"]:
        rows = [{"metric": k, "value": v["value"], "± s.e.": v["stderr"] if v["stderr"] is not None else "",
                 "count": v["count"]} for k, v in record["metrics"].items()]  # fmt: skip
        lines += ["", columns(rows)]
    lines += ["", "timing", *_pairs(record["timing"]), "", "provenance", *_pairs(record["provenance"])]
    return lines


def _pairs(facts: dict, indent: str = "  ") -> list[str]:
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", *_pairs(value, indent + "  ")]
        elif value is not None:
            words = " ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{indent}{key:<20} {f'{words:.6g}' if isinstance(words, float) else words}")
    return lines


def _reproduce(stage: str, stage_id: str, record: Record | None, cell: Entry) -> list[str]:
    lines = ["", "reproduce"]
    made_by = record["provenance"] if record else {}
    git = made_by.get("git") or {}
    if git:
        lines.append(f"  git checkout {shlex.quote(' '.join(str(git.get('commit')).split()))}")
    if git.get("dirty"):
        lines.append(f"  # the checkout had uncommitted changes (diff {git.get('diff_sha256', 'not recorded')})")
    if cell["config"].get("data", {}).get("source") == "pydocs":
        lines.append(f"  # data=pydocs is the text of Python {made_by.get('python', 'of that machine')}")
    threads = made_by.get("threads")
    try:
        lines.append(f"  {command(cell, stage, f'outputs/again-{stage_id}', threads if is_whole(threads) else None)}")
        changed = differences(cell)
    except (UsageError, KeyError) as error:
        what = f"sweep.json lacks its key {error}" if isinstance(error, KeyError) else str(error)
        lines.append(f"  # this version of ratplus can't compose it ({what}); use the commit above")
    else:
        if changed:
            lines.append(f"  # this version of ratplus composes other values of {', '.join(changed)}; use the commit")
    return lines
