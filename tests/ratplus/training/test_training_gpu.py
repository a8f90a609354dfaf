"""Training through the kernels on a GPU (`make gpu-check`): a step, a compiled model, compiled and checkpointed blocks.

Each body runs on a CPU too, there through Triton's interpreter and a compiler backend that only traces.
"""

import copy

import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.config.run import TrainerSection
from ratplus.training.blocks import blocks_configured
from ratplus.training.step import token_loss

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SPARSE, STREAMING = Pattern(dilation=4, window=3, sinks=2), Pattern(dilation=None, window=5, sinks=1)
PATTERNS = {"dense": Pattern(), "sparse": SPARSE, "hybrid": PatternMap.per_head([SPARSE, STREAMING], layers=2)}


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
    elif torch.cuda.is_available():
        pytest.skip("the interpreter is off where there is a CUDA device")
    # AOTAutograd's cache doesn't notice an edited gradient formula.
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    torch._dynamo.reset()
    yield request.param
    torch._dynamo.reset()


def make(device):
    """(model, inputs, labels): of a size that the interpreter takes, or one of several tiles on a GPU."""
    small = device == "cpu"
    config = ModelConfig(vocab_size=61, layers=2, d_model=32 if small else 128, d_head=16 if small else 64, max_len=512)
    model = RATPlus(config)
    model.reset_parameters(seed=0, std=0.15)
    length = 12 if small else 384
    tokens = torch.randint(61, (1 if small else 2, length + 1), generator=torch.Generator().manual_seed(1))
    return model.to(device), tokens[:, :-1].to(device), tokens[:, 1:].to(device)


def optimizer_of(model):
    # A large eps, so that a gradient near zero doesn't decide on the direction of a whole step.
    return torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.1, fused=True)


def train_steps(model, inputs, labels, patterns, steps=2, autocast=False):
    """What training steps yield: every loss, the first gradients, and by how much the weights moved."""
    optimizer, losses, gradients = optimizer_of(model), [], None
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(steps):
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=autocast):
            loss = token_loss(model(inputs, patterns), labels) / labels.numel()
        loss.backward()
        losses.append(loss.detach().double().reshape(1))
        gradients = gradients or [p.grad.double().clone() for p in model.parameters()]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients, [(p.detach() - b).double() for p, b in zip(model.parameters(), before)]


def distance(found, exact):
    """Relative error of a list of tensors taken as one vector; NaN where either has one."""
    difference = sum(((x - y) ** 2).sum() for x, y in zip(found, exact))
    return float((difference / sum((y**2).sum() for y in exact)).sqrt())


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("kind", PATTERNS)
def test_training_step(monkeypatch, device, kind, autocast):
    """Two steps of AdamW: as near to float64 as the eager path, in float32 and under autocast."""
    if device == "cpu" and (autocast or kind == "dense"):
        pytest.skip("the interpreter has no bf16 arithmetic, and dense attention is no kernel of ours")
    model, inputs, labels = make(device)
    monkeypatch.setenv("RATPLUS_KERNELS", "eager")
    exact = train_steps(copy.deepcopy(model).double(), inputs, labels, PATTERNS[kind])
    eager = train_steps(copy.deepcopy(model), inputs, labels, PATTERNS[kind], autocast=autocast)
    if device == "cuda":
        monkeypatch.delenv("RATPLUS_KERNELS")
    else:
        monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    fused = train_steps(copy.deepcopy(model), inputs, labels, PATTERNS[kind], autocast=autocast)
    errors = {
        name: (distance(ours, truth), distance(theirs, truth))
        for name, ours, theirs, truth in zip(("loss", "gradients", "update"), fused, eager, exact)
    }
    print(f"{device} {kind} {'bf16' if autocast else 'float32'}: (ours, eager) {errors}")
    for name, (ours, theirs) in errors.items():
        assert ours <= 3 * theirs + 1e-4, (name, errors)  # false for NaN
        assert ours < (0.2 if autocast else 1e-3), (name, errors)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function")
def test_compiled_model(monkeypatch, device):
    """`torch.compile(fullgraph=True)`, forward and backward, against the same kernels uncompiled.

    One map of patterns, since a compiler takes its time; tests/kernels/test_compile.py has the others on a CPU.
    """
    model, inputs, labels = make(device)
    if device == "cpu":
        monkeypatch.setenv("RATPLUS_KERNELS", "eager")  # the interpreter's share is in tests/kernels/test_compile.py
    results = []

    def loss_of(inputs, labels):
        return token_loss(model(inputs, PATTERNS["hybrid"]), labels) / labels.numel()

    backend = "inductor" if device == "cuda" else "aot_eager"
    for function in (loss_of, torch.compile(loss_of, fullgraph=True, backend=backend)):
        loss = function(inputs, labels)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(x.isfinite().all() for x in results[0])
    for x, y in zip(*results):
        torch.testing.assert_close(y, x, atol=1e-5 + 1e-3 * float(x.detach().abs().max()), rtol=0)


def test_blocks_as_the_trainer_runs_them(monkeypatch, device):
    """`trainer.compile` with `trainer.activation_checkpointing` trains as plain blocks do."""
    model, inputs, labels = make(device)
    if device == "cpu":
        monkeypatch.setenv("RATPLUS_KERNELS", "eager")
        monkeypatch.setattr("ratplus.training.blocks.BACKEND", "aot_eager")
    plain = train_steps(copy.deepcopy(model), inputs, labels, PATTERNS["hybrid"])
    with blocks_configured(model, TrainerSection(compile=True, activation_checkpointing=True)):
        found = train_steps(model, inputs, labels, PATTERNS["hybrid"])
    for ours, expected in zip(found, plain):
        assert distance(ours, expected) < 1e-3
