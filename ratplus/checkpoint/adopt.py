"""Weights of other folders and files: as a folder of our own (`adopt`), or understood in whatever format they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ratplus.checkpoint.facts import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    default_of,
    family_of,
    is_hub_folder,
    read_facts,
    tokenizer_facts,
)
from ratplus.checkpoint.folder import config_text, map_weights, save_weights
from ratplus.checkpoint.hub import map_hub
from ratplus.checkpoint.llama.folder import read_llama_folder
from ratplus.checkpoint.llama.gguf_file import is_gguf, read_gguf
from ratplus.checkpoint.official import Checkpoint, float32, read_official
from ratplus.checkpoint.own_tokenizer import carry, link_or_copy
from ratplus.checkpoint.retrofit import with_recurrence
from ratplus.checkpoint.start import adds_recurrence
from ratplus.checkpoint.targets import check_free, check_target, is_model_folder
from ratplus.checkpoint.tensor_file import Lazy, sha256_of, write_safetensors
from ratplus.checkpoint.tokenizer_files import tokenizer_files
from ratplus.config.model import ModelConfig
from ratplus.costs.budget import parameters
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.pattern import PatternMap
from ratplus.records.atomic import write_atomically

LOOKED_AT = 1 << 20  # numbers that are looked at together


def read_foreign(path: str | Path, d_head: int = 128, max_len: int | None = None) -> Checkpoint:
    """A reference file, a folder that `export_hf` wrote, a Hugging Face folder of the Llama family, or a GGUF file.

    Args:
        d_head: channels per head of a reference file, which does not store it; the others do.
        max_len: longest sequence; None takes that of the folder, and 4096 for a reference file.

    Raises:
        CheckpointError: none of these, or not whole.
    """
    path = Path(path)
    if is_gguf(path):
        return read_gguf(path, max_len)
    if not path.is_dir():
        return read_official(path, d_head, max_len or 4096)
    if not (is_model_folder(path) or is_hub_folder(path)):
        return read_llama_folder(path, max_len)
    config, weights = map_hub(path)
    facts, files = tokenizer_facts(path), tokenizer_files(path)
    if facts is not None and facts.get("name") == ByteTokenizer.name:
        files = {}  # bytes need none; the export made them for others
    return Checkpoint(
        config, {name: float32(tensor) for name, tensor in weights.items()}, default_of(path), files, tokenizer=facts
    )


def bring_in(found: Checkpoint, source: Path, folder: Path, force: bool = False) -> None:
    """Write a foreign checkpoint as a model folder, one tensor at a time.

    Args:
        source: where it was read.
        force: replace another model that lies there; without it, only the same one may be written again.

    Raises:
        CheckpointError: `folder` holds another model's files, or is a stage's of a sweep; or weights are not finite.
    """
    check_target(folder, source)
    if not force and not _same_model(folder, found):
        check_free(folder, (CONFIG_FILE, WEIGHTS_FILE), "another model")
    weights = {name: _finite(name, tensor, source) for name, tensor in found.weights.items()}
    save_weights(found.config, weights, folder, found.patterns, found.family, found.files, found.tokenizer)


def _finite(name: str, tensor: Tensor | Lazy, where) -> Lazy:
    """A tensor that is made, and looked at, when its turn comes to be written."""

    def make() -> Tensor:
        made = tensor.make() if isinstance(tensor, Lazy) else tensor
        _refuse_not_finite(name, made, where)
        return made

    return Lazy(tuple(tensor.shape), tensor.dtype, make)


def _refuse_not_finite(name: str, tensor: Tensor, where) -> None:
    """Raise CheckpointError for a tensor with NaN or infinite numbers, with which a model answers nothing."""
    # A few rows at a time: what is asked of a whole embedding would take more memory than the embedding itself.
    rows = max(1, LOOKED_AT // max(1, tensor[:1].numel())) if tensor.dim() else 1
    bad = sum(int(part.numel() - part.isfinite().sum()) for part in torch.atleast_1d(tensor).split(rows))
    if bad:
        raise CheckpointError(
            f"{where}: {name} holds NaN or infinite numbers ({bad:,} of {tensor.numel():,}), so its model answers "
            "nothing; take an undamaged copy, or, if it overflowed where it was saved in float16, one in bfloat16 or "
            "float32"
        )


def _same_model(folder: Path, found: Checkpoint) -> bool:
    if not is_model_folder(folder):
        return False
    try:
        config, sha256 = read_facts(folder)
    except CheckpointError:
        return False
    # The weights are read for their hash only where a folder of this shape is there already.
    return config == found.config and sha256 == sha256_of(found.weights)


def adopt(
    source: Path,
    folder: Path,
    config: ModelConfig,
    sha256: str,
    print_line: Callable[[str], None] = print,
    *,
    patterns: PatternMap | None = None,
    tokenizer: dict | None = None,
    more: Iterable[Path] = (),
) -> tuple[int, str]:
    """Make `folder` a model folder with the weights of another one: a hard link where the disk allows it, else a copy.

    Args:
        config: of the new folder; length and rotary settings may differ from the source's, and a recurrence is added
            where it has one and the source has not.
        sha256: of the source's weights, which are read once to be sure of it.
        patterns: what the model's heads see where nobody asks for another pattern; None: everything.
        tokenizer: facts of the tokenizer that the folder is to have; None takes the source's files as they are.
        more: folders beside the source that may hold the tokenizer's file.

    Returns:
        The number of parameters, and the SHA-256 of the new folder's weights.

    Raises:
        CheckpointError: no weights there, not the ones that were asked for, or NaN among them.
    """
    path, target = source / WEIGHTS_FILE, folder / WEIGHTS_FILE
    if from_hub := is_hub_folder(source):
        found, weights = map_hub(source, sha256)
    else:
        found, weights = map_weights(source, sha256)
    there, here = asdict(found), asdict(config)
    changed = [f"{k}={here[k]} instead of {there[k]}" for k in here if k != "max_len" and here[k] != there[k]]
    for name, tensor in weights.items():
        _refuse_not_finite(name, tensor, f"model.init_from={source}")
    if changed:
        print_line(f"model.init_from={source}: used with {', '.join(changed)}")
    folder.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if adds_recurrence(found, config):
        sha256 = write_safetensors(target, with_recurrence(weights, config))
    elif from_hub:
        write_safetensors(target, weights)
    else:
        link_or_copy(path, target)
    carry([source, *more], folder, tokenizer)
    write_atomically(folder / CONFIG_FILE, config_text(config, sha256, patterns, family_of(source), tokenizer))
    return parameters(config), sha256
