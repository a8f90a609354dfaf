"""`ratplus adapt`: a cell up to its adaptation to a pattern."""

from __future__ import annotations

import argparse

from ratplus.sweeps.verbs import add_cell_arguments

HELP = "... and of its adaptation to a pattern"
EXAMPLES = [
    "ratplus adapt model=ratplus_tiny pattern=dilated pattern.dilation=32",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cell_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.runner.cells import run_words

    return run_words(arguments.overrides, arguments.config_dir, arguments.multirun, last="adapt")
