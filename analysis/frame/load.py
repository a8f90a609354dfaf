"""From a sweep folder to one DataFrame: a row for every cell of `sweep.json`, finished or not.

Columns, always there and in this order:

| column | meaning |
|---|---|
| cell | id of the cell (of its evaluate stage) |
| model | name of the model |
| recurrence | True for RAT+, False for attention only and for other mixers |
| variant | the sweep's other axes as `key=value, ...`; empty if only model, pattern and seed were swept; without keys |
|  | of `eval` that follow from the others, such as the tasks that only fine-tuned models are asked |
| pattern | short label: `D16-W256-I4`, `stream-W64-I4`, `layers[D1x2,D64x2]` |
| pattern_name | name of the pattern's config group |
| kind | `dense`, `dilated`, `dilated_local` (window or sinks besides), `streaming`, `topk`, `quest`, `random`, |
|  | `snapkv`, `hybrid` |
| method | the kind in words, with what else a selecting pattern shows: `top-k + D64`, `Quest in decode`; of a model |
|  | without attention its mixer, `Mamba2` or `Gated DeltaNet`, whose pattern is D1 and kind `dense` |
| dilation, window, sinks | whole numbers; dilation is null for streaming, all three for hybrids |
| seed | seed of the run |
| status | `done`, `failed`, `running`, `missing`, `damaged` |
| error | last line of what went wrong; empty otherwise |
| note | what somebody wrote of the cell with `ratplus note`; empty otherwise |
| layers, heads | of the model |
| kv_heads | heads of keys and values in a layer; fewer than `heads` where query heads share them |
| rope | how positions become angles, where not as usual: `yarn × 4 of 512`, `base 43873`; else empty |
| parameters | of the model, as its pretraining counted them |
| pretrain, adapt | ids of the cell's other stages; null if it has none |
| context | tokens per sequence; the length at which the next eight are taken |
| kv_entries | cache entries a head holds, mean over layers and heads of keys |
| kv_read | those of them that a decoding step reads; fewer only where a pattern selects by query |
| kv_read_exact | False where kv_read is an upper bound, since overlaps of selected and static keys depend on data |
| kv_bytes | decode cache of one sequence in bytes, all layers: bfloat16 keys and values, metadata, float32 state; |
|  | the state is all that there is without attention, where entries and kv_ratio are 0 |
| kv_ratio | kv_entries over those of dense attention in the same heads |
| attention_flops | FLOPs of Q K^T, P V and selection of one forward over the context, all layers and heads; without |
|  | attention, those of updating and reading states |
| attention_flops_ratio | the same relative to dense attention |
| flops_exact | False where those two are upper bounds |
| loss, perplexity, next_token_accuracy, recall_accuracy | results; each followed by its `<name>_stderr` |

After these come all other metrics found in records (with their `_stderr`), then what evaluation measured on its
machine as `timing:<name>`, then the sweep's other axes, each sorted by name. A metric or axis whose name is taken gets
`metric:` or `axis:` before it. What is not known is null (NaN).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd

from ratplus.costs.facts import pattern_facts
from ratplus.records.manifest import MANIFEST_FILE, Entry, read_manifest
from ratplus.records.note import read_note
from ratplus.records.record import Record
from ratplus.records.status import State, cell_state, stage_state

METRICS = ("loss", "perplexity", "next_token_accuracy", "recall_accuracy")
FIXED = (
    "cell", "model", "recurrence", "variant", "pattern", "pattern_name", "kind", "method", "dilation", "window",
    "sinks", "seed", "status", "error", "note", "layers", "heads", "kv_heads", "parameters", "rope", "pretrain",
    "adapt", "context", "kv_entries", "kv_read", "kv_read_exact", "kv_bytes", "kv_ratio", "attention_flops",
    "attention_flops_ratio", "flops_exact",
)  # fmt: skip
# Tables add columns of these names to the frame, and others called `frontier_<cost>` or `<name>` with one of ENDINGS.
ENDINGS = ("_delta", "_delta_pm", "_delta_p", "_best", "_tied", "_tied_seeds")
DERIVED = {
    "run", "cells", "done", "place", "average", "average_stderr", "arl", "adapted", "adaptation_steps", "combination",
    "local", "name", "x",
}  # fmt: skip
# Entries of `timing` that earlier versions wrote under another name.
OLDER_NAMES = {"peak_memory_bytes": "process_peak_memory_bytes"}
# Numbers each frame that is loaded, so that what is computed from one is not taken for another's.
_LOADED = count()
WHOLE_NUMBERS = ("dilation", "window", "sinks", "seed", "layers", "heads", "kv_heads", "context", "kv_bytes")


@dataclass(frozen=True)
class Sweep:
    """A sweep folder as it was read: one row of `frame` for each of `entries`.

    Attributes:
        folder: where it lies.
        frame: as `load_sweep` returns it.
        entries: the cells as `sweep.json` has them.
        records: for each cell the provenance and timing of its evaluation's record; None if it is not done.
    """

    folder: Path
    frame: pd.DataFrame
    entries: list[Entry]
    records: list[Record | None]


def load_sweep(folder: Path | str) -> pd.DataFrame:
    """All cells of a sweep folder, in the order of its `sweep.json`; columns as in the module's docstring.

    `attrs` of the frame: "sweep", the sweep's name; "folder", where it lies; "no_loss", the finished cells that were
    not asked for a loss; "loaded", a number that no other frame of this process has; "added", of suites that were
    added to finished cells, {suite: {status: cells}}; "evaluations", {cell: ids of its added evaluations that are
    done}, whose results stand in the cell's row; "metrics" and "axes", the names of the columns that hold results (each
    with its `_stderr`) and the sweep's other axes.

    Raises:
        ValueError: no such folder, no `sweep.json` in it, or one that is damaged or of another format. A damaged
            record is no error: its cell has the status `damaged`.
    """
    return read_sweep(folder).frame


def read_sweep(folder: Path | str, only: Container[str] | None = None) -> Sweep:
    """A sweep folder with the entries and records behind its frame; errors as of `load_sweep`.

    Args:
        only: ids of the cells to read; None reads all.
    """
    folder = Path(folder)
    sweep = read_manifest(folder)
    cells = [cell for cell in sweep["cells"] if only is None or cell["id"] in only]
    look = lru_cache(maxsize=None)(stage_state)
    rows, results, axes, timings, records = [], [], [], [], []
    no_loss = Names()
    suites: dict[str, Counter[str]] = {}
    more = _Kept()
    for number, cell in enumerate(cells):
        try:
            row, stages = _describe(cell), cell["stages"]
            axes.append(dict(cell.get("axes") or {}))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"lacks the key {error}" if isinstance(error, KeyError) else f"is not understood ({error})"
            where = f"{folder / MANIFEST_FILE}: cell number {number + 1}"
            raise ValueError(f"{where} {what}; run the sweep again") from None
        # Each cell has an evaluation of its own, but cells share their other stages: only these are worth remembering.
        state = cell_state(
            folder, stages, look=lambda path: (look if path.parent.name != "evaluate" else stage_state)(path)
        )
        row["status"], row["error"] = state.status, state.error
        row["note"] = read_note(folder / "evaluate" / stages["evaluate"])
        row["pretrain"], row["adapt"] = stages["pretrain"], stages.get("adapt")
        row["parameters"] = _parameters(look(folder / "pretrain" / stages["pretrain"]))
        record: Mapping[str, Any] = state.record if state.status == "done" and state.record is not None else {}
        rows.append(row)
        own = _Evaluation.of(record)
        if record:
            found = [(added, stage_state(folder / "evaluate" / added["id"])) for added in cell.get("added", [])]
            for added, one in found:
                suites.setdefault(added["suite"], Counter())[one.status] += 1
                if one.status == "done" and one.record is not None:
                    own.join(one.record)
            if done := [added["id"] for added, one in found if one.status == "done"]:
                more[row["cell"]] = done
        results.append(own.metrics)
        if record and "loss" not in own.metrics:
            no_loss.append(row["cell"])
        timings.append(own.timing)
        records.append({"provenance": own.provenance, "timing": own.whole_timing} if record else None)
    for row, variant in zip(rows, _variants([row["model"] for row in rows], axes), strict=True):
        row["variant"] = variant
    columns, names = _columns(rows, results, timings, axes)
    frame = pd.DataFrame(columns)
    for name in WHOLE_NUMBERS:
        frame[name] = frame[name].astype("Int64")
    frame["parameters"] = frame["parameters"].astype("float64")
    frame.attrs["sweep"] = str(sweep.get("name", folder.name))
    frame.attrs["folder"] = str(folder)
    frame.attrs["no_loss"] = no_loss
    frame.attrs["loaded"] = next(_LOADED)
    frame.attrs["added"] = suites
    frame.attrs["evaluations"] = more
    frame.attrs |= names
    return Sweep(folder, frame, cells, records)


class _Kept(dict):
    """A large dict among a frame's `attrs`, which pandas would copy, entry by entry, with every step of a table."""

    def __deepcopy__(self, _memo: dict) -> _Kept:
        return self


