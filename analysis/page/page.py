"""`report/index.html`: one file with the headline, a table of all cells, plots to choose from, pinned cells side by
side, figures, tables, and each cell's settings, provenance, learning curve and command. It needs no network and nothing
beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from ratplus import __version__
from ratplus.analysis.draw.tables import Table
from ratplus.analysis.frame.aggregate import RUN, in_order, progress, run_name
from ratplus.analysis.frame.load import Sweep
from ratplus.analysis.frame.rows import groups_of
from ratplus.analysis.frame.tasks import is_cost
from ratplus.analysis.page.columns import columns_of, own_dense, words_of
from ratplus.analysis.page.details import details_of
from ratplus.analysis.page.embed import as_json
from ratplus.analysis.page.items import items_of
from ratplus.analysis.page.parts import figure_of, table_of
from ratplus.analysis.paired.differences import with_differences
from ratplus.records.atomic import write_atomically
from ratplus.records.manifest import Entry
from ratplus.records.record import Record

PAGE_FILE = "index.html"
# The page shows at most so many rows before "Show all rows", and lines of problems.
MOST_ROWS, MOST_PROBLEMS = 300, 100
_HERE = Path(__file__).parent
# The files of `script/` that a page consists of, in the order in which they are joined: one scope, main last.
TABLE_SCRIPTS = ("dom", "numbers", "state", "columns", "filter", "table", "export", "copy")
PAGE_SCRIPTS = (
    *TABLE_SCRIPTS, "statistics", "baseline", "scales", "axes", "pareto", "parallel", "curves", "cell", "pins", "main",
)  # fmt: skip
COMPARE_SCRIPTS = (*TABLE_SCRIPTS, "compare")


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
    problems = _problems(frame)
    data, shared = _data(sweep, reproduce)
    text = render(
        "page.html.jinja",
        PAGE_SCRIPTS,
        name=frame.attrs["sweep"],
        headline=headline,
        progress=progress(frame),
        commits=commits_of(sweep.records),
        count=len(frame),
        filters=[(key, title) for key, title in (("model", "Model"), ("method", "Method"), ("status", "Status"))],
        seeds=frame["seed"].nunique() > 1,
        note=_note(frame),
        problems=problems[:MOST_PROBLEMS],
        more_problems=max(0, len(problems) - MOST_PROBLEMS),
        figures=[figure_of(path, titles) for path in pictures],
        tables=[table_of(table, titles) for table in tables],
        shared=shared,
        data=as_json(data),
    )
    path = Path(folder) / PAGE_FILE
    write_atomically(path, text)
    return path


def render(template: str, scripts: Sequence[str], **values) -> str:
    """A page from a template, with the style sheet and the named files of `script/`.

    Whatever the values say is text, not markup. What the templates put in as it is are `data`, which comes from
    `embed.as_json`, and style and scripts, which are files of ours.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    style = (_HERE / "templates" / "page.css").read_text(encoding="utf-8")
    values |= {"version": __version__, "style": style, "script": script_of(scripts)}
    return environment.get_template(template).render(**values)


def script_of(names: Sequence[str]) -> str:
    """The named files of `script/`, joined."""
    return "\n".join((_HERE / "script" / f"{name}.js").read_text(encoding="utf-8") for name in names)


def _data(sweep: Sweep, reproduce: Callable[[Entry], str] | None) -> tuple[dict[str, Any], dict]:
    """What the script works on, and what all cells share."""
    cells = in_order(sweep.frame.assign(place=range(len(sweep.frame))))
    columns = columns_of(_with_differences(cells))
    details, shared = details_of(sweep, cells, reproduce)
    results = [column["key"] for column in columns if column.get("delta")]
    results.sort(key=lambda name: not next(c["shown"] for c in columns if c["key"] == name))
    data = {
        "what": "cells",
        "name": sweep.frame.attrs["sweep"],
        "most": MOST_ROWS,
        "rows": len(cells),
        "columns": columns,
        "words": words_of(cells),
        "dense": own_dense(cells),
        "items": items_of(sweep, cells, [name for name in results if name in cells]),
        "details": details,
    }
    return data, shared


def _with_differences(cells: pd.DataFrame) -> pd.DataFrame:
    names = [name for name in cells.attrs["metrics"] if not is_cost(name) and cells[name].notna().any()]
    try:
        found = with_differences(cells, names)
        found.attrs = cells.attrs
        return found
    except ValueError as error:  # a damaged file of samples
        logging.getLogger(__name__).warning("page: differences without errors over items (%s)", error)
        return cells


def _note(frame: pd.DataFrame) -> str:
    contexts = " or ".join(str(context) for context in sorted(frame["context"].unique()))
    return (
        "Loss in nats per token; ± the standard error of the evaluation. KV: cache entries of a head (mean), and "
        f"in % of dense attention's; KiB: cache of one sequence; all at position {contexts}. FLOPs: attention FLOPs "
        "relative to dense. Open a cell for everything that is known of it."
    )


def _problems(frame: pd.DataFrame) -> list[dict]:
    wrong = in_order(frame[frame["status"].ne("done")])
    groups = groups_of(wrong, [*RUN, "pattern", "status", "error"])
    return [
        {"run": run_name(model, variant), "pattern": pattern, "status": status, "error": error,
         "seeds": ", ".join(str(seed) for seed in own["seed"])}
        for (model, variant, pattern, status, error), own in groups
    ]  # fmt: skip


def commits_of(records: Sequence[Record | None]) -> list[str]:
    """Short names of the commits that the records come from, at most five, `+` where files had been changed."""
    found = {}
    for record in records:
        git = ((record or {}).get("provenance") or {}).get("git")
        if git:
            found[git["commit"][:10] + ("+" if git.get("dirty") else "")] = None
    return [*list(found)[:5], "…"] if len(found) > 5 else list(found)
