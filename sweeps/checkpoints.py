"""`ratplus import` and `ratplus export`: models in the formats of others."""

from __future__ import annotations

import argparse
from pathlib import Path

from ratplus.sweeps.mistakes import UsageError


def run_import(arguments: argparse.Namespace) -> int:
    """Turn a reference checkpoint, or a Hugging Face-style folder, into a model folder; a tensor at a time.

    Raises:
        CheckpointError, UsageError: one line that says what is wrong with it.
    """
    from ratplus.checkpoint import save_weights
    from ratplus.foreign import read_foreign

    if arguments.max_len < 1:
        raise UsageError(f"--max-len: got {arguments.max_len}; it must be ≥ 1")
    if arguments.d_head < 1:
        raise UsageError(f"--d-head: got {arguments.d_head}; it must be ≥ 1")
    found = read_foreign(arguments.checkpoint, arguments.d_head, arguments.max_len)
    folder = save_weights(found.config, found.weights, arguments.folder)
    _tell(folder, found.config, found.parameters, found.size)
    words = ("layers", "d_model", "d_head", "recurrence", "output_gate", "ffn_mult", "rope_base", "norm_eps")
    shape = " ".join(f"model.{key}={getattr(found.config, key)}" for key in words).replace("True", "true")
    print(f"use it with: model.init_from={folder} {shape.replace('False', 'false')}")
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """Write a model folder in the reference layout (one file) or as a Hugging Face-style folder.

    Raises:
        CheckpointError, UsageError: one line that says what is wrong with it.
    """
    from ratplus.foreign import export_hf, export_official

    target = Path(arguments.target)
    if arguments.format == "official" and target.is_dir():
        raise UsageError(f"{target}: is a folder; --format official writes one file: name it")
    if arguments.format == "hf" and target.is_file():
        raise UsageError(f"{target}: is a file; --format hf writes a folder: name one")
    config = {"official": export_official, "hf": export_hf}[arguments.format](arguments.folder, target)
    _tell(target, config)
    if arguments.format == "official" and config.d_head != 128:
        print(f"the layout does not store d_head: import it with --d-head {config.d_head}")
    return 0


def _tell(where: Path, config, parameters: int | None = None, size: str | None = None) -> None:
    from ratplus.budget import parameters as count

    kind = "RAT+" if config.recurrence else "attention without recurrence"
    print(
        f"{where}: {f'the {size} shape of the paper, ' if size else ''}{kind}, {config.layers} layers, d_model "
        f"{config.d_model}, {config.heads} heads of {config.d_head}, vocabulary {config.vocab_size}: "
        f"{parameters or count(config)} parameters, recurrence {'on' if config.recurrence else 'off'}"
    )
