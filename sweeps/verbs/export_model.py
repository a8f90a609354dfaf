"""`ratplus export`: a model folder written in the reference layout (one file) or as a Hugging Face-style folder."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ratplus.sweeps.define.mistakes import UsageError

HELP = "write a model folder in the reference layout, or as one that transformers loads"
EXAMPLES = [
    "ratplus export models/ratplus_1b ratplus_1b.pt --format official",
    "ratplus export models/ratplus_1b hub/ratplus_1b --format hf",
    "ratplus export models/smollm2 hub/smollm2 --format hf --pattern D16-W256-I4 --dtype bfloat16",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="model folder: of import, or a stage's of a sweep")
    parser.add_argument("target", help="file (official) or folder (hf) to write")
    parser.add_argument("--format", choices=("official", "hf"), default="official", help="default: official")
    parser.add_argument("--force", action="store_true", help="replace another model or file that lies there")
    parser.add_argument(
        "--pattern", metavar="LABEL", help="what the heads of hf see, such as D16-W256-I4 (default: the folder's own)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights of hf (float32)")
    parser.add_argument("--shard-gb", type=float, metavar="GB", help="most gigabytes (1e9) in a file of hf (5)")


def run(arguments: argparse.Namespace) -> int:
    """Write the model in the format that was asked for.

    Raises:
        CheckpointError, UsageError: one line that says what is wrong with it.
    """
    from ratplus.checkpoint.hub import export_hf
    from ratplus.checkpoint.official import export_official
    from ratplus.checkpoint.shards import SHARD_BYTES
    from ratplus.sweeps.views.model_line import model_line

    target, shard_gb = Path(arguments.target), arguments.shard_gb
    if shard_gb is not None and arguments.format != "hf":
        raise UsageError(f"--shard-gb: got {shard_gb:g}; only --format hf writes shards")
    for option in ("pattern", "dtype"):
        value = getattr(arguments, option)
        if value is not None and arguments.format != "hf":
            raise UsageError(f"--{option}: got {value}; only --format hf has it")
    if shard_gb is not None and not 0 < shard_gb < math.inf:
        raise UsageError(f"--shard-gb: got {shard_gb:g}; it must be > 0")
    if arguments.format == "official" and target.is_dir():
        raise UsageError(f"{target}: is a folder; --format official writes one file: name it")
    if arguments.format == "hf" and target.is_file():
        raise UsageError(f"{target}: is a file; --format hf writes a folder: name one")
    if arguments.format == "hf":
        shard_bytes = SHARD_BYTES if shard_gb is None else int(shard_gb * 1e9)
        done = export_hf(
            arguments.folder, target, shard_bytes, arguments.force, arguments.pattern, arguments.dtype or "float32"
        )
        seen = "" if done.patterns is None else f" under {done.patterns.label}"
        trust = ", trust_remote_code=True" if done.own else ""
        how = f"AutoModelForCausalLM.from_pretrained({str(target)!r}{trust})"
        print(f"{model_line(target, done.config)}; as {done.model}{seen}; load it with transformers: {how}")
        for note in done.notes:
            print(f"note: {note}")
        return 0
    config = export_official(arguments.folder, target, arguments.force)
    print(model_line(target, config))
    if config.d_head != 128:
        print(f"the layout does not store d_head: import it with --d-head {config.d_head}")
    return 0
