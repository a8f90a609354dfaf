"""The files of a tokenizer that travel with a model folder, as they are. Torch-free, and without its library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ratplus.checkpoint.facts import CheckpointError
from ratplus.records.atomic import write_atomically
from ratplus.records.reading import parse_json, read_bytes

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
# What transformers writes beside a model. chat_template.jinja is kept, and rendered by whoever asks for it.
NAMES = (
    TOKENIZER_FILE, SENTENCEPIECE_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The tokenizer's files of a folder, by name; none where it has none.

    Raises:
        CheckpointError: one that cannot be read.
    """
    files = {}
    for name in NAMES:
        try:
            files[name] = read_bytes(folder / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read ({error.strerror})") from None
        except ValueError as error:  # a pipe, or gigabytes
            raise CheckpointError(f"{folder / name}: cannot be read ({error})") from None
    return files


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer.json."""
    return (folder / TOKENIZER_FILE).is_file()


def id_count(files: Mapping[str, bytes], where: Path) -> int | None:
    """Ids of a tokenizer.json, the last one plus one; None without such a file.

    Raises:
        CheckpointError: a damaged file.
    """
    if TOKENIZER_FILE not in files:
        return None
    try:
        return max(_ids(parse_json(files[TOKENIZER_FILE])), default=-1) + 1
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where / TOKENIZER_FILE}: not a tokenizer.json ({type(error).__name__})") from None


def check_ids(files: Mapping[str, bytes], rows: int, where: Path) -> None:
    """Refuse a tokenizer whose ids the embedding has no rows for. More rows than ids are usual: they pad.

    Raises:
        CheckpointError: such a tokenizer, or a tokenizer.json that is damaged.
    """
    ids = id_count(files, where)
    if ids is not None and ids > rows:
        raise CheckpointError(
            f"{where / TOKENIZER_FILE}: has an id {ids - 1}, but the embedding only {rows} rows (vocab_size); it is "
            "the tokenizer of another model, or tokens were added without resizing the embedding"
        )


def _ids(tokenizer: dict) -> list[int]:
    vocabulary = tokenizer["model"]["vocab"]
    ids = [int(i) for i in vocabulary.values()] if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    return ids + [int(token["id"]) for token in tokenizer.get("added_tokens") or []]


def begins_texts(files: Mapping[str, bytes]) -> bool:
    """Whether a tokenizer.json itself puts a token before every text, as those of Llama and Mistral do."""
    try:
        after = parse_json(files[TOKENIZER_FILE]).get("post_processor") or {}
        return any(
            step.get("type") == "TemplateProcessing" and "SpecialToken" in step["single"][0]
            for step in (after, *after.get("processors", []))
        )
    except (KeyError, IndexError, ValueError, TypeError, AttributeError):
        return False


def write_tokenizer_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Put a tokenizer's files beside a model, and take away those of a model that lay there before."""
    for name in NAMES:
        if name in files:
            write_atomically(folder / name, files[name])
        else:
            (folder / name).unlink(missing_ok=True)
