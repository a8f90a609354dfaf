"""Stacked recall: a task whose accuracy measures retrieval at a distance.

A row's first half is filler with `pairs` symbols scattered in it, each one standing for a (key, value); the second half
holds queries, each a key, to be answered with the value stored for it. One symbol carries key and value together, so a
dense attention layer solves it; a sparse attention-only model answers only if the symbol itself happens to be visible.
The symbols have ids of their own after the text vocabulary, so that one model reads text and recall rows alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ratplus.config.data import RecallSection
from ratplus.data.sampling import IGNORE


@dataclass(frozen=True)
class RecallTask:
    """Recall rows of `length` tokens for a text vocabulary of `base` ids.

    Ids: base is filler, then keys * values pair symbols, then keys query symbols, then values answer symbols.
    """

    base: int
    length: int
    keys: int
    values: int
    pairs: int

    @classmethod
    def of(cls, section: RecallSection, text_vocab: int) -> RecallTask:
        return cls(text_vocab, section.length, section.keys, section.values, section.pairs)

    @property
    def vocab_size(self) -> int:
        """Ids in all: the text's and the task's."""
        return self.base + 1 + self.keys * self.values + self.keys + self.values

    def rows(self, seed: int, stream: int, step: int, batch: int):
        """Rows of a step, as (inputs, labels, distances), each int64 [batch, length].

        `stream` keeps draws for different purposes apart (training, evaluation). Labels are IGNORE in the first
        half; distances count tokens from the pair symbol to the query, 0 where there is no query.
        """
        half = self.length // 2
        assert self.pairs <= half, (self.pairs, self.length)  # RecallSection sees to it
        length = self.length
        draw = np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, stream]))
        places = draw.random((batch, half)).argpartition(self.pairs - 1, axis=1)[:, : self.pairs]
        keys = draw.random((batch, self.keys)).argsort(axis=1)[:, : self.pairs]
        values = draw.integers(0, self.values, (batch, self.pairs))
        asked = draw.integers(0, self.pairs, (batch, length - half))

        pair_ids, query_ids = self.base + 1, self.base + 1 + self.keys * self.values
        answer_ids = query_ids + self.keys
        inputs = np.full((batch, length), self.base, dtype=np.int64)
        np.put_along_axis(inputs, places, pair_ids + keys * self.values + values, axis=1)
        inputs[:, half:] = query_ids + np.take_along_axis(keys, asked, axis=1)
        labels = np.full((batch, length), IGNORE, dtype=np.int64)
        labels[:, half:] = answer_ids + np.take_along_axis(values, asked, axis=1)
        distances = np.zeros((batch, length), dtype=np.int64)
        distances[:, half:] = np.arange(half, length) - np.take_along_axis(places, asked, axis=1)
        return inputs, labels, distances
