"""Cloze: of four continuations of a context, which one does the text go on with? Offline, from any held-out stream.

The three others come from elsewhere in the same stream and follow the same token as the true one does, so that a model
which looks at the last token alone is no better than chance (1/4). A choice's score is what the context adds to its
log-probability beyond that last token (pointwise mutual information, arXiv 2104.08315; `acc_mutual_info` in lm-eval):
by plain log-probability, a common phrase would beat the true one in any context.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ratplus.config.eval import CHOICES, CLOZE_VERSION
from ratplus.evaluation.metrics import clustered_mean

if TYPE_CHECKING:
    from ratplus.evaluation.scoring import Progress, Scorer

_SEED = 20602  # the questions are the same for every cell
# Where the text is small or its vocabulary large, a token may have too few other places: another is drawn.
_TRIES = 200


@dataclass(frozen=True)
class Question:
    """Token ids; `answer` is the index of the true choice."""

    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    answer: int


def questions(stream, eos_id: int, count: int, context: int, continuation: int, seed: int = _SEED) -> list[Question]:
    """The first `count` questions of a held-out token stream, a pure function of the arguments.

    Raises:
        ValueError: the stream is too small for them.
    """
    ids = np.asarray(stream[: min(len(stream), 1 << 24)]).astype(np.int64)
    span = context + continuation
    draw = np.random.Generator(np.random.Philox(key=[seed, 0]))
    # No end-of-text within a row: what follows it cannot be known.
    ends = np.concatenate(([0], np.cumsum(ids == eos_id)))
    found: list[Question] = []
    starts = max(0, len(ids) - span)
    good = np.nonzero(ends[span : starts + span] == ends[:starts])[0] + context
    before = ids[good - 1]
    order = draw.permutation(good)
    for place in order[: count * _TRIES]:
        if len(found) == count:
            break
        truth = tuple(ids[place : place + continuation].tolist())
        elsewhere = good[before == ids[place - 1]]
        others: list[tuple[int, ...]] = []
        for other in draw.permutation(elsewhere)[:_TRIES]:
            choice = tuple(ids[other : other + continuation].tolist())
            if abs(int(other) - int(place)) >= span and choice != truth and choice not in others:
                others.append(choice)
            if len(others) == CHOICES - 1:
                break
        if len(others) == CHOICES - 1:
            answer = int(draw.integers(CHOICES))
            choices = (*others[:answer], truth, *others[answer:])
            found.append(Question(tuple(ids[place - context : place].tolist()), choices, answer))
    if len(found) < count:
        raise ValueError(
            f"eval.cloze.items: got {count}, but the held-out text of {len(ids)} tokens gives only {len(found)} "
            f"questions of {context} + {continuation} tokens; ask for fewer, or hold out more text"
        )
    return found


def evaluate_cloze(
    scorer: Scorer, asked: list[Question], progress: Progress | None = None
) -> tuple[dict, list[dict], dict]:
    """(metrics, samples, facts).

    The metric is `cloze_accuracy`; a sample also has `margin`, the true choice's score beyond the best other (nats),
    which tells two models apart where both are right.
    """
    pairs = [(question.context, choice) for question in asked for choice in question.choices]
    given = [score.logprob for score in scorer.score(pairs, progress)]
    alone = [score.logprob for score in scorer.score([(context[-1:], choice) for context, choice in pairs])]
    scores = [with_context - without for with_context, without in zip(given, alone)]
    samples = []
    for index, question in enumerate(asked):
        own = scores[index * CHOICES : (index + 1) * CHOICES]
        others = own[: question.answer] + own[question.answer + 1 :]
        margin = own[question.answer] - max(others)
        samples.append({"task": "cloze", "id": index, "accuracy": float(margin > 0), "margin": margin})
    accuracy = clustered_mean([sample["accuracy"] for sample in samples], [1] * len(samples))
    text = repr([(question.context, question.choices, question.answer) for question in asked])
    facts = {
        "version": CLOZE_VERSION,
        "samples": len(asked),
        "prompts_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return {"cloze_accuracy": accuracy}, samples, {"cloze": facts}
