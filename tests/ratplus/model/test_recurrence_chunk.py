"""The recurrence that starts anew every L tokens (RAT), and the pattern that leaves nothing but the recurrence."""

import pytest
import torch

from ratplus import ModelConfig, Pattern, RATPlus

ALONE = Pattern(dilation=None, window=0, sinks=0)  # each query sees its own token: all else comes by the recurrence


def make(chunk, layers=2, **kwargs) -> RATPlus:
    model = RATPlus(
        ModelConfig(vocab_size=50, layers=layers, d_model=64, d_head=16, max_len=64, recurrence_chunk=chunk, **kwargs)
    )
    model.reset_parameters(seed=1, std=0.2)
    return model.double()


def tokens(batch=2, length=40):
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(5))


def loss(logits):
    return (logits * torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype)).sin().sum()


def test_chunks_know_nothing_of_each_other():
    model, x = make(8), tokens()
    whole = model(x, ALONE)
    loss(whole).backward()
    of_whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    alone = model(x.view(-1, 8), ALONE)
    loss(alone).backward()
    torch.testing.assert_close(whole, alone.view_as(whole), rtol=1e-9, atol=1e-9)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, of_whole[name], rtol=1e-8, atol=1e-8)
        assert of_whole[name].abs().sum() > 0


def test_without_chunks_the_recurrence_reaches_the_end():
    model, x = make(None), tokens()
    other = x.clone()
    other[:, 0] = (other[:, 0] + 1) % 50
    assert (model(x, ALONE) != model(other, ALONE)).any(dim=-1).all()


def test_a_chunk_as_long_as_the_text_is_no_chunk():
    x = tokens()
    torch.testing.assert_close(make(40)(x), make(None)(x), rtol=0, atol=0)


@pytest.mark.parametrize("pattern", [Pattern(), Pattern(8), Pattern(4, window=6, sinks=2), ALONE], ids=str)
@pytest.mark.parametrize("chunk", [1, 8, 12])
def test_prefill_and_steps_equal_the_full_forward(pattern, chunk):
    model, x = make(chunk), tokens(batch=3)
    whole = model(x, pattern)
    cache = model.new_cache(3, pattern, 40)
    held = [0, 0, 0]
    for lengths in ([11, 8, 3], [5, 0, 7]):
        part = torch.zeros(3, max(lengths), dtype=torch.long)
        for row, (start, length) in enumerate(zip(held, lengths)):
            part[row, :length] = x[row, start : start + length]
        logits = model.prefill(part, cache, lengths)
        held = [a + b for a, b in zip(held, lengths)]
        for row, length in enumerate(lengths):
            if length:
                torch.testing.assert_close(logits[row], whole[row, held[row] - 1], rtol=1e-6, atol=1e-6)
    for _ in range(20):
        logits = model.step(x[range(3), held], cache)
        torch.testing.assert_close(logits, whole[range(3), held], rtol=1e-6, atol=1e-6)
        held = [n + 1 for n in held]


def test_refusals():
    with pytest.raises(ValueError, match=r"model\.recurrence_chunk: got 0; it must be ≥ 1, or null"):
        make(0)
    with pytest.raises(ValueError, match=r"model\.recurrence_chunk: got 8; only a model with recurrence has one"):
        make(8, recurrence=False)