class Names(list[str]):
    """Thousands of names among a frame's `attrs`, which pandas would copy one by one whenever a column is looked at."""

    def __deepcopy__(self, _memo: dict) -> Names:
        return self


@dataclass
class _Evaluation:
    """What the evaluations of one cell found, brought together: the cell's own, and those that were added."""

    metrics: dict[str, tuple[float, float]]
    timing: dict[str, float]
    provenance: dict[str, Any]
    whole_timing: dict[str, Any]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> _Evaluation:
        timing = record.get("timing") or {}
        return cls(_flatten(record.get("metrics") or {}), _timing(timing), dict(record.get("provenance") or {}), timing)

    def join(self, added: Record) -> None:
        """Take in an added suite: what the cell's own evaluation says of a name counts."""
        self.metrics = _flatten(added["metrics"]) | self.metrics
        self.timing = _timing(added["timing"]) | self.timing
        if tasks := added["provenance"].get("tasks"):
            self.provenance["tasks"] = tasks | (self.provenance.get("tasks") or {})


def evaluations_of(frame: pd.DataFrame, cell: str) -> tuple[str, ...]:
    """Ids of a cell's evaluations that are done: its own, which is the cell's, and those of added suites."""
    return (cell, *frame.attrs.get("evaluations", {}).get(cell, ()))


