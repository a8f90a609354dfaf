"""`ratplus gc`: what a sweep folder, or a store of stages, need not keep; removed on request."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "tell which stages and weights of a folder nobody names, in bytes; --remove removes them"
EXAMPLES = [
    "ratplus gc outputs/demo --dry-run",
    "ratplus gc outputs/demo --remove",
    "ratplus gc ~/ratplus_store --sweeps outputs --dry-run",
]
_MOST_ROWS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="sweep folder, such as outputs/demo, or a store of run.store")
    parser.add_argument("--sweeps", nargs="+", metavar="FOLDER", help="of a store: (folders of) the sweeps that use it")
    parser.add_argument("--dry-run", action="store_true", help="only tell (as without --remove)")
    parser.add_argument("--remove", action="store_true", help="remove it")
    parser.add_argument("--json", action="store_true", help="print it as one JSON document")


def run(arguments: argparse.Namespace) -> int:
    import json

    from ratplus.analysis.frame.all_sweeps import find_sweeps
    from ratplus.records.lines import plain
    from ratplus.sweeps.define.mistakes import UsageError
    from ratplus.sweeps.share.unneeded import remove, unneeded

    if arguments.dry_run and arguments.remove:
        raise UsageError("--dry-run and --remove: choose one")
    folder = Path(arguments.folder)
    sweeps = arguments.sweeps and [sweep for root in arguments.sweeps for sweep in find_sweeps(Path(root))]
    found = unneeded(folder, sweeps)
    removed = remove(folder, found, sweeps) if arguments.remove else []
    told = removed if arguments.remove else found
    held, frees = sum(item.bytes for item in told), sum(item.frees for item in told)
    if arguments.json:
        rows = [{**vars(item), "path": str(item.path)} for item in told]
        print(json.dumps({"format": 1, "removed": arguments.remove, "bytes": held, "frees": frees, "unneeded": rows}))
        return 0
    for item in told[:_MOST_ROWS]:
        print(plain(f"{item.bytes:>15,} bytes  {item.path}  ({item.why})"))
    if len(told) > _MOST_ROWS:
        print(f"... and {len(told) - _MOST_ROWS} more; --json lists all")
    linked = "" if held == frees else f", of which {held - frees:,} have another name (a hard link) and stay"
    what = "removed" if arguments.remove else "could be removed (--remove)"
    print(f"{len(told)} {what}: {held:,} bytes{linked}")
    return 0
