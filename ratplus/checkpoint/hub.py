"""Model folders in the style of the Hugging Face hub, both ways."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch import Tensor

from ratplus.checkpoint.facts import (
    CONFIG_FILE,
    TOKENIZER,
    CheckpointError,
    default_patterns,
    is_hub_folder,
    read_facts,
    read_hub_facts,
    tokenizer_facts,
)
from ratplus.checkpoint.folder import check_numbers_of, map_weights, shapes_of
from ratplus.checkpoint.hub_config import SHA256, SPARSE_PATTERN, words_of
from ratplus.checkpoint.official import check_numbers
from ratplus.checkpoint.shards import SHARD_BYTES, map_shards, write_shards
from ratplus.checkpoint.targets import check_target, is_model_folder
from ratplus.checkpoint.tensor_file import check_shapes, sha256_of
from ratplus.config.model import ModelConfig
from ratplus.records.atomic import write_atomically


def export_hf(
    folder: str | Path, target: str | Path, shard_bytes: int = SHARD_BYTES, force: bool = False
) -> ModelConfig:
    """Write a model folder as a Hugging Face-style one: weights, in shards if they are large, and a config.json.

    Args:
        shard_bytes: most bytes of weights in a file.
        force: replace another model that lies there; without it, only an earlier export is replaced.

    Raises:
        CheckpointError: no model folder; `target` is one already, holds another model, or is a stage's folder.
    """
    target = Path(target)
    check_target(target, Path(folder))
    config, weights = map_weights(folder)
    _, sha256 = read_facts(Path(folder))
    if is_model_folder(target) and not force:
        raise CheckpointError(
            f"{target}: is a ratplus model folder already; if the export went there, it would take the place of the "
            "model folder itself; choose another target, or replace it with --force"
        )
    again = force or _is_export(target)
    if os.path.lexists(target / CONFIG_FILE) and not again:
        raise CheckpointError(
            f"{target}: holds the {CONFIG_FILE} of another model; choose another target, or replace it with --force"
        )
    # An earlier export's config.json goes first: beside half-written new weights it would make the folder look whole.
    (target / CONFIG_FILE).unlink(missing_ok=True)
    write_shards(target, weights, shard_bytes, replace=again)
    words = words_of(config, sha256)
    if (patterns := default_patterns(Path(folder))) is not None:
        words[SPARSE_PATTERN] = patterns.label
    if (facts := tokenizer_facts(Path(folder))) is not None:
        words[TOKENIZER] = facts
    write_atomically(target / CONFIG_FILE, json.dumps(words, indent=2, sort_keys=True) + "\n")
    return config


def _is_export(folder: Path) -> bool:
    """Whether a folder is an export that nobody has changed on purpose, which takes out the hash of the weights."""
    try:
        return is_hub_folder(folder) and read_hub_facts(folder)[1] is not None
    except CheckpointError:
        return False


def map_hub(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and weights of a Hugging Face-style folder; the weights are mapped, not loaded.

    Raises:
        CheckpointError: no such folder, not whole, or other weights than it says.
    """
    if is_model_folder(folder):
        raise CheckpointError(f"{folder}: is a ratplus model folder already; name it with model.init_from=...")
    config, sha256 = read_hub_facts(folder)
    try:
        weights = map_shards(folder)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no model here ({Path(error.filename).name} is missing)") from None
    check_numbers(weights, str(folder))
    check_numbers_of(weights.values(), config, folder)
    check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, shapes_of(config), folder)
    if sha256 is not None and sha256_of(weights) != sha256:
        raise CheckpointError(
            f"{folder}: the weights are not those that {CONFIG_FILE} was written for; if you changed them on purpose, "
            f"remove {SHA256} from it"
        )
    return config, weights
