"""`ratplus sft`: a cell up to its fine-tuning on needles."""

from __future__ import annotations

import argparse

from ratplus.sweeps.verbs import add_cell_arguments

HELP = "... and of its fine-tuning on needles, where train.sft has steps"
EXAMPLES = [
    "ratplus sft model=ratplus_tiny train.sft.steps=200 'train.sft.tasks=[niah_single_1]' train.sft.template=short",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_cell_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.runner.cells import run_words

    return run_words(arguments.overrides, arguments.config_dir, arguments.multirun, last="sft")
