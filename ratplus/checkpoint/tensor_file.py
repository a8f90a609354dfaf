"""Files of many tensors, one tensor at a time in memory: safetensors written, read and mapped.

The format's own library has no writer that takes one tensor after the other, and no reader that finds the file's hash
in the pass that reads the weights, so the few lines that know the format are here; tests hold both ways against it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ratplus.checkpoint.facts import CheckpointError, refuse_stand_in
from ratplus.pattern import is_whole
from ratplus.records.atomic import new_file
from ratplus.records.lines import first_line
from ratplus.records.reading import open_plain, parse_json

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
# Of a hundred thousand tensors. The format's own library allows 100 MB, of which a reader makes gigabytes of objects.
LONGEST_HEADER = 16 << 20


@dataclass(frozen=True)
class Lazy:
    """A tensor that is made only when it is written; nothing else may hold it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def write_safetensors(path: Path, tensors: Mapping[str, Tensor | Lazy], metadata: dict[str, str] | None = None) -> str:
    """Write a safetensors file, whole or not at all; returns its SHA-256.

    The bytes are those of `safetensors.torch.save`: bigger dtypes first, then by name.
    """
    digest = hashlib.sha256()
    with new_file(path) as file:
        for part in _parts(tensors, metadata):
            file.write(part)
            digest.update(part)
            del part  # before the next one is made
    return digest.hexdigest()


def sha256_of(tensors: Mapping[str, Tensor | Lazy]) -> str:
    """SHA-256 that `write_safetensors` would return, without a file."""
    digest = hashlib.sha256()
    for part in _parts(tensors):
        digest.update(part)
        del part
    return digest.hexdigest()


def _parts(tensors: Mapping[str, Tensor | Lazy], metadata: dict[str, str] | None = None) -> Iterator:
    """The bytes of a file, a tensor at a time."""
    names = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, _NAMES[tensors[n].dtype], n))
    header: dict[str, dict] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + size_of(tensors[name])
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _NAMES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text))
    yield text
    for name in names:
        yield _bytes_of(tensors[name], name)


def size_of(tensor: Tensor | Lazy) -> int:
    """Bytes of a tensor's numbers."""
    return tensor.dtype.itemsize * math.prod(tensor.shape)


def _bytes_of(tensor: Tensor | Lazy, name: str) -> memoryview:
    wanted = tuple(tensor.shape), tensor.dtype
    if isinstance(tensor, Lazy):
        tensor = tensor.make()
    assert (tuple(tensor.shape), tensor.dtype) == wanted, name
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


@dataclass(frozen=True)
class _Place:
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # in the file
    bytes: int


def _read_header(path: Path) -> tuple[dict[str, _Place], bytes]:
    """Where each tensor lies, in the file's order; and the bytes before the first of them.

    Raises:
        CheckpointError: no safetensors file, or tensors of other than floating-point numbers.
    """
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            begin = file.read(8)
            length = header_length(begin, size)
            text = file.read(length)
        header = parse_json(text)
        header.pop("__metadata__", None)
        places: dict[str, _Place] = {}
        before = 8 + length
        for name, facts in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            shape, offsets = tuple(facts["shape"]), tuple(facts["data_offsets"])
            if not all(is_whole(number) and number >= 0 for number in (*shape, *offsets)):
                raise ValueError(f"{name}: shape and offsets are no counts")
            start, end = (8 + length + offset for offset in offsets)
            place = _Place(_DTYPES[facts["dtype"]], shape, start, end - start)
            if place.bytes != place.dtype.itemsize * math.prod(shape):
                raise ValueError(f"{name} has {place.bytes} bytes")
            if start != before:
                raise ValueError(f"before {name} there is a gap, or bytes that another tensor has too")
            if end > size:
                raise ValueError(f"ends within {name}: truncated")
            places[name], before = place, end
        if before != size:  # which would be read for its hash, were it terabytes
            raise ValueError(f"{size - before:,} bytes after its last tensor")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        refuse_stand_in(path)
        raise CheckpointError(f"{path}: not a whole safetensors file ({first_line(error)})") from None
    return places, begin + text


def header_length(begin: bytes, size: int) -> int:
    """Bytes of the header of a file of `size` bytes, from the file's first eight.

    Raises:
        ValueError, struct.error: it has fewer bytes, or a header that is longer than the file or than LONGEST_HEADER.
    """
    (length,) = struct.unpack("<Q", begin)
    if length > size - 8:
        raise ValueError("header longer than the file")
    if length > LONGEST_HEADER:
        raise ValueError(f"a header of more than {LONGEST_HEADER >> 20} MiB")
    return length


def check_amount(path: Path, numbers: int) -> None:
    """Refuse a file that holds fewer numbers than a model needs, before such a model is made.

    Raises:
        CheckpointError: also where it is damaged.
    """
    held = sum(math.prod(place.shape) for place in _read_header(path)[0].values())
    if held < numbers:
        raise CheckpointError(f"{path}: holds {held:,} numbers, but a model of this shape has {numbers:,}")


def read_into(path: Path, targets: dict[str, Tensor]) -> str:
    """Fill float tensors on the CPU from a safetensors file of the same names and shapes, in one pass.

    Returns:
        SHA-256 of the file.

    Raises:
        CheckpointError: damaged or truncated, or other names or shapes.
    """
    places, before = _read_header(path)
    check_shapes({n: p.shape for n, p in places.items()}, {n: tuple(t.shape) for n, t in targets.items()}, path)
    digest = hashlib.sha256(before)
    with path.open("rb") as file, torch.no_grad():
        file.seek(len(before))
        for name, place in places.items():
            target = targets[name]
            # The bytes go straight to where they belong, so that a model needs its own size and no more.
            direct = target.dtype == place.dtype and target.is_contiguous()
            buffer = target.detach() if direct else torch.empty(place.shape, dtype=place.dtype)
            view = memoryview(buffer.reshape(-1).view(torch.uint8).numpy())
            if file.readinto(view) != place.bytes:
                raise CheckpointError(f"{path}: ends within {name}: truncated")
            digest.update(view)
            if not direct:
                target.copy_(buffer)
        while more := file.read(1 << 20):
            digest.update(more)
    return digest.hexdigest()


def map_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory: read when used, and changes stay in this process.

    Raises:
        CheckpointError: damaged or truncated.
    """
    places, _ = _read_header(path)
    data = np.memmap(path, dtype=np.uint8, mode="c")
    tensors = {}
    for name, place in places.items():
        piece = np.asarray(data[place.start : place.start + place.bytes])
        tensors[name] = torch.from_numpy(piece).view(place.dtype).view(place.shape)
    return tensors


def check_shapes(found: dict[str, tuple], wanted: dict[str, tuple], where) -> None:
    """Raise CheckpointError naming a tensor that is missing, unknown, or of another shape."""
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(f"{where}: no weights for {name}")
        if tuple(found[name]) != tuple(shape):
            raise CheckpointError(f"{where}: {name} has shape {list(found[name])}, needs {list(shape)}")
    unknown = sorted(found.keys() - wanted.keys())
    if unknown:
        raise CheckpointError(f"{where}: unknown weights {', '.join(unknown[:4])}")
