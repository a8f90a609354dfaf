"""Prefill and decoding steps never make the host wait for a GPU: run on tensors without data, told to be on a device.

Whatever needs data on the host (nonzero, item, tolist, a boolean index) fails on these; tensors made from numbers of
the host, which a GPU would wait for unless they come from pinned memory, are refused here.
"""

from contextlib import ExitStack

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.kernels import attention, block_decode, blocks, decode
from ratplus.kernels.attention.patterns import pattern_tensors
from ratplus.model import cache_chunk, head_parts
from ratplus.model.kernel_pattern import kernel_pattern

LAYERS, HEADS = 2, 4
PATTERNS = {
    "dense": Pattern(),
    "dilated": Pattern(4),
    "local": Pattern(3, 5, 4),
    "streaming": Pattern(None, 6, 2),
    "layers": PatternMap.per_layer([Pattern(), Pattern(8)], HEADS),
    "heads side by side": PatternMap.per_head([Pattern(), Pattern(), Pattern(8), Pattern(8)], LAYERS),
    "heads in turn": PatternMap.per_head([Pattern(), Pattern(8), Pattern(), Pattern(8)], LAYERS),
}


SELECTING = {
    "blocks": Pattern(top=3, block=8),
    "blocks in decoding": Pattern(8, top=3, block=8, score="bounds", phase="decode"),
    "random blocks": Pattern(top=3, block=8, score="random"),
    "several": PatternMap.per_head(
        [Pattern(8), Pattern(top=3, block=8), Pattern(), Pattern(4, top=5, block=8)], LAYERS
    ),
    "snap": Pattern(snap=24, observe=8),
    "snap and static": PatternMap.per_head([Pattern(8), Pattern(snap=24, observe=8)] * 2, LAYERS),
}


