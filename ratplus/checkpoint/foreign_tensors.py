"""Safetensors files that others wrote, read with the format's own library: it refuses all that the format forbids."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ratplus.checkpoint.facts import CheckpointError, refuse_stand_in
from ratplus.checkpoint.tensor_file import header_length
from ratplus.records.lines import first_line
from ratplus.records.reading import open_plain

# What the library raises, and we, for what is no such file.
_ODD = (SafetensorError, OSError, ValueError, TypeError, RuntimeError, struct.error)


def map_foreign(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory: read when used.

    Raises:
        CheckpointError: damaged, truncated, or no safetensors file.
        FileNotFoundError: no such file.
    """
    try:
        with open_plain(path) as file:
            header_length(file.read(8), os.fstat(file.fileno()).st_size)
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict: it has no iterator)
    except FileNotFoundError:
        raise FileNotFoundError(2, "no such file", str(path)) from None
    except _ODD as error:
        refuse_stand_in(path)
        raise CheckpointError(f"{path}: not a whole safetensors file ({first_line(error)})") from None


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, which is read when `read` is called, and is then held by whoever called.

    Attributes:
        dtype: as the file names it, such as F32 or BF16.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


def list_foreign(path: Path) -> dict[str, Stored]:
    """The tensors of a file, none of them read: a file of many gigabytes takes no memory.

    Raises:
        CheckpointError: damaged, truncated, or no safetensors file.
        FileNotFoundError: no such file.
    """

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            # Opened anew for each tensor: what a file has mapped stays in memory for as long as it is open.
            with safe_open(path, "pt") as file:
                return file.get_tensor(name)

        return read

    try:
        with open_plain(path) as plain:
            header_length(plain.read(8), os.fstat(plain.fileno()).st_size)
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict: it has no iterator)
            return {
                name: Stored(tuple(part.get_shape()), part.get_dtype(), reader(name)) for name, part in parts.items()
            }
    except FileNotFoundError:
        raise FileNotFoundError(2, "no such file", str(path)) from None
    except _ODD as error:
        refuse_stand_in(path)
        raise CheckpointError(f"{path}: not a whole safetensors file ({first_line(error)})") from None
