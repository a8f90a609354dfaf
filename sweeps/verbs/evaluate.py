"""`ratplus evaluate`: all stages of one cell, and the report; with --add, one more suite for a finished sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.verbs import add_cell_arguments

HELP = "... and of its evaluation: all stages of one cell; --add asks a finished sweep more"
EXAMPLES = [
    "ratplus evaluate model=ratplus_tiny pattern=streaming",
    "ratplus evaluate -m 'pattern=glob(*,exclude=snapkv)'",
    "ratplus evaluate --add longbench outputs/demo",
    "ratplus evaluate --add harness outputs/demo eval.tasks=[piqa,arc_easy] launcher.workers=2",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cell_arguments(parser)
    parser.add_argument(
        "--add", metavar="SUITE",
        help="ask every trained cell of the sweep FOLDER (the first word) another suite, a choice of eval=, in place",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="with --add: print which cells were asked as JSON")


def run(arguments: argparse.Namespace) -> int:
    words = arguments.overrides
    if arguments.add is None:
        if arguments.json:
            raise UsageError("--json: of --add alone; `ratplus status FOLDER --json` tells of a sweep")
        from ratplus.sweeps.runner.cells import run_words

        return run_words(words, arguments.config_dir, arguments.multirun, last="evaluate")
    if arguments.multirun or not words or ("=" in words[0] and not Path(words[0]).is_dir()):
        raise UsageError("--add: give one suite and one sweep folder: ratplus evaluate --add longbench outputs/demo")
    from ratplus.sweeps.runner.add_suite import add_suite

    return add_suite(arguments.add, Path(words[0]), words[1:], arguments.config_dir, arguments.json)
