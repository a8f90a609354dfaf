"""Text in, scores and texts out: what lm-eval asks of a model, without lm-eval.

`ratplus.evaluation.HarnessLM` is this with lm-eval's base class; a request is anything with `args`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ratplus.evaluation.decoding import DEFAULT_NEW_TOKENS, Decoding, generate_texts
from ratplus.evaluation.scoring import Scorer
from ratplus.model import RATPlus
from ratplus.pattern import Pattern, PatternMap

# A model may have ids of its own beyond its tokenizer's: padding of the matrix, symbols of the recall task.
MOST_SPARE_IDS = 1024


class Adapter:
    """Scores and continues texts with one model; patterns are an argument of the run, so set `patterns` to switch.

    Args:
        tokenizer: anything with encode(text) -> ids, decode(ids) -> text, eos_id, vocab_size. Nothing is put before a
            context, save the bos_id of a tokenizer that has one; an empty one becomes [eos_id], or [bos_id].
        patterns: what the heads see; None is dense.
        batch_size: sequences at a time; changes no score beyond 1e-4.
        max_length: longest input in tokens; None takes the model's max_len.
        truncation: of contexts that are too long: left, middle or off (an error); `truncated` counts them.
        spare_ids: how many ids more than the tokenizer's the model may have.

    Raises:
        ValueError: the tokenizer's vocabulary is not the model's, or a value out of range.
    """

    def __init__(
        self,
        model: RATPlus,
        tokenizer,
        patterns: PatternMap | Pattern | None = None,
        batch_size: int = 1,
        max_length: int | None = None,
        *,
        truncation: str = "left",
        spare_ids: int = MOST_SPARE_IDS,
    ):
        super().__init__()
        ids, vocab = tokenizer.vocab_size, model.config.vocab_size
        if not ids <= vocab <= ids + spare_ids:
            raise ValueError(
                f"tokenizer: it has {ids} ids, but the model's vocabulary has {vocab}; take the tokenizer that the "
                f"model was trained with (a model may have up to {spare_ids} ids more)"
            )
        if not 0 <= tokenizer.eos_id < ids:
            raise ValueError(f"tokenizer: eos_id {tokenizer.eos_id} is not among its {ids} ids")
        self.model, self.tokenizer = model, tokenizer
        self.scorer = Scorer(model, patterns, batch_size, max_length, truncation)

    # ---- settings that lm-eval or a sweep may change between runs ----

    @property
    def patterns(self) -> PatternMap | Pattern | None:
        return self.scorer.patterns

    @patterns.setter
    def patterns(self, patterns: PatternMap | Pattern | None) -> None:
        self.model.resolve_patterns(patterns)
        self.scorer.patterns = patterns

    @property
    def batch_size(self) -> int:
        return self.scorer.batch_size

    @property
    def max_length(self) -> int:
        return self.scorer.longest

    @property
    def truncated(self) -> int:
        """How many contexts were cut so far."""
        return self.scorer.truncated

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def tokenizer_name(self) -> str:
        return getattr(self.tokenizer, "name", type(self.tokenizer).__name__)

    # ---- text to ids ----

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Ids of a text; no special tokens, whatever is asked for, but what begins every text (`data.bos`)."""
        return [int(i) for i in self.tokenizer.encode(string)]

    @property
    def _first(self) -> int:
        """What stands before a text that nothing precedes: the token that begins every text, else end-of-text."""
        begin = getattr(self.tokenizer, "bos_id", None)
        return self.eot_token_id if begin is None else begin

    def _without_first(self, ids: list[int]) -> list[int]:
        return ids if getattr(self.tokenizer, "bos_id", None) is None else ids[1:]

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and its continuation, as they are tokenized together.

        Spaces at the context's end belong to the continuation, since tokenizers put them in front of a word.
        """
        bare = context.rstrip()
        if not bare:
            return [self._first], self._without_first(self.tok_encode(context + continuation))
        whole, start = self.tok_encode(context + continuation), self.tok_encode(bare)
        return start or [self.eot_token_id], whole[len(start) :]

    # ---- lm-eval's three kinds of request ----

    def loglikelihood(self, requests: Sequence, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, whether greedy decoding gives it) of each request's (context, continuation)."""
        pairs = [self.encode_pair(*request.args[:2]) for request in requests]
        return [(score.logprob, score.greedy) for score in self.scorer.score(pairs)]

    def _loglikelihood_tokens(self, requests: Sequence, disable_tqdm: bool = False, **_) -> list[tuple[float, bool]]:
        pairs = [(context or [self.eot_token_id], continuation) for _, context, continuation in requests]
        return [(score.logprob, score.greedy) for score in self.scorer.score(pairs)]

    def loglikelihood_rolling(self, requests: Sequence, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each request's text, its first token after end-of-text."""
        texts = [self._without_first(self.tok_encode(request.args[0])) for request in requests]
        return self.scorer.rolling(texts, self._first)

    def generate_until(self, requests: Sequence, disable_tqdm: bool = False) -> list[str]:
        """Continuation of each request's (context, generation_kwargs); see `Decoding.of` for the settings."""
        # lm-eval's own number, unless that would leave a short context no room for a prompt.
        usual = min(DEFAULT_NEW_TOKENS, self.max_length // 2)
        groups: dict[Decoding, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(Decoding.of(request.args[1], usual), []).append(index)
        texts = [""] * len(requests)
        for how, members in groups.items():
            prompts = [self.tok_encode(requests[i].args[0]) or [self.eot_token_id] for i in members]
            for i, text in zip(members, generate_texts(self.scorer, self.tokenizer, prompts, how, members)):
                texts[i] = text
        return texts
