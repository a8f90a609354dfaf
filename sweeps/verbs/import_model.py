"""`ratplus import`: a model folder made from a reference checkpoint or a Hugging Face-style folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from ratplus.sweeps.define.mistakes import UsageError

HELP = "convert a checkpoint of the reference implementation into a model folder"
EXAMPLES = ["ratplus import checkpoint.pt models/ratplus_1b --d-head 128"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="file of the reference implementation, or folder of export --format hf")
    parser.add_argument("folder", help="model folder to write")
    parser.add_argument("--force", action="store_true", help="replace another model that lies in the folder")
    parser.add_argument("--d-head", type=int, default=128, help="channels per head (default: 128)")
    parser.add_argument("--max-len", type=int, default=4096, help="longest sequence (default: 4096)")


def run(arguments: argparse.Namespace) -> int:
    """Convert the checkpoint, one tensor at a time.

    Raises:
        CheckpointError, UsageError: one line that says what is wrong with it.
    """
    from ratplus.checkpoint.adopt import bring_in, read_foreign
    from ratplus.checkpoint.targets import check_target
    from ratplus.sweeps.views.model_line import model_line

    if arguments.max_len < 1:
        raise UsageError(f"--max-len: got {arguments.max_len}; it must be ≥ 1")
    if arguments.d_head < 1:
        raise UsageError(f"--d-head: got {arguments.d_head}; it must be ≥ 1")
    source, folder = Path(arguments.checkpoint), Path(arguments.folder)
    check_target(folder, source)  # before a large file is read
    found = read_foreign(source, arguments.d_head, arguments.max_len)
    bring_in(found, source, folder, arguments.force)
    print(model_line(folder, found.config, found.parameters, found.size))
    keys = ("layers", "d_model", "d_head", "recurrence", "output_gate", "ffn_mult", "rope_base", "norm_eps")
    if found.config.kv_heads is not None:
        keys += ("kv_heads",)
    if found.config.recurrence_chunk is not None:
        keys += ("recurrence_chunk",)
    if found.config.rope_scaling != "none":
        keys += ("rope_scaling", "rope_factor", *(("rope_original",) if found.config.rope_original else ()))
    shape = " ".join(f"model.{key}={getattr(found.config, key)}" for key in keys).replace("True", "true")
    print(f"use it with: model.init_from={folder} {shape.replace('False', 'false')}")
    return 0
