"""`report/index.html`: one file with the headline, a table of all cells to sort and filter, figures, tables, and each
cell's settings, provenance, learning curve and command. It needs no network and nothing beside it.
"""

from __future__ import annotations

import base64
import json
import math
import shlex
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from ratplus import __version__
from ratplus.analysis.draw.tables import Table, number, plain_text
from ratplus.analysis.frame.aggregate import RUN, in_order, progress, run_name, short_patterns, with_loss_delta
from ratplus.analysis.frame.load import Sweep
from ratplus.analysis.frame.reads import reads_apart
from ratplus.analysis.frame.rows import groups_of, rows_of
from ratplus.analysis.frame.tasks import is_cost, is_share, result_column
from ratplus.costs.facts import at_most
from ratplus.records.atomic import write_atomically
from ratplus.records.curve import CURVE_FILE, curve_rows
from ratplus.records.manifest import Entry
from ratplus.records.record import Record, flatten

PAGE_FILE = "index.html"
# The page shows at most so many rows before "Show all rows", points of a learning curve, lines of problems, and results
# in the table.
MOST_ROWS, MOST_POINTS, MOST_PROBLEMS, MOST_RESULTS = 300, 80, 100, 8
# A cell shows these keys of the provenance that is its own. The others would only repeat when and where it ran.
_PROVENANCE = ("git.commit", "git.dirty", "device", "host", "python", "written_at", "threads", "kernels", "command")


def write_page(
    sweep: Sweep,
    pictures: Sequence[Path],
    tables: Sequence[Table],
    headline: str,
    folder: Path,
    reproduce: Callable[[Entry], str] | None = None,
    titles: dict[str, str] | None = None,
) -> Path:
    """Write `<folder>/index.html`; returns its path.

    Args:
        sweep: what the page is of.
        pictures: PNG files of the report's figures, in the order in which they are shown.
        tables: those of the report, likewise.
        headline: the sentence at the top.
        folder: where to write.
        reproduce: the command that makes the cell of a `sweep.json` entry again; without it, `ratplus show` has it.
        titles: {name of a table or figure: what a reader calls it}.
    """
    titles = titles or {}
    frame = sweep.frame
    columns, rows = _main_table(frame)
    problems = _problems(frame)
    configs = _shared_and_own([flatten(entry["config"]) for entry in sweep.entries])
    provenances = _shared_and_own(
        [flatten((record or {}).get("provenance") or {}) for record in sweep.records], ignore_empty=True
    )
    kinds = {"model": ("Model", "run"), "kind": ("Method", "method"), "status": ("Status", "status")}
    names = frame.assign(run=[run_name(*run) for run in frame[RUN].itertuples(index=False, name=None)])
    text = render(
        "page.html.jinja",
        name=frame.attrs["sweep"],
        headline=headline,
        progress=progress(frame),
        commits=commits_of(sweep.records),
        columns=columns,
        rows=rows,
        most=MOST_ROWS,
        filters=[(key, title, list(names[column].unique())) for key, (title, column) in kinds.items()],
        note=_note(frame),
        problems=problems[:MOST_PROBLEMS],
        more_problems=len(problems) - MOST_PROBLEMS if len(problems) > MOST_PROBLEMS else 0,
        figures=[figure_of(path, titles) for path in pictures],
        tables=[table_of(table, titles) for table in tables],
        shared={"config": configs[0], "provenance": provenances[0]},
        data=as_json(_details(sweep, configs[1], provenances[1], reproduce)),
    )
    path = Path(folder) / PAGE_FILE
    write_atomically(path, text)
    return path


