"""`ratplus pack`: a sweep as one file to hand on."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write a sweep as one file to hand on: records, samples, notes, page and hashes; no weights, no secrets"
EXAMPLES = ["ratplus pack outputs/demo", "ratplus pack outputs/demo --out to_share/demo.pack.zip"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="sweep folder, such as outputs/demo")
    parser.add_argument("--out", metavar="FILE", help="the pack (default: FOLDER.pack.zip)")
    parser.add_argument("--json", action="store_true", help="print what was packed as one JSON document")


def run(arguments: argparse.Namespace) -> int:
    import json
    import sys

    from ratplus.records.lines import plain
    from ratplus.sweeps.share.pack import pack

    packed = pack(Path(arguments.folder), Path(arguments.out) if arguments.out else None)
    for line in packed.left_out:
        print(f"left out: {plain(line)}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"format": 1, **vars(packed), "path": str(packed.path)}, indent=1))
    else:
        size = f"{packed.bytes / 1e6:.1f} MB" if packed.bytes >= 1e5 else f"{packed.bytes / 1e3:.1f} kB"
        print(f"{packed.path}: {packed.stages} stages, {packed.files} files, {size}")
    return 0
