"""What is looked at before anything is trained for an evaluation, and which model lm-eval's tasks get."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.config.cell import Config
from ratplus.config.eval import ClozeSection, EvalSection, HarnessSection, NiahSection
from ratplus.data.batches import Batches
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.evaluation import checks, harness
from ratplus.evaluation.suites import evaluate_suites


def corpus(tokens: int, asked: list) -> SimpleNamespace:
    text = np.random.default_rng(0).integers(97, 123, tokens)
    return SimpleNamespace(validation=text, eos_id=256, tokenizer=lambda: asked.append("tokenizer") or ByteTokenizer())


def test_nothing_is_asked_of_suites_that_are_off():
    asked = []
    checks.check_suites(Config(eval=EvalSection(cloze=ClozeSection(items=0))), corpus(1, asked))
    assert asked == []


def test_cloze_is_tried_in_a_short_text_alone(monkeypatch):
    config = Config(eval=EvalSection(cloze=ClozeSection(items=5)))
    with pytest.raises(ValueError, match=r"eval\.cloze\.items: got 5, but the held-out text of 100 tokens"):
        checks.check_suites(config, corpus(100, []))
    monkeypatch.setattr(checks, "_SHORT_TOKENS", 100)
    checks.check_suites(config, corpus(100, []))


def test_tasks_and_needles_need_the_tokenizer(monkeypatch):
    asked = []
    monkeypatch.setattr(harness, "check_tasks", lambda tasks: asked.append(tasks))
    checks.check_suites(Config(eval=EvalSection(tasks=["piqa"])), corpus(1, asked))
    assert asked == [["piqa"], "tokenizer"]
    fits = EvalSection(niah=NiahSection(["niah_single_1"], 2, template="short"))
    checks.check_suites(Config(eval=fits), corpus(1, asked))
    assert asked[2:] == ["tokenizer"]
    with pytest.raises(ValueError, match=r"eval\.niah\.length: got 40, but niah_single_1 needs"):
        checks.check_suites(Config(eval=replace(fits, niah=replace(fits.niah, length=40))), corpus(1, []))


@pytest.mark.parametrize(("longest", "told"), [(None, 48), (20, 20)])
def test_what_lm_evals_tasks_get(monkeypatch, longest, told):
    """The pattern, the batch, the longest input, and how many ids of its own the model may have."""
    given = []
    monkeypatch.setattr(harness, "harness_class", lambda: lambda *words, **more: given.append((words, more)) or "lm")
    monkeypatch.setattr(
        harness, "run_tasks", lambda *words: given.append(words) or ({"a": 1}, [{"task": "a", "id": 0}], {"a": {}})
    )
    model, patterns = RATPlus(ModelConfig(270, 2, 16, 8, max_len=48)), PatternMap.uniform(Pattern(4), 2, 2)
    options = HarnessSection(max_length=longest, truncation="middle")
    section = EvalSection(text_rows=0, recall_rows=0, batch=3, tasks=["a"], harness=options)
    found = evaluate_suites(model, patterns, Batches(corpus(100, []), None, 0.0, 48, 0), section)
    (words, more), asked = given
    assert words[0] is model
    assert isinstance(words[1], ByteTokenizer)
    assert words[2:] == (patterns, 3, told)
    assert more == {"truncation": "middle", "spare_ids": 270 - 257}
    assert asked == ("lm", ["a"], options)
    assert (found.metrics, found.samples, found.facts) == ({"a": 1}, [{"task": "a", "id": 0}], {"a": {}})
