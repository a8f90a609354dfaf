"""The model: decoding with the compact cache equals the full forward, whatever the pattern and the chunks."""

import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus

VOCAB, LAYERS, HEADS = 23, 2, 4

MAPS = {
    "dense": PatternMap.uniform(Pattern(), LAYERS, HEADS),
    "dilated": PatternMap.uniform(Pattern(4), LAYERS, HEADS),
    "local": PatternMap.uniform(Pattern(3, 5, 4), LAYERS, HEADS),
    "streaming": PatternMap.uniform(Pattern(None, 6, 2), LAYERS, HEADS),
    "self only": PatternMap.uniform(Pattern(None, 0, 0), LAYERS, HEADS),
    "wider than the sequence": PatternMap.uniform(Pattern(64, 100, 90), LAYERS, HEADS),
    "layers": PatternMap.per_layer([Pattern(), Pattern(8)], HEADS),
    "heads": PatternMap.per_head([Pattern(), Pattern(8), Pattern(None, 3, 1), Pattern(8)], LAYERS),
    "mixed": PatternMap((
        (Pattern(), Pattern(2, 1), Pattern(5, 0, 7), Pattern(16)),
        (Pattern(3), Pattern(3), Pattern(None, 2), Pattern()),
    )),
}  # fmt: skip


def make(recurrence=True, **kwargs) -> RATPlus:
    torch.manual_seed(0)
    model = RATPlus(ModelConfig(VOCAB, LAYERS, 32, 8, recurrence=recurrence, max_len=64, **kwargs))
    model.reset_parameters(1, std=0.2)  # large enough that a wrong key is seen in the logits
    return model.double()


def tokens(batch=2, length=40):
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("recurrence", [True, False])
def test_steps_equal_the_full_forward(name, recurrence):
    model, x = make(recurrence), tokens()
    expected = model(x, MAPS[name])
    cache = model.new_cache(2, MAPS[name], 40)
    for t in range(40):
        torch.testing.assert_close(model.step(x[:, t], cache), expected[:, t], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MAPS)
def test_chunked_ragged_prefill_then_steps(name):
    """Three sequences at different positions, prefilled in uneven chunks, then stepped."""
    model, x = make(), tokens(3)
    expected = model(x, MAPS[name])
    cache = model.new_cache(3, MAPS[name], 40)
    held = [0, 0, 0]
    for lengths in ([7, 1, 12], [0, 9, 5], [8, 2, 13]):
        width = max(lengths)
        chunk = torch.full((3, width), VOCAB + 99)  # padding is never read, so it may be no token at all
        for row, n in enumerate(lengths):
            chunk[row, :n] = x[row, held[row] : held[row] + n]
        logits = model.prefill(chunk, cache, lengths)
        for row, n in enumerate(lengths):
            held[row] += n
            if n:
                torch.testing.assert_close(logits[row], expected[row, held[row] - 1], atol=1e-5, rtol=0)
            else:
                assert logits[row].isnan().all()
        assert cache.lengths == held == cache.positions.tolist()
    for _ in range(8):
        logits = model.step(torch.stack([x[row, held[row]] for row in range(3)]), cache)
        for row in range(3):
            torch.testing.assert_close(logits[row], expected[row, held[row]], atol=1e-5, rtol=0)
            held[row] += 1


def test_padding_may_reach_past_the_models_length():
    """Of a chunk as wide as the longest of its rows, where another row is almost full already."""
    model, x = make(), tokens(2, 64)
    expected = model(x, MAPS["local"])
    cache = model.new_cache(2, MAPS["local"], 64)
    model.prefill(x[:, :60], cache, [60, 20])
    logits = model.prefill(torch.stack((x[0, 30:64].roll(4), x[1, 20:54])), cache, [4, 34])
    assert cache.lengths == [64, 54]
    torch.testing.assert_close(logits, torch.stack((expected[0, 63], expected[1, 53])), atol=1e-5, rtol=0)


def test_cache_is_as_small_as_promised():
    """Slots: I sinks, W + 1 ring, T/D dilated; nothing for what a head's own pattern does not keep."""
    model = make()
    per_head = {"dense": 1 + 40, "dilated": 1 + 10, "local": 4 + 6 + 13 - 1, "streaming": 2 + 7, "self only": 1}
    for name, slots in per_head.items():
        cache = model.new_cache(1, MAPS[name], 40)
        assert [layer.keys.shape[1] for layer in cache.layers] == [HEADS * slots] * LAYERS
    mixed = model.new_cache(1, MAPS["heads"], 40)
    assert mixed.layers[0].keys.shape[1] == 41 + 2 * (1 + 5) + (1 + 4)
    state = 2 * LAYERS * HEADS * 8 * 4
    assert mixed.bytes() == 2 * LAYERS * mixed.layers[0].keys.shape[1] * 8 * 8 + state
    assert all(
        s.dtype == torch.float32 for layer in make().bfloat16().new_cache(1, None, 8).layers for s in layer.state
    )


def test_overrun_raises_and_changes_nothing():
    model, x = make(), tokens()
    cache = model.new_cache(2, Pattern(4), 10)
    model.prefill(x[:, :9], cache, [9, 4])
    model.step(x[:, 9], cache)
    before = [layer.keys.clone() for layer in cache.layers]
    with pytest.raises(ValueError, match="cache overrun: sequence 0 holds 10 tokens and gets 1 more"):
        model.step(x[:, 10], cache)
    with pytest.raises(ValueError, match="cache overrun: sequence 1 holds 5 tokens and gets 6 more"):
        model.prefill(x[:, :6], cache, [0, 6])
    assert all(torch.equal(a, layer.keys) for a, layer in zip(before, cache.layers, strict=True))
    assert cache.lengths == [10, 5]


