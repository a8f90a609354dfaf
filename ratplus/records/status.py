"""How far a cell of a sweep is, from its stage folders alone; torch-free, the one answer for status and tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ratplus.records.lines import last_line
from ratplus.records.lock import is_locked
from ratplus.records.record import STAGES, Record, RecordError, read_record, unfit_metric

# Most telling first: the status of a cell is that of its most telling stage.
STATUSES = ("done", "running", "damaged", "failed", "missing")


@dataclass(frozen=True)
class State:
    """`status` is one of STATUSES; `error` one line, empty unless damaged or failed; `record` if done or failed.

    Earlier versions called a stage done whose loss is NaN. Such a record counts as failed, whatever it says.
    """

    status: str
    stage: str = ""
    error: str = ""
    record: Record | None = None


def stage_state(folder: Path) -> State:
    """State of one stage folder `<sweep>/<stage>/<id>`."""
    stage = folder.parent.name
    try:
        record = read_record(folder)
    except RecordError as error:
        # The file's place in the sweep is enough: a table should not tell where its author works.
        return State("damaged", stage, last_line(str(error)).replace(f"{folder.parents[1]}/", ""))
    unfit = "" if record is None else unfit_metric(record)
    if record is not None and record["status"] == "done" and not unfit:
        return State("done", stage, record=record)
    if is_locked(folder):
        return State("running", stage)
    if record is None:
        return State("missing", stage)
    if unfit:
        return State("failed", stage, f"{unfit}: training had diverged; running it again says at which step", record)
    error = record.get("error") or {}
    kind, text = error.get("type") or "unknown error", last_line(str(error.get("message") or ""))
    # A message that ends in somebody's traceback names the type itself.
    return State("failed", stage, text if text.startswith(f"{kind}:") else f"{kind}: {text}".removesuffix(": "), record)


def cell_state(
    sweep: Path, stages: dict[str, str], last: str = "evaluate", look: Callable[[Path], State] = stage_state
) -> State:
    """State of a cell with these stage ids, up to the stage `last`: done if that is done.

    `look` may be a cached `stage_state`, since many cells share a stage.
    """
    wanted = look(Path(sweep) / last / stages[last])
    if wanted.status == "done":
        return wanted
    before = STAGES[: STAGES.index(last)]
    states = [wanted, *(look(Path(sweep) / stage / stages[stage]) for stage in reversed(before) if stage in stages)]
    for status in STATUSES[1:-1]:
        for state in states:
            if state.status == status:
                return state
    return State("missing")
