"""Where documents come from: the English text that every Python ships, a user's files, a data set of the hub."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import sys
import sysconfig
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ratplus.config.data import DataSection
from ratplus.data.bare import check_bare, write_bare
from ratplus.data.corpus import MANIFEST_FILE, Corpus, CorpusError, open_corpus, read_manifest, write_corpus
from ratplus.data.prepare.inputs import TEXT_SUFFIXES, Input, check_head, list_inputs
from ratplus.data.prepare.shards import Settings, write_shards
from ratplus.data.python_text import ARCHIVE, collect
from ratplus.data.round_trip import RoundTrip, check_loss
from ratplus.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from ratplus.records.atomic import write_atomically

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "pydoc_data"}
# Where statements hold others in Python's syntax tree.
_BLOCKS = {"body", "handlers", "orelse", "finalbody", "cases"}


def corpus_folder(data: DataSection) -> Path:
    """Folder of the prepared corpus of a data section; what is read or cut otherwise gets a folder of its own."""
    data = _as_files(data)
    if data.source == "prepared":
        return Path(data.given_path)
    if data.source == "pydocs":
        name = f"pydocs-py{platform.python_version()}"
    elif data.source == "text":
        name = f"{Path(os.path.realpath(data.given_path)).stem}-{_digest(os.path.realpath(data.given_path))}"
    else:
        place = data.given_path if data.source == "hub" else os.path.realpath(data.given_path)
        more = (data.source, data.files, data.revision, data.column, data.separator, data.split, data.validation_files,
                data.validation_path, data.vocab_size, data.eos_id)  # fmt: skip
        name = f"{Path(place).name.partition('.')[0]}-{_digest(repr((place, *more)))}"
    if data.tokenizer not in (None, ByteTokenizer.name) or data.eos is not None or data.bos is not None:
        where = os.path.realpath(data.tokenizer) if data.tokenizer else ""
        more = ("" if data.eos is None else f" {data.eos!r}") + ("" if data.bos is None else f" bos {data.bos!r}")
        name += f"-{Path(where).stem}-{_digest(where + more)}"
    return Path(data.root) / f"{name}-v{data.validation_fraction:g}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def prepare(data: DataSection, print_line: Callable[[str], None] | None = None) -> Path:
    """Make the corpus of a data section unless it is there and its source unchanged; returns its folder.

    Args:
        print_line: told one-line messages; None prints them to stderr.

    Raises:
        CorpusError: missing or unreadable source files, or a source that changed since the corpus was made.
        TokenizerError: the tokenizer's file or library is missing, or is not what it should be.
    """
    folder = corpus_folder(data)
    made = (folder / MANIFEST_FILE).exists()
    if data.source == "prepared":
        return _prepared(data, folder)
    if data.source == "python_text":
        data = _as_files(data)
        if not made and not Path(data.given_path).exists():
            collect(Path(data.given_path))
    if made and _damaged(folder):
        return folder  # opening it says what is wrong
    if data.source == "bin":
        if not made:
            return write_bare(data, folder)
        check_bare(data, folder)
        return folder
    tokenizer = None if made and data.tokenizer is None else load_tokenizer(data.tokenizer, data.eos, bos=data.bos)
    if made and tokenizer is not None:
        _same_tokenizer(data, folder, tokenizer)
    if data.source in ("files", "hub"):
        return _prepare_files(data, folder, tokenizer, made, print_line or _to_stderr)
    if data.source == "pydocs":
        if not made:
            assert tokenizer is not None
            source = {"name": "pydocs", "python": platform.python_version()}
            documents = _watched(pydocs(), tokenizer, data, print_line)
            write_corpus(
                folder, documents, source=source, validation_fraction=data.validation_fraction, tokenizer=tokenizer
            )
        return folder
    files = text_files(Path(data.given_path))
    source = {"name": "text", "files": [{"name": name, "sha256": _sha256(file)} for name, file in files]}
    if made:
        if read_manifest(folder)["source"] != source:
            raise _changed(data, folder)
        return folder
    assert tokenizer is not None
    _check_heads([Input(name, str(path), path.stat().st_size) for name, path in files], print_line or _to_stderr)
    documents = _watched(_read_documents(files, data.validation_fraction), tokenizer, data, print_line)
    return write_corpus(
        folder, documents, source=source, validation_fraction=data.validation_fraction, tokenizer=tokenizer
    )


def corpus_of(data: DataSection) -> Corpus:
    """The opened corpus of a data section, made first if need be; errors as of `prepare` and `open_corpus`."""
    return open_corpus(prepare(data), elsewhere=data.source == "bin")


def made_corpus(data: DataSection, identity: dict) -> Corpus:
    """The corpus of a data section if it has been made here, opened without a look at what it was made of.

    For folders that somebody else may have written: what they name is neither read, nor tokenized, nor downloaded.

    Args:
        identity: `Corpus.identity` that it must have.

    Raises:
        CorpusError: there is none, a damaged one, or another.
    """
    folder = corpus_folder(data)
    what = f"data.source={data.source}" + (f" data.path={data.path}" if data.path else "")
    if not (folder / MANIFEST_FILE).exists():
        raise CorpusError(f"{folder}: no corpus here; make it with `ratplus prepare`, if you trust where {what} leads")
    corpus = open_corpus(folder, elsewhere=data.source == "bin")
    if corpus.identity != identity:
        raise CorpusError(f"{folder}: not the corpus that the sweep was run with ({what})")
    return corpus


def _as_files(data: DataSection) -> DataSection:
    """The text that was collected from this Python (ratplus.data.python_text) is read as any other file is."""
    if data.source != "python_text":
        return data
    return replace(data, source="files", path=str(Path(data.root) / ARCHIVE), files=None, split="hash")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _damaged(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CorpusError:
        return True
    return False


def _changed(data: DataSection, folder: Path) -> CorpusError:
    return CorpusError(
        f"data.path={data.path}: the files changed since {folder} was made from them; "
        "delete that folder to tokenize them again"
    )


def _same_tokenizer(data: DataSection, folder: Path, tokenizer: Tokenizer) -> None:
    made_with = read_manifest(folder)["tokenizer"]
    begun = made_with.get("bos_id")
    if (tokenizer.name, tokenizer.eos_id) == (made_with["name"], made_with["eos_id"]) and tokenizer.bos_id != begun:
        raise CorpusError(
            f"data.bos={data.bos}: texts begin with token {tokenizer.bos_id}, but {folder} was made with {begun}; give "
            "the same, or delete the folder"
        )
    if (tokenizer.name, tokenizer.eos_id) != (made_with["name"], made_with["eos_id"]):
        raise CorpusError(
            f"data.tokenizer={data.tokenizer}: it is {tokenizer.name} with end of text {tokenizer.eos_id}, but "
            f"{folder} was made with {made_with['name']} and {made_with['eos_id']}; give that one, or delete the folder"
        )


def _prepared(data: DataSection, folder: Path) -> Path:
    """A folder that is whole as it is; a tokenizer that is named must be its own."""
    read_manifest(folder)
    if data.tokenizer not in (None, ByteTokenizer.name):
        _same_tokenizer(data, folder, load_tokenizer(data.tokenizer, data.eos, bos=data.bos))
    return folder


def _prepare_files(data: DataSection, folder: Path, tokenizer: Tokenizer | None, made: bool, print_line) -> Path:
    # What is made of a commit stays what it was, and compute nodes have no network; raw files may be gone by now.
    if made and (data.source == "hub" or not Path(data.given_path).exists()):
        return folder
    inputs = list_inputs(data)
    if made:
        _same_files(data, folder, inputs)
        return folder
    assert tokenizer is not None  # only what is made already needs none
    _check_heads(inputs, print_line)
    settings = Settings(data.column, data.separator, data.split, data.validation_fraction, data.validation_files)
    source = {"name": data.source}
    if data.source == "hub":
        source |= {"data_set": data.path, "commit": inputs[0].path.partition("@")[2].partition("/")[0]}
    return write_shards(
        folder, inputs, settings, tokenizer, data.workers, source, print_line, data.lossy, data.longest_mib
    )


def _check_heads(inputs: list[Input], print_line: Callable[[str], None]) -> None:
    notes = [note for item in inputs if (note := check_head(item))]
    if notes:
        print_line(notes[0] + (f"; {len(notes) - 1} more files do so" if notes[1:] else ""))


def _same_files(data: DataSection, folder: Path, inputs: list[Input]) -> None:
    """Refuse inputs that are not the ones that the corpus was made of; only what was touched is read."""
    manifest = read_manifest(folder)
    known = manifest["source"]["files"]
    if [item.name for item in inputs] != [file["name"] for file in known]:
        raise _changed(data, folder)
    touched = [(item, file) for item, file in zip(inputs, known) if item.stamp() != file["stamp"]]
    for item, file in touched:
        if item.sha256() != file["sha256"]:
            raise _changed(data, folder)
        file["stamp"] = item.stamp()
    if touched:
        # So that it need not be read again; a corpus that can only be read stays as it is.
        with suppress(OSError):
            write_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")


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
        texts = [ast.get_docstring(node) for node in _statements(tree) if isinstance(node, wanted)]
        text = "\n\n".join(t for t in texts if t)
        if text:
            yield path.relative_to(root).as_posix(), text + "\n"
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"topic:{name}", topics[name]


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The statements of a module in the order of ast.walk, several times as fast: it looks into no expression."""
    waiting = deque[ast.AST]([tree])
    while waiting:
        node = waiting.popleft()
        yield node
        for name in node._fields:
            if name in _BLOCKS:
                waiting.extend(getattr(node, name))


