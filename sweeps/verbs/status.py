"""`ratplus status`: which cells of a sweep folder are done, running, queued, failed or missing."""

from __future__ import annotations

import argparse
from pathlib import Path

from ratplus.sweeps.define.mistakes import UsageError

HELP = "show which cells of a sweep folder are done, running, failed or missing"
EXAMPLES = ["ratplus status outputs/demo", "ratplus status outputs/demo --watch"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="sweep folder, such as outputs/demo, or a pack")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=5.0, metavar="SECONDS",
        help="show it again every so many seconds (default: 5) until nothing is left to do; Ctrl-C leaves",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document instead, for scripts")


def run(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.share.unpack import as_folder, is_pack
    from ratplus.sweeps.views.status_text import exit_code, print_json, print_status, watch
    from ratplus.sweeps.views.sweep_view import SweepView

    given = Path(arguments.folder)
    folder = as_folder(given)
    if arguments.watch is not None:
        if arguments.json:
            raise UsageError("--watch and --json: choose one; a script can ask for --json again")
        if arguments.watch <= 0:
            raise UsageError(f"--watch: got {arguments.watch:g}; it must be > 0 seconds")
        if is_pack(given):
            raise UsageError(f"--watch: {given} is a pack, in which nothing changes")
        return watch(folder, arguments.watch)
    view = SweepView(folder)
    view.folder = given
    print_json(view) if arguments.json else print_status(view)
    return exit_code(view)
