"""Built-in suites: held-out text (loss, perplexity, next-token accuracy) and stacked recall (accuracy by distance)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from ratplus.config import EvalSection
from ratplus.data.batches import Batches
from ratplus.data.sampling import IGNORE
from ratplus.evaluation.metrics import clustered_mean, perplexity
from ratplus.model import RATPlus
from ratplus.pattern import PatternMap


class BadLogits(ValueError):
    """The model produced NaN or infinite logits."""


def evaluate_suites(
    model: RATPlus,
    patterns: PatternMap,
    batches: Batches,
    section: EvalSection,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict]:
    """All metrics of a model under a pattern.

    Raises:
        BadLogits: NaN or infinite logits.
    """
    text = batches.held_out_text(section.text_rows)
    recall = batches.held_out_recall(section.recall_rows) if batches.recall and section.recall_rows else None
    total = len(text[0]) + (len(recall[0]) if recall else 0)
    done = 0

    def scored(inputs, labels):
        nonlocal done
        for rows in range(0, len(inputs), section.batch):
            yield _score(model, patterns, inputs[rows : rows + section.batch], labels[rows : rows + section.batch])
            done += len(inputs[rows : rows + section.batch])
            if progress is not None:
                progress(done, total)

    metrics = _text_metrics(list(scored(*text)), text[1])
    if recall:
        inputs, labels, distances = recall
        metrics |= _recall_metrics(list(scored(inputs, labels)), labels, distances)
    return metrics


@torch.no_grad()
def _score(model: RATPlus, patterns: PatternMap, inputs: np.ndarray, labels: np.ndarray):
    """Loss and correctness of every position, float64 and bool [rows, context]; zero where there is no label."""
    device = model.embed.weight.device
    x, y = torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device)
    logits = model(x, patterns).float()
    if not torch.isfinite(logits).all():
        raise BadLogits("the model's logits are NaN or infinite; the training run diverged: lower its learning rate")
    loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORE, reduction="none").view_as(y)
    correct = (logits.argmax(dim=-1) == y) & (y != IGNORE)
    return loss.double().cpu().numpy(), correct.cpu().numpy()


def _text_metrics(scores, labels: np.ndarray) -> dict[str, dict]:
    loss, correct = (np.concatenate(part) for part in zip(*scores))
    counts = (labels != IGNORE).sum(axis=1)
    mean_loss = clustered_mean(loss.sum(axis=1), counts)
    return {
        "loss": mean_loss,
        "perplexity": perplexity(mean_loss),
        "next_token_accuracy": clustered_mean(correct.sum(axis=1), counts),
    }


def _recall_metrics(scores, labels: np.ndarray, distances: np.ndarray) -> dict[str, dict]:
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
