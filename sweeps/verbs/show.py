"""`ratplus show`: a stage's record, and the command that reproduces it."""

from __future__ import annotations

import argparse

HELP = "print a stage's record, and the command that reproduces it"
EXAMPLES = ["ratplus show 7392564b", "ratplus show 7392564b outputs/demo --json"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="a stage's or cell's id, or how it begins")
    parser.add_argument("folder", nargs="?", help="sweep folder or pack (default: all sweeps under outputs/)")
    parser.add_argument("--json", action="store_true", help="print the record as it is")


def run(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.share.unpack import as_folder
    from ratplus.sweeps.views.stage_text import print_stage

    print_stage(arguments.id, arguments.folder and str(as_folder(arguments.folder)), arguments.json)
    return 0
