"""`ratplus sweep`: all cells of a grid, and the report."""

from __future__ import annotations

import argparse

from ratplus.sweeps.verbs import add_cell_arguments

HELP = "run a grid of cells: pretrain once a model, adapt and evaluate every pattern, write the report"
EXAMPLES = [
    "ratplus sweep experiment=smoke",
    "ratplus sweep -m experiment=demo 'pattern=glob(*,exclude=snapkv)' model=attention_tiny,ratplus_tiny",
    "ratplus sweep -m pattern.dilation=1,2,4,8,16,32,64 pattern.window=0,64",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cell_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.define.compose import compose_cells
    from ratplus.sweeps.runner.cells import run_composed

    return run_composed(compose_cells(arguments.overrides, arguments.config_dir), last="evaluate")
