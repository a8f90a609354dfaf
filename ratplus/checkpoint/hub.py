"""Model folders in the style of the Hugging Face hub, both ways."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ratplus.checkpoint.facts import (
    CONFIG_FILE,
    TOKENIZER,
    CheckpointError,
    default_patterns,
    family_of,
    is_hub_folder,
    read_facts,
    read_hub_facts,
    tokenizer_facts,
)
from ratplus.checkpoint.folder import check_numbers_of, map_weights, shapes_of
from ratplus.checkpoint.hub_config import SHA256, SPARSE_PATTERN, words_of
from ratplus.checkpoint.llama.export import family_for, tensors_for, words_for
from ratplus.checkpoint.llama.tokenizer_export import files_for_others, token_words
from ratplus.checkpoint.official import check_numbers
from ratplus.checkpoint.shards import SHARD_BYTES, map_shards, write_shards
from ratplus.checkpoint.targets import check_free, check_target, is_model_folder
from ratplus.checkpoint.tensor_file import Lazy, check_shapes, sha256_of
from ratplus.checkpoint.tokenizer_files import tokenizer_files, write_tokenizer_files
from ratplus.config.model import ModelConfig
from ratplus.pattern import PatternMap
from ratplus.records.atomic import write_atomically

MODELLING_FILE = "modeling_ratplus.py"
_MODELLING = Path(__file__).parents[1] / "hf" / MODELLING_FILE
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        model: the class of transformers that loads it.
        own: whether that class is not one of transformers' but lies beside the weights.
        patterns: what its heads see; None: everything.
        notes: what whoever uses it should know, a line each.
    """

    config: ModelConfig
    model: str
    own: bool
    patterns: PatternMap | None
    notes: list[str]


def export_hf(
    folder: str | Path,
    target: str | Path,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
    pattern: str | None = None,
    dtype: str = "float32",
) -> Exported:
    """Write a model folder as one that transformers loads: weights, in shards if they are large, config, tokenizer.

    A model that one of transformers' own classes computes (Llama, Mistral, Qwen2, Qwen3) becomes one of those; any
    other keeps our names, and the file that models it in transformers lies beside it.

    Args:
        shard_bytes: most bytes of weights in a file.
        force: replace another model that lies there; without it, only an earlier export is replaced.
        pattern: label of what its heads see; None takes that of the folder.
        dtype: of the weights that are written: float32 loses nothing.

    Raises:
        CheckpointError: no model folder; `target` is one already, holds another model, or is a stage's folder; a
            pattern or a mixer that the file for transformers does not have.
    """
    folder, target = Path(folder), Path(target)
    check_target(target, folder)
    config, weights = map_weights(folder)
    if not config.attends:
        raise CheckpointError(
            f"{folder}: model.mixer={config.mixer} has no class in the file for transformers, which knows attention "
            "alone; copy the model folder, and load it with ratplus.load"
        )
    _, sha256 = read_facts(folder)
    patterns = _pattern_for(folder, config, pattern)
    again = _check_place(target, force)
    facts = tokenizer_facts(folder)
    files, notes = files_for_others(tokenizer_files(folder), facts)
    if not again:
        # What an export that was killed left is as it would be written again.
        check_free(target, [name for name, data in files.items() if _differs(target / name, data)], "another model")
    family = family_for(config, patterns, family_of(folder))
    tensors: dict[str, Lazy] | dict[str, Tensor] = weights
    if family is not None:
        tensors = tensors_for(weights, config, DTYPES[dtype])
        words = words_for(config, family, patterns, dtype)
    else:
        if dtype != "float32":
            tensors = {name: _as(tensor, DTYPES[dtype]) for name, tensor in weights.items()}
            sha256 = sha256_of(tensors)
        words = words_of(config, sha256) | {"torch_dtype": dtype}
        if patterns is not None:
            words[SPARSE_PATTERN] = patterns.label
        if facts is not None:
            words[TOKENIZER] = facts
    words |= token_words(files)
    # An earlier export's config.json goes first: beside half-written new weights it would make the folder look whole.
    (target / CONFIG_FILE).unlink(missing_ok=True)
    write_shards(target, tensors, shard_bytes, replace=again)
    write_tokenizer_files(files, target)
    if family is None:
        write_atomically(target / MODELLING_FILE, _MODELLING.read_bytes())
    else:
        (target / MODELLING_FILE).unlink(missing_ok=True)
    write_atomically(target / CONFIG_FILE, json.dumps(words, indent=2, sort_keys=True) + "\n")
    return Exported(config, words["architectures"][0], family is None, patterns, notes)


def _differs(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() != data
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _as(tensor: Tensor, dtype: torch.dtype) -> Lazy:
    return Lazy(tuple(tensor.shape), dtype, lambda: tensor.to(dtype))


def _pattern_for(folder: Path, config: ModelConfig, label: str | None) -> PatternMap | None:
    """What the exported model's heads see; None: everything."""
    if label is None:
        patterns = default_patterns(folder)
    else:
        try:
            patterns = PatternMap.from_label(label, config.layers, config.heads)
            patterns.per_kv_head(config.kv_heads)  # what no model of ours may be run under
        except ValueError as error:
            raise CheckpointError(f"--pattern: {error}") from None
    if patterns is None or all(p.dense for row in patterns for p in row):
        return None
    if selects := next((p for row in patterns for p in row if p.data_dependent), None):
        raise CheckpointError(
            f"{folder}: its pattern is {selects.label}, which selects keys by the query; in transformers there are "
            "dilation, window and sinks alone: name another with --pattern (D1 is dense)"
        )
    return patterns


def _check_place(target: Path, force: bool) -> bool:
    """Whether what lies at the target may be replaced. Raises CheckpointError if something lies there that may not."""
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
    return again


def _is_export(folder: Path) -> bool:
    """Whether a folder is an export that nobody has changed on purpose, which takes out the hash of the weights."""
    try:
        return is_hub_folder(folder) and read_hub_facts(folder)[1] is not None
    except CheckpointError:
        return False


def map_hub(folder: Path, expected: str | None = None) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and weights of a Hugging Face-style folder; the weights are read once for their hash, then mapped.

    Args:
        expected: SHA-256 that they must have; None takes what the folder says of itself, if it does.

    Raises:
        CheckpointError: no such folder, not whole, or other weights than it says or than are expected.
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
    found = None if sha256 is None and expected is None else sha256_of(weights)
    if sha256 is not None and found != sha256:
        raise CheckpointError(
            f"{folder}: the weights are not those that {CONFIG_FILE} was written for; if you changed them on purpose, "
            f"remove {SHA256} from it"
        )
    if expected is not None and found != expected:
        raise CheckpointError(f"{folder}: the weights have changed since this cell's id was made; start again")
    return config, weights
