"""`ratplus sync`: a sweep sent to W&B, rebuilt from its records; only what is missing there is sent."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "send a sweep to W&B, rebuilt from its records; only what is missing there"
EXAMPLES = ["ratplus sync outputs/demo --entity my-team", "ratplus sync outputs/demo --dry-run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="sweep folder, such as outputs/demo")
    parser.add_argument("--entity", help="W&B user or team (default: your own)")
    parser.add_argument("--project", help="W&B project (default: ratplus)")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent; needs no account")
    parser.add_argument("--offline", action="store_true", help="write offline runs to FOLDER/wandb instead")
    parser.add_argument("--checkpoints", action="store_true", help="also send each trained model as an artifact")
    parser.add_argument("--workspace", action="store_true", help="also write, and send, a workspace of panels")


def run(arguments: argparse.Namespace) -> int:
    from ratplus.sweeps.mirror.sync import sync

    sync(
        Path(arguments.folder), arguments.entity, arguments.project, dry_run=arguments.dry_run,
        offline=arguments.offline, checkpoints=arguments.checkpoints, workspace=arguments.workspace,
    )  # fmt: skip
    return 0
