"""What a search measures on: three splits of held-out text and of questions that share no document and no seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ratplus.config.search import SearchSection
from ratplus.data.corpus import Corpus
from ratplus.data.needles import generate
from ratplus.data.recall import RecallTask
from ratplus.data.sampling import IGNORE, labels_of
from ratplus.data.sft import answer_ids
from ratplus.search.damage import TEXT

SPLITS = ("search", "verify", "test")
RECALL = "recall"
# Held-out text beyond this is not looked at.
_MOST_TOKENS = 1 << 24
# Draws of recall rows, apart from those of training (1, 2), evaluation (3) and fine-tuning (4).
_STREAMS = {"search": 5, "verify": 6, "test": 7}
# Seeds of needles; `eval.niah` counts from 0, so none of an evaluation's questions is among these.
_NEEDLE_SEEDS = {"search": 1 << 32, "verify": 2 << 32, "test": 3 << 32}


@dataclass(frozen=True)
class Rows:
    """Equally long rows of one group: inputs and labels (IGNORE where nothing is asked), int64 [rows, length]."""

    inputs: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Split:
    """One split: its groups of rows, a hash of all of them, and how many documents its text comes from."""

    name: str
    groups: dict[str, Rows]
    sha256: str
    documents: int

    @property
    def tokens(self) -> int:
        return sum(rows.inputs.size for rows in self.groups.values())


def make_splits(section: SearchSection, corpus: Corpus, recall: RecallTask | None, length: int) -> dict[str, Split]:
    """The splits of a search.

    Args:
        recall: the task that the model was trained on, if it was.
        length: tokens of a row of text, and of a needle's prompt with its answer.

    Raises:
        ValueError: too few documents or too little text, or a length without room for a question.
    """
    parts = _deal_documents(corpus, length)
    splits = {}
    for name in SPLITS:
        documents = parts[name]
        stream = np.concatenate(documents).astype(np.int64)
        groups = {TEXT: _text_rows(stream, section.text_rows, length, corpus.eos_id)}
        if recall is not None and section.recall_rows:
            inputs, labels, _ = recall.rows(section.seed, _STREAMS[name], 0, section.recall_rows)
            groups[RECALL] = Rows(inputs, labels)
        tasks = section.test_tasks if name == "test" and section.test_tasks else section.tasks
        for task in tasks:
            groups[task] = _needle_rows(section, task, corpus, stream, length, _NEEDLE_SEEDS[name] + section.seed)
        splits[name] = Split(name, groups, _sha256(groups), len(documents))
    return splits


def _deal_documents(corpus: Corpus, length: int) -> dict[str, list[np.ndarray]]:
    """The held-out documents, each with its end-of-text, dealt by hash: the next one to the split with least text.

    The order of the hashes decides, not where a document stands; equal documents go to one split.
    """
    stream = np.asarray(corpus.validation[:_MOST_TOKENS])
    ends = np.flatnonzero(stream == corpus.eos_id) + 1
    pieces = [piece for piece in np.split(stream, ends) if len(piece) > 1]
    by_hash: dict[bytes, np.ndarray] = {}
    for piece in pieces:
        by_hash[hashlib.sha256(piece.astype("<u4").tobytes()).digest()] = piece
    if len(by_hash) < len(SPLITS):
        raise ValueError(
            f"{corpus.folder}: the held-out text has {len(by_hash)} different documents; search, verify and test need "
            "documents of their own, so 3 at least: hold out more with data.validation_fraction"
        )
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for _, piece in sorted(by_hash.items()):
        least = min(SPLITS, key=lambda name: sizes[name])
        parts[least].append(piece)
        sizes[least] += len(piece)
    for name, size in sizes.items():
        if size < 3 * length + 1:
            raise ValueError(
                f"length: got {length}; the {name} split has {size} tokens of held-out text, but at least 3 rows of "
                f"that length (and the token after them) are needed: use length={max(16, (size - 1) // 3)} or less, or "
                "hold out more text with data.validation_fraction"
            )
    return parts


def _text_rows(stream: np.ndarray, rows: int, length: int, eos_id: int) -> Rows:
    """Up to `rows` windows that do not overlap, evenly spread over the stream."""
    room = (len(stream) - 1) // length
    rows = min(rows, room)
    starts = (np.arange(rows) * room // rows) * length
    inputs = np.stack([stream[s : s + length] for s in starts])
    following = np.stack([stream[s + 1 : s + length + 1] for s in starts])
    return Rows(inputs, labels_of(inputs, following, eos_id))


def _needle_rows(section: SearchSection, task: str, corpus: Corpus, stream: np.ndarray, length: int, seed: int) -> Rows:
    """Prompts with their answers behind them; labels on the answers alone."""
    tokenizer = corpus.tokenizer()
    try:
        items = generate(
            task, tokenizer, section.items, length, haystack=tokenizer.decode(stream.tolist()),
            template=section.template, digits=section.digits, seed=seed,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(str(error).replace("eval.niah.", "")) from None
    inputs = np.full((len(items), length), corpus.eos_id, dtype=np.int64)
    labels = np.full((len(items), length), IGNORE, dtype=np.int64)
    for row, item in enumerate(items):
        prompt = tokenizer.encode(item.prompt)
        answer = answer_ids(tokenizer, item.prompt, prompt, item.reply)
        ids = np.array([*prompt, *answer], dtype=np.int64)
        inputs[row, : len(ids) - 1] = ids[:-1]
        labels[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    return Rows(inputs, labels)


def _sha256(groups: dict[str, Rows]) -> str:
    whole = hashlib.sha256()
    for name, rows in sorted(groups.items()):
        whole.update(repr((name, rows.inputs.shape)).encode())
        for ids in (rows.inputs, rows.labels):
            whole.update(ids.astype("<i8").tobytes())
    return whole.hexdigest()
