"""Files of tensors that somebody else wrote: what they claim is held against what they hold, before anything is made.

A file of kilobytes can tell of terabytes: a tensor whose steps between numbers are 0, a record that is packed, a shape
whose product leaves 64 bits. Whoever turns such a tensor into another dtype, or makes a model of that shape, runs out
of memory.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ratplus.checkpoint.facts import CheckpointError

# What stands beside the numbers in a file of torch's: names and shapes. A hundred thousand tensors have 20 MB.
_LONGEST_PICKLE = 64 << 20
_MOST_RECORDS = 20_000  # one for each tensor; torch takes a millisecond to open one
# Torch's reader of weights alone lets this through, and it makes any number of bytes of a few.
_MAKES_BYTES = b"\nbytearray\n"


def check_plain(path: str | Path) -> None:
    """Refuse what is no plain file, such as a pipe, which would hold its reader for ever; links are followed.

    Raises:
        FileNotFoundError, OSError: as `os.stat` does.
        CheckpointError: a folder, pipe, socket or device.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise CheckpointError(f"{path}: is not a plain file")


def check_unpacked(path: str | Path) -> None:
    """Refuse a file of torch's whose records are packed or overlap: `torch.save` writes neither.

    Of files of before torch 1.6, which are no archives, only what makes memory of nothing is looked for.

    Raises:
        CheckpointError: one line that names the file.
    """
    records = []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                records = archive.infolist()
                names = [r for r in records if r.filename.endswith("data.pkl") and r.file_size <= _LONGEST_PICKLE]
                pickles = [archive.read(r) for r in names if r.compress_type == zipfile.ZIP_STORED]
        else:
            with open(path, "rb") as file:
                pickles = [file.read(min(_LONGEST_PICKLE, os.fstat(file.fileno()).st_size))]
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path}: not a whole archive ({type(error).__name__})") from None
    if any(_MAKES_BYTES in content for content in pickles):
        raise CheckpointError(f"{path}: beside weights it holds a bytearray; save its weights alone")
    if len(records) > _MOST_RECORDS:
        raise CheckpointError(f"{path}: more than {_MOST_RECORDS:,} tensors")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(f"{path}: its records are compressed, which torch.save does not do; save it again")
    if sum(record.file_size for record in records) > os.stat(path).st_size:
        raise CheckpointError(f"{path}: its records are longer than the file")
    if any(r.filename.endswith("data.pkl") and r.file_size > _LONGEST_PICKLE for r in records):
        raise CheckpointError(f"{path}: more than {_LONGEST_PICKLE >> 20} MiB of names and shapes")


def check_claims(tensors: Iterable[Tensor], where: str | Path) -> None:
    """Refuse tensors that claim more numbers than their storages hold, twice over (tied weights are there twice).

    Tensors without values (device meta) pass.

    Raises:
        CheckpointError: also for sparse and other tensors that are no plain array.
    """
    claimed, held = 0, {}
    for tensor in tensors:
        if tensor.is_meta:
            continue
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(f"{where}: holds a tensor that is no plain array ({tensor.layout})")
        storage = tensor.untyped_storage()
        claimed += tensor.numel() * tensor.element_size()
        held[storage.data_ptr()] = storage.nbytes()
    if claimed > 2 * sum(held.values()):
        raise CheckpointError(
            f"{where}: its tensors claim {claimed:,} bytes, but it holds {sum(held.values()):,}: not a whole checkpoint"
        )
