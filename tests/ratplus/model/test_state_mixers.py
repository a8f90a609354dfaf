"""Models whose mixer is Mamba2 or Gated DeltaNet: the layer by its definition, decoding, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.config.cell import Config
from ratplus.config.model import ModelSection
from ratplus.config.pattern import PatternSection
from ratplus.config.train import RecipeSection, TrainSection
from ratplus.costs.budget import parameters
from ratplus.costs.state import held_bytes
from ratplus.model.decode_loop import DecodeLoop
from ratplus.training.gate_rates import parameter_groups

MIXERS = ("mamba2", "gated_deltanet")


def shape(mixer: str, **given) -> ModelConfig:
    sizes = dict(vocab_size=31, layers=2, d_model=24, d_head=6, d_state=4, query_heads=3, max_len=120)
    return ModelConfig(**(sizes | given), recurrence=False, mixer=mixer)


def make(mixer: str, **given) -> RATPlus:
    model = RATPlus(shape(mixer, **given)).double()
    model.reset_parameters(5, 0.3)
    return model


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 31, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_layer_by_its_definition(mixer):
    """Token by token and head by head, from the papers' formulas, with nothing of the layer's own code."""
    model = make(mixer)
    block = model.blocks[0].mixer
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # also what starts at 0 or 1
    w = dict(block.named_parameters())
    x = torch.randn(1, 11, 24, dtype=torch.float64)
    delta, heads, d_k, d_v = mixer == "gated_deltanet", 3, 4, 6
    keys = d_k * (heads if delta else 1)

    def rms(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return value / (value.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    z = rms(x[0], w["norm.weight"]) @ w["in_proj.weight"].T
    gate, before, scalars = z.split([heads * d_v, heads * d_v + 2 * keys, (1 + delta) * heads], dim=-1)
    state, rows = [torch.zeros(d_k, d_v, dtype=torch.float64) for _ in range(heads)], []
    for t in range(11):
        taken = sum(before[t - i] * w["conv_weight"][:, 3 - i] for i in range(4) if t >= i)
        v, k, q = F.silu(taken if delta else taken + w["conv_bias"]).split([heads * d_v, keys, keys])
        outs = []
        for h in range(heads):
            value, own = v[h * d_v : (h + 1) * d_v], slice(h * d_k, (h + 1) * d_k) if delta else slice(None)
            key, query = k[own], q[own]
            step = torch.log1p((scalars[t, h] + w["step_bias"][h]).exp())
            decay = (-w["log_rate"][h].exp() * step).exp()
            if delta:
                beta = 1 / (1 + (-scalars[t, heads + h]).exp())
                key, query = key / key.norm(), query / query.norm() / math.sqrt(d_k)
                old = decay * state[h]
                state[h] = old - beta * torch.outer(key, key @ old) + beta * torch.outer(key, value)
                outs.append(rms(state[h].T @ query, w["out_norm.weight"]))
            else:
                state[h] = decay * state[h] + step * torch.outer(key, value)
                outs.append(state[h].T @ query + w["skip"][h] * value)
        y = torch.cat(outs) * F.silu(gate[t])
        rows.append((y if delta else rms(y, w["out_norm.weight"])) @ w["out_proj.weight"].T)
    torch.testing.assert_close(block(x)[0], x[0] + torch.stack(rows), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("mixer", MIXERS)
def test_prefill_and_steps_are_the_forward_pass(mixer):
    """In ragged chunks, one of them longer than the operator's own, and another one shorter than the convolution."""
    model, x = make(mixer), tokens(3, 100)
    expected, held = model(x), [0, 0, 0]
    cache = model.new_cache(3, None, 100)
    for lengths in ([70, 1, 33], [0, 2, 1], [3, 3, 3]):
        rows = torch.zeros(3, max(lengths) + 1, dtype=torch.int64)
        for row, n in enumerate(lengths):
            rows[row, :n] = x[row, held[row] : held[row] + n]
            rows[row, n:] = 7  # padding that would leave a trace if it were read
        logits = model.prefill(rows, cache, lengths)
        held = [before + n for before, n in zip(held, lengths)]
        for row, n in enumerate(lengths):
            if n:
                torch.testing.assert_close(logits[row], expected[row, held[row] - 1], atol=1e-10, rtol=0)
    branch = cache.branch([2, 0])
    for _ in range(6):
        now = torch.stack([x[row, held[row]] for row in range(3)])
        for logits, rows in ((model.step(now, cache), [0, 1, 2]), (model.step(now[[2, 0]], branch), [2, 0])):
            for place, row in enumerate(rows):
                torch.testing.assert_close(logits[place], expected[row, held[row]], atol=1e-10, rtol=0)
        held = [n + 1 for n in held]
    assert cache.kv_entries() == [[[0, 0, 0]] * 3] * 2
    cache.rewind()
    torch.testing.assert_close(model.prefill(x[:, :9], cache), expected[:, 8], atol=1e-10, rtol=0)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_is_a_state_of_fixed_size(mixer, dtype):
    model = RATPlus(shape(mixer)).to(dtype)
    caches = [model.new_cache(2, None, length) for length in (8, 120)]
    size = 2 * 2 * held_bytes(model.config.state_shape, dtype.itemsize)
    for cache in caches:
        assert (cache.bytes(), cache.state_bytes(), cache.kv_bytes(), cache.metadata_bytes()) == (size, size, 0, 0)
        assert cache.layers[0].state.dtype == torch.float32
    new = model.generate(tokens(2, 9), None, 4)
    assert new.shape == (2, 4)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_captured_step_is_the_step(mixer):
    """A capture that only runs again: nothing of a step may live on the host."""
    model, x = make(mixer), tokens(2, 9)
    cache, other = (model.new_cache(2, None, 20) for _ in range(2))

    def capture(step):
        result = torch.empty(2, 31, dtype=torch.float64)
        return lambda: result.copy_(step()), result

    loop = DecodeLoop(model, cache, capture)
    for t in range(9):
        torch.testing.assert_close(loop.step(x[:, t]), model.step(x[:, t], other))
    assert loop.graphed


