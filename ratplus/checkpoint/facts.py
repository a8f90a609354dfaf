"""What the config.json of a model folder says, of ours or in the hub's style. Torch-free, since it decides ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ratplus.checkpoint.hub_config import MODEL_TYPE, SHA256, SPARSE_PATTERN, config_of
from ratplus.config.model import ModelConfig
from ratplus.pattern import PatternMap, is_whole
from ratplus.records.reading import read_json
from ratplus.records.record import RECORD_FILE, RecordError, read_record
from ratplus.records.stand_ins import stand_in_file

FORMAT = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# Keys of a model folder's config.json beside its shape: the default pattern, the kind of model that was imported, and
# what its tokenizer is (`facts` of a tokenizer).
PATTERN, FAMILY, TOKENIZER = "pattern", "family", "tokenizer"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another architecture."""


def refuse_stand_in(path: Path) -> None:
    """Raise CheckpointError for a file that only stands for weights, such as a pointer of Git LFS."""
    if what := stand_in_file(path):
        raise CheckpointError(f"{path}: this is {what}")


def read_facts(folder: Path) -> tuple[ModelConfig, str]:
    """(shape, SHA-256 of the weights) of a model folder; a stage's must be the weights that its record tells of.

    Raises:
        CheckpointError: no model folder, a damaged one, or a stage's whose weights somebody replaced.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        stored = read_json(path)
        if not isinstance(stored, dict):
            raise ValueError("not a JSON object")
        if "model" not in stored and "model_type" in stored:
            raise CheckpointError(
                f"{folder}: is a Hugging Face folder (model_type {stored['model_type']!r}), no model folder; make one "
                f"with: ratplus import {folder} NEW_FOLDER"
            )
        if stored.get("format", FORMAT) != FORMAT:
            raise CheckpointError(f"{path}: format {stored['format']!r}; this version reads format {FORMAT}")
        config, sha256 = ModelConfig(**stored["model"]), stored["sha256"]
    except CheckpointError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{folder}: no checkpoint here ({CONFIG_FILE} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); restore it or train again") from None
    if sha256 != (_recorded(Path(folder)) or sha256):
        raise CheckpointError(
            f"{folder}: {WEIGHTS_FILE} and {CONFIG_FILE} are not those that this stage trained: its {RECORD_FILE} "
            "tells of weights with another SHA-256"
        )
    return config, sha256


def default_patterns(folder: Path) -> PatternMap | None:
    """What the heads of a model folder's model see where nobody asks for another pattern; None: everything.

    That is what it was imported or, for a stage, trained with.

    Raises:
        CheckpointError: no model folder, or a damaged one.
    """
    config, _ = read_facts(folder)
    path = Path(folder) / CONFIG_FILE
    try:
        stored = read_json(path).get(PATTERN, _record(Path(folder), "config", {}).get("pattern"))
        return None if stored is None else PatternMap.from_dict(stored, config.layers, config.heads)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); restore it or import it again") from None


def default_of(start: Path) -> PatternMap | None:
    """`default_patterns` of what `model.init_from` may name: a model folder, or one in the hub's style."""
    if not is_hub_folder(start):
        return default_patterns(start)
    config, _ = read_hub_facts(start)
    label = read_json(Path(start) / CONFIG_FILE).get(SPARSE_PATTERN)
    try:
        return None if label is None else PatternMap.from_label(label, config.layers, config.heads)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{Path(start) / CONFIG_FILE}: {SPARSE_PATTERN}: {error}") from None


def family_of(folder: Path) -> str | None:
    """The kind of model that a model folder was imported from (`llama`, `qwen3`); None for those of our own kinds."""
    try:
        return read_json(Path(folder) / CONFIG_FILE).get(FAMILY)
    except (OSError, ValueError, AttributeError):
        return None


def tokenizer_facts(folder: Path) -> dict | None:
    """What a model folder's config.json says of its tokenizer (`Tokenizer.facts`); None: nothing beside its files.

    Raises:
        CheckpointError: it says so in another form.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        facts = read_json(path).get(TOKENIZER)
    except (OSError, ValueError, AttributeError):
        return None
    return None if facts is None else checked_facts(facts, path)


def checked_facts(facts: object, where: Path) -> dict:
    """Facts of a tokenizer that somebody may have written: CheckpointError for another form."""
    fits = isinstance(facts, dict) and all(isinstance(facts.get(key, ""), str) for key in ("name", "file", "sha256"))
    if not fits or not all(facts.get(key) is None or is_whole(facts[key]) for key in ("eos_id", "bos_id")):
        raise CheckpointError(f"{where}: damaged (what it says of a tokenizer); restore it, or give tokenizer=")
    return facts


def _recorded(folder: Path) -> str | None:
    """SHA-256 of the weights in the record of a done stage; None without a record, or one of before the key."""
    return _record(folder, "weights_sha256", None)


def _record(folder: Path, key: str, otherwise: Any) -> Any:
    """A key of the record of a done stage."""
    try:
        record = read_record(folder)
    except RecordError:  # a stage with such a record is done again before anything reads its weights
        return otherwise
    return record.get(key, otherwise) if record is not None and record["status"] == "done" else otherwise


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder is one in the style of the Hugging Face hub, such as `ratplus export --format hf` writes."""
    try:
        words = read_json(Path(folder) / CONFIG_FILE)
    except (OSError, ValueError):
        return False
    return isinstance(words, dict) and words.get("model_type") == MODEL_TYPE


def read_hub_facts(folder: Path) -> tuple[ModelConfig, str | None]:
    """(shape, SHA-256 of the weights if it is told) of a folder in the hub's style.

    Raises:
        CheckpointError: no such folder, a damaged one, or a model of another kind.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        words = read_json(path)
        if words.get("model_type") != MODEL_TYPE:
            raise CheckpointError(f"{path}: model_type is {words.get('model_type')!r}, not {MODEL_TYPE!r}")
        return config_of(words), words.get(SHA256)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no model here ({CONFIG_FILE} is missing)") from None
    except (OSError, ValueError, ArithmeticError, KeyError, TypeError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: damaged ({what})") from None


def read_start(folder: Path) -> tuple[ModelConfig, str]:
    """`read_facts` of what `model.init_from` may name: a model folder, or one in the hub's style.

    Raises:
        CheckpointError: neither, a damaged one, or one in the hub's style that does not tell its weights' hash.
    """
    if not is_hub_folder(folder):
        return read_facts(folder)
    config, sha256 = read_hub_facts(folder)
    if sha256 is None:
        raise CheckpointError(
            f"{Path(folder) / CONFIG_FILE}: has no {SHA256}; turn it into a model folder: "
            f"ratplus import {folder} NEW_FOLDER, and name that"
        )
    return config, sha256