def test_generate_is_greedy_and_ragged_rows_do_not_matter():
    model = make()
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]
    together = model.generate(prompts, MAPS["mixed"], 12, prefill_chunk=4)
    for row, prompt in enumerate(prompts):
        alone = model.generate([prompt], MAPS["mixed"], 12)
        assert together[row].tolist() == alone[0].tolist()
        text = list(prompt)
        for token in together[row].tolist():
            logits = model(torch.tensor([text]), MAPS["mixed"])
            assert token == int(logits[0, -1].argmax())
            text.append(token)


def test_stop_token_and_sampling():
    model = make()
    greedy = model.generate([[1, 2, 3]], None, 10)[0].tolist()
    stop = greedy[4]
    stopped = model.generate([[1, 2, 3], [4]], None, 10, stop_token=stop)[0].tolist()
    first = greedy.index(stop)
    assert stopped[: first + 1] == greedy[: first + 1]
    assert set(stopped[first:]) == {stop}
    draw = lambda **kw: model.generate([[1, 2, 3]] * 4, None, 8, temperature=1.0, **kw).tolist()  # noqa: E731
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    # Cold draws are greedy, warm ones are not.
    cold = model.generate([[1, 2, 3]], None, 10, temperature=1e-4, seed=5)[0].tolist()
    assert cold == greedy != model.generate([[1, 2, 3]], None, 10, temperature=1.0, seed=5)[0].tolist()
    # A nucleus that holds one token only is greedy.
    assert model.generate([[1, 2, 3]], None, 10, temperature=1.0, top_p=1e-9, seed=5)[0].tolist() == greedy


def test_generation_may_fill_the_models_length():
    """The last new token is never fed, so it needs no place."""
    model = make()
    assert model.generate([[1, 2, 3], [4]], None, 62).shape == (2, 62)
    with pytest.raises(ValueError, match="sequence of 65 tokens is longer than the model's max_len=64"):
        model.generate([[1, 2, 3], [4]], None, 63)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tokens": [[]]}, "every prompt needs"),
        ({"tokens": [[99]]}, "id 99 is outside the model's vocabulary of 23"),
        ({"temperature": -1}, "temperature: got -1"),
        ({"temperature": float("nan")}, "temperature: got nan; it must be a finite number"),
        ({"temperature": float("inf")}, "temperature: got inf"),
        ({"top_p": 0}, "top_p: got 0"),
        ({"max_new_tokens": -1}, "max_new_tokens: got -1"),
        ({"max_new_tokens": 100}, "longer than the model's max_len=64"),
        ({"prefill_chunk": 0}, "prefill_chunk: got 0"),
    ],
)
def test_generate_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make().generate(**{"tokens": [[1, 2]], "patterns": None, **kwargs})


def test_patterns_must_fit_the_model():
    model = make()
    with pytest.raises(ValueError, match="made for 1 layers × 4 heads, but the model has 2 × 4"):
        model(tokens(), PatternMap.uniform(Pattern(), 1, 4))
    with pytest.raises(ValueError, match="got str; give a PatternMap"):
        model(tokens(), "D16")
    with pytest.raises(ValueError, match="sequence of 65 tokens is longer than the model's max_len=64"):
        model(torch.zeros(1, 65, dtype=torch.int64))


def test_a_cache_is_no_longer_than_the_model():
    model = make()
    assert model.new_cache(1, None, 64).max_len == 64
    with pytest.raises(ValueError, match="sequence of 65 tokens is longer than the model's max_len=64"):
        model.new_cache(1, None, 65)


def test_tokens_outside_the_vocabulary():
    model = make()
    for bad, shown in ((VOCAB, VOCAB), (-1, -1)):
        cache = model.new_cache(1, None, 8)
        for call in (
            lambda b=bad: model(torch.tensor([[1, b]])),
            lambda b=bad, c=cache: model.prefill(torch.tensor([[1, b]]), c),
            lambda b=bad, c=cache: model.step(torch.tensor([b]), c),
        ):
            with pytest.raises(ValueError, match=f"tokens: id {shown} is outside the model's vocabulary of {VOCAB}"):
                call()
        assert cache.lengths == [0]


def test_gradients_flow_to_every_parameter():
    model = make()
    model(tokens(), MAPS["mixed"]).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_without_output_gate():
    model, x = make(output_gate=False), tokens()
    assert model.layers[0].mixer.in_proj.weight.shape[0] == 4 * 32
    cache = model.new_cache(2, Pattern(4), 40)
    torch.testing.assert_close(model.prefill(x, cache), model(x, Pattern(4))[:, -1], atol=1e-5, rtol=0)


def test_parameter_count_formula():
    """L(14 d^2 + 2 d) + V d + d with recurrence, 13 d^2 without (the paper's sizes, counted)."""
    for recurrence, blocks in ((True, 14), (False, 13)):
        with torch.device("meta"):
            model = RATPlus(ModelConfig(32000, 24, 2048, 128, recurrence=recurrence))
        count = sum(p.numel() for p in model.parameters())
        assert count == 24 * (blocks * 2048**2 + 2 * 2048) + 32000 * 2048 + 2048
    assert count == 1_374_259_200
