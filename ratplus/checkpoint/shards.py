"""Weights in several safetensors files, as the Hugging Face hub has them: shards and an index of which holds what."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ratplus.checkpoint.facts import WEIGHTS_FILE, CheckpointError
from ratplus.checkpoint.foreign_tensors import Stored, list_foreign, map_foreign
from ratplus.checkpoint.tensor_file import Lazy, size_of, write_safetensors
from ratplus.records.atomic import write_atomically
from ratplus.records.reading import read_json

INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # the hub's own limit

_METADATA = {"format": "pt"}
_T = TypeVar("_T")


def write_shards(folder: Path, tensors: Mapping[str, Tensor | Lazy], most_bytes: int, replace: bool) -> list[Path]:
    """Write `model.safetensors`, or if that had more than `most_bytes`, shards of at most so many and their index.

    A tensor at a time is in memory. One that is larger than a shard has a shard of its own.

    Args:
        replace: remove weights of another split that lie there from before; else they are refused.

    Returns:
        The files of weights, in order.

    Raises:
        CheckpointError: weights of another split lie there; nothing has been written.
    """
    parts = _split(tensors, most_bytes)
    names = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    paths = [folder / name for name in (names if len(parts) > 1 else [WEIGHTS_FILE])]
    written = {*paths, folder / INDEX_FILE} if len(parts) > 1 else set(paths)
    there = {folder / WEIGHTS_FILE, folder / INDEX_FILE, *folder.glob("model-*-of-*.safetensors")} - written
    stale = sorted(path for path in there if path.exists())
    if stale and not replace:
        raise CheckpointError(f"{folder}: holds other weights already ({stale[0].name}); remove them or choose another")
    for path, part in zip(paths, parts):
        write_safetensors(path, {name: tensors[name] for name in part}, _METADATA)
    for path in stale:
        path.unlink()
    if len(parts) > 1:
        holds = {name: path.name for path, part in zip(paths, parts) for name in part}
        total = sum(map(size_of, tensors.values()))
        index = {"metadata": {"total_size": total}, "weight_map": holds}
        write_atomically(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    return paths


def _split(tensors: Mapping[str, Tensor | Lazy], most_bytes: int) -> list[list[str]]:
    """Names of each shard's tensors, in the order in which they come."""
    parts, room = [[]], most_bytes
    for name, tensor in tensors.items():
        if size_of(tensor) > room and parts[-1]:
            parts.append([])
            room = most_bytes
        parts[-1].append(name)
        room -= size_of(tensor)
    return parts


def map_shards(folder: Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors` or of all shards that the index names, mapped: read when used.

    Raises:
        CheckpointError: an index that is damaged or does not fit its shards, a shard that is missing or damaged, or
            weights in both forms.
        FileNotFoundError: weights in neither form.
    """
    return _of_shards(folder, map_foreign)


def list_shards(folder: Path) -> dict[str, Stored]:
    """Like `map_shards`, but no tensor takes memory before it is read; errors as of `map_shards`."""
    return _of_shards(folder, list_foreign)


def _of_shards(folder: Path, look: Callable[[Path], dict[str, _T]]) -> dict[str, _T]:
    path = folder / INDEX_FILE
    if not path.exists():
        return look(folder / WEIGHTS_FILE)
    if (folder / WEIGHTS_FILE).exists():
        raise CheckpointError(f"{folder}: holds {WEIGHTS_FILE} and {INDEX_FILE}; remove the one that is out of date")
    holds = _read_index(path)
    tensors: dict[str, _T] = {}
    for shard in sorted(set(holds.values())):
        own = [name for name, where in holds.items() if where == shard]
        try:
            found = look(folder / shard)
        except FileNotFoundError:
            what = f"{own[0]} and {len(own) - 1} more" if len(own) > 1 else own[0]
            raise CheckpointError(f"{folder}: {shard} is missing, which by {INDEX_FILE} holds {what}") from None
        for name in own:
            if name not in found:
                raise CheckpointError(f"{path}: says that {shard} holds {name}, which it does not")
        if strangers := sorted(found.keys() - set(own)):
            raise CheckpointError(f"{path}: does not say that {shard} holds {strangers[0]}, which it does")
        tensors |= found
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    """{tensor: name of the file that holds it}."""
    try:
        holds = read_json(path)["weight_map"]
        for name, shard in holds.items():
            # A file beside the index, nowhere else.
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise ValueError(f"{name} in {shard!r}, which is no name of a safetensors file")
        if not holds:
            raise ValueError("it names no tensor")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"lacks the key {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: damaged ({what})") from None
    return holds