def _describe(cell: Entry) -> dict:
    """What is known of a cell before it has run."""
    model = cell["config"]["model"]
    context = int(cell["config"]["train"]["context"])
    facts = pattern_facts(cell["pattern"], model, context)
    layers = int(model["layers"])
    return {
        "cell": str(cell["id"]),
        "model": str(cell["model"]),
        "recurrence": bool(model.get("recurrence", False)),
        "variant": "",  # depends on the other cells: _variants
        "pattern_name": str(cell.get("pattern_name") or ""),
        "seed": cell.get("seed"),
        "layers": layers,
        "heads": facts.cost.heads // layers,
        "kv_heads": facts.cost.kv_heads // layers,
        "rope": _rope(model),
        "context": context,
        "pattern": facts.pattern,
        "kind": facts.kind,
        "method": facts.method,
        "dilation": facts.dilation,
        "window": facts.window,
        "sinks": facts.sinks,
        "kv_entries": facts.cost.kv_entries_per_head,
        "kv_read": facts.cost.kv_read_per_head,
        "kv_read_exact": facts.cost.kv_read_exact,
        "kv_bytes": facts.cost.cache_bytes,
        "kv_ratio": facts.cost.kv_ratio,
        "attention_flops": facts.cost.attention_flops + facts.cost.selection_flops,
        "attention_flops_ratio": facts.cost.attention_flops_ratio,
        "flops_exact": facts.cost.pairs_exact,
    }


