"""Model files in our own format (safetensors + config.json); `ratplus.checkpoint.official` knows those of others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ratplus.checkpoint.facts import (
    CONFIG_FILE,
    FAMILY,
    FORMAT,
    PATTERN,
    TOKENIZER,
    WEIGHTS_FILE,
    CheckpointError,
    read_facts,
    refuse_stand_in,
)
from ratplus.checkpoint.tensor_file import (
    Lazy,
    check_amount,
    check_shapes,
    map_safetensors,
    read_into,
    write_safetensors,
)
from ratplus.checkpoint.tokenizer_files import write_tokenizer_files
from ratplus.config.model import ModelConfig
from ratplus.costs.budget import parameters
from ratplus.data.tokenizer import Tokenizer
from ratplus.model import RATPlus, empty_model
from ratplus.pattern import PatternMap
from ratplus.records.atomic import write_atomically
from ratplus.records.reading import open_plain


def save(
    model: RATPlus, folder: str | Path, tokenizer: Tokenizer | None = None, patterns: PatternMap | None = None
) -> Path:
    """Write `model.safetensors`, then `config.json` with the weights' SHA-256; each file whole or not at all.

    Args:
        tokenizer: that it was trained with, whose file goes along; without it nobody can tell later which it was.
        patterns: what the model's heads see where nobody asks for another pattern; None: everything.
    """
    files, facts = None, None
    if tokenizer is not None:
        facts = tokenizer.facts
        files = {} if tokenizer.file is None else {facts["file"]: tokenizer.file.read_bytes()}
    save_weights(model.config, model.state_dict(), folder, patterns, files=files, tokenizer=facts)
    return Path(folder)


def save_weights(
    config: ModelConfig,
    weights: Mapping[str, Tensor | Lazy],
    folder: str | Path,
    patterns: PatternMap | None = None,
    family: str | None = None,
    files: Mapping[str, bytes] | None = None,
    tokenizer: dict | None = None,
) -> str:
    """`save` for weights that no model holds; a Lazy one is made when its turn comes.

    Args:
        patterns: what the model's heads see where nobody asks for another pattern; None: everything.
        family: the kind of model that it was imported from, if it is not one of ours.
        files: of its tokenizer, by name, in place of all that lie there; None leaves those.
        tokenizer: facts of the tokenizer (`Tokenizer.facts`), where its files do not say all.

    Returns:
        SHA-256 of `model.safetensors`, taken while it was written.
    """
    sha256 = write_safetensors(Path(folder) / WEIGHTS_FILE, weights)
    if files is not None:
        write_tokenizer_files(files, Path(folder))
    # Last, since it makes the folder whole: before it, the weights are not those that an older one tells of.
    write_atomically(Path(folder) / CONFIG_FILE, config_text(config, sha256, patterns, family, tokenizer))
    return sha256


def load(folder: str | Path, config: ModelConfig | None = None) -> RATPlus:
    """Read a folder written by `save`; needs little more memory than the model.

    Args:
        config: if given, the checkpoint must be of exactly this shape.

    Raises:
        CheckpointError: files missing, truncated or altered, or another architecture than `config`.
    """
    folder = Path(folder)
    found, expected_hash = read_facts(folder)
    if config is not None:
        check_same_shape(found, config, folder)
    path = folder / WEIGHTS_FILE
    try:
        check_amount(path, parameters(found))
        model = empty_model(found)
        intact = read_into(path, model.state_dict()) == expected_hash
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no checkpoint here ({WEIGHTS_FILE} is missing)") from None
    except CheckpointError:
        intact = False
    if not intact:
        refuse_stand_in(path)
        raise CheckpointError(f"{path}: SHA-256 differs from {CONFIG_FILE}: truncated or altered")
    return model


def map_weights(folder: str | Path, sha256: str | None = None) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and weights of a model folder; the weights are read once for their hash, then mapped, not loaded.

    Args:
        sha256: that they must have; None takes what the folder says of itself.

    Raises:
        CheckpointError: files missing, truncated or altered, or other tensors than the shape has.
    """
    folder = Path(folder)
    config, own = read_facts(folder)
    path = folder / WEIGHTS_FILE
    try:
        check_amount(path, 0)
        with open_plain(path) as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == (sha256 or own)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no checkpoint here ({WEIGHTS_FILE} is missing)") from None
    except CheckpointError:
        intact = False
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not intact:
        refuse_stand_in(path)
        raise CheckpointError(f"{path}: SHA-256 differs from {CONFIG_FILE}: truncated or altered")
    weights = map_safetensors(path)
    check_numbers_of(weights.values(), config, folder)
    check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, shapes_of(config), folder)
    return config, weights


def check_numbers_of(weights: Iterable[Tensor], config: ModelConfig, where) -> None:
    """Refuse weights that are far fewer than a shape needs, before a model of that shape is made: CheckpointError.

    A shape may be somebody's idea: making a model of ten thousand layers, even an empty one, takes minutes. Which
    weight is missing, `check_shapes` says.
    """
    held, needed = sum(tensor.numel() for tensor in weights), parameters(config)
    if needed > 2 * held:
        raise CheckpointError(f"{where}: holds {held:,} numbers, but a model of this shape has {needed:,}")


def config_text(
    config: ModelConfig,
    sha256: str,
    patterns: PatternMap | None = None,
    family: str | None = None,
    tokenizer: dict | None = None,
) -> str:
    """What stands in config.json: the model's shape, its weights' SHA-256, and what else is known of it."""
    words: dict = {"format": FORMAT, "model": asdict(config), "sha256": sha256}
    if patterns is not None:
        words[PATTERN] = patterns.to_dict()
    if family is not None:
        words[FAMILY] = family
    if tokenizer is not None:
        words[TOKENIZER] = dict(sorted(tokenizer.items()))  # as an export has them
    return json.dumps(words, indent=1) + "\n"


def shapes_of(config: ModelConfig) -> dict[str, tuple]:
    """The shape of every weight of such a model, by name."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in RATPlus(config).state_dict().items()}


def check_same_shape(found: ModelConfig, wanted: ModelConfig, where) -> None:
    """Raise CheckpointError naming every field in which a checkpoint differs from what is asked for."""
    a, b = asdict(found), asdict(wanted)
    differing = [f"{name}={a[name]} there, {b[name]} asked for" for name in a if a[name] != b[name]]
    if differing:
        raise CheckpointError(f"{where}: checkpoint of another architecture ({'; '.join(differing)})")
