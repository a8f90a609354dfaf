"""What a pattern that selects by query selects in a trained model: how much it reads, and whether it reads the answer.

On a few rows of what the evaluation asks, each layer's masks are made by the definition (`Pattern.visible_from`) from
the layer's own queries and keys, and the forward goes on under these masks. So it holds for every pattern, also those
that depend on where a prompt ends, and does not depend on how an operator computes them. Written as `selection.json`
beside an evaluation's record, for the analysis; two means of it are metrics of the record.

The hit rate is that of arXiv 2605.28640: a head has a hit where a query that must give an answer sees every position of
the answer in the text before.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ratplus.config.eval import EvalSection
from ratplus.data.batches import Batches
from ratplus.evaluation.metrics import clustered_mean
from ratplus.model import RATPlus
from ratplus.model.network import Mixer
from ratplus.model.rope import rotate
from ratplus.pattern import Pattern, PatternMap
from ratplus.records.atomic import write_atomically
from ratplus.records.record import Metric

FORMAT = 1
SELECTION_FILE = "selection.json"
# Rows of each task, and how many (query, key) pairs of all heads and layers may be looked at: seconds on one core.
MOST_ROWS, MOST_PAIRS = 8, 1 << 28
# Positions of a mask that is kept for a picture.
MASK_LENGTH = 256


@dataclass(frozen=True)
class Question:
    """One row of text in which something is asked.

    Attributes:
        tokens: prompt and answer.
        prompt: tokens of the prompt; None: the row is read as a whole.
        asked: (query, positions of the answer in the text before it) for each token of an answer.
    """

    tokens: Sequence[int]
    prompt: int | None
    asked: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Selection:
    """`metrics` of a record and the `plain` content of `selection.json`."""

    metrics: dict[str, Metric]
    plain: dict


def questions_of(batches: Batches, section: EvalSection, patterns: PatternMap) -> dict[str, list[Question]]:
    """{task: rows} of recall and of each needle task that the evaluation asks; recall only where no prompt matters."""
    found: dict[str, list[Question]] = {}
    if batches.recall and section.recall_rows and not patterns.needs_prompt:
        inputs, _, distances = batches.held_out_recall(section.recall_rows)
        found["recall"] = [
            Question(row.tolist(), None, tuple((int(t), (int(t - far[t]),)) for t in np.flatnonzero(far)))
            for row, far in zip(inputs[:MOST_ROWS], distances)
        ]
    if section.niah.tasks:
        found |= _needle_questions(batches, section, whole=not patterns.needs_prompt)
    return found


def _needle_questions(batches: Batches, section: EvalSection, whole: bool) -> dict[str, list[Question]]:
    """Needles with their answers behind them; `whole` counts the last token of the prompt as a query too."""
    from ratplus.data.needles import section_items
    from ratplus.data.sft import answer_ids

    tokenizer = batches.corpus.tokenizer()
    haystack = None
    if section.niah.haystack == "held_out":
        haystack = tokenizer.decode(np.asarray(batches.corpus.validation[: 1 << 20]).tolist())
    found = {}
    for task, items in section_items(section.niah, tokenizer, batches.context, haystack).items():
        rows = []
        for item in items[:MOST_ROWS]:
            prompt = tokenizer.encode(item.prompt)
            answer = answer_ids(tokenizer, item.prompt, prompt, item.reply)
            # Where the values stand, in tokens; a token that reaches over a value's edge belongs to it.
            positions: list[int] = []
            for start, end in item.places:
                positions += range(len(tokenizer.encode(item.prompt[:start])), len(tokenizer.encode(item.prompt[:end])))
            # The query at t gives token t + 1.
            first = len(prompt) - 1 if whole else len(prompt)
            queries = range(first, len(prompt) + len(answer) - 1)
            rows.append(Question([*prompt, *answer], len(prompt), tuple((t, tuple(positions)) for t in queries)))
        found[task] = rows
    return found


@torch.no_grad()
def measure_selection(
    model: RATPlus, patterns: PatternMap, questions: dict[str, list[Question]], most_pairs: int = MOST_PAIRS
) -> Selection | None:
    """What a model under a pattern reads in these rows; None where not even one row is short enough to look at.

    Metrics: `selection_density`, the share of all entries that the step at a row's last position reads (mean over
    layers and heads), and `selection_hit_rate` over all that is asked. Both have the standard error over rows.
    `plain` holds {"format", "rows": {task: count}, "density": [layers][heads], "hit_rate": {task: [layers][heads]},
    "masks": {label: {"task", "layer", "head", "length", "bits"}}}: of each pattern that depends on data, what its first
    head saw in the first row, at most MASK_LENGTH positions, bits packed row by row and in base64.
    """
    kept: dict[str, list[Question]] = {}
    left = most_pairs
    for task, rows in questions.items():
        for question in rows:
            cost = patterns.layers * patterns.heads * len(question.tokens) ** 2
            if cost <= left and len(question.tokens) <= model.config.max_len:
                kept.setdefault(task, []).append(question)
                left -= cost
    if not kept:
        return None
    shape = patterns.layers, patterns.heads
    densities: list[np.ndarray] = []
    hits: list[tuple[np.ndarray, int]] = []
    rates, masks = {}, {}
    for task, rows in kept.items():
        of_task, asked = np.zeros(shape), 0
        for question in rows:
            density, hit = np.zeros(shape), np.zeros(shape)
            for layer, seen in enumerate(_masks(model, patterns, question)):
                last = len(question.tokens) - 1
                density[layer] = seen[:, last, :last].mean(axis=1) if last else 1.0
                for query, positions in question.asked:
                    hit[layer] += seen[:, query, list(positions)].all(axis=1)
                for head, pattern in enumerate(patterns[layer]):
                    if pattern.data_dependent and pattern.label not in masks:
                        masks[pattern.label] = {"task": task, "layer": layer, "head": head} | _packed(seen[head])
            densities.append(density)
            hits.append((hit, len(question.asked)))
            of_task, asked = of_task + hit, asked + len(question.asked)
        if asked:
            rates[task] = (of_task / asked).tolist()
    metrics = {"selection_density": clustered_mean([d.mean() for d in densities], [1] * len(densities))}
    if any(count for _, count in hits):
        metrics["selection_hit_rate"] = clustered_mean([hit.mean() for hit, _ in hits], [count for _, count in hits])
    plain = {
        "format": FORMAT, "rows": {task: len(rows) for task, rows in kept.items()},
        "density": np.mean(densities, axis=0).tolist(), "hit_rate": rates, "masks": masks,
    }  # fmt: skip
    return Selection(metrics, plain)


def _masks(model: RATPlus, patterns: PatternMap, question: Question) -> Iterator[np.ndarray]:
    """What each layer's heads see, bool [H, T, T], layer by layer of one forward under these masks."""
    length, group = len(question.tokens), model.config.group
    x = model.embed(torch.tensor(question.tokens, device=model.embed.weight.device)[None])
    cosines, sines = model.rope()
    rope = cosines[:length], sines[:length]
    for layer, (block, row) in enumerate(zip(model.blocks, patterns)):
        mixer = block.mixer
        assert isinstance(mixer, Mixer)  # no other has patterns, which select here
        gate, q, k, v, logit = mixer._project(x)
        logit, k, v = mixer._restart(logit, k, v)
        k, v, _ = mixer._recur(logit, k, v, rope)
        q = rotate(q, *rope)
        seen = np.concatenate(
            [_seen(row[h * group], q[0, h * group : (h + 1) * group], k[0, h : h + 1], question.prompt, layer, h)
             for h in range(k.shape[1])]
        )  # fmt: skip
        yield seen
        mask = torch.from_numpy(seen).to(x.device)
        k, v = (each.repeat_interleave(group, dim=1) for each in (k, v))
        x = block.ffn(mixer._finish(x, F.scaled_dot_product_attention(q, k, v, attn_mask=mask), gate))


def _seen(pattern: Pattern, q, k, prompt: int | None, layer: int, head: int) -> np.ndarray:
    """bool [heads of a group, T, T] of one head of keys."""
    return pattern.visible_from(q, k, prompt, layer=layer, head=head)


def _packed(seen: np.ndarray) -> dict:
    length = min(len(seen), MASK_LENGTH)
    bits = np.packbits(seen[:length, :length])
    return {"length": length, "bits": base64.b64encode(bits.tobytes()).decode("ascii")}


def write_selection(folder: Path, selection: Selection) -> Path:
    """Write `<folder>/selection.json`, whole or not at all."""
    path = Path(folder) / SELECTION_FILE
    write_atomically(path, json.dumps(selection.plain, allow_nan=False) + "\n")
    return path