@pytest.mark.parametrize("mixer", MIXERS)
def test_it_trains(mixer):
    model = RATPlus(shape(mixer))
    model.reset_parameters(0, 0.2)
    x = tokens(4, 70)
    for checkpointing in (True, False):
        model.activation_checkpointing = checkpointing
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(8):
            loss = F.cross_entropy(model(x).flatten(0, 1), x.flatten())  # to say again what it just saw
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert float((model(x) - model(x[:2])[[0, 1, 0, 1]]).detach()[:2].abs().max()) < 0.1


def test_initial_weights_are_those_of_the_seed():
    first, second, third = RATPlus(shape("mamba2")), RATPlus(shape("mamba2")), RATPlus(shape("mamba2"))
    for model, seed in ((first, 3), (second, 3), (third, 4)):
        model.reset_parameters(seed)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    mixer, other = first.blocks[1].mixer, third.blocks[1].mixer
    assert not torch.equal(mixer.conv_weight, other.conv_weight)
    rates, steps = mixer.log_rate.exp(), F.softplus(mixer.step_bias)
    assert bool(((rates >= 1) & (rates <= 16)).all())
    assert bool(((steps >= 0.99e-3) & (steps <= 1.01e-1)).all())


@pytest.mark.parametrize("mixer", MIXERS)
def test_parameters_are_counted(mixer):
    for given in ({}, {"d_state": None}, {"ffn": "swiglu", "tied": False, "query_heads": 5}):
        config = shape(mixer, **given)
        assert parameters(config) == sum(p.numel() for p in RATPlus(config).parameters())


def test_decay_rates_have_no_weight_decay():
    model = RATPlus(shape("mamba2"))
    others, apart = parameter_groups(model, RecipeSection(steps=1))
    assert apart["weight_decay"] == 0
    assert len(apart["params"]) == 3 * 2
    assert len(others["params"]) + 6 == len(list(model.parameters()))


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", MIXERS)
def test_patterns_that_hide_something_are_refused(mixer):
    model, x = make(mixer), tokens(1, 5)
    assert torch.equal(model(x), model(x, PatternMap.uniform(Pattern(), 2, 3)))
    line = rf"^patterns: got 'D16'; model.mixer={mixer} has no pattern: .*; use dense \(D1\)$"
    for call in (lambda p: model(x, p), lambda p: model.new_cache(1, p, 8), lambda p: model.generate(x, p, 2)):
        with pytest.raises(ValueError, match=line):
            call(Pattern(16))
    with pytest.raises(ValueError, match="got 'stream-W4'"):
        model(x, PatternMap.per_layer([Pattern(), Pattern(None, 4)], 3))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"mixer": "mamba"}, "model.mixer: got 'mamba'; allowed: attention, mamba2, gated_deltanet"),
        ({"mixer": "attention", "d_state": 8}, "model.d_state: got 8; attention has no state"),
        ({"d_state": 0}, "model.d_state: got 0; it must be a whole number ≥ 1"),
        ({"recurrence": True}, "model.recurrence: got True; .* model.mixer=mamba2 has none; use false"),
        ({"kv_heads": 1}, "model.kv_heads: got 1; .* use null"),
        ({"output_gate": False}, "model.output_gate: got False; .* use true"),
        ({"qk_norm": True}, "model.qk_norm: got True"),
        ({"rope_base": 500.0}, "model.rope_base: got 500.0; .* use 10000.0"),
    ],
)
def test_keys_without_effect_are_refused(given, line):
    with pytest.raises(ValueError, match=line):
        ModelSection(**({"mixer": "mamba2", "recurrence": False} | given))


def test_cells_that_would_need_a_pattern_are_refused():
    model = ModelSection(mixer="gated_deltanet", recurrence=False)
    assert Config(model=model).patterns[0][0].dense
    with pytest.raises(ValueError, match=r"^pattern: got 'D16'; model.mixer=gated_deltanet has no pattern"):
        Config(model=model, pattern=PatternSection(dilation=16))
    with pytest.raises(ValueError, match=r"^train.pretrain.arl: got True; .* use false"):
        Config(model=model, train=TrainSection(pretrain=RecipeSection(steps=1, arl=True)))
    with pytest.raises(ValueError, match=r"^train.adapt.mixed: .* use \[\]"):
        Config(model=model, train=TrainSection(adapt=RecipeSection(steps=1, mixed=["D1", "D2"])))
