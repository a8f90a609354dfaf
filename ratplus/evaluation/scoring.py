"""Log-likelihoods of token continuations: batched by length, a shared context read once, long input cut knowingly.

Attention is causal, so padding on the right never reaches a real token: a score depends on its own tokens alone, up to
the order of float sums (1e-4 in float32, whatever the batch size).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from ratplus.evaluation.bad_logits import check_logits
from ratplus.model import RATPlus
from ratplus.model.cache import KVCache
from ratplus.model.given_patterns import check_whole_texts
from ratplus.pattern import Pattern, PatternMap

TRUNCATIONS = ("left", "middle", "off")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Score:
    """What a continuation got: the sum of its tokens' log-probabilities (nats), and whether each was the likeliest."""

    logprob: float
    greedy: bool


@dataclass
class Scorer:
    """Scores token ids with one model under one pattern; `patterns` may be changed between calls.

    Args:
        batch_size: sequences at a time.
        max_length: longest input in tokens; None takes the model's max_len.
        truncation: of a context that is too long: left (its end stays), middle (both ends stay) or off (an error).

    Attributes:
        truncated: how many contexts were cut so far.
    """

    model: RATPlus
    patterns: PatternMap | Pattern | None = None
    batch_size: int = 1
    max_length: int | None = None
    truncation: str = "left"
    truncated: int = 0

    @property
    def longest(self) -> int:
        """Longest input in tokens: `max_length`, or the model's max_len."""
        return self.model.config.max_len if self.max_length is None else self.max_length

    def __post_init__(self):
        most = self.model.config.max_len
        self.max_length = self.longest
        for name, value, ok, allowed in (
            ("batch_size", self.batch_size, self.batch_size >= 1, "a whole number ≥ 1"),
            ("max_length", self.longest, 2 <= self.longest <= most, f"2 to the model's max_len={most}"),
            ("truncation", self.truncation, self.truncation in TRUNCATIONS, ", ".join(TRUNCATIONS)),
        ):
            if not ok:
                raise ValueError(f"{name}: got {value!r}; allowed: {allowed}")
        self.model.resolve_patterns(self.patterns)

    # ---- what fits ----

    def cut(self, context: list[int], room: int) -> list[int]:
        """A context in at most `room` tokens; the caller counts it.

        Raises:
            ValueError: it is too long and truncation is off.
        """
        if len(context) <= room:
            return context
        if self.truncation == "off":
            raise ValueError(
                f"a context of {len(context)} tokens is longer than the {room} that max_length={self.max_length} "
                "leaves for it; allow truncation=left or middle, or take a model with a longer context"
            )
        head = room // 2 if self.truncation == "middle" else 0
        return context[:head] + context[len(context) - (room - head) :]

    # ---- scores ----

    def score(self, pairs: Sequence[tuple], progress: Progress | None = None) -> list[Score]:
        """Score of each (context ids, continuation ids), in the order given. Contexts have at least one token.

        Raises:
            ValueError: an id outside the vocabulary, a continuation that is longer than max_length, a context that is
                too long with truncation off, or a pattern that depends on where a prompt ends.
            BadLogits: NaN or infinite logits.
        """
        whole: list[tuple[tuple, tuple]] = []
        too_long: set[tuple] = set()
        for context, continuation in pairs:
            assert len(context) >= 1, "an empty context is the caller's to replace by end-of-text"
            self.check_ids(context)
            self.check_ids(continuation)
            if len(continuation) > self.longest:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens is longer than max_length={self.max_length}; "
                    "it cannot be scored whole"
                )
            # The last token of a continuation is never fed.
            room = self.longest + 1 - max(len(continuation), 1)
            if len(context) > room:
                too_long.add(tuple(context))
            whole.append((tuple(self.cut(list(context), room)), tuple(continuation)))
        self.truncated += len(too_long)
        check_whole_texts(self.model.resolve_patterns(self.patterns))
        wanted = {pair: Score(0.0, True) for pair in whole if not pair[1]}
        missing = dict.fromkeys(pair for pair in whole if pair[1])
        total, groups = len(missing), _by_context(missing)
        together = {c: ends for c, ends in groups.items() if _worth_sharing(c, ends)}
        alone = [pair for pair in missing if pair[0] not in together]
        done = 0
        for scores in chain(self._shared(together), self._alone(alone)):
            wanted |= scores
            done += len(scores)
            if progress is not None:
                progress(done, total)
        return [wanted[pair] for pair in whole]

    def rolling(self, texts: Sequence[list[int]], start: int, progress: Progress | None = None) -> list[float]:
        """Log-likelihood of each whole text, the first token after `start`.

        A text longer than max_length is scored in windows of max_length tokens, each token once; the last window
        reaches back as far as it can (as lm-eval's rolling windows do).
        """
        pairs, owner = [], []
        for index, ids in enumerate(texts):
            for pair in windows(list(ids), start, self.longest):
                pairs.append(pair)
                owner.append(index)
        sums = [0.0] * len(texts)
        for index, score in zip(owner, self.score(pairs, progress)):
            sums[index] += score.logprob
        return sums

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise ValueError at an id that the model does not have."""
        vocab = self.model.config.vocab_size
        if len(ids) and not (min(ids) >= 0 and max(ids) < vocab):
            bad = next(i for i in ids if not 0 <= i < vocab)
            raise ValueError(
                f"token id {bad} is outside the model's vocabulary of {vocab}; the tokenizer is not the model's"
            )

    # ---- the two ways ----

    @torch.no_grad()
    def _alone(self, pairs: list[tuple]) -> Iterator[dict]:
        """Each pair is a row of its own."""
        # Longest first: a batch that does not fit in memory fails at once.
        ordered = sorted(pairs, key=lambda pair: (-len(pair[0]) - len(pair[1]), pair))
        for batch in _batches(ordered, self.batch_size):
            tokens, _ = self._padded([(context + end)[:-1] for context, end in batch])
            logits = self.model(tokens, self.patterns)
            found = {}
            for row, (context, end) in zip(logits, batch):
                first = len(context) - 1
                found[context, end] = self._score(row[first : first + len(end)], end, tokens)
            yield found

    @torch.no_grad()
    def _shared(self, groups: dict[tuple, list[tuple]]) -> Iterator[dict]:
        """The context of several continuations is read once; each continues from a copy of its cache."""
        ordered = sorted(groups, key=lambda context: (-len(context), context))
        for contexts in _batches(ordered, self.batch_size):
            longest = max(len(context) + max(map(len, groups[context])) for context in contexts)
            tokens, lengths = self._padded(contexts)
            cache = self.model.new_cache(len(contexts), self.patterns, min(longest, self.model.config.max_len))
            first = self.model.prefill(tokens, cache, lengths)
            rows = [(row, end) for row, context in enumerate(contexts) for end in groups[context]]
            rows.sort(key=lambda item: (-len(item[1]), item))
            for batch in _batches(rows, self.batch_size):
                yield self._continued(contexts, tokens, cache, first, batch)

    def _continued(self, contexts: list[tuple], tokens: Tensor, cache: KVCache, first: Tensor, batch: list) -> dict:
        # One token needs no more than the context's last logits.
        longer = [(row, end) for row, end in batch if len(end) > 1]
        rest: dict[tuple, Tensor] = {}
        if longer:
            fed, lengths = self._padded([end[:-1] for _, end in longer])
            logits = self.model.prefill(fed, cache.branch([row for row, _ in longer]), lengths, every=True)
            rest = {item: logits[i, : len(item[1]) - 1] for i, item in enumerate(longer)}
        found = {}
        for row, end in batch:
            own = first[row][None]
            logits = torch.cat((own, rest[row, end])) if (row, end) in rest else own
            found[contexts[row], end] = self._score(logits, end, tokens)
        return found

    def _score(self, logits: Tensor, end: tuple, tokens: Tensor) -> Score:
        """The score of logits [len(end), vocab]; `tokens` is what to run again if they are NaN."""
        check_logits(logits, self.model, tokens, self.patterns)
        logits = logits.float()
        target = torch.tensor(end, device=logits.device)[:, None]
        logprob = logits.log_softmax(dim=-1).gather(1, target).double().sum()
        return Score(float(logprob), bool((logits.argmax(dim=-1) == target[:, 0]).all()))

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
        """Right-padded [B, T] on the model's device, and the lengths."""
        device = self.model.embed.weight.device
        tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(device), [len(row) for row in rows]


def windows(ids: list[int], start: int, length: int) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) pairs that score every token of a text once, each with at most `length` tokens fed."""
    pairs = [([start], ids[:length])] if ids else []
    for done in range(length, len(ids), length):
        end = min(done + length, len(ids))
        pairs.append((ids[end - length - 1 : done], ids[done:end]))
    return pairs


def _by_context(pairs) -> dict[tuple, list[tuple]]:
    groups: dict[tuple, list[tuple]] = {}
    for context, end in pairs:
        groups.setdefault(context, []).append(end)
    return groups


def _worth_sharing(context: tuple, ends: list[tuple]) -> bool:
    """Reading from a cache costs more a token than reading a row: only where it saves most of the tokens."""
    return (len(ends) - 1) * len(context) > sum(map(len, ends))


def _batches(items: list, size: int) -> Iterator[list]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
