"""Model folders in the style of the Hugging Face hub, both ways."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from ratplus.checkpoint.facts import CONFIG_FILE, CheckpointError, is_hub_folder, read_facts, read_hub_facts
from ratplus.checkpoint.folder import map_weights, shapes_of
from ratplus.checkpoint.hub_config import SHA256, words_of
from ratplus.checkpoint.official import check_numbers
from ratplus.checkpoint.shards import SHARD_BYTES, map_shards, write_shards
from ratplus.checkpoint.tensor_file import check_shapes, sha256_of
from ratplus.config.model import ModelConfig
from ratplus.records.atomic import write_atomically


def export_hf(folder: str | Path, target: str | Path, shard_bytes: int = SHARD_BYTES) -> ModelConfig:
    """Write a model folder as a Hugging Face-style one: weights, in shards if they are large, and a config.json.

    Args:
        shard_bytes: most bytes of weights in a file.

    Raises:
        CheckpointError: no model folder, or `target` is one already.
    """
    config, weights = map_weights(folder)
    _, sha256 = read_facts(Path(folder))
    target = Path(target)
    if _is_ours(target):
        raise CheckpointError(
            f"{target}: is a ratplus model folder already; if the export went there, it would take the place of the "
            "model folder itself; choose another target"
        )
    again = is_hub_folder(target)
    if (target / CONFIG_FILE).exists() and not again:
        raise CheckpointError(f"{target}: holds the {CONFIG_FILE} of another model; choose another target")
    # Of an earlier export: new weights under its config.json would look whole before they are.
    (target / CONFIG_FILE).unlink(missing_ok=True)
    write_shards(target, weights, shard_bytes, replace=again)
    words = words_of(config, sha256)
    write_atomically(target / CONFIG_FILE, json.dumps(words, indent=2, sort_keys=True) + "\n")
    return config


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a model folder of our own; none, or a damaged one, is not."""
    try:
        words = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(words, dict) and {"model", "sha256"} <= words.keys()


def map_hub(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and weights of a Hugging Face-style folder; the weights are mapped, not loaded.

    Raises:
        CheckpointError: no such folder, not whole, or other weights than it says.
    """
    if _is_ours(folder):
        raise CheckpointError(f"{folder}: is a ratplus model folder already; name it with model.init_from=...")
    config, sha256 = read_hub_facts(folder)
    try:
        weights = map_shards(folder)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no model here ({Path(error.filename).name} is missing)") from None
    check_numbers(weights, str(folder))
    check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, shapes_of(config), folder)
    if sha256 is not None and sha256_of(weights) != sha256:
        raise CheckpointError(
            f"{folder}: the weights are not those that {CONFIG_FILE} was written for; if you changed them on purpose, "
            f"remove {SHA256} from it"
        )
    return config, weights
