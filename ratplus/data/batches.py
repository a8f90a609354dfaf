"""What a stage reads: batches of a training step, and the fixed rows of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ratplus.config import Config, RecipeSection
from ratplus.data.corpus import Corpus
from ratplus.data.recall import RecallTask
from ratplus.data.sampling import labels_of, ordered_rows, random_rows

# Draws for different purposes must never coincide.
_STREAMS = {"pretrain": 1, "adapt": 2, "evaluate": 3}
_EVAL_SEED = 20602  # held-out recall rows are the same for every seed of a sweep


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

    def train(self, recipe: RecipeSection, purpose: str, step: int, rank: int = 0, world: int = 1) -> list[tuple]:
        """The groups of equally long rows of a training step: (inputs, labels), each int64 [rows / world, length].

        About `recipe.batch * context` tokens in all (to whole rows): text rows of `context` tokens, and recall rows of
        their own length. `purpose` is "pretrain" or "adapt"; random rows of the two are drawn apart.
        """
        recall_tokens = self.recall_fraction * recipe.batch * self.context if self.recall else 0
        recall_rows = round(recall_tokens / self.recall.length) if self.recall else 0
        text_rows = recipe.batch - round(recall_tokens / self.context)
        groups = []
        if text_rows:
            stream = self.corpus.train
            if recipe.order == "ordered":
                rows = ordered_rows(stream, step, text_rows, self.context)
            else:
                rows = random_rows(stream, self.seed, step, text_rows, self.context, purpose=_STREAMS[purpose])
            groups.append((rows[:, :-1], labels_of(rows[:, :-1], rows[:, 1:], self.corpus.eos_id)))
        if recall_rows:
            inputs, labels, _ = self.recall.rows(self.seed, _STREAMS[purpose], step, recall_rows)
            groups.append((inputs, labels))
        # The whole global batch is made, then dealt, so that it does not depend on the number of processes.
        return [(inputs[rank::world], labels[rank::world]) for inputs, labels in groups]

    def held_out_text(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `rows` validation windows (all, if there are fewer) as inputs and labels."""
        stream = self.corpus.validation
        rows = min(rows, (len(stream) - 1) // self.context)
        windows = ordered_rows(stream, 0, max(rows, 1), self.context)
        return windows[:, :-1], labels_of(windows[:, :-1], windows[:, 1:], self.corpus.eos_id)

    def held_out_recall(self, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Recall rows for evaluation: inputs, labels, distances."""
        return self.recall.rows(_EVAL_SEED, _STREAMS["evaluate"], 0, rows)
