"""Where documents come from: the English text that every Python ships, or a user's own text files."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from ratplus.config import DataSection
from ratplus.data.corpus import MANIFEST_FILE, CorpusError, write_corpus

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "pydoc_data"}
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")


def corpus_folder(data: DataSection) -> Path:
    """Folder of the prepared corpus of a data section; texts that differ in path or split get folders of their own."""
    if data.source == "pydocs":
        name = f"pydocs-py{platform.python_version()}"
    else:
        digest = hashlib.sha256(str(Path(data.path).resolve()).encode()).hexdigest()[:8]
        name = f"{Path(data.path).resolve().stem}-{digest}"
    return Path(data.root) / f"{name}-v{data.validation_fraction:g}"


def prepare(data: DataSection) -> Path:
    """Make the corpus of a data section unless it is there and its source unchanged; returns its folder.

    Raises:
        CorpusError: missing or unreadable source files, or a source that changed since the corpus was made.
    """
    folder = corpus_folder(data)
    if data.source == "pydocs":
        if not (folder / MANIFEST_FILE).exists():
            source = {"name": "pydocs", "python": platform.python_version()}
            write_corpus(folder, pydocs(), source=source, validation_fraction=data.validation_fraction)
        return folder
    files = text_files(Path(data.path))
    source = {"name": "text", "files": [{"name": name, "sha256": _sha256(file)} for name, file in files]}
    if (folder / MANIFEST_FILE).exists():
        try:
            made_from = json.loads((folder / MANIFEST_FILE).read_text())["source"]
        except (OSError, ValueError, KeyError, TypeError):
            return folder  # damaged; opening it says so
        if made_from != source:
            raise CorpusError(
                f"data.path={data.path}: the files changed since {folder} was made from them; "
                "delete that folder to tokenize them again"
            )
        return folder
    documents = _read_documents(files, data.validation_fraction)
    return write_corpus(folder, documents, source=source, validation_fraction=data.validation_fraction)


def pydocs() -> list[tuple[str, str]]:
    """The standard library's docstrings, one document per module, and pydoc's language topics, well mixed.

    Parsed from source, never imported. About 2 MB of technical English; differs slightly between Python versions.
    The order is by a hash of the name, so that any stretch of the stream is a fair sample of all of it.
    """
    return sorted(_pydocs(), key=lambda document: hashlib.sha256(document[0].encode()).digest())


def _pydocs() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = [p for p in sorted(root.rglob("*.py")) if not _SKIPPED & set(p.relative_to(root).parts)]
    if not paths:
        raise CorpusError(f"data=pydocs: no standard library sources in {root}; use data=text path=<file or folder>")
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's sources
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue
        wanted = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, wanted)]
        text = "\n\n".join(t for t in texts if t)
        if text:
            yield path.relative_to(root).as_posix(), text + "\n"
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"topic:{name}", topics[name]


def text_files(path: Path) -> list[tuple[str, Path]]:
    """(name, file) of a text file, or of every text file below a folder, in a fixed order."""
    if path.is_file():
        return [(path.name, path)]
    if not path.exists():
        raise CorpusError(f"data.path={path}: no such file or folder")
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in _TEXT_SUFFIXES)
    if not found:
        raise CorpusError(f"data.path={path}: no text files in this folder (looked for {', '.join(_TEXT_SUFFIXES)})")
    return [(p.relative_to(path).as_posix(), p) for p in found]


def _read_documents(files: list[tuple[str, Path]], validation_fraction: float) -> Iterator[tuple[str, str]]:
    """One document per file; a few files are cut into pieces, so that both splits get some of each."""
    few = len(files) < 10 / validation_fraction
    for name, path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
        except OSError as error:
            raise CorpusError(f"{path}: cannot be read ({error.strerror})") from None
        pieces = min(len(text), int(10 / validation_fraction)) if few else 1
        size = -(-len(text) // max(pieces, 1))
        for index in range(pieces):
            piece = text[index * size : (index + 1) * size]
            if piece:
                yield f"{name}#{index}", piece


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from None
