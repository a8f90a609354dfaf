"""Metrics against direct computations."""

import math

import numpy as np
import pytest
import torch

from ratplus.evaluation.metrics import clustered_mean, perplexity
from ratplus.evaluation.suites import _distance_bins, _recall_metrics


def test_mean_and_standard_error_of_equal_rows():
    """With equal counts the clustered error is the ordinary error of the row means."""
    rows = np.random.default_rng(0).normal(size=(20, 8))
    metric = clustered_mean(rows.sum(axis=1), [8] * 20)
    assert metric["value"] == pytest.approx(rows.mean())
    assert metric["stderr"] == pytest.approx(rows.mean(axis=1).std(ddof=1) / math.sqrt(20))
    assert metric["count"] == 160


def test_rows_of_unequal_size_and_the_spread_it_predicts():
    draw = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(400):
        counts = draw.integers(1, 10, 40)
        offsets = draw.normal(size=40)
        sums = [draw.normal(offset, 1, n).sum() for offset, n in zip(offsets, counts)]
        metric = clustered_mean(sums, counts)
        means.append(metric["value"])
        errors.append(metric["stderr"])
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_empty_and_single_rows():
    assert math.isnan(clustered_mean([], [])["value"])
    assert clustered_mean([3.0, 0.0], [2, 0]) == {"value": 1.5, "stderr": None, "count": 2}


def test_perplexity():
    assert perplexity({"value": 2.0, "stderr": 0.1, "count": 5})["value"] == pytest.approx(math.e**2)
    assert perplexity({"value": 1e4, "stderr": None, "count": 5})["value"] == math.inf


def test_recall_by_distance():
    labels = np.full((2, 8), -100)
    labels[:, 4:] = 1
    distances = np.array([[0, 0, 0, 0, 1, 2, 3, 4], [0, 0, 0, 0, 4, 5, 6, 7]])
    correct = np.zeros((2, 8), dtype=bool)
    correct[:, 4:6] = True
    metrics = _recall_metrics([(None, correct)], labels, distances)
    assert metrics["recall_accuracy"]["value"] == 0.5
    assert _distance_bins(8) == [(1, 8)]
    assert _distance_bins(128) == [(1, 32), (32, 64), (64, 128)]
    assert metrics["recall_accuracy_1_8"]["count"] == 8


def test_batch_size_never_changes_a_score():
    from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
    from ratplus.evaluation.suites import _score

    model = RATPlus(ModelConfig(11, 2, 16, 8, max_len=16))
    model.reset_parameters(0, 0.3)
    x = np.random.default_rng(0).integers(0, 11, (6, 16))
    patterns = PatternMap.uniform(Pattern(4, 2), 2, 2)
    whole = _score(model, patterns, x, x)[0]
    single = np.concatenate([_score(model, patterns, x[i : i + 1], x[i : i + 1])[0] for i in range(6)])
    np.testing.assert_allclose(whole, single, atol=1e-5)
    with torch.no_grad():
        direct = -torch.log_softmax(model(torch.from_numpy(x), patterns), -1).gather(-1, torch.from_numpy(x)[..., None])
    np.testing.assert_allclose(whole, direct[..., 0].numpy(), atol=1e-5)
