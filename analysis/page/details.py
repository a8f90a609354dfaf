"""What the page knows of each cell beside its numbers: settings, provenance, learning curves, command."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from ratplus.analysis.frame.aggregate import run_name
from ratplus.analysis.frame.curves import curve_of
from ratplus.analysis.frame.load import Sweep
from ratplus.analysis.page.embed import repeated
from ratplus.records.manifest import Entry, given_as
from ratplus.records.record import flatten

# Points of a learning curve.
MOST_POINTS = 80
# Rows that these are taken from.
_MOST_ROWS = 5_000
# A cell shows these keys of the provenance that is its own. The others would only repeat when and where it ran.
_PROVENANCE = ("git.commit", "git.dirty", "device", "host", "python", "written_at", "threads", "kernels", "command")


def details_of(sweep: Sweep, cells: pd.DataFrame, reproduce: Callable[[Entry], str] | None) -> tuple[dict, dict]:
    """(what the script shows of each cell, what all cells share).

    The first has a column a subject, each as long as the table: `ids`, `titles`, `errors` (of cells without a result),
    `notes` (what somebody wrote of a cell), `commands`; `stages`, `config` and `provenance` are {key:
    `embed.repeated`}; `curves` is {stage id: points (tokens, loss)}. The second is {"config": (key, text) pairs,
    "provenance": likewise}.

    Args:
        sweep: as it was read.
        cells: its frame in the order of the table, with `place`, each row's place in the sweep.
        reproduce: the command that makes the cell of an entry again; without it, `ratplus show` has it.
    """
    entries, records = sweep.entries, sweep.records
    configs = _shared_and_own([entry["config"] for entry in entries])
    found = [(record or {}).get("provenance") or {} for record in records]
    provenances = _shared_and_own(found, ignore_empty=True)
    places = [int(place) for place in cells["place"]]
    plain = cells[["cell", "model", "variant", "pattern", "seed"]].to_dict("records")
    stages = [entries[place]["stages"] for place in places]
    curves: dict[str, list] = {}
    for own in stages:
        for stage, name in own.items():
            if stage != "evaluate" and name not in curves:
                curves[name] = _points(sweep.folder / stage / name)
    show = ["ratplus", "show"]
    details = {
        "ids": [cell["cell"] for cell in plain],
        "titles": [f"{run_name(c['model'], c['variant'])} · {c['pattern']} · seed {c['seed']}" for c in plain],
        "errors": repeated(cells["error"].fillna("")),
        "notes": repeated(cells["note"]),
        "commands": [
            reproduce(entries[place]) if reproduce else shlex.join([*show, cell["cell"], given_as(sweep.folder)])
            for place, cell in zip(places, plain)
        ],
        "stages": _by_key(stages),
        "config": _by_key([configs[1][place] for place in places]),
        "provenance": _by_key(
            [{k: v for k, v in provenances[1][place].items() if k in _PROVENANCE} for place in places]
        ),
        "curves": {name: points for name, points in curves.items() if points},
    }
    return details, {"config": list(configs[0].items()), "provenance": list(provenances[0].items())}


def _by_key(rows: list[dict[str, str]]) -> dict[str, dict]:
    """{key: the texts that the rows have for it}, in the order in which the keys appear."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: repeated(row.get(key) for row in rows) for key in keys}


def _points(stage: Path) -> list[list]:
    """At most MOST_POINTS of (tokens, loss), numbers rounded to what a picture shows."""
    curve = curve_of(stage, _MOST_ROWS)
    if not {"tokens", "loss"} <= curve.keys():
        return []
    kept = _kept_places(len(curve["tokens"]))
    points = zip(curve["tokens"][kept].tolist(), curve["loss"][kept].tolist())
    return [[int(tokens), round(loss, 4) if math.isfinite(loss) else None] for tokens, loss in points]


@lru_cache(maxsize=16)  # most curves of a sweep are of one length
def _kept_places(rows: int) -> np.ndarray:
    """Which of a curve's rows are shown: evenly spaced, the first and the last among them."""
    count = min(rows, MOST_POINTS)
    return np.array([round(i * (rows - 1) / max(1, count - 1)) for i in range(count)], dtype=np.int64)


def _shared_and_own(trees: list[dict], ignore_empty: bool = False) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What all of some settings share, and what is each one's own, as texts by key.

    With `ignore_empty`, settings that hold nothing (a cell without a record) say nothing about what is shared.
    """
    # Thousands of cells have a few different sections: each is looked through once.
    texts: dict[tuple[str, str], dict[str, str]] = {}
    rows: list[list[tuple[str, str]]] = []
    for tree in trees:
        rows.append([(name, repr(section)) for name, section in tree.items()])
        for key, (name, section) in zip(rows[-1], tree.items()):
            if key not in texts:
                texts[key] = {name: _text(value) for name, value in flatten({name: section}).items()}
    known = [row for row in rows if row or not ignore_empty]
    holders = Counter(name for row in known for name, _ in row)
    sections: dict[str, list[dict[str, str]]] = {}
    for (name, _), values in texts.items():
        if holders[name] == len(known):  # else some have none of it
            sections.setdefault(name, []).append(values)
    shared = {
        key: value
        for first, *others in sections.values()
        for key, value in first.items()
        if all(other.get(key) == value for other in others)
    }
    own = {place: {key: v for key, v in values.items() if key not in shared} for place, values in texts.items()}
    return shared, [{key: value for place in row for key, value in own[place].items()} for row in rows]


def _text(value) -> str:
    # Most values of thousands of cells are plain: they need no encoder.
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return " ".join(value)
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