def render(template: str, **values) -> str:
    """A page from a template of this folder; whatever the values say is text, not markup.

    The one value that the templates put in as it is, `data`, comes from `as_json`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template(template).render(version=__version__, **values)


# ---- the table of cells ----


def _main_table(frame: pd.DataFrame) -> tuple[list[dict], list[dict]]:
    """Columns {title, number} and rows, in the frame's order by model and pattern."""
    place = pd.Series(range(len(frame)), index=frame.index, name="place")
    cells = in_order(with_loss_delta(frame.assign(place=place)))
    names = short_patterns(cells)
    columns: list[dict[str, Any]] = [{"title": "Model", "number": False}, {"title": "Pattern", "number": False}]
    if cells["seed"].nunique() > 1:
        columns.append({"title": "Seed", "number": True, "of": "seed", "digits": 0, "scale": 1})
    for name in ["loss", "loss_delta", *_results(frame)]:
        share = is_share(result_column(name).measure, cells[name])
        title = {"loss": "Loss", "loss_delta": "Δ loss"}.get(name, name.replace("_", " "))
        columns.append(
            {"title": title + (" (%)" if share else ""), "number": True, "of": name, "digits": 1 if share else 3,
             "scale": 100 if share else 1}
        )  # fmt: skip
    columns.append({"title": "KV entries", "number": True, "of": "kv_entries", "digits": 0, "scale": 1})
    if reads_apart(cells):
        read = {"title": "KV read", "number": True, "of": "kv_read", "digits": 0, "scale": 1, "exact": "kv_read_exact"}
        columns.append(read)
    columns.append({"title": "KV KiB", "number": True, "of": "kv_bytes", "digits": 1, "scale": 1 / 1024})
    columns.append(
        {"title": "FLOPs (%)", "number": True, "of": "attention_flops_ratio", "digits": 1, "scale": 100,
         "exact": "flops_exact"}
    )  # fmt: skip
    columns.append({"title": "Status", "number": False})
    texts = []
    for column in columns:
        if column["number"]:
            values = cells[column["of"]].astype("float64") * column["scale"]
            exact = cells[column["exact"]] if "exact" in column else [True] * len(cells)
            texts.append(
                [
                    {"text": at_most(number(v, column["digits"]), e), "order": order_key(v)}
                    for v, e in zip(values, exact)
                ]
            )
        elif column["title"] == "Model":
            texts.append([{"text": run_name(*run)} for run in cells[RUN].itertuples(index=False, name=None)])
        elif column["title"] == "Pattern":
            ranks = {pattern: rank for rank, pattern in enumerate(dict.fromkeys(_by_pattern(cells)))}
            texts.append([{"text": names[pattern], "order": ranks[pattern]} for pattern in cells["pattern"]])
        else:
            texts.append([{"text": status} for status in cells["status"]])
    rows = []
    for index, cell in enumerate(rows_of(cells)):
        words = "" if names[cell.pattern] == cell.pattern else cell.pattern
        rows.append(
            {"place": cell.place, "model": texts[0][index]["text"], "kind": cell.method, "status": cell.status,
             "words": f"{words} {cell.error} {cell.note}".strip(),
             "cells": [(t[index], c) for t, c in zip(texts, columns)]}
        )  # fmt: skip
    return columns, rows


def _by_pattern(cells: pd.DataFrame) -> pd.Series:
    one = cells.assign(model="", variant="")
    return in_order(one)["pattern"]


def _results(frame: pd.DataFrame) -> list[str]:
    """The results beside the loss that the table has room for: totals before parts, in the frame's order."""
    names = [
        name for name in frame.attrs["metrics"]
        if name not in ("loss", "perplexity") and frame[name].notna().any() and not is_cost(name)
    ]  # fmt: skip
    return [name for name in names if not result_column(name).part][:MOST_RESULTS]


def order_key(value: float) -> str:
    """What a script sorts a number by; empty for null."""
    return "" if math.isnan(value) else repr(float(value)).replace("inf", "Infinity")


def _note(frame: pd.DataFrame) -> str:
    contexts = " or ".join(str(context) for context in sorted(frame["context"].unique()))
    left_out = [
        name for name in frame.attrs["metrics"]
        if frame[name].notna().any() and name not in ("loss", "perplexity", *_results(frame))
    ]  # fmt: skip
    text = (
        "Loss in nats per token; Δ loss: difference to the dense pattern of the same model, variant and seed. KV "
        f"entries and KiB: cache of a head (mean), and of one sequence, at position {contexts}. FLOPs: attention FLOPs "
        "relative to dense. Open a cell for everything that is known of it."
    )
    return text + (f" There also: {len(left_out)} further results." if left_out else "")


def _problems(frame: pd.DataFrame) -> list[dict]:
    wrong = in_order(frame[frame["status"].ne("done")])
    groups = groups_of(wrong, [*RUN, "pattern", "status", "error"])
    return [
        {"run": run_name(model, variant), "pattern": pattern, "status": status, "error": error,
         "seeds": ", ".join(str(seed) for seed in own["seed"])}
        for (model, variant, pattern, status, error), own in groups
    ]  # fmt: skip


# ---- figures and tables ----


def figure_of(path: Path, titles: dict[str, str]) -> dict:
    """What the template shows of a PNG file."""
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # of the PNG's header
    title = titles.get(path.stem, path.stem.replace("_", " "))
    # At 200 dpi; CSS pixels are 96 an inch, and a figure is shown somewhat larger than in print.
    return {
        "title": title, "file": path.name, "data": base64.b64encode(data).decode(), "wide": width > 1000,
        "width": round(width * 0.62), "height": round(height * 0.62),
        "alt": f"Figure: {title}. Its numbers stand in the tables below.",
    }  # fmt: skip


