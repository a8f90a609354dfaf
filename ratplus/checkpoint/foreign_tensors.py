"""Safetensors files that others wrote, read with the format's own library: it refuses all that the format forbids."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ratplus.checkpoint.facts import CheckpointError, refuse_stand_in


def map_foreign(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory: read when used.

    Raises:
        CheckpointError: damaged, truncated, or no safetensors file.
        FileNotFoundError: no such file.
    """
    if not path.exists():
        raise FileNotFoundError(2, "no such file", str(path))
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict: it has no iterator)
    except (SafetensorError, OSError) as error:
        refuse_stand_in(path)
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None
