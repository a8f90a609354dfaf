"""Text generation until stop strings, in ragged batches on the compact cache; batch size never changes a text.

Greedy or sampled: each prompt draws from a generator of its own, so its company in a batch is nobody's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ratplus.evaluation.bad_logits import check_logits
from ratplus.evaluation.scoring import Scorer
from ratplus.model.decode_loop import keep, take

DEFAULT_NEW_TOKENS = 256
# Characters of slack before a stop string in what is decoded to look for it.
_SLACK = 8


@dataclass(frozen=True)
class Decoding:
    """How to continue a prompt.

    Args:
        until: stop strings; the text ends before the first of them, wherever it begins within a token.
        max_new_tokens: the text ends after so many tokens, or at end-of-text.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens whose probability reaches it.
        repetition_penalty: divides the positive logits, multiplies the negative ones, of tokens that stand in the
            prompt or the text so far (arXiv 1909.05858); 1 is none.
        seed: of sampling; prompt number i draws from a generator of (seed, i).
    """

    until: tuple[str, ...] = ()
    max_new_tokens: int = DEFAULT_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name, ok, allowed in (
            ("max_gen_toks", self.max_new_tokens >= 1, "a whole number ≥ 1"),
            ("temperature", self.temperature >= 0, "a number ≥ 0 (0 is greedy)"),
            ("top_p", 0 < self.top_p <= 1, "a number in (0, 1]"),
            ("repetition_penalty", self.repetition_penalty > 0, "a number > 0 (1 is none)"),
        ):
            if not ok:
                value = self.max_new_tokens if name == "max_gen_toks" else getattr(self, name)
                raise ValueError(f"generation: {name}: got {value!r}; allowed: {allowed}")

    @classmethod
    def of(cls, asked: dict, new_tokens: int = DEFAULT_NEW_TOKENS) -> Decoding:
        """From lm-eval's generation_kwargs; `new_tokens` where they do not say how many.

        Raises:
            ValueError: a key that we do not know, or a value out of range.
        """
        rest = dict(asked)
        until = rest.pop("until", None) or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        values: dict[str, Any] = {"until": tuple(stop for stop in until if stop), "max_new_tokens": new_tokens}
        for key in ("max_gen_toks", "max_new_tokens", "max_tokens"):
            if rest.get(key) is not None:
                values["max_new_tokens"] = int(rest[key])
            rest.pop(key, None)
        temperature = rest.pop("temperature", None)
        sample = rest.pop("do_sample", None)
        # As in lm-eval: a temperature alone samples, but do_sample=false is greedy whatever the temperature.
        if sample is None:
            sample = temperature is not None and float(temperature) > 0
        if sample:
            values["temperature"] = 1.0 if temperature is None else float(temperature)
        for key in ("top_p", "repetition_penalty", "seed"):
            if rest.get(key) is not None:
                values[key] = int(rest[key]) if key == "seed" else float(rest[key])
            rest.pop(key, None)
        # What says what we do anyway.
        for key, value in (("num_beams", 1), ("top_k", 0), ("top_k", None), ("use_cache", True)):
            if key in rest and rest[key] == value:
                rest.pop(key)
        if rest:
            known = "until, max_gen_toks, do_sample, temperature, top_p, repetition_penalty, seed"
            raise ValueError(f"generation: {', '.join(map(repr, sorted(rest)))}: no such setting; allowed: {known}")
        return cls(**values)


@dataclass
class _Row:
    """One prompt's text so far."""

    ids: list[int] = field(default_factory=list)
    done: bool = False
    generator: torch.Generator | None = None


