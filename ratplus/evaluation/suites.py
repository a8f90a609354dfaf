"""All that `eval=` asks of a cell: held-out text and recall (also by position), cloze, needles, and lm-eval's tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from ratplus.config.eval import CHOICES, EvalSection
from ratplus.data.batches import Batches
from ratplus.data.sampling import IGNORE
from ratplus.evaluation import positions
from ratplus.evaluation.bad_logits import BadLogits, check_logits
from ratplus.evaluation.cloze import evaluate_cloze, questions
from ratplus.evaluation.metrics import clustered_mean, perplexity
from ratplus.evaluation.scoring import Progress, Scorer
from ratplus.model import RATPlus
from ratplus.pattern import PatternMap
from ratplus.records.record import Metric

__all__ = ["BadLogits", "Evaluation", "evaluate_suites"]


# Needles are hidden in at most so much held-out text.
_HAYSTACK_TOKENS = 1 << 20


@dataclass
class Evaluation:
    """What the suites found.

    Attributes:
        metrics: {name: {"value", "stderr", "count"}}.
        samples: an item each, for paired comparisons (ratplus.records.samples).
        facts: {task: {"version", "samples", "prompts_sha256", ...}} of the suites that ask questions.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    samples: list[dict] = field(default_factory=list)
    facts: dict[str, dict] = field(default_factory=dict)

    def add(self, metrics: dict, samples: list[dict], facts: dict) -> None:
        self.metrics |= metrics
        self.samples += samples
        self.facts |= facts


