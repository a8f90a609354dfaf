"""Models in the formats of others: the reference layout and folders in the style of the Hugging Face hub, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from ratplus.atomic import new_file, write_atomically
from ratplus.checkpoint import map_weights
from ratplus.config_model import ModelConfig
from ratplus.hub_words import SHA256, words_of
from ratplus.official import (
    EMBED,
    HEAD,
    LAYER_KEYS,
    LAYER_PREFIX,
    NORM,
    Checkpoint,
    check_numbers,
    float32,
    read_official,
    shapes_of,
)
from ratplus.starting_point import CONFIG_FILE, is_hub_folder, read_facts, read_hub_facts
from ratplus.weight_shards import SHARD_BYTES, map_shards, write_shards
from ratplus.weights import CheckpointError, check_shapes, sha256_of


def read_foreign(path: str | Path, d_head: int = 128, max_len: int = 4096) -> Checkpoint:
    """A reference file, or a folder that `export_hf` wrote (which knows its own d_head and length).

    Raises:
        CheckpointError: neither, or not whole.
    """
    path = Path(path)
    if not path.is_dir():
        return read_official(path, d_head, max_len)
    config, weights = map_hub(path)
    return Checkpoint(config, {name: float32(tensor) for name, tensor in weights.items()})


def export_official(folder: str | Path, target: str | Path) -> ModelConfig:
    """Write a model folder's weights in the reference layout, float32 under "task"; they are mapped, not loaded.

    Raises:
        CheckpointError: no model folder, or a model that the layout has no place for.
    """
    config, weights = map_weights(folder)
    default = ModelConfig(config.vocab_size, config.layers, config.d_model, config.d_head)
    for key in ("kv_heads", "recurrence_chunk", "output_gate", "rope_base", "rope_scaling", "norm_eps"):
        if getattr(config, key) != getattr(default, key):
            raise CheckpointError(
                f"{folder}: the reference layout has no place for model.{key}={getattr(config, key)} "
                f"(always {getattr(default, key)}); use --format hf"
            )
    names = {f"layers.{i}.{own}": f"{LAYER_PREFIX}{i}.{key}" for i in range(config.layers)
             for key, own in LAYER_KEYS.items()}  # fmt: skip
    names |= {"embed.weight": EMBED, "norm.weight": NORM}
    state = {names[name]: tensor for name, tensor in weights.items()}
    state[HEAD] = state[EMBED]
    with new_file(target) as file:
        torch.save({"task": state}, file)
    return config


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