@torch.no_grad()
def generate_texts(
    scorer: Scorer,
    tokenizer,
    prompts: Sequence[list[int]],
    how: Decoding,
    numbers: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Continue each prompt (token ids, at least one); its text without the prompt, the stop string and end-of-text.

    Args:
        scorer: model, patterns, batch size, longest input and what to do with prompts beyond it.
        numbers: of the prompts, for their generators; None counts them.
        progress: told how many prompts a batch has finished.

    Raises:
        ValueError: a prompt that is too long with truncation off, or more new tokens than the model has room for.
        BadLogits: NaN or infinite logits.
    """
    room = scorer.longest - how.max_new_tokens
    if room < 1:
        raise ValueError(
            f"generation: max_gen_toks={how.max_new_tokens} leaves no room for a prompt in max_length="
            f"{scorer.max_length} tokens; ask for fewer"
        )
    for prompt in prompts:
        scorer.check_ids(prompt)
    too_long = sum(len(prompt) > room for prompt in prompts)
    prompts = [scorer.cut(list(prompt), room) for prompt in prompts]
    scorer.truncated += too_long
    numbers = range(len(prompts)) if numbers is None else numbers
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts = [""] * len(prompts)
    for first in range(0, len(order), scorer.batch_size):
        batch = order[first : first + scorer.batch_size]
        rows = [_Row(generator=torch.Generator().manual_seed(how.seed * 1_000_003 + numbers[i])) for i in batch]
        _generate(scorer, tokenizer, [prompts[i] for i in batch], rows, how)
        for i, row in zip(batch, rows):
            texts[i] = cut_at_stop(tokenizer.decode(row.ids), how.until)
        if progress is not None:
            progress(len(batch))
    return texts


def _generate(scorer: Scorer, tokenizer, prompts: list[list[int]], rows: list[_Row], how: Decoding) -> None:
    model = scorer.model
    tokens, lengths = scorer._padded(prompts)
    # The last new token is never fed back.
    loop = take(model, len(prompts), model.resolve_patterns(scorer.patterns), max(lengths) + how.max_new_tokens - 1)
    logits = model.prefill(tokens, loop.cache, lengths)
    seen = None
    if how.repetition_penalty != 1:
        seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        for row, prompt in enumerate(prompts):
            seen[row, prompt] = True
    for step in range(how.max_new_tokens):
        check_logits(logits, model, tokens, scorer.patterns)
        chosen = _choose(logits.float(), seen, rows, how, tokenizer.vocab_size)
        if seen is not None:
            seen[torch.arange(len(rows), device=seen.device), chosen] = True
        for row, token in zip(rows, chosen.tolist()):
            if not row.done:
                row.done = token == tokenizer.eos_id
                if not row.done:
                    row.ids.append(token)
                    row.done = _stops(tokenizer, row.ids, how.until)
        if step + 1 == how.max_new_tokens or all(row.done for row in rows):
            break
        logits = loop.step(chosen)
    keep(loop)


def _choose(logits: Tensor, seen: Tensor | None, rows: list[_Row], how: Decoding, known: int) -> Tensor:
    """The next token of each row; never an id that the tokenizer does not know, such as padding of the vocabulary."""
    if seen is not None:
        punished = torch.where(logits > 0, logits / how.repetition_penalty, logits * how.repetition_penalty)
        logits = torch.where(seen, punished, logits)
    logits = logits[:, :known]
    if how.temperature == 0:
        return logits.argmax(dim=-1)
    probability = torch.softmax(logits.double() / how.temperature, dim=-1).cpu()
    ordered, index = probability.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = ordered.masked_fill(before >= how.top_p, 0.0)
    total = ordered.cumsum(dim=-1)
    # A draw a row and step, also of rows that are done, so that none depends on another.
    draws = torch.stack([torch.rand(1, generator=row.generator, dtype=torch.float64) for row in rows])
    place = (total < draws * total[:, -1:]).sum(dim=-1, keepdim=True).clamp(max=logits.shape[1] - 1)
    return index.gather(1, place)[:, 0].to(logits.device)


def _stops(tokenizer, ids: list[int], until: tuple[str, ...]) -> bool:
    """Whether a stop string has just appeared; only the last tokens are decoded, each of which is a byte at least."""
    if not until:
        return False
    reach = max(len(stop.encode()) for stop in until) + _SLACK
    text = tokenizer.decode(ids[-reach:])
    return any(stop in text for stop in until)


def cut_at_stop(text: str, until: Sequence[str]) -> str:
    """The text before the first stop string."""
    found = [place for place in (text.find(stop) for stop in until if stop) if place >= 0]
    return text[: min(found)] if found else text
