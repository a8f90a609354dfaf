"""`ratplus pretrain`: the first stage of a cell alone."""

from __future__ import annotations

import argparse

from ratplus.sweeps.verbs import add_cell_arguments

HELP = "make sure of the pretraining of a cell"
EXAMPLES = [
    "ratplus pretrain model=ratplus_tiny train.pretrain.steps=200",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cell_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.runner.cells import run_words

    return run_words(arguments.overrides, arguments.config_dir, arguments.multirun, last="pretrain")
