"""`ratplus evaluate`: all stages of one cell, and the report."""

from __future__ import annotations

import argparse

from ratplus.sweeps.verbs import add_cell_arguments

HELP = "... and of its evaluation: all stages of one cell"
EXAMPLES = [
    "ratplus evaluate model=ratplus_tiny pattern=streaming",
    "ratplus evaluate -m 'pattern=glob(*,exclude=snapkv)'",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cell_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.runner.cells import run_words

    return run_words(arguments.overrides, arguments.config_dir, arguments.multirun, last="evaluate")
