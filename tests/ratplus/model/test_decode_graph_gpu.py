"""Generation by a captured CUDA graph equals generation step by step (`make gpu-check`)."""

import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.model import decode_loop
from ratplus.model.decode_loop import DecodeLoop, capture_cuda, release, take

pytestmark = pytest.mark.gpu

PATTERNS = [
    Pattern(),
    Pattern(16),
    Pattern(4, 33, 2),
    Pattern(None, 20, 4),
    PatternMap.per_head([Pattern(), Pattern(16, 8), Pattern(None, 9, 1), Pattern(4)], 2),
    PatternMap.per_layer([Pattern(), Pattern(16)], 4),
    Pattern(top=4, block=16),
    PatternMap.per_head([Pattern(16), Pattern(top=4, block=16), Pattern(16, top=3, block=16), Pattern()], 2),
    Pattern(top=3, block=32, score="bounds", phase="decode"),
]


@pytest.fixture(params=[True, False], ids=["recurrence", "attention only"])
def model(request):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    config = ModelConfig(
        vocab_size=512, layers=2, d_model=256, d_head=64, max_len=1024, recurrence=request.param
    )  # fmt: skip
    model = RATPlus(config)
    model.reset_parameters(0, std=0.06)
    return model.cuda().bfloat16()


def prompts(lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, 512, (n,), generator=generator).tolist() for n in lengths]


def step_by_step(monkeypatch, model, *args, **options):
    """generate() without a graph."""
    with monkeypatch.context() as patch:
        patch.setattr(DecodeLoop, "best", classmethod(lambda cls, model, cache: cls(model, cache, None)))
        release(model)
        return model.generate(*args, **options)


def count_captures(monkeypatch) -> list:
    captured = []

    def capture(step):
        captured.append(step)
        return capture_cuda(step)

    monkeypatch.setattr(decode_loop, "capture_cuda", capture)
    return captured


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
def test_token_for_token(monkeypatch, model, patterns):
    """Ragged batch; the second call reuses the graph, with prompts of other lengths; sampling draws the same."""
    captured = count_captures(monkeypatch)
    for lengths, options in (
        ([5, 200, 64, 1], {}),
        ([150, 3, 90, 17], {}),
        ([150, 3, 90, 17], {"temperature": 0.9, "top_p": 0.9, "seed": 4}),
    ):
        plain = step_by_step(monkeypatch, model, prompts(lengths), patterns, 50, **options)
        captured.clear()
        first = model.generate(prompts(lengths), patterns, 50, **options)
        assert torch.equal(first, plain)
        again = model.generate(prompts(lengths), patterns, 50, **options)
        assert torch.equal(again, first)
        assert len(captured) == 1


def test_logits_of_every_step(model):
    """Not only their maximum: bit for bit."""
    pattern = Pattern(16, 32, 4)
    loop = take(model, 3, model.resolve_patterns(pattern), 400)
    plain = model.new_cache(3, pattern, loop.cache.max_len)
    tokens = torch.randint(0, 512, (3, 300), device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    for t in range(300):
        expected = model.step(tokens[:, t], plain)
        assert expected.isfinite().all(), t
        assert torch.equal(loop.step(tokens[:, t]), expected), t
        assert loop.cache.lengths == [t + 1] * 3
    assert loop.graphed
    assert loop.cache.positions.tolist() == [300] * 3


def test_three_hundred_other_patterns_later_the_graph_still_reads_its_own(model):
    """What a graph reads lies in its cache: neither other patterns nor freed memory change it."""
    pattern = PatternMap.per_head([Pattern(), Pattern(16, 8), Pattern(None, 9, 1), Pattern(4)], 2)
    loop = take(model, 2, model.resolve_patterns(pattern), 64)
    plain = model.new_cache(2, pattern, loop.cache.max_len)  # as many slots, so as many parts to sum
    tokens = torch.randint(0, 512, (2, 20), device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    for t in range(20):
        expected = model.step(tokens[:, t], plain)
        assert expected.isfinite().all(), t
        assert torch.equal(loop.step(tokens[:, t]), expected), t
        if t == 5:
            assert loop.graphed
            for i in range(300):
                other = model.new_cache(2, Pattern(2 + i, i % 7, i % 5), 8)
                model.step(tokens[:, 0], other)
            del other
            torch.cuda.empty_cache()
            # Takes the memory that was freed.
            noise = [torch.full((128,), 77, dtype=torch.int32, device="cuda") for _ in range(2000)]
    assert len(noise) == 2000


def test_an_overrun_is_refused_before_the_device_sees_it(model):
    loop = take(model, 1, model.resolve_patterns(None), 1024)
    token = torch.tensor([1], device="cuda")
    loop.step(token)
    loop.step(token)
    assert loop.graphed
    loop.cache.rewind(1024)
    with pytest.raises(ValueError, match="cache overrun"):
        loop.step(token)
    assert loop.cache.positions.tolist() == [1024]


def test_trained_weights_are_seen_and_moved_ones_captured_anew(monkeypatch, model):
    captured = count_captures(monkeypatch)
    model.generate(prompts([9]), Pattern(16), 12)
    model.reset_parameters(7, std=0.06)  # in place
    changed = model.generate(prompts([9]), Pattern(16), 12)
    assert len(captured) == 1
    assert torch.equal(changed, step_by_step(monkeypatch, model, prompts([9]), Pattern(16), 12))
    model.float()
    moved = model.generate(prompts([9]), Pattern(16), 12)
    assert len(captured) == 2
    assert torch.equal(moved, step_by_step(monkeypatch, model, prompts([9]), Pattern(16), 12))


@pytest.mark.parametrize("forced", ["eager", "reference"])
def test_paths_that_wait_for_the_device_run_without_a_graph(monkeypatch, model, forced):
    monkeypatch.setenv("RATPLUS_KERNELS", forced)
    decode_loop._warned.clear()
    with pytest.warns(UserWarning, match=f"without a CUDA graph, which is slower: RATPLUS_KERNELS={forced}"):
        tokens = model.generate(prompts([9, 30]), Pattern(16), 6)
    assert tokens.shape == (2, 6)


def test_autocast_runs_without_a_graph(model):
    model.float()
    decode_loop._warned.clear()
    with torch.autocast("cuda", torch.bfloat16), pytest.warns(UserWarning, match="autocast is on"):
        assert model.generate(prompts([9]), Pattern(16), 6).shape == (1, 6)