def _rope(model: dict) -> str:
    """Rotary scaling and base in words; empty for a plain base of 10000."""
    scaling, base = model.get("rope_scaling") or "none", float(model.get("rope_base") or 10000.0)
    parts = []
    if scaling != "none":
        original = model.get("rope_original")
        parts.append(f"{scaling} × {float(model['rope_factor']):g}" + (f" of {original}" if original else ""))
    return ", ".join(parts + ([f"base {base:g}"] if base != 10000.0 else []))


def _flatten(metrics: dict) -> dict[str, tuple[float, float]]:
    return {name: (_number(entry.get("value")), _number(entry.get("stderr"))) for name, entry in metrics.items()}


def _timing(timing: dict) -> dict[str, float]:
    """The numbers of a record's `timing`, under the names that this version writes."""
    return {OLDER_NAMES.get(name, name): float(value) for name, value in timing.items() if _is_number(value)}


def _variants(models: list[str], axes: list[dict]) -> list[str]:
    """Of every cell its other axes in words, without those of `eval` that tell no two runs apart.

    Such an axis has one value in each run that the others make: a sweep asks the models of one stage for one thing, and
    those of another for something else. Only the names of runs get shorter; which cells belong to one stays the same.
    """
    kept = sorted({name for axis in axes for name in axis})

    def runs(names: list[str]) -> int:
        return len({(model, *(repr(axis.get(name)) for name in names)) for model, axis in zip(models, axes)})

    every = runs(kept)
    for name in [name for name in kept if name.startswith("eval.")]:
        fewer = [other for other in kept if other != name]
        if runs(fewer) == every:
            kept = fewer
    return [", ".join(f"{name}={_plain(axis[name])}" for name in kept if name in axis) for axis in axes]


def _columns(rows: list[dict], results: list[dict], timings: list[dict], axes: list[dict]) -> tuple[dict, dict]:
    """The frame's columns, no two with the same name, and which of them are metrics and axes, for the frame's `attrs`.

    They are the fixed columns, metrics with their standard errors, times and axes.
    """
    columns = {name: [row[name] for row in rows] for name in FIXED}
    names: dict[str, list[str]] = {"metrics": Names(), "axes": Names()}
    found = {name for result in results for name in result}
    missing = (math.nan, math.nan)
    for name in (*METRICS, *sorted(found - set(METRICS))):
        free = name
        while free in columns or f"{free}_stderr" in columns or _derived(free):
            free = f"metric:{free}"
        columns[free] = [result.get(name, missing)[0] for result in results]
        columns[f"{free}_stderr"] = [result.get(name, missing)[1] for result in results]
        names["metrics"].append(free)
    for name in sorted({name for timing in timings for name in timing}):
        free = f"timing:{name}"
        while free in columns:
            free = f"timing:{free}"
        columns[free] = [timing.get(name, math.nan) for timing in timings]
    for name in sorted({name for axis in axes for name in axis}):
        free = name
        while free in columns or _derived(free):
            free = f"axis:{free}"
        columns[free] = [_plain(axis.get(name)) for axis in axes]
        names["axes"].append(free)
    return columns, names


def _derived(name: str) -> bool:
    """Whether a table may add a column of that name."""
    plain = ":" not in name
    return name in DERIVED or (plain and (name.endswith(ENDINGS) or name.startswith("frontier_")))


def _parameters(pretrain: State) -> float | None:
    metrics = pretrain.record["metrics"] if pretrain.record else {}
    return metrics.get("parameters", {}).get("value")


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value) -> float:
    return math.nan if value is None else float(value)


def _plain(value):
    """Lists and other structures as text, so that every column can be grouped and written."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value
