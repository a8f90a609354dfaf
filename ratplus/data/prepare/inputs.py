"""Input files of a corpus: local ones, or those of a data set on the Hugging Face hub, which are read as a stream."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ratplus.config.data import DataSection
from ratplus.data.corpus import CorpusError
from ratplus.records.lines import first_line
from ratplus.records.stand_ins import format_of, head_of, stand_in, wide_encoding

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", *TEXT_SUFFIXES)
_PACKED = (".gz", ".zst")
_SUFFIX_OF = {"gzip": ".gz", "zstd": ".zst"}


@dataclass(frozen=True)
class Input:
    """One input file.

    Args:
        name: path within the source, which says its kind too.
        path: where it is opened.
        bytes: its size.
        version: of a hub file, what the hub knows its content by; None for a local one.
        endpoint: of a hub file, the hub.
    """

    name: str
    path: str
    bytes: int
    version: str | None = None
    endpoint: str | None = None

    @property
    def kind(self) -> str:
        """`parquet`, `jsonl` or `text`."""
        suffix = Path(self._unpacked).suffix.lower()
        return "text" if suffix in TEXT_SUFFIXES else "parquet" if suffix == ".parquet" else "jsonl"

    @property
    def packed(self) -> str | None:
        """`.gz`, `.zst`, or None."""
        return next((p for p in _PACKED if self.name.lower().endswith(p)), None)

    @property
    def _unpacked(self) -> str:
        return self.name[: -len(self.packed)] if self.packed else self.name

    @property
    def text_bytes(self) -> int:
        """About how much text it holds; only for the look at the disk."""
        return self.bytes * (4 if self.packed else 2 if self.kind == "parquet" else 1)

    def open(self) -> BinaryIO:
        if self.endpoint is not None:
            return _hub(self.endpoint).open(self.path, "rb", block_size=8 << 20)
        return open(self.path, "rb")

    def stamp(self) -> list:
        """What changes with the file at the latest: cheap to look at."""
        if self.version is not None:
            return [self.bytes, self.version]
        stat = os.stat(self.path)
        return [stat.st_size, stat.st_mtime_ns]

    def sha256(self) -> str:
        """Hash of the content; of a hub file, of the version that the hub names."""
        if self.version is not None:
            return self.version
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def is_known(name: str) -> bool:
    """Whether a file of this name is of a kind that can be read."""
    lower = name.lower()
    for packed in _PACKED:
        lower = lower.removesuffix(packed)
    return lower.endswith(_SUFFIXES)


def check_head(item: Input) -> str:
    """Refuse a local file that is not what its name says, before anything is read of the others.

    Returns:
        What is to be said of a file that may be meant; empty if nothing is.

    Raises:
        CorpusError: it only stands for the data, or is of another format or encoding than its name says.
    """
    if item.endpoint is not None:
        return ""  # the hub gives the data itself
    head = head_of(item.path)
    what = stand_in(head)
    if what and item.kind == "text" and "HTML" in what:
        return f"{item.name} begins as a web page does (HTML); its tags are tokenized as text"
    if what:
        raise CorpusError(f"{item.name}: this is {what}")
    found = format_of(head)
    wanted = {".gz": "gzip", ".zst": "zstd"}.get(item.packed or "", "parquet" if item.kind == "parquet" else "")
    if head and found != wanted and (found or item.packed):
        told = found or "no compressed file"
        raise CorpusError(
            f"{item.name}: by its content this is {told}, not {wanted or item.kind}; name it by what it holds"
            + (f", such as {item.name}{_SUFFIX_OF[found]}" if not item.packed and found in _SUFFIX_OF else "")
        )
    encoding = wide_encoding(head)
    if encoding and not item.packed and item.kind != "parquet":
        raise CorpusError(f"{item.name}: not UTF-8 text, but {encoding}; save it as UTF-8")
    return ""


def list_inputs(data: DataSection) -> list[Input]:
    """Input files of `data.source=files` or `hub`, sorted by name: the order of the streams.

    Raises:
        CorpusError: nothing there, an unknown kind of file, or no way to the hub.
    """
    if data.source == "hub":
        return _hub_inputs(data)
    path = Path(data.given_path)
    if path.is_file():
        if not is_known(path.name):
            raise CorpusError(f"data.path={path}: unknown kind of file; allowed: {_kinds()}")
        return [Input(path.name, os.path.realpath(path), path.stat().st_size)]
    if not path.exists():
        raise CorpusError(f"data.path={path}: no such file or folder")
    found = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    names = _chosen({p.relative_to(path).as_posix(): p for p in found}, data)
    return [Input(name, os.path.realpath(p), p.stat().st_size) for name, p in names]


def _chosen(found: dict, data: DataSection) -> list[tuple]:
    if data.files is None:
        found = {name: value for name, value in found.items() if is_known(name)}
        if not found:
            raise CorpusError(f"data.path={data.path}: no files to read there (looked for {_kinds()})")
        return sorted(found.items())
    found = {name: value for name, value in found.items() if fnmatch.fnmatchcase(name, data.files)}
    if not found:
        raise CorpusError(f"data.files={data.files}: matches no file of {data.path}")
    strange = next((name for name in sorted(found) if not is_known(name)), None)
    if strange is not None:
        raise CorpusError(f"data.files={data.files}: {strange} is of an unknown kind; allowed: {_kinds()}")
    return sorted(found.items())


def _kinds() -> str:
    return f"{', '.join(_SUFFIXES)}, each also with {' or '.join(_PACKED)}"


# ---- the Hugging Face hub -----------------------------------------------------------------------------------------


def _hub(endpoint: str):
    try:
        from huggingface_hub import HfFileSystem
    except ImportError:
        raise CorpusError(
            "data.source=hub: needs the package huggingface_hub; install the extra: pip install 'ratplus[hub]'"
        ) from None
    return HfFileSystem(endpoint=endpoint)


def _hub_inputs(data: DataSection) -> list[Input]:
    """The files of one commit, so that a preparation which is continued later reads the same ones."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    files = _hub(endpoint)
    from huggingface_hub import HfApi

    instead = "or download it elsewhere and use data=files data.path=<folder>"
    try:
        commit = HfApi(endpoint=endpoint).dataset_info(data.given_path, revision=data.revision).sha
        root = f"datasets/{data.path}@{commit}/"
        found = files.find(root, detail=True)
    except Exception as error:  # the library passes on what several others raise
        raise CorpusError(
            f"data.path={data.path}: the hub at {endpoint} does not give this data set at revision {data.revision} "
            f"({type(error).__name__}: {first_line(error)}); check name, revision, network and login, {instead}"
        ) from None
    names = {path.partition(f"@{commit}/")[2] or path: (path, facts) for path, facts in found.items()}
    return [Input(name, path, facts["size"], _version(facts), endpoint) for name, (path, facts) in _chosen(names, data)]


def _version(facts: dict) -> str:
    lfs = facts.get("lfs")
    return (lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)) or facts["blob_id"]
