"""`ratplus ls`: cells of all sweeps under a folder that meet a condition."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

HELP = 'list the cells of all sweeps that meet a condition: kv_ratio<0.1 and model=="ratplus_tiny"'
EXAMPLES = [
    "ratplus ls",
    "ratplus ls 'kv_ratio<0.1 and model==\"ratplus_tiny\"'",
    "ratplus ls 'status!=\"done\"' outputs/demo --columns cell,model,pattern,error",
    'ratplus ls \'kind in ["dense", "hybrid"]\' --sort=-recall_accuracy --json',
]
_MOST_ROWS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "condition", nargs="?",
        help="over the columns of docs/analysis.md: numbers, texts, == != < <= > >=, in, and, or, not, + - * /",
    )  # fmt: skip
    parser.add_argument("root", nargs="*", help="sweep folders, packs, or folders that hold some (default: outputs)")
    parser.add_argument("--columns", metavar="A,B", help="columns to show, instead of the usual ones")
    parser.add_argument("--sort", metavar="COLUMN", help="sort by a column; --sort=-loss from the largest down")
    parser.add_argument("--limit", type=int, default=_MOST_ROWS, metavar="N", help=f"rows to show ({_MOST_ROWS})")
    parser.add_argument("--json", action="store_true", help="print all rows and columns as one JSON document")


def run(arguments: argparse.Namespace) -> int:
    from ratplus.analysis.frame.all_sweeps import as_json, find_sweeps, list_cells, read_all
    from ratplus.records.lines import plain
    from ratplus.sweeps.define.mistakes import UsageError
    from ratplus.sweeps.share.layout import ENDING
    from ratplus.sweeps.share.unpack import as_folder, is_pack
    from ratplus.sweeps.views.text_table import columns

    if arguments.limit < 1:
        raise UsageError(f"--limit: got {arguments.limit}; it must be ≥ 1")
    condition, roots = arguments.condition, arguments.root
    if condition is not None and not roots and Path(condition).exists():
        condition, roots = None, [condition]  # `ratplus ls outputs/demo` asks for all cells there
    found = [
        place
        for root in roots or ["outputs"]
        for place in ([Path(root)] if is_pack(root) else find_sweeps(Path(root), ENDING))
    ]
    sweeps = read_all({str(place): partial(as_folder, place) for place in found})
    for line in sweeps.unreadable:
        print(f"left out: {plain(line)}", file=sys.stderr)
    names = [name.strip() for name in arguments.columns.split(",")] if arguments.columns else None
    listing = list_cells(sweeps.frame, condition or None, names, arguments.sort)
    if arguments.json:
        print(as_json(listing))
        return 0
    rows = [{k: "" if v is None else v for k, v in row.items()} for row in listing.rows[: arguments.limit]]
    if rows:
        print(plain(columns(rows)))
    more = len(listing.rows) - len(rows)
    print(f"{len(listing.rows)} of {listing.of} cells" + (f"; {more} are not shown (--limit, --json)" if more else ""))
    return 0
