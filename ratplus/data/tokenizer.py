"""Tokenizers. A tokenizer is anything with encode, decode, eos_id and vocab_size.

Ours also have `encode_batch` (arrays, for corpora) and `facts`, what a corpus says of them: `name` holds a hash of the
tokenizer's file, so that streams of different tokenizers never pass for each other.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ratplus.data.chat import ChatError, prompt_of
from ratplus.data.tokenizer_trial import MOST_BYTES, problem_of
from ratplus.pattern import is_whole
from ratplus.records.lines import first_line
from ratplus.records.reading import read_json
from ratplus.records.stand_ins import head_of, stand_in

# The most characters that a tokenizer's library gets as one text.
PIECE = 1 << 18
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* 0\r?\n")
_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")
# What tokenizer files call the end of a text, most specific first.
_EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")


class TokenizerError(ValueError):
    """A tokenizer's file is missing, unreadable or of an unknown kind, or its library is not installed."""


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255 and end-of-text as 256; needs no file and never fails."""

    name = "bytes"
    eos_id = 256
    bos_id = None
    vocab_size = 257
    bytes_per_token = 1
    file = None

    @property
    def facts(self) -> dict:
        return {"name": self.name, "vocab_size": self.vocab_size, "eos_id": self.eos_id}

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, without end-of-text."""
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts]

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Raises ChatError: a model of bytes has no chat template."""
        raise ChatError("the model reads bytes and has no chat template; prompt it without chat=true")

    def stop_ids(self) -> set[int]:
        """Ids that end an answer."""
        return {self.eos_id}

    def decode(self, ids) -> str:
        """Text of ids; end-of-text and ids of other symbols are left out."""
        return bytes(i for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")


class _FileTokenizer:
    """What tokenizers that are read from a file have in common."""

    kind: str
    package: str
    called: str
    bytes_per_token = 4  # of English; only for estimates
    bos_id: int | None = None  # that begins every text; None: nothing does

    def __init__(self, path: Path, vocab_size: int, eos_id: int):
        self.file = path
        self.vocab_size, self.eos_id = vocab_size, eos_id
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.name = f"{self.kind}-{self.sha256[:12]}"
        if not 0 <= eos_id < vocab_size:
            raise TokenizerError(f"data.eos: id {eos_id} is not among the {vocab_size} ids of {path}")

    @property
    def facts(self) -> dict:
        stored = "tokenizer" + self.file.suffix
        return {
            "name": self.name, "vocab_size": self.vocab_size, "eos_id": self.eos_id, "kind": self.kind,
            "file": stored, "sha256": self.sha256,
            **({} if self.bos_id is None else {"bos_id": self.bos_id}),
        }  # fmt: skip

    def begin_with(self, bos: str | int | None) -> None:
        """Let every text that is encoded begin with a token (`data.bos`): its name or id; True is the file's own.

        Raises:
            TokenizerError: no such token, or a file that puts none there.
        """
        if bos is True:
            self.bos_id = self.own_bos()
            if self.bos_id is None:
                raise TokenizerError(f"data.bos: got true; {self.file} puts no token before a text; leave it null")
        elif isinstance(bos, str):
            self.bos_id = self._id_of(bos)
            if self.bos_id is None:
                raise TokenizerError(f"data.bos: {self.file} has no token {bos!r}; give one that it has, or an id")
        else:
            if bos is not None and not 0 <= bos < self.vocab_size:
                raise TokenizerError(f"data.bos: id {bos} is not among the {self.vocab_size} ids of {self.file}")
            self.bos_id = bos

    def own_bos(self) -> int | None:
        """Id of the one token that the file itself says stands before a text; None if it says so of none."""
        raise NotImplementedError

    def _id_of(self, token: str) -> int | None:
        raise NotImplementedError

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation as the chat template beside the tokenizer's file writes it, up to the answer's begin.

        Raises:
            ChatError: no template, a damaged one, or one that refuses these messages (`ratplus.data.chat`).
        """
        return self._encode_marked(prompt_of(self.file.parent, messages))

    def stop_ids(self) -> set[int]:
        """Ids that end an answer: the end of a text, and those that generation_config.json beside the file names."""
        try:
            said = read_json(self.file.parent / "generation_config.json")["eos_token_id"]
        except (OSError, ValueError, KeyError, TypeError):
            said = []
        return {self.eos_id, *(i for i in (said if isinstance(said, list) else [said]) if is_whole(i))}

    def _encode_marked(self, text: str) -> list[int]:
        """Ids of a text in which the characters of special tokens are those tokens."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, without end-of-text; with `bos_id` before it, if there is one.

        A text of more than PIECE characters is encoded in pieces, since the libraries need hundreds of bytes for each
        character of a text. Pieces end before a single space between words, where tokenizers part text anyway.
        """
        if self.bos_id is None:
            return self._encode_bare(texts)
        return [np.concatenate(([self.bos_id], ids)) for ids in self._encode_bare(texts)]

    def _encode_bare(self, texts: list[str]) -> list[np.ndarray]:
        if all(len(text) <= PIECE for text in texts):
            return self._encode(texts)
        encoded: list[np.ndarray] = []
        for text in texts:
            # One piece at a time: each may be as long as all other texts together.
            parts = [self._encode([part])[0] for part in _pieces(text)]
            encoded.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return encoded

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        raise NotImplementedError