def table_of(table: Table, titles: dict[str, str]) -> dict:
    """What the template shows of a table."""
    numbers = [place >= table.names for place in range(table.shown.shape[1])]
    return {
        "title": titles.get(table.name, table.name.replace("_", " ")),
        "file": table.name,
        "caption": plain_text(table.caption)[0],
        "columns": [(plain_text(name)[0], is_number) for name, is_number in zip(table.shown.columns, numbers)],
        "rows": [[(*plain_text(cell), is_number) for cell, is_number in zip(row, numbers)] for row in table.rows],
        "notes": [plain_text(note)[0] for note in table.notes],
    }


# ---- details of each cell ----


def _details(sweep: Sweep, configs: list, provenances: list, reproduce: Callable | None) -> dict:
    """What the script shows of a cell: rows in the order of the table."""
    frame = sweep.frame
    order = in_order(frame.assign(place=range(len(frame))))["place"]
    curves: dict[str, list] = {}
    cells = []
    metrics = [(name, frame[name].tolist(), frame[f"{name}_stderr"].tolist()) for name in frame.attrs["metrics"]]
    timings = [name for name in frame.columns if name.startswith("timing:")]
    times = [(name, frame[name].tolist()) for name in timings]
    plain = frame[["cell", "model", "variant", "pattern", "seed", "status", "error", "note"]].to_dict("records")
    for place in order:
        cell, entry = plain[place], sweep.entries[place]
        stages = [(stage, name) for stage, name in entry["stages"].items() if name]
        for stage, name in stages:
            if stage != "evaluate" and name not in curves:
                curves[name] = _curve(sweep.folder / stage / name)
        results = [
            (name, number(values[place], 4, errors[place])) for name, values, errors in metrics
            if not (values[place] is None or math.isnan(values[place]))
        ]  # fmt: skip
        results += [(name, f"{v[place]:.4g}") for name, v in times if not math.isnan(v[place])]
        show = ["ratplus", "show"]
        cells.append(
            {
                "title": f"{run_name(cell['model'], cell['variant'])} · {cell['pattern']} · seed {cell['seed']}",
                "status": cell["status"], "error": cell["error"], "note": cell["note"], "results": results,
                "stages": stages,
                "config": configs[place], "provenance": [p for p in provenances[place] if p[0] in _PROVENANCE],
                "command": reproduce(entry) if reproduce else shlex.join([*show, cell["cell"], str(sweep.folder)]),
            }
        )  # fmt: skip
    return {
        "what": "cells",
        "most": MOST_ROWS,
        "cells": cells,
        "curves": {name: points for name, points in curves.items() if points},
    }


def _curve(folder: Path) -> list[list]:
    """At most MOST_POINTS of (tokens, loss), numbers rounded to what a picture shows."""
    rows = curve_rows(folder / CURVE_FILE)
    points = [(row["tokens"], row["loss"]) for row in rows if {"tokens", "loss"} <= row.keys()]
    last, count = len(points) - 1, min(len(points), MOST_POINTS)
    kept = [points[round(i * last / max(1, count - 1))] for i in range(count)]
    return [[int(tokens), round(loss, 4) if math.isfinite(loss) else None] for tokens, loss in kept]


def _shared_and_own(
    flats: list[dict], ignore_empty: bool = False
) -> tuple[list[tuple[str, str]], list[list[tuple[str, str]]]]:
    """What all of some settings share, and what is each one's own, as (key, text) pairs.

    With `ignore_empty`, settings that hold nothing (a cell without a record) say nothing about what is shared.
    """
    known = [flat for flat in flats if flat or not ignore_empty]
    texts = [{key: _text(value) for key, value in flat.items()} for flat in flats]
    of_known = [text for text, flat in zip(texts, flats) if flat or not ignore_empty]
    if not known:
        return [], [[] for _ in flats]
    shared = {k: v for k, v in of_known[0].items() if all(other.get(k) == v for other in of_known)}
    return list(shared.items()), [[(k, v) for k, v in text.items() if k not in shared] for text in texts]


def _text(value) -> str:
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return " ".join(value)
    return json.dumps(value) if isinstance(value, (list, dict, bool)) or value is None else str(value)


def commits_of(records: Sequence[Record | None]) -> list[str]:
    """Short names of the commits that the records come from, at most five, `+` where files had been changed."""
    found = {}
    for record in records:
        git = ((record or {}).get("provenance") or {}).get("git")
        if git:
            found[git["commit"][:10] + ("+" if git.get("dirty") else "")] = None
    return [*list(found)[:5], "…"] if len(found) > 5 else list(found)


def as_json(data: dict) -> str:
    """JSON without the characters that could end a script element: a template may put it into one as it is."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
