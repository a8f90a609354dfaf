"""What a stage reads: batches of a training step, and the fixed rows of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ratplus.config.cell import Config
from ratplus.config.data import RecallSection
from ratplus.config.train import RecipeSection
from ratplus.data.corpus import Corpus
from ratplus.data.recall import RecallTask
from ratplus.data.sampling import IGNORE, labels_of, ordered_rows, random_rows

# Draws for different purposes must never coincide.
_STREAMS = {"pretrain": 1, "adapt": 2, "evaluate": 3}
_EVAL_SEED = 20602  # held-out recall rows are the same for every seed of a sweep


def row_counts(batch: int, context: int, recall: RecallSection) -> tuple[int, int]:
    """(text rows, recall rows) of a training step that has about `batch * context` tokens."""
    return _row_counts(batch, context, recall.fraction, recall.length)


def _row_counts(batch: int, context: int, share: float, length: int) -> tuple[int, int]:
    recall_tokens = share * batch * context
    return batch - round(recall_tokens / context), round(recall_tokens / length)


def deal(groups: list[tuple], count: int, alike: int = 1) -> list[list[tuple]]:
    """Deal the rows of all groups of a step in turn to `count` micro-batches: each has its share of every group.

    None is empty as long as there are at least `count` rows; groups of which a micro-batch has no row are left out.

    Args:
        groups: (inputs, labels) of arrays or tensors [rows, length].
        alike: so many micro-batches in a row shall have the same groups; one that has no row of a group which another
            of them has gets a row without labels, which adds nothing to the loss.
    """
    parts = []
    for part in range(count):
        dealt, before = [], 0
        for inputs, labels in groups:
            first = (part - before) % count
            together = range(part - part % alike, part - part % alike + alike)
            if first < len(inputs):
                dealt.append((inputs[first::count], labels[first::count]))
            elif any((other - before) % count < len(inputs) for other in together):
                dealt.append((inputs[:1], labels[:1] * 0 + IGNORE))
            before += len(inputs)
        parts.append(dealt)
    return parts


@dataclass(frozen=True)
class Batches:
    """Text and recall rows of one model's data: `train(step)` and the held-out rows."""

    corpus: Corpus
    recall: RecallTask | None
    recall_fraction: float
    context: int
    seed: int

    @classmethod
    def of(cls, config: Config, corpus: Corpus) -> Batches:
        section = config.data.recall
        task = RecallTask.of(section, corpus.vocab_size) if section.fraction > 0 else None
        return cls(corpus, task, section.fraction, config.train.context, config.seed)

    @property
    def vocab_size(self) -> int:
        return self.recall.vocab_size if self.recall else self.corpus.vocab_size

    def train(self, recipe: RecipeSection, purpose: str, step: int) -> list[tuple]:
        """The groups of equally long rows of a training step: (inputs, labels), each int64 [rows, length].

        About `recipe.batch * context` tokens in all (to whole rows): text rows of `context` tokens, and recall rows of
        their own length. `purpose` is "pretrain" or "adapt"; random rows of the two are drawn apart. Every rank makes
        the whole batch and takes its share (`deal`), so the data of a step does not depend on the number of ranks.
        """
        share, length = (self.recall_fraction, self.recall.length) if self.recall else (0.0, 1)
        text_rows, recall_rows = _row_counts(recipe.batch, self.context, share, length)
        groups = []
        if text_rows:
            stream = self.corpus.train
            if recipe.order == "ordered":
                rows = ordered_rows(stream, step, text_rows, self.context)
            else:
                rows = random_rows(stream, self.seed, step, text_rows, self.context, purpose=_STREAMS[purpose])
            groups.append((rows[:, :-1], labels_of(rows[:, :-1], rows[:, 1:], self.corpus.eos_id)))
        if recall_rows and self.recall is not None:
            inputs, labels, _ = self.recall.rows(self.seed, _STREAMS[purpose], step, recall_rows)
            groups.append((inputs, labels))
        return groups

    def held_out_text(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `rows` validation windows (all, if there are fewer) as inputs and labels."""
        stream = self.corpus.validation
        rows = min(rows, (len(stream) - 1) // self.context)
        windows = ordered_rows(stream, 0, max(rows, 1), self.context)
        return windows[:, :-1], labels_of(windows[:, :-1], windows[:, 1:], self.corpus.eos_id)

    def held_out_recall(self, rows: int, task: RecallTask | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Recall rows for evaluation, of another task than the data's if one is given: inputs, labels, distances."""
        asked = task or self.recall
        assert asked is not None
        return asked.rows(_EVAL_SEED, _STREAMS["evaluate"], 0, rows)