class Watch(TorchDispatchMode):
    """Remembers operators and their implementation, and refuses tensors that come from the host or go there."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.implementations = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        waits = ("aten::lift_fresh", "aten::nonzero", "aten::_local_scalar_dense", "aten::item", "aten::masked_select")
        assert name not in waits, f"{name} makes the host wait"
        self.seen.append(name)
        if name.startswith("ratplus::"):
            self.implementations.add(args[-1])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_device(monkeypatch):
    """A model on tensors without data. A build without CUDA can't index stand-ins for CUDA tensors, so these are told
    apart from a CPU's by what asks: the kernels are the fused ones, nobody may look at tokens, tensors are far away.
    """
    monkeypatch.setenv("RATPLUS_KERNELS", "fused")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(RATPlus, "_check_tokens", lambda self, tokens: None)
    monkeypatch.setattr(decode, "run", decode.decode_op)
    monkeypatch.setattr(block_decode, "run", block_decode.block_decode_op)
    for module in (attention, decode, blocks, block_decode):
        monkeypatch.setattr(module, "on_device", lambda *settings: any(isinstance(x, torch.Tensor) for x in settings))
    with ExitStack() as stack:
        for cached in (kernel_pattern, head_parts._index, head_parts._numbers):
            cached.cache_clear()
            stack.callback(cached.cache_clear)  # tensors of one test's stand-ins are no use to another test

        def make(**kwargs):
            with torch.device("meta"):
                model = RATPlus(ModelConfig(23, LAYERS, 64, 16, max_len=96, **kwargs)).bfloat16()
            shapes = {name: x.shape for name, x in model.state_dict().items()}
            stack.enter_context(FakeTensorMode())
            weights = {name: torch.empty(n, dtype=torch.bfloat16) for name, n in shapes.items()}
            for name, weight in weights.items():
                home, _, last = name.rpartition(".")
                setattr(model.get_submodule(home), last, torch.nn.Parameter(weight, requires_grad=False))
            return model

        yield make


def test_what_waits_is_seen(on_device):
    x = on_device().embed.weight
    for wait in (
        lambda: x[0, 0].item(), lambda: x.tolist(), lambda: x[x > 0], lambda: torch.nonzero(x),
        lambda: torch.tensor([1, 2]), lambda: int(x[0, 0]), lambda: bool((x > 0).any()),
    ):  # fmt: skip
        with pytest.raises((RuntimeError, AssertionError)), Watch():  # what fake tensors raise is a RuntimeError too
            wait()


@pytest.mark.parametrize(("name", "recurrence"), [*((name, True) for name in PATTERNS), ("layers", False)])
def test_prompts_without_padding(on_device, name, recurrence):
    """A prompt, a second chunk, and one beside it at another position: slices, no gathers, and the fused kernels."""
    model = on_device(recurrence=recurrence)
    cache = model.new_cache(2, PATTERNS[name], 96)
    tokens = torch.zeros(2, 40, dtype=torch.int64)
    model.rope()
    with Watch() as first:
        assert model.prefill(tokens, cache).shape == (2, 23)
    assert first.implementations <= {"fused"}
    assert ("ratplus::gated_scan" in first.seen) == recurrence
    sdpa = [op for op in first.seen if "scaled_dot_product" in op]
    assert len(sdpa) == {"dense": LAYERS, "layers": 1}.get(name, 0)
    assert first.seen.count("ratplus::dilated_attention") == LAYERS - len(sdpa)
    gathers = [op for op in first.seen if op in ("aten::gather", "aten::index.Tensor", "aten::index_put_")]
    if name != "heads in turn":
        assert not gathers
    with Watch():
        model.prefill(tokens[:, :7], cache, lengths=[7, 7], every=True)
    cache.held = [47, 40]
    with Watch():
        model.prefill(tokens[:, :7], cache)


@pytest.mark.parametrize("name", PATTERNS)
def test_prompts_with_padding(on_device, monkeypatch, name):
    """The lengths go to the device from pinned memory, which stand-ins do not have; nothing else is copied."""
    model = on_device()
    monkeypatch.setattr(
        cache_chunk, "to_device", lambda numbers, device: torch.zeros(len(numbers), dtype=torch.int64, device=device)
    )
    cache = model.new_cache(2, PATTERNS[name], 96)
    tokens = torch.zeros(2, 40, dtype=torch.int64)
    model.rope()
    for lengths in ([40, 13], [9, 40]):
        with Watch() as watch:
            model.prefill(tokens, cache, lengths)
        assert watch.implementations == {"fused"}
    assert cache.lengths == [49, 53]


@pytest.mark.parametrize("name", ["dense", "streaming", "heads in turn"])
def test_steps(on_device, name):
    model = on_device()
    cache = model.new_cache(2, PATTERNS[name], 96)
    token = torch.zeros(2, dtype=torch.int64)
    model.rope()
    with Watch() as watch:
        model.step(token, cache)
        model.step(token, cache)
    assert watch.implementations == {"fused"}
    assert cache.lengths == [2, 2]
    # What a captured graph may hold: operators on the device that were there before the step, or are made in it.
    assert "aten::full" not in watch.seen


@pytest.mark.parametrize("name", SELECTING)
def test_heads_that_select(on_device, monkeypatch, name):
    """Prompts with and without padding, what ends them, and steps."""
    model = on_device()
    monkeypatch.setattr(
        cache_chunk, "to_device", lambda numbers, device: torch.zeros(len(numbers), dtype=torch.int64, device=device)
    )
    cache = model.new_cache(2, SELECTING[name], 96)
    tokens, token = torch.zeros(2, 40, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    model.rope()
    with Watch():
        model.prefill(tokens, cache)
        model.prefill(tokens[:, :7], cache, lengths=[7, 3])
        model.step(token, cache)
    with Watch() as watch:
        model.step(token, cache)
    assert "aten::full" not in watch.seen  # as in `test_steps`
    with Watch():
        model.prefill(tokens[:, :5], cache)
        cache.rewind(70)
        model.step(token, cache)
    assert cache.lengths == [71, 71]


@pytest.mark.parametrize("name", ["dilated", "heads in turn"])
def test_a_layer_owns_the_tensors_that_a_graph_reads(monkeypatch, name):
    """A captured graph reads the pattern's tensors where they lie: the same ones at every step, whatever else runs."""
    model = RATPlus(ModelConfig(23, LAYERS, 64, 16, max_len=32))
    cache = model.new_cache(2, PATTERNS[name], 32)
    passed = []
    run = decode.run

    def record(*args):
        passed.append([(x.data_ptr(), x.dtype, x.tolist()) for x in args[9:12]])
        return run(*args)

    monkeypatch.setattr(decode, "run", record)
    token = torch.tensor([1, 2])
    model.step(token, cache)
    before, passed[:] = list(passed), []
    assert [facts for layer in before for facts in layer] == [
        (x.data_ptr(), torch.int32, x.tolist()) for layer in cache.layers for x in layer.step_setting
    ]
    others = [model.new_cache(1, Pattern(2 + i, i % 7, i % 5), 8) for i in range(300)]
    for i in range(300):
        decode._tensors_of_ints(2 + i, i, 1, HEADS, torch.device("cpu"))
    mine = {pointer for layer in before for pointer, _, _ in layer}
    assert not mine & {x.data_ptr() for other in others for layer in other.layers for x in layer.step_setting}
    model.step(token, cache)
    assert passed == before


def test_tensors_of_plain_patterns_are_never_dropped():
    """`decode_attention` with ints, captured: 300 other patterns later its tensors are still these."""
    device = torch.device("cpu")
    mine = decode._tensors_of_ints(1000, 3, 2, HEADS, device)
    for i in range(300):
        decode._tensors_of_ints(2000 + i, 1, 0, HEADS, device)
    assert all(x is y for x, y in zip(mine, decode._tensors_of_ints(1000, 3, 2, HEADS, device)))
    assert [x.tolist() for x in mine] == [x.tolist() for x in pattern_tensors(1000, 3, 2, HEADS, device)]