def evaluate_suites(
    model: RATPlus,
    patterns: PatternMap,
    batches: Batches,
    section: EvalSection,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Everything that `section` asks for, of a model under a pattern.

    Raises:
        BadLogits: NaN or infinite logits.
        MissingExtra, TaskError: of ratplus.evaluation.harness, where lm-eval or a task is not there.
        ValueError: too little held-out text, or a length without room for a question.
    """
    found = Evaluation()
    text = batches.held_out_text(section.text_rows) if section.text_rows else None
    recall = batches.held_out_recall(section.recall_rows) if batches.recall and section.recall_rows else None
    needles = section.niah.samples * len(section.niah.tasks)
    choices = CHOICES * section.cloze.items
    bins = section.positions.bins(batches.context)
    further = positions.recall_rows(batches, section.recall_rows, bins, _distance_bins(batches.context))
    total = (len(text[0]) if text else 0) + (len(recall[0]) if recall else 0) + choices + needles
    total += sum(len(rows.inputs) for rows in further)
    done = 0

    def advance(now: int, _total: int) -> None:
        if progress is not None:
            progress(done + now, total)

    def scored(inputs, labels):
        nonlocal done
        for rows in range(0, len(inputs), section.batch):
            yield _score(model, patterns, inputs[rows : rows + section.batch], labels[rows : rows + section.batch])
            done += len(inputs[rows : rows + section.batch])
            advance(0, total)

    if text:
        scores = list(scored(*text))
        found.add(*_of_text(scores, text[1]))
        found.metrics |= positions.by_position("loss_at", _joined(scores, 0), text[1], bins)
    if recall:
        inputs, labels, distances = recall
        found.add(*_of_recall(list(scored(inputs, labels)), labels, distances))
    for rows in further:
        found.metrics |= rows.metrics(_joined(scored(rows.inputs, rows.labels), 1))
    scorer = Scorer(model, patterns, section.batch, batches.context)
    if section.cloze.items:
        corpus = batches.corpus
        asked = questions(
            corpus.validation, corpus.eos_id, section.cloze.items, *section.cloze.shape(batches.context)
        )  # fmt: skip
        found.add(*evaluate_cloze(scorer, asked, advance))
        done += choices
    if section.niah.tasks:
        found.add(*_of_needles(scorer, batches, section, advance))
    if section.tasks:
        found.add(*_of_harness(model, patterns, batches, section))
    return found


def _of_needles(scorer: Scorer, batches: Batches, section: EvalSection, progress: Progress):
    from ratplus.data.needles import section_items
    from ratplus.evaluation.niah import evaluate_niah

    corpus, tokenizer = batches.corpus, batches.corpus.tokenizer()
    haystack = None
    if section.niah.haystack == "held_out":
        haystack = tokenizer.decode(np.asarray(corpus.validation[:_HAYSTACK_TOKENS]).tolist())
    items = section_items(section.niah, tokenizer, batches.context, haystack)
    return evaluate_niah(scorer, tokenizer, items, progress)


def _of_harness(model: RATPlus, patterns: PatternMap, batches: Batches, section: EvalSection):
    from ratplus.evaluation.harness import harness_class, run_tasks

    options = section.harness
    tokenizer = batches.corpus.tokenizer()
    lm = harness_class()(
        model, tokenizer, patterns, section.batch, options.max_length or batches.context,
        truncation=options.truncation, spare_ids=model.config.vocab_size - tokenizer.vocab_size,
    )  # fmt: skip
    return run_tasks(lm, section.tasks, options)


@torch.no_grad()
def _score(model: RATPlus, patterns: PatternMap, inputs: np.ndarray, labels: np.ndarray):
    """Loss and correctness of every position, float64 and bool [rows, context]; zero where there is no label."""
    device = model.embed.weight.device
    x, y = torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device)
    logits = model(x, patterns).float()
    check_logits(logits, model, x, patterns)
    loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORE, reduction="none").view_as(y)
    correct = (logits.argmax(dim=-1) == y) & (y != IGNORE)
    return loss.double().cpu().numpy(), correct.cpu().numpy()


def _joined(scores, which: int) -> np.ndarray:
    """Loss (0) or correctness (1) of all rows."""
    return np.concatenate([part[which] for part in scores])


def _of_text(scores, labels: np.ndarray):
    counts = (labels != IGNORE).sum(axis=1)
    rows = np.concatenate([part[0] for part in scores]).sum(axis=1) / np.maximum(counts, 1)
    samples = [
        {"task": "loss", "id": i, "loss": float(x), "count": int(n)} for i, (x, n) in enumerate(zip(rows, counts))
    ]
    return _text_metrics(scores, labels), samples, {}


def _of_recall(scores, labels: np.ndarray, distances: np.ndarray):
    counts = (labels != IGNORE).sum(axis=1)
    rows = np.concatenate([part[1] for part in scores]).sum(axis=1) / np.maximum(counts, 1)
    samples = [
        {"task": "recall", "id": i, "accuracy": float(x), "count": int(n)} for i, (x, n) in enumerate(zip(rows, counts))
    ]
    return _recall_metrics(scores, labels, distances), samples, {}


def _text_metrics(scores, labels: np.ndarray) -> dict[str, Metric]:
    loss, correct = (np.concatenate(part) for part in zip(*scores))
    counts = (labels != IGNORE).sum(axis=1)
    mean_loss = clustered_mean(loss.sum(axis=1), counts)
    return {
        "loss": mean_loss,
        "perplexity": perplexity(mean_loss),
        "next_token_accuracy": clustered_mean(correct.sum(axis=1), counts),
    }


def _recall_metrics(scores, labels: np.ndarray, distances: np.ndarray) -> dict[str, Metric]:
    correct = np.concatenate([part[1] for part in scores])
    asked = labels != IGNORE
    metrics = {"recall_accuracy": clustered_mean(correct.sum(axis=1), asked.sum(axis=1))}
    for low, high in _distance_bins(labels.shape[1]):
        here = asked & (distances >= low) & (distances < high)
        if here.any():
            metrics[f"recall_accuracy_{low}_{high}"] = clustered_mean((correct & here).sum(axis=1), here.sum(axis=1))
    return metrics


def _distance_bins(context: int) -> list[tuple[int, int]]:
    """Doubling bins [low, high) of token distances that end at the context length."""
    edges = [context]
    while edges[-1] > 32:
        edges.append(edges[-1] // 2)
    edges.append(1)
    edges.reverse()
    return list(pairwise(edges))