class HuggingFaceTokenizer(_FileTokenizer):
    """A `tokenizer.json`, through the `tokenizers` library. Adds no special tokens, and reads none out of the text."""

    kind, package, called = "huggingface", "tokenizers", "Hugging Face tokenizer.json"

    def __init__(self, path: Path, eos: str | int | None = None):
        tokenizers = _library("tokenizers", path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:  # the library raises bare Exception, and panics with a BaseException
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise TokenizerError(f"{path}: not a Hugging Face tokenizer.json ({first_line(error)})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A document that contains the characters of a special token must not end a text by them.
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise TokenizerError(f"{path}: its vocabulary is empty")
        super().__init__(path, max(vocabulary.values()) + 1, _eos_id(path, vocabulary, eos))

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        try:
            encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:
            raise _cannot(self.file, "encode a text", error) from None
        return [np.asarray(e.ids, dtype=np.int64) for e in encoded]

    def _encode_marked(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = False
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise _cannot(self.file, "encode a text", error) from None
        finally:
            self._tokenizer.encode_special_tokens = True

    def own_bos(self) -> int | None:
        """Id of the one token that the file's post-processor puts before a text; None if it puts none there."""
        ids = self._tokenizer.encode("", add_special_tokens=True).ids
        return ids[0] if len(ids) == 1 else None

    def _id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def decode(self, ids) -> str:
        """Text of ids; special tokens and ids outside the vocabulary are left out."""
        own = [int(i) for i in ids if 0 <= i < self.vocab_size]
        try:
            return self._tokenizer.decode(own, skip_special_tokens=True)
        except BaseException as error:
            raise _cannot(self.file, "decode ids", error) from None


class SentencePieceTokenizer(_FileTokenizer):
    """A SentencePiece `.model`, such as LLaMA-2's `tokenizer.model`. Adds no begin or end of text."""

    kind, package, called = "sentencepiece", "sentencepiece", "SentencePiece model"

    def __init__(self, path: Path, eos: str | int | None = None):
        sentencepiece = _library("sentencepiece", path)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise TokenizerError(f"{path}: not a SentencePiece model ({first_line(error)})") from None
        pieces = {self._processor.id_to_piece(i): i for i in range(self._processor.vocab_size())}
        if eos is None and self._processor.eos_id() >= 0:
            eos = self._processor.eos_id()
        super().__init__(path, self._processor.vocab_size(), _eos_id(path, pieces, eos))

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        try:
            encoded = self._processor.encode(texts, num_threads=1)
        except Exception as error:
            raise _cannot(self.file, "encode a text", error) from None
        return [np.asarray(ids, dtype=np.int64) for ids in encoded]

    def _encode_marked(self, text: str) -> list[int]:
        raise ChatError(
            f"{self.file}: a SentencePiece model reads no special tokens out of a chat; needs tokenizer.json"
        )

    def own_bos(self) -> int | None:
        """Id of the model's begin of text; None if it has none."""
        own = self._processor.bos_id()
        return own if own >= 0 else None

    def _id_of(self, token: str) -> int | None:
        known = self._processor.piece_to_id(token)
        return known if self._processor.id_to_piece(known) == token else None

    def decode(self, ids) -> str:
        """Text of ids; end-of-text and ids outside the vocabulary are left out."""
        own = [int(i) for i in ids if 0 <= i < self.vocab_size and i != self.eos_id]
        try:
            return self._processor.decode(own)
        except Exception as error:
            raise _cannot(self.file, "decode ids", error) from None


def _pieces(text: str) -> list[str]:
    if len(text) <= PIECE:
        return [text]
    pieces, start = [], 0
    while len(text) - start > PIECE:
        # Most texts have a space within the last few words; one without any is cut wherever the piece ends.
        last = start + PIECE
        spaces = [found.start() for found in _BETWEEN_WORDS.finditer(text, last - min(PIECE // 2, 4096), last)]
        end = spaces[-1] if spaces else last
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


Tokenizer = ByteTokenizer | HuggingFaceTokenizer | SentencePieceTokenizer


def load_tokenizer(
    which: str | Path | None, eos: str | int | None = None, tried: bool = False, bos: str | int | None = None
) -> Tokenizer:
    """The tokenizer of `data.tokenizer`.

    Args:
        which: "bytes", a Hugging Face `tokenizer.json`, a SentencePiece `.model`, or a folder that holds one of them.
        eos: token or id that ends a text (`data.eos`); None takes what the file, or a tokenizer_config.json beside
            it, says.
        tried: that another process has just loaded the same file; else it is tried out first.
        bos: token or id that begins every text (`data.bos`), True for the file's own; None puts nothing there.

    Raises:
        TokenizerError: one line that says what is wrong.
    """
    if which is None:
        raise TokenizerError(
            "data.tokenizer: got null; give the path of a tokenizer.json or of a SentencePiece .model (the paper used "
            "LLaMA-2's tokenizer.model), or bytes"
        )
    if str(which) == ByteTokenizer.name:
        if eos is not None:
            raise TokenizerError(f"data.eos: got {eos!r}; bytes have their own end of text, 256; leave it null")
        if bos is not None:
            raise TokenizerError(f"data.bos: got {bos!r}; bytes have no token that begins a text; leave it null")
        return ByteTokenizer()
    path = Path(which)
    if path.is_dir():
        names = ("tokenizer.json", "tokenizer.model")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise TokenizerError(f"data.tokenizer={path}: no {' or '.join(names)} in this folder")
        path = found[0]
    if not path.is_file():
        raise TokenizerError(f"data.tokenizer={path}: no such file; allowed: bytes, a tokenizer.json, or a .model")
    head = head_of(path)
    if what := stand_in(head):
        raise TokenizerError(f"data.tokenizer={path}: this is {what}")
    if path.suffix == ".model" and _TIKTOKEN.match(head):
        raise TokenizerError(
            f"data.tokenizer={path}: a vocabulary of tiktoken (as LLaMA 3's tokenizer.model is), not SentencePiece; "
            "give the tokenizer.json of the same model"
        )
    try:
        if path.suffix in (".model", ".json"):
            kind = SentencePieceTokenizer if path.suffix == ".model" else HuggingFaceTokenizer
            found = path.stat()
            if found.st_size > MOST_BYTES:
                raise TokenizerError(f"{path}: {found.st_size:,} bytes, of which at most {MOST_BYTES:,} are read")
            _library(kind.package, path)
            problem = "" if tried else problem_of(str(path), kind.kind, (found.st_size, found.st_mtime_ns))
            if problem:
                raise TokenizerError(f"{path}: not a {kind.called}: {first_line(ValueError(problem))}")
            tokenizer = kind(path, eos)
            tokenizer.begin_with(bos)
            return tokenizer
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror})") from None
    raise TokenizerError(f"data.tokenizer={path}: unknown kind of file; allowed: bytes, a tokenizer.json, or a .model")


def _library(name: str, path: Path):
    # Our workers are processes; threads of the library's own would only fight them for cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return __import__(name)
    except ImportError:
        raise TokenizerError(
            f"data.tokenizer={path}: needs the package {name}; install the extra: pip install 'ratplus[tokenizers]'"
        ) from None


def _cannot(path: Path, what: str, error: BaseException) -> BaseException:
    """What to raise for an error that a tokenizer's library met at work, which may be a panic of Rust's."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
        return error
    return TokenizerError(f"data.tokenizer={path}: it loads, but cannot {what} ({first_line(error)})")


def _eos_id(path: Path, vocabulary: dict[str, int], eos: str | int | None) -> int:
    """Id of the token that ends a text: what is asked for, else what the files say, else a well-known name."""
    if isinstance(eos, int):
        return eos
    if eos is not None:
        if eos not in vocabulary:
            raise TokenizerError(f"data.eos: {path} has no token {eos!r}; give one that it has, or an id")
        return vocabulary[eos]
    said = _said_eos(path)
    known = [name for name in ((said,) if said else _EOS_NAMES) if name in vocabulary]
    if len(known) != 1:
        found = f"several may end a text ({', '.join(known)})" if known else "it names no token that ends a text"
        raise TokenizerError(f"data.tokenizer={path}: {found}; give data.eos=<token or id>")
    return vocabulary[known[0]]


def _said_eos(path: Path) -> str | None:
    try:
        said = read_json(path.parent / "tokenizer_config.json")["eos_token"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    said = said.get("content") if isinstance(said, dict) else said
    return said if isinstance(said, str) else None  # some files hold a list of ids; then the well-known names decide
