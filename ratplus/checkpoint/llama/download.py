"""A model of the Hugging Face hub, by its name: downloaded through the hub's own library, into its cache."""

from __future__ import annotations

import re
from pathlib import Path

from ratplus.checkpoint.facts import CheckpointError
from ratplus.records.lines import first_line

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FILES = (".pt", ".pth", ".bin", ".safetensors", ".gguf", ".ckpt")
# All that an import reads: no pickles, no weights of other frameworks.
_WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]


def is_hub_name(source: str) -> bool:
    """Whether a word names a model of the hub (owner/name) rather than a file or folder of this machine."""
    return not Path(source).exists() and bool(_NAME.fullmatch(source)) and not source.lower().endswith(_FILES)


def download_model(name: str, revision: str | None = None) -> Path:
    """The folder of a downloaded model.

    Args:
        name: owner/name.
        revision: branch, tag or commit; None is the hub's default branch.

    Raises:
        CheckpointError: no such model, no way to the hub, or its library is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(
            f"{name}: no such file or folder here; a model of the Hugging Face hub needs the extra: "
            "pip install 'ratplus[hub]'"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_WANTED))
    except Exception as error:  # its own, those of its transport, and those of the disk
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(
            f"{name}: no such folder here, and the Hugging Face hub has no such model{at} for us "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None
