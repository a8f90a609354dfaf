"""The decoding loop with a stand-in for the graph: captured, it runs nothing; replayed, it rewrites one buffer."""

import copy
import gc
import warnings
import weakref

import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.model import decode_loop
from ratplus.model.decode_loop import DecodeLoop, keep, no_graph_reason, release, take

PATTERNS = [Pattern(), Pattern(4, 3, 2), Pattern(None, 5, 1)]


TOP, SNAP = Pattern(top=2, block=4, phase="decode"), Pattern(snap=6, observe=3)


class Graphs:
    """Captures as CUDA does, as far as the loop can tell; counts what it did."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, step):
        self.captured += 1
        with torch.inference_mode(False):  # a real graph's result is written by the device, whatever the mode
            out = torch.full((3, 40), float("nan"))

        def replay():
            self.replayed += 1
            out.copy_(step())

        return replay, out


@pytest.fixture
def model():
    model = RATPlus(ModelConfig(vocab_size=40, layers=2, d_model=32, d_head=16, max_len=64))
    model.reset_parameters(0, std=0.2)
    return model


def prompts(lengths=(5, 9, 7)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 40, (n,), generator=generator).tolist() for n in lengths]


def use(monkeypatch, graphs):
    """generate() with these graphs, as if the CPU could capture."""
    monkeypatch.setattr("ratplus.model.generate.take", lambda *args: take(*args, capture=graphs))


@pytest.mark.parametrize(
    "patterns",
    [*PATTERNS, PatternMap.per_head([Pattern(), Pattern(4)], 2), TOP, PatternMap.per_head([Pattern(4), TOP], 2), SNAP],
)
def test_a_graph_generates_what_plain_steps_do(model, monkeypatch, patterns):
    """Ragged prompts, greedy and sampled."""
    for options in ({}, {"temperature": 0.8, "seed": 3, "top_p": 0.9}):
        release(model)
        plain = model.generate(prompts(), patterns, 20, **options)
        with monkeypatch.context() as patch:
            graphs = Graphs()
            use(patch, graphs)
            assert torch.equal(model.generate(prompts(), patterns, 20, **options), plain)
        # Of 19 steps one runs as it is, for its kernels to be compiled.
        assert (graphs.captured, graphs.replayed) == (1, 18)


def test_the_second_call_captures_nothing(model, monkeypatch):
    graphs = Graphs()
    use(monkeypatch, graphs)
    fresh = copy.deepcopy(model)
    for lengths in ((5, 9, 7), (3, 12, 1)):
        expected = fresh.generate(prompts(lengths), PATTERNS[1], 10)
        release(fresh)
        before = graphs.captured
        assert torch.equal(model.generate(prompts(lengths), PATTERNS[1], 10), expected)
    assert graphs.captured == before  # only `fresh` captured anew
    model.generate(prompts(), PATTERNS[0], 10)  # another pattern does
    assert graphs.captured == before + 1


def test_a_cache_that_selects_is_kept_and_one_that_was_cut_is_not(model, monkeypatch):
    """SnapKV's entries move to other tensors at each prompt's end, where no graph of before looks."""
    for pattern, captures in ((TOP, 1), (SNAP, 2)):
        with monkeypatch.context() as patch:
            graphs = Graphs()
            use(patch, graphs)
            found = [model.generate(prompts(lengths), pattern, 10) for lengths in ((5, 9, 7), (8, 2, 9))]
            assert graphs.captured == captures
        fresh = copy.deepcopy(model)
        for new, lengths in zip(found, ((5, 9, 7), (8, 2, 9)), strict=True):
            assert torch.equal(fresh.generate(prompts(lengths), pattern, 10), new)


def test_a_kept_loop_sees_trained_weights_but_not_moved_ones(model, monkeypatch):
    graphs = Graphs()
    use(monkeypatch, graphs)
    model.generate(prompts(), PATTERNS[1], 10)
    model.reset_parameters(5, std=0.2)  # in place
    changed = model.generate(prompts(), PATTERNS[1], 10)
    assert graphs.captured == 1
    release(model)
    assert torch.equal(model.generate(prompts(), PATTERNS[1], 10), changed)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    model.generate(prompts(), PATTERNS[1], 10)
    assert graphs.captured == 3


def test_more_room_than_the_kept_cache_has(model, monkeypatch):
    monkeypatch.setattr(decode_loop, "_ROOM", 16)
    graphs = Graphs()
    use(monkeypatch, graphs)
    expected = copy.deepcopy(model).generate(prompts(), PATTERNS[1], 40)
    model.generate(prompts(), PATTERNS[1], 4)
    assert torch.equal(model.generate(prompts(), PATTERNS[1], 40), expected)
    assert graphs.captured == 3  # one of them for the copy


def test_the_room_that_a_kept_loop_has_is_used_to_the_last_token(model):
    take, graphs = decode_loop.take, Graphs()
    loop = take(model, 3, model.resolve_patterns(PATTERNS[1]), 40, graphs)
    for _ in range(3):
        loop.step(torch.tensor([1, 2, 3]))
    room = loop.cache.max_len
    decode_loop.keep(loop)
    assert take(model, 3, model.resolve_patterns(PATTERNS[1]), room, graphs) is loop
    assert loop.cache.lengths == [0, 0, 0]
    decode_loop.keep(loop)
    assert take(model, 2, model.resolve_patterns(PATTERNS[1]), room, graphs) is not loop


def test_counters_and_overrun_under_replay(model):
    cache = model.new_cache(3, PATTERNS[1], 12)
    loop = DecodeLoop(model, cache, Graphs())
    token = torch.tensor([1, 2, 3])
    reference = model.new_cache(3, PATTERNS[1], 12)
    for t in range(12):
        torch.testing.assert_close(loop.step(token), model.step(token, reference), rtol=0, atol=0)
        assert cache.lengths == cache.positions.tolist() == [t + 1] * 3
    with pytest.raises(ValueError, match="cache overrun: sequence 0 holds 12 tokens"):
        loop.step(token)
    with pytest.raises(ValueError, match="made for 3 sequences, got 2"):
        loop.step(token[:2])
    assert cache.positions.tolist() == [12] * 3
    cache.rewind()
    reference.rewind()
    assert torch.equal(loop.step(token), model.step(token, reference))
    with pytest.raises(ValueError, match="cannot stand at 13 tokens"):
        cache.rewind(13)


def test_a_failed_capture_falls_back_and_says_so_once(model):
    def broken(step):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    decode_loop._warned.clear()
    token = torch.tensor([1, 2])
    reference = model.new_cache(2, PATTERNS[1], 10)
    expected = [model.step(token, reference) for _ in range(4)]
    messages = []
    for _ in range(2):
        loop = DecodeLoop(model, model.new_cache(2, PATTERNS[1], 10), broken)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for logits in expected:
                assert torch.equal(loop.step(token), logits)
        assert not loop.graphed
        messages += [str(warning.message) for warning in caught]
    (message,) = messages
    assert message == (
        "decoding runs without a CUDA graph, which is slower: operation not permitted when stream is capturing"
    )


def test_a_cpu_takes_the_plain_loop_without_a_word(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = take(model, 2, model.resolve_patterns(None), 10)
        assert no_graph_reason(model, loop.cache) == ""
        loop.step(torch.tensor([1, 2]))
        loop.step(torch.tensor([1, 2]))
    assert not loop.graphed
    assert loop.cache.max_len == 10
    keep(loop)
    assert model not in decode_loop._kept


def test_a_kept_loop_does_not_keep_its_model(monkeypatch):
    graphs = Graphs()
    use(monkeypatch, graphs)
    model = RATPlus(ModelConfig(vocab_size=40, layers=1, d_model=16, d_head=16, max_len=64))
    model.generate(prompts(), None, 6)
    assert model in decode_loop._kept
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_calls_under_inference_mode_and_outside(model, monkeypatch):
    graphs = Graphs()
    use(monkeypatch, graphs)
    with torch.inference_mode():
        inside = model.generate(prompts(), PATTERNS[1], 10)
    assert torch.equal(model.generate(prompts(), PATTERNS[1], 10), inside)
    assert graphs.captured == 1
