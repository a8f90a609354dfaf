"""The verbs of `ratplus`, one file each: its help line, its examples, its options, and what it does.

A new verb is a new file here, with the four names of `Verb`, and a row in the table of `ratplus.sweeps.cli`. At the top
of its file a verb imports only what is light (no torch, no Hydra): `ratplus --help` reads the help line of every verb.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Protocol


class Verb(Protocol):
    """What the module of a verb holds.

    Attributes:
        HELP: one line, for `ratplus --help` and the verb's own help.
        EXAMPLES: command lines, shown below the verb's options.
    """

    HELP: str
    EXAMPLES: Sequence[str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options of the verb."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work; returns the exit code. A user's mistake is raised as a ValueError whose message is one line."""


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Declare the words that Hydra composes, and where else Hydra looks for config groups."""
    parser.add_argument(
        "overrides", nargs="*", help="Hydra overrides: group=choice, key=value; with -m also a,b,c, range(), glob(*)"
    )
    parser.add_argument("--config-dir", metavar="DIR", help="folder with your own conf/ groups, searched as well")


def add_cell_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a verb that runs cells."""
    add_overrides(parser)
    parser.add_argument("-m", "--multirun", action="store_true", help="several values make several cells")
