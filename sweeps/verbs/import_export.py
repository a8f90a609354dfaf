"""`ratplus import` and `ratplus export`: models in the formats of others."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ratplus.sweeps.define.mistakes import UsageError


def run_import(arguments: argparse.Namespace) -> int:
    """Turn a reference checkpoint, or a Hugging Face-style folder, into a model folder; a tensor at a time.

    Raises:
        CheckpointError, UsageError: one line that says what is wrong with it.
    """
    from ratplus.checkpoint.adopt import read_foreign
    from ratplus.checkpoint.folder import save_weights

    if arguments.max_len < 1:
        raise UsageError(f"--max-len: got {arguments.max_len}; it must be ≥ 1")
    if arguments.d_head < 1:
        raise UsageError(f"--d-head: got {arguments.d_head}; it must be ≥ 1")
    found = read_foreign(arguments.checkpoint, arguments.d_head, arguments.max_len)
    folder = save_weights(found.config, found.weights, arguments.folder)
    _tell(folder, found.config, found.parameters, found.size)
    words = ("layers", "d_model", "d_head", "recurrence", "output_gate", "ffn_mult", "rope_base", "norm_eps")
    if found.config.kv_heads is not None:
        words += ("kv_heads",)
    if found.config.recurrence_chunk is not None:
        words += ("recurrence_chunk",)
    if found.config.rope_scaling != "none":
        words += ("rope_scaling", "rope_factor", *(("rope_original",) if found.config.rope_original else ()))
    shape = " ".join(f"model.{key}={getattr(found.config, key)}" for key in words).replace("True", "true")
    print(f"use it with: model.init_from={folder} {shape.replace('False', 'false')}")
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """Write a model folder in the reference layout (one file) or as a Hugging Face-style folder.

    Raises:
        CheckpointError, UsageError: one line that says what is wrong with it.
    """
    from ratplus.checkpoint.hub import export_hf
    from ratplus.checkpoint.official import export_official
    from ratplus.checkpoint.shards import SHARD_BYTES

    target, shard_gb = Path(arguments.target), arguments.shard_gb
    if shard_gb is not None and arguments.format != "hf":
        raise UsageError(f"--shard-gb: got {shard_gb:g}; only --format hf writes shards")
    if shard_gb is not None and not 0 < shard_gb < math.inf:
        raise UsageError(f"--shard-gb: got {shard_gb:g}; it must be > 0")
    if arguments.format == "official" and target.is_dir():
        raise UsageError(f"{target}: is a folder; --format official writes one file: name it")
    if arguments.format == "hf" and target.is_file():
        raise UsageError(f"{target}: is a file; --format hf writes a folder: name one")
    if arguments.format == "hf":
        config = export_hf(arguments.folder, target, SHARD_BYTES if shard_gb is None else int(shard_gb * 1e9))
    else:
        config = export_official(arguments.folder, target)
    _tell(target, config)
    if arguments.format == "official" and config.d_head != 128:
        print(f"the layout does not store d_head: import it with --d-head {config.d_head}")
    return 0


def _tell(where: Path, config, parameters: int | None = None, size: str | None = None) -> None:
    from ratplus.costs.budget import parameters as count

    kind = "RAT+" if config.recurrence else "attention without recurrence"
    keys = "" if config.kv_heads is None else f" on {config.kv_heads} of keys"
    print(
        f"{where}: {f'the {size} shape of the paper, ' if size else ''}{kind}, {config.layers} layers, d_model "
        f"{config.d_model}, {config.heads} heads of {config.d_head}{keys}, vocabulary {config.vocab_size}: "
        f"{parameters or count(config)} parameters, recurrence {'on' if config.recurrence else 'off'}"
    )
