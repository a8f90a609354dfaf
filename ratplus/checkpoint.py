"""Model files in our own format (safetensors + config.json); `ratplus.official` knows those of others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ratplus.atomic import new_file, write_atomically
from ratplus.budget import parameters
from ratplus.config_model import ModelConfig
from ratplus.model import RATPlus, empty_model
from ratplus.official import load_official, shapes_of
from ratplus.starting_point import CONFIG_FILE, FORMAT, WEIGHTS_FILE, is_hub_folder, read_facts
from ratplus.weights import CheckpointError, Lazy, check_shapes, map_safetensors, read_into, write_safetensors

__all__ = [
    "CONFIG_FILE", "WEIGHTS_FILE", "CheckpointError", "adopt", "check_same_shape", "load", "load_official",
    "map_weights", "save", "save_weights",
]  # fmt: skip


def save(model: RATPlus, folder: str | Path) -> Path:
    """Write `model.safetensors`, then `config.json` with the weights' SHA-256; each file whole or not at all."""
    return save_weights(model.config, model.state_dict(), folder)


def save_weights(config: ModelConfig, weights: Mapping[str, Tensor | Lazy], folder: str | Path) -> Path:
    """`save` for weights that no model holds; a Lazy one is made when its turn comes."""
    folder = Path(folder)
    sha256 = write_safetensors(folder / WEIGHTS_FILE, weights)
    write_atomically(folder / CONFIG_FILE, _facts(config, sha256))
    return folder


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
    model = empty_model(found)
    path = folder / WEIGHTS_FILE
    try:
        intact = read_into(path, model.state_dict()) == expected_hash
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no checkpoint here ({WEIGHTS_FILE} is missing)") from None
    except CheckpointError:
        intact = False
    if not intact:
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
        with path.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == (sha256 or own)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no checkpoint here ({WEIGHTS_FILE} is missing)") from None
    if not intact:
        raise CheckpointError(f"{path}: SHA-256 differs from {CONFIG_FILE}: truncated or altered")
    weights = map_safetensors(path)
    check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, shapes_of(config), folder)
    return config, weights


def adopt(source: Path, folder: Path, config: ModelConfig, sha256: str, say: Callable[[str], None] = print) -> int:
    """Make `folder` a model folder with the weights of another one: a hard link where the disk allows it, else a copy.

    Args:
        config: of the new folder; length and rotary settings may differ from the source's.
        sha256: of the weights, which are read once to be sure of it.

    Returns:
        The number of parameters.

    Raises:
        CheckpointError: no weights there, or not the ones that were asked for.
    """
    path, target = source / WEIGHTS_FILE, folder / WEIGHTS_FILE
    if from_hub := is_hub_folder(source):
        from ratplus.foreign import map_hub  # which needs this module

        found, weights = map_hub(source)
    else:
        found, _ = map_weights(source, sha256)
    there, here = asdict(found), asdict(config)
    changed = [f"{k}={here[k]} instead of {there[k]}" for k in here if k != "max_len" and here[k] != there[k]]
    if changed:
        say(f"model.init_from={source}: used with {', '.join(changed)}")
    folder.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if from_hub:
        if write_safetensors(target, weights) != sha256:
            target.unlink()
            raise CheckpointError(f"{source}: the weights have changed since this cell's id was made; start again")
    else:
        _link_or_copy(path, target)
    write_atomically(folder / CONFIG_FILE, _facts(config, sha256))
    return parameters(config)


def _link_or_copy(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another disk, or one without links
        with path.open("rb") as whole, new_file(target) as copy:
            shutil.copyfileobj(whole, copy, 16 << 20)


def _facts(config: ModelConfig, sha256: str) -> str:
    return json.dumps({"format": FORMAT, "model": asdict(config), "sha256": sha256}, indent=1) + "\n"


def check_same_shape(found: ModelConfig, wanted: ModelConfig, where) -> None:
    """Raise CheckpointError naming every field in which a checkpoint differs from what is asked for."""
    a, b = asdict(found), asdict(wanted)
    differing = [f"{name}={a[name]} there, {b[name]} asked for" for name in a if a[name] != b[name]]
    if differing:
        raise CheckpointError(f"{where}: checkpoint of another architecture ({'; '.join(differing)})")
