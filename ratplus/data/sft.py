"""What the fine-tuning on needles reads: rows of a prompt and its answer, with labels on the answer alone.

With `questions` > 1 further questions about the same haystack follow, each with its answer. All answers have labels,
and end-of-text behind the last one.

A pure function of the step, like ratplus.data.batches: item number n of the split is the same on every rank and after
every restart, and so is its place in each epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ratplus.config.cell import Config
from ratplus.config.train import RecipeSection, SftSection
from ratplus.data.corpus import Corpus
from ratplus.data.needles import Draft, sentences_for, training_draft
from ratplus.data.sampling import IGNORE

# Needles are hidden in at most so much training text.
_HAYSTACK_TOKENS = 1 << 20
# Rows are kept for the next epoch as long as they fill no more than this (4 bytes each).
_KEPT_TOKENS = 1 << 26
_STREAM = 4  # of draws, beside those of ratplus.data.batches


@dataclass
class SftBatches:
    """Rows of a train split; in the place of ratplus.data.batches.Batches where `train.sft` trains."""

    corpus: Corpus
    section: SftSection
    context: int  # tokens of a row
    seed: int
    recall_fraction: float = 0.0
    _sentences: dict[str, list[str]] = field(default_factory=dict)
    _rows: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self):
        self.tokenizer = self.corpus.tokenizer()
        text = None
        if self.section.haystack == "train":
            text = self.tokenizer.decode(np.asarray(self.corpus.train[:_HAYSTACK_TOKENS]).tolist())
        self._sentences = {task: sentences_for(task, text) for task in self.section.tasks}

    @classmethod
    def of(cls, config: Config, corpus: Corpus) -> SftBatches:
        section = config.train.sft
        return cls(corpus, section, section.length or config.train.context, config.seed)

    @property
    def items(self) -> int:
        """Questions in an epoch."""
        return self.section.items * len(self.section.tasks)

    def train(self, recipe: RecipeSection, purpose: str, step: int) -> list[tuple]:
        """The one group of a step's rows: (inputs, labels), each int64 [batch, context].

        Every rank makes the whole batch and takes its share, as with Batches.train.

        Raises:
            ValueError: a row whose question does not fit (check_split finds those before anything is trained).
        """
        rows = [self._row(number) for number in self.numbers(recipe, step)]
        inputs = np.full((len(rows), self.context), self.tokenizer.eos_id, dtype=np.int64)
        labels = np.full((len(rows), self.context), IGNORE, dtype=np.int64)
        for row, (ids, asked) in enumerate(rows):
            inputs[row, : len(ids) - 1] = ids[:-1]
            labels[row, asked - 1] = ids[asked]
        return [(inputs, labels)]

    def numbers(self, recipe: RecipeSection, step: int) -> list[int]:
        """Which items a step reads; each epoch has each once, in an order of its own with order=random."""
        places = [divmod(step * recipe.batch + row, self.items) for row in range(recipe.batch)]
        if recipe.order == "ordered":
            return [place for _, place in places]
        orders = {epoch: self._order(epoch) for epoch in {epoch for epoch, _ in places}}
        return [int(orders[epoch][place]) for epoch, place in places]

    def _order(self, epoch: int) -> np.ndarray:
        draw = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 0, _STREAM]))
        return draw.permutation(self.items)

    def _row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids of prompt, answer, further questions with theirs, and end-of-text; which of them have labels).

        Tasks take turns.
        """
        if number in self._rows:
            return self._rows[number]
        index, turn = divmod(number, len(self.section.tasks))
        task = self.section.tasks[turn]
        draft, more, room = _draft(self.section, task, index, self.tokenizer)
        draft.check_fits(self.tokenizer, self.context, room, _where(self.context, task), self.section.template)
        item = draft.filled(self.tokenizer, self._sentences[task], self.context, room)
        prompt = self.tokenizer.encode(item.prompt)
        answer = answer_ids(self.tokenizer, item.prompt, prompt, item.reply)
        ids, asked = [*prompt, *answer], [*range(len(prompt), len(prompt) + len(answer))]
        for question, reply in more:
            ids += [*question, *reply]
            asked += range(len(ids) - len(reply), len(ids))
        row = np.array([*ids, self.tokenizer.eos_id], dtype=np.int32), np.array([*asked, len(ids)])
        assert len(row[0]) <= self.context + 1, "the answer has room beside the prompt"
        if (len(self._rows) + 1) * self.context <= _KEPT_TOKENS:
            self._rows[number] = row
        return row


def answer_ids(tokenizer, prompt: str, prompt_ids: list[int], answer: str) -> list[int]:
    """Ids of an answer behind exactly the ids that an evaluation reads the prompt as.

    Where the tokenizer joins the prompt's end with the answer's start, the answer is encoded by itself: what counts is
    that the evaluation's prompt is followed by it.
    """
    whole = tokenizer.encode(prompt + answer)
    if whole[: len(prompt_ids)] == prompt_ids:
        return whole[len(prompt_ids) :]
    return _without_bos(tokenizer, answer)


def _without_bos(tokenizer, text: str) -> list[int]:
    ids = tokenizer.encode(text)
    return ids if getattr(tokenizer, "bos_id", None) is None else ids[1:]


def check_split(config: Config, corpus: Corpus) -> None:
    """Refuse a length that a question of the train split does not fit, before anything is trained.

    Raises:
        ValueError: such a length.
        CorpusError, TokenizerError: the corpus' tokenizer is not there.
    """
    section, tokenizer = config.train.sft, corpus.tokenizer()
    length = section.length or config.train.context
    for task in section.tasks:
        for index in range(section.items):
            draft, _, room = _draft(section, task, index, tokenizer)
            draft.check_fits(tokenizer, length, room, _where(length, task), section.template)


def _draft(
    section: SftSection, task: str, index: int, tokenizer
) -> tuple[Draft, list[tuple[list[int], list[int]]], int]:
    """(item without its haystack; ids of each further question and of its answer; room for all behind the prompt)."""
    draft = training_draft(task, index, section.template, section.digits, section.seed)
    texts = draft.more_questions(section.questions - 1) if section.questions > 1 else []
    more = [(_without_bos(tokenizer, question), _without_bos(tokenizer, reply)) for question, reply in texts]
    return draft, more, draft.room(tokenizer) + sum(len(question) + len(reply) for question, reply in more)


def _where(length: int, task: str) -> str:
    return f"train.sft.length: got {length}, but {task}"
