"""From a sweep folder to one DataFrame: a row for every cell of `sweep.json`, finished or not.

Columns, always there and in this order:

| column | meaning |
|---|---|
| cell | id of the cell (of its evaluate stage) |
| model | name of the model |
| recurrence | True for RAT+, False for attention only |
| variant | the sweep's other axes as `key=value, ...`; empty if only model, pattern and seed were swept |
| pattern | short label: `D16-W256-I4`, `stream-W64-I4`, `layers[D1x2,D64x2]` |
| pattern_name | name of the pattern's config group |
| kind | `dense`, `dilated`, `dilated_local` (window or sinks besides), `streaming`, `hybrid` |
| dilation, window, sinks | whole numbers; dilation is null for streaming, all three for hybrids |
| seed | seed of the run |
| status | `done`, `failed`, `running`, `missing`, `damaged` |
| error | last line of what went wrong; empty otherwise |
| context | tokens per sequence; the length at which the next three are taken |
| kv_entries | cache entries a head, mean over layers and heads |
| kv_bytes | decode cache of one sequence in bytes, all layers: bfloat16 keys and values, float32 recurrent state |
| attention_flops_ratio | attention FLOPs of one forward relative to dense attention |
| loss, perplexity, next_token_accuracy, recall_accuracy | results; each followed by its `<name>_stderr` |

After these come all other metrics found in records (with their `_stderr`), then the sweep's other axes, each sorted by
name. A metric or axis whose name is taken gets `metric:` or `axis:` before it. What is not known is null (NaN).
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

import pandas as pd

from ratplus.cost import attention_flops_ratio, cost
from ratplus.pattern import PatternMap
from ratplus.status import cell_state, stage_state

FORMAT = 1
STAGES = ("pretrain", "adapt", "evaluate")
METRICS = ("loss", "perplexity", "next_token_accuracy", "recall_accuracy")
FIXED = (
    "cell", "model", "recurrence", "variant", "pattern", "pattern_name", "kind", "dilation", "window", "sinks", "seed",
    "status", "error", "context", "kv_entries", "kv_bytes", "attention_flops_ratio",
)  # fmt: skip
WHOLE_NUMBERS = ("dilation", "window", "sinks", "seed", "context", "kv_bytes")
# Of keys and values in the kv_bytes column; fixed, so that cells of different precision compare.
KV_BYTES_PER_ELEMENT = 2


def load_sweep(folder: Path | str) -> pd.DataFrame:
    """All cells of a sweep folder, in the order of its `sweep.json`; columns as in the module's docstring.

    `attrs["sweep"]` of the frame is the sweep's name.

    Raises:
        ValueError: no such folder, no `sweep.json` in it, or one that is damaged or of another format. A damaged
            record is no error: its cell has the status `damaged`.
    """
    folder = Path(folder)
    sweep = _read_sweep(folder)
    look = lru_cache(maxsize=None)(stage_state)
    rows, results, axes = [], [], []
    for number, cell in enumerate(sweep["cells"]):
        try:
            row = _describe(cell)
            stages = {stage: name for stage, name in cell["stages"].items() if stage in STAGES and name}
            if "evaluate" not in stages:
                raise KeyError("stages.evaluate")
            axes.append(dict(cell.get("axes") or {}))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"lacks the key {error}" if isinstance(error, KeyError) else f"is not understood ({error})"
            raise ValueError(f"{folder / 'sweep.json'}: cell number {number + 1} {what}; run the sweep again") from None
        state = cell_state(folder, stages, look=look)
        row["status"], row["error"] = state.status, state.error
        metrics = state.record["metrics"] if state.record else {}
        rows.append(row)
        results.append(_flatten(metrics))
    frame = pd.DataFrame(_columns(rows, results, axes))
    for name in WHOLE_NUMBERS:
        frame[name] = frame[name].astype("Int64")
    frame.attrs["sweep"] = str(sweep.get("name", folder.name))
    return frame


def _read_sweep(folder: Path) -> dict:
    path = folder / "sweep.json"
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the output folder of a sweep, such as outputs/demo")
    try:
        sweep = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: holds no sweep.json, so it is not the output folder of a sweep") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}); run the sweep again, finished cells are kept") from None
    if not isinstance(sweep, dict) or not isinstance(sweep.get("cells"), list):
        raise ValueError(f"{path}: damaged (no list of cells); run the sweep again, finished cells are kept")
    if sweep.get("format") != FORMAT:
        raise ValueError(f"{path}: format {sweep.get('format')!r}; this version reads format {FORMAT}")
    return sweep


def _describe(cell: dict) -> dict:
    """What is known of a cell before it has run."""
    model = cell["config"]["model"]
    context = int(cell["config"]["train"]["context"])
    heads = int(model["d_model"]) // int(model["d_head"])
    plain = json.dumps(cell["pattern"], sort_keys=True)
    recurrence = bool(model.get("recurrence", False))
    return {
        "cell": str(cell["id"]),
        "model": str(cell["model"]),
        "recurrence": recurrence,
        "variant": ", ".join(f"{key}={_plain(value)}" for key, value in sorted((cell.get("axes") or {}).items())),
        "pattern_name": str(cell.get("pattern_name") or ""),
        "seed": cell.get("seed"),
        "context": context,
        **_describe_pattern(plain, int(model["layers"]), heads, int(model["d_head"]), context, recurrence),
    }


@lru_cache(maxsize=4096)  # a sweep has many cells and few patterns
def _describe_pattern(plain: str, layers: int, heads: int, d_head: int, context: int, recurrence: bool) -> dict:
    patterns = PatternMap.from_dict(json.loads(plain), layers, heads)
    spent = cost(patterns, context, d_head, recurrence=recurrence, bytes_per_element=KV_BYTES_PER_ELEMENT)
    first = patterns[0][0]
    if not patterns.is_uniform:
        kind = "hybrid"
    elif first.dense:
        kind = "dense"
    elif first.dilation is None:
        kind = "streaming"
    else:
        kind = "dilated_local" if first.window or first.sinks else "dilated"
    return {
        "pattern": patterns.label,
        "kind": kind,
        **(dict.fromkeys(("dilation", "window", "sinks")) if kind == "hybrid" else first.to_dict()),
        "kv_entries": spent.kv_entries_per_head,
        "kv_bytes": spent.cache_bytes,
        "attention_flops_ratio": attention_flops_ratio(patterns, context),
    }


def _flatten(metrics: dict) -> dict[str, tuple[float, float]]:
    return {name: (_number(entry.get("value")), _number(entry.get("stderr"))) for name, entry in metrics.items()}


def _columns(rows: list[dict], results: list[dict], axes: list[dict]) -> dict[str, list]:
    """The frame's columns: fixed ones, metrics with their standard errors, axes; no two with the same name."""
    columns = {name: [row[name] for row in rows] for name in FIXED}
    found = {name for result in results for name in result}
    missing = (math.nan, math.nan)
    for name in (*METRICS, *sorted(found - set(METRICS))):
        free = name if name not in columns and f"{name}_stderr" not in columns else f"metric:{name}"
        columns[free] = [result.get(name, missing)[0] for result in results]
        columns[f"{free}_stderr"] = [result.get(name, missing)[1] for result in results]
    for name in sorted({name for axis in axes for name in axis}):
        columns[name if name not in columns else f"axis:{name}"] = [_plain(axis.get(name)) for axis in axes]
    return columns


def _number(value) -> float:
    return math.nan if value is None else float(value)


def _plain(value):
    """Lists and other structures as text, so that every column can be grouped and written."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
