"""`lm_eval --model hf` on a folder that we exported: the scores and texts of our own model in lm-eval."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ratplus import ModelConfig, PatternMap, RATPlus
from ratplus.checkpoint import save
from ratplus.checkpoint.hub import export_hf
from ratplus.data.tokenizer import ByteTokenizer

pytest.importorskip("accelerate")  # lm-eval imports it for a model of transformers
pytest.importorskip("transformers")
pytest.importorskip("lm_eval")
LABEL = "D4-W6-I2"


@pytest.fixture
def ours(tmp_path, monkeypatch) -> RATPlus:
    """A random recurrent model; its export under `LABEL` lies in `tmp_path / "hub"`."""
    place = tmp_path / "modules"  # where transformers copies the code that it trusts: not the home folder
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(place))
    monkeypatch.syspath_prepend(str(place))
    model = RATPlus(ModelConfig(257, 2, 32, 8, max_len=128)).eval()
    model.reset_parameters(0, 0.3)
    export_hf(save(model, tmp_path / "ours", ByteTokenizer()), tmp_path / "hub", pattern=LABEL)
    return model


def asked(*arguments) -> SimpleNamespace:
    return SimpleNamespace(args=arguments, arguments=arguments)


def test_scores_and_texts_are_ours(ours, tmp_path: Path):
    from lm_eval.models.huggingface import HFLM

    from ratplus.evaluation import HarnessLM

    mine = HarnessLM(ours, ByteTokenizer(), PatternMap.from_label(LABEL, 2, 4))
    dense = HarnessLM(ours, ByteTokenizer())
    theirs = HFLM(str(tmp_path / "hub"), device="cpu", dtype="float32", batch_size=2, trust_remote_code=True)
    questions = [asked("the capital of France, where much bread is eaten, is", end) for end in (" Paris", " Rome", "!")]
    questions.append(asked("a b", " c"))
    expected, found = (lm.loglikelihood(questions) for lm in (mine, theirs))
    for (score, greedy), (same, likewise) in zip(expected, found):
        assert same == pytest.approx(score, abs=1e-4)
        assert likewise == greedy
    assert abs(dense.loglikelihood(questions)[0][0] - expected[0][0]) > 1e-2  # the pattern matters here
    prompts = [asked(text, {"until": ["\x00"], "max_gen_toks": 12, "do_sample": False})
               for text in ("one long prompt of forty-odd bytes, say, or so", "short")]  # fmt: skip
    with torch.no_grad():
        assert theirs.generate_until(prompts) == mine.generate_until(prompts)
