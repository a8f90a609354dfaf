"""Models whose heads select blocks or prune a prompt: on CUDA what they are on the CPU (`make gpu-check`)."""

import copy

import pytest
import torch

from ratplus import ModelConfig, Pattern, RATPlus

pytestmark = pytest.mark.gpu
LABELS = ["top4x16", "quest4x16-decode", "D16-top4x16", "random4x16", "D4-ktop3x8", "snap32x8"]
DEVICE = "cuda"
PROMPT, LENGTH = 120, 160


@pytest.fixture
def models():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = RATPlus(ModelConfig(vocab_size=97, layers=2, d_model=64, d_head=16, max_len=256))
    model.reset_parameters(0, std=0.15)
    return model.eval(), copy.deepcopy(model).to(DEVICE).eval()


def served(model, tokens, label):
    """Logits of a prompt in two chunks, of steps over the borders of blocks, and of steps after going back."""
    tokens = tokens.to(next(model.parameters()).device)
    cache = model.new_cache(2, Pattern.from_label(label), 256)
    with torch.no_grad():
        parts = [model.prefill(tokens[:, :70], cache), model.prefill(tokens[:, 70:PROMPT], cache)]
        parts += [model.step(tokens[:, t], cache) for t in range(PROMPT, LENGTH)]
        cache.rewind(LENGTH - 20)
        parts += [model.step(tokens[:, t], cache) for t in range(LENGTH - 20, LENGTH)]
    return torch.stack([x.reshape(2, -1)[:, -97:].cpu() for x in parts])


@pytest.mark.parametrize("label", LABELS)
def test_served_as_on_the_cpu(record_property, models, label):
    """float32: only an order of summation differs, so that a near tie may fall differently in some row."""
    tokens = torch.randint(0, 97, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    expected, found = (served(model, tokens, label) for model in models)
    assert found.isfinite().all()
    worst = (found - expected).abs().amax(dim=2).flatten()
    record_property("median and largest difference of logits", f"{worst.median():.1e} {worst.max():.1e}")
    assert float(worst.median()) < 1e-4
    assert float((worst < 1e-3).float().mean()) > 0.9


@pytest.mark.parametrize("label", ["top4x16", "D16-top4x16"])
def test_trained_as_on_the_cpu(record_property, models, label):
    """Loss and gradients of a full forward pass."""
    tokens = torch.randint(0, 97, (2, LENGTH), generator=torch.Generator().manual_seed(6))
    results = []
    for model in models:
        here = tokens.to(next(model.parameters()).device)
        logits = model(here, Pattern.from_label(label))
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), here[:, 1:].flatten())
        loss.backward()
        results.append([loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)])
    errors = [float((x - y).norm() / y.norm().clamp(min=1e-12)) for x, y in zip(*reversed(results), strict=True)]
    record_property("relative errors: loss, worst gradient", f"{errors[0]:.1e} {max(errors[1:]):.1e}")
    assert errors[0] < 1e-5
    assert max(errors[1:]) < 2e-3


def test_compiled_in_one_graph(record_property, models):
    _, model = models
    tokens = torch.randint(0, 97, (1, 96), device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(7))
    pattern = Pattern.from_label("D16-top4x16")
    compiled = torch.compile(lambda tokens: model(tokens, pattern), fullgraph=True)
    with torch.no_grad():
        worst = float((compiled(tokens) - model(tokens, pattern)).abs().max())
    record_property("largest difference", f"{worst:.1e}")
    assert worst < 1e-3
