"""Batched generation with the compact cache: greedy, temperature, top-p. On CUDA the steps are replays of one graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ratplus.model.decode_loop import keep, take

if TYPE_CHECKING:
    from ratplus.model.network import Network
    from ratplus.pattern import Pattern, PatternMap


def generate(
    model: Network,
    tokens: Tensor | Sequence[Sequence[int]],
    patterns: PatternMap | Pattern | None = None,
    max_new_tokens: int = 64,
    *,
    lengths: Sequence[int] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_token: int | None = None,
    seed: int | None = None,
    prefill_chunk: int | None = None,
) -> Tensor:
    """Continue prompts; returns the new tokens only, int64 [B, n] with n <= max_new_tokens.

    On CUDA the cache and the captured graph of a step are kept for the next call with the same batch size and patterns;
    `ratplus.model.decode_loop.release(model)` frees them.

    Args:
        tokens: prompts [B, T] (right-padded, with `lengths`), or a list of prompts of different lengths.
        patterns: what the heads see; None is dense.
        temperature: 0 is greedy; otherwise the logits are divided by it before sampling.
        top_p: sample from the smallest set of tokens whose probability reaches top_p (nucleus, arXiv 1904.09751).
        stop_token: a sequence that has produced it is filled with it; generation ends when all have.
        seed: makes sampling reproducible.
        prefill_chunk: feed prompts in chunks of this many tokens; None feeds them whole.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, values out of range, or more tokens than the
            model's max_len.
    """
    rows, own = _as_batch(tokens, lengths, model.embed.weight.device)
    out = list(
        stream(
            model, rows, patterns, max_new_tokens, lengths=own, temperature=temperature, top_p=top_p,
            stop_token=stop_token, seed=seed, prefill_chunk=prefill_chunk,
        )
    )  # fmt: skip
    return torch.stack(out, dim=1) if out else rows.new_zeros((len(rows), 0))


_NOT_FINITE = (
    "generate: the model's logits are not finite numbers; its weights have diverged, are damaged, or are not of its "
    "config"
)


@torch.no_grad()
def stream(
    model: Network,
    tokens: Tensor | Sequence[Sequence[int]],
    patterns: PatternMap | Pattern | None = None,
    max_new_tokens: int = 64,
    *,
    lengths: Sequence[int] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_token: int | None = None,
    seed: int | None = None,
    prefill_chunk: int | None = None,
) -> Iterator[Tensor]:
    """Like `generate`, but yields each step's tokens, int64 [B], as soon as they are chosen.

    The cache and graph are kept for the next call only if it runs to its end.
    """
    device = model.embed.weight.device
    tokens, lengths = _as_batch(tokens, lengths, device)
    _check(model, tokens, lengths, max_new_tokens, temperature, top_p, prefill_chunk)
    batch = tokens.shape[0]
    # The last new token is never fed back.
    needed = max(lengths) + max(max_new_tokens, 1) - 1
    model.check_length(needed)
    loop = take(model, batch, model.resolve_patterns(patterns), needed)
    logits = _prefill(model, tokens, lengths, loop.cache, prefill_chunk or tokens.shape[1])
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(_NOT_FINITE)
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    stopped = torch.zeros(batch, dtype=torch.bool, device=device)
    for i in range(max_new_tokens):
        token = _choose(logits, temperature, top_p, generator)
        if stop_token is not None:
            token = token.masked_fill(stopped, stop_token)
            stopped |= token == stop_token
        yield token
        if i + 1 == max_new_tokens or (stop_token is not None and bool(stopped.all())):
            break
        logits = loop.step(token)
    keep(loop)


def _prefill(model: Network, tokens: Tensor, lengths: list[int], cache, chunk: int) -> Tensor:
    """Feed the prompts in chunks; each sequence's logits come from the chunk that holds its last token."""
    logits = None
    for first in range(0, tokens.shape[1], chunk):
        part = tokens[:, first : first + chunk]
        here = [min(max(n - first, 0), part.shape[1]) for n in lengths]
        new = model.prefill(part, cache, here)
        if logits is None or all(here):
            logits = new
        else:
            done = torch.tensor(here, device=new.device)[:, None] > 0
            logits = torch.where(done, new, logits)
    assert logits is not None  # a prompt has at least one token
    return logits


def _choose(logits: Tensor, temperature: float, top_p: float, generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    probability = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        ordered, index = probability.sort(dim=-1, descending=True)
        # Drop a token when those before it already reach top_p; the first always stays.
        ordered = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered >= top_p, 0.0)
        probability = torch.zeros_like(probability).scatter_(-1, index, ordered)
    try:
        return torch.multinomial(probability, 1, generator=generator)[:, 0]
    except RuntimeError as error:  # asked of each step's logits beforehand, the device would be waited for
        raise ValueError(_NOT_FINITE) if "probability tensor contains" in str(error) else error from None


def _as_batch(tokens, lengths, device) -> tuple[Tensor, list[int]]:
    if not isinstance(tokens, Tensor):
        if lengths is not None:
            raise ValueError("lengths: give them with a padded tensor only; a list of prompts has its own")
        rows = [torch.as_tensor(list(row), dtype=torch.int64) for row in tokens]
        if not rows:
            raise ValueError("tokens: got no prompt")
        lengths = [len(row) for row in rows]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if tokens.dim() != 2 or tokens.is_floating_point():
        raise ValueError(f"tokens: got {tokens.dtype} {list(tokens.shape)}; give integer ids [B, T]")
    lengths = [tokens.shape[1]] * tokens.shape[0] if lengths is None else [int(n) for n in lengths]
    return tokens.to(device=device, dtype=torch.int64), lengths


def _check(model, tokens, lengths, max_new_tokens, temperature, top_p, prefill_chunk) -> None:
    width = tokens.shape[1]
    if len(lengths) != tokens.shape[0] or any(not 1 <= n <= width for n in lengths):
        raise ValueError(f"lengths: got {lengths}; every prompt needs between 1 and {width} tokens")
    vocab = model.config.vocab_size
    real = torch.arange(width, device=tokens.device) < torch.tensor(lengths, device=tokens.device)[:, None]
    outside = tokens[real & ((tokens < 0) | (tokens >= vocab))]
    if outside.numel():
        raise ValueError(f"tokens: id {int(outside[0])} is outside the model's vocabulary of {vocab}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens: got {max_new_tokens}; it must be ≥ 0")
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: got {temperature}; it must be a finite number ≥ 0 (0 is greedy)")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}; it must be in (0, 1]")
    if prefill_chunk is not None and prefill_chunk < 1:
        raise ValueError(f"prefill_chunk: got {prefill_chunk}; it must be ≥ 1 or None")