def text_files(path: Path) -> list[tuple[str, Path]]:
    """(name, file) of a text file, or of every text file below a folder, in a fixed order."""
    if path.is_file():
        return [(path.name, path)]
    if not path.exists():
        raise CorpusError(f"data.path={path}: no such file or folder")
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in TEXT_SUFFIXES)
    if not found:
        raise CorpusError(f"data.path={path}: no text files in this folder (looked for {', '.join(TEXT_SUFFIXES)})")
    return [(p.relative_to(path).as_posix(), p) for p in found]


def _read_documents(files: list[tuple[str, Path]], validation_fraction: float) -> Iterator[tuple[str, str]]:
    """One document per file; a few files are cut into pieces, so that both splits get some of each."""
    few = len(files) < 10 / validation_fraction
    for name, path in files:
        try:
            text = path.read_text(encoding="utf-8-sig")  # a byte-order mark is no text
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


def _watched(
    documents: Iterable[tuple[str, str]],
    tokenizer: Tokenizer,
    data: DataSection,
    print_line: Callable[[str], None] | None,
) -> Iterator[tuple[str, str]]:
    """The same documents; when they have ended, what the tokenizer loses of them is told, or refused.

    Raises:
        CorpusError: more than `data.lossy` is lost; whoever reads to the end has not written anything by then.
    """
    sample = RoundTrip()
    for name, text in documents:
        sample.look(tokenizer, text)
        yield name, text
    if said := check_loss(sample, tokenizer, data.lossy):
        (print_line or _to_stderr)(said)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from None
