"""The shape of a model: `ModelConfig`, and the config section `model=` that makes one. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ratplus.config.check import check
from ratplus.pattern import is_whole


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a RATPlus model.

    Args:
        vocab_size: number of token ids.
        layers: number of blocks (mixer + FFN).
        d_model: width of the residual stream.
        d_head: channels per head; d_model // d_head heads.
        kv_heads: heads of keys and values, each shared by heads // kv_heads query heads side by side: grouped-query
            attention (arXiv 2305.13245), multi-query with 1. None: as many as heads (which, if given, becomes None).
        recurrence: gated recurrence on keys and values; False is the attention-only baseline.
        recurrence_chunk: the recurrence starts anew at every position that this divides (RAT, arXiv 2507.04416); None
            lets it run over the whole sequence.
        output_gate: multiply the attention output by sigmoid(W_o x) before the output projection.
        ffn_mult: FFN width as a multiple of d_model.
        rope_base: base of the rotary frequencies.
        rope_scaling: of positions beyond those that the model was trained for: none, linear (arXiv 2306.15595) or yarn
            (arXiv 2309.00071).
        rope_factor: how many times as long the context is to be; 1 with none.
        rope_original: context that the model was trained for, which yarn must know; None with the others.
        norm_eps: epsilon of every RMSNorm.
        max_len: longest sequence that the model accepts.

    Raises:
        ValueError: d_model not divisible by d_head, heads not by kv_heads, odd d_head, or a value out of range.
    """

    vocab_size: int
    layers: int
    d_model: int
    d_head: int
    recurrence: bool = True
    output_gate: bool = True
    ffn_mult: int = 4
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    max_len: int = 4096
    recurrence_chunk: int | None = None
    kv_heads: int | None = None
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_original: int | None = None

    def __post_init__(self):
        for name in ("vocab_size", "layers", "d_model", "d_head", "ffn_mult", "max_len"):
            value = getattr(self, name)
            check(is_whole(value) and value >= 1, f"model.{name}", value, "it must be a whole number ≥ 1")
        check(self.d_head % 2 == 0, "model.d_head", self.d_head, "it must be even (RoPE turns pairs of channels)")
        check(
            self.d_model % self.d_head == 0,
            "model.d_model",
            self.d_model,
            f"it must be a multiple of model.d_head={self.d_head}",
        )
        check(self.rope_base > 0, "model.rope_base", self.rope_base, "it must be > 0")
        check_rope(self.rope_scaling, self.rope_factor, self.rope_original, self.rope_base)
        check(self.norm_eps > 0, "model.norm_eps", self.norm_eps, "it must be > 0")
        chunk = self.recurrence_chunk
        allowed = "it must be ≥ 1, or null" if self.recurrence else "only a model with recurrence has one; use null"
        fits = chunk is None or (self.recurrence and is_whole(chunk) and chunk >= 1)
        check(fits, "model.recurrence_chunk", chunk, allowed)
        check_kv_heads(self.kv_heads, self.heads)
        if self.kv_heads == self.heads:  # one way to write it, so that equal shapes are equal
            object.__setattr__(self, "kv_heads", None)

    @property
    def heads(self) -> int:
        return self.d_model // self.d_head

    @property
    def key_heads(self) -> int:
        """Heads of keys, values, gates and recurrent state: kv_heads, as a number."""
        return self.kv_heads or self.heads

    @property
    def group(self) -> int:
        """Query heads that share one head of keys and values; 1 without grouping."""
        return self.heads // self.key_heads


def check_rope(scaling: str, factor: float, original: int | None, base: float) -> None:
    """Raises ValueError unless the rotary settings make sense together: none that would be ignored is let through."""
    check(scaling in ("none", "linear", "yarn"), "model.rope_scaling", scaling, "allowed: none, linear, yarn")
    if scaling == "none":
        check(factor == 1, "model.rope_factor", factor, "model.rope_scaling=none has no factor; choose linear or yarn")
    else:
        allowed = f"it must be > 1: with model.rope_scaling={scaling}, so many times as long is the context to be"
        check(1 < factor < math.inf, "model.rope_factor", factor, allowed)
    if scaling == "yarn":
        check(is_whole(original) and original >= 1, "model.rope_original", original,
              "model.rope_scaling=yarn needs the context that the model was trained for")  # fmt: skip
        check(base > 1, "model.rope_base", base, "with model.rope_scaling=yarn it must be > 1")
    else:
        check(original is None, "model.rope_original", original, "only model.rope_scaling=yarn reads it; use null")


def check_kv_heads(kv_heads: int | None, heads: int) -> None:
    """Raises ValueError unless it is null or divides the number of heads."""
    divides = is_whole(kv_heads) and kv_heads >= 1 and heads % kv_heads == 0
    if kv_heads is not None and not divides:
        allowed = [n for n in range(1, heads + 1) if heads % n == 0]
        told = ", ".join(map(str, allowed))
        check(
            False, "model.kv_heads", kv_heads, f"it must divide the {heads} heads (d_model / d_head): {told}, or null"
        )


@dataclass
class ModelSection:
    """`model=`: a ModelConfig without what the data decides (vocabulary and context)."""

    name: str = "unnamed"
    """Name in tables, figures and W&B; enters no id. `unnamed` tells that nobody gave it one. Allowed: any text."""
    layers: int = 4
    """Blocks, each a mixer and an FFN. Four is the least in which hybrids of layers have something to choose from.
    Allowed: ≥ 1."""
    d_model: int = 128
    """Width of the residual stream, in channels; a multiple of d_head. 128 trains on a CPU. Allowed: ≥ 1."""
    d_head: int = 32
    """Channels of each head; there are d_model / d_head heads. Even, since RoPE turns pairs of channels. 32 gives a
    d_model of 128 four heads (the paper's large models: 128). Allowed: ≥ 1."""
    recurrence: bool = True
    """Whether keys and values pass the gated recurrence; false is the attention-only baseline. True, since RAT+ is what
    this tool is for."""
    recurrence_chunk: int | None = None
    """Tokens after which the recurrence starts anew (RAT, arXiv 2507.04416). Null lets it run over the whole sequence,
    as RAT+ does. Allowed: ≥ 1, null."""
    kv_heads: int | None = None
    """Heads of keys and values, shared by the query heads in equal groups: GQA (arXiv 2305.13245), with 1 MQA. It
    divides the number of heads. Null shares nothing, as in the paper. Allowed: ≥ 1, null."""
    output_gate: bool = True
    """Whether the attention output is multiplied by sigmoid(W_o x). The paper's RAT+ and its attention baseline both do
    so."""
    ffn_mult: int = 4
    """Width of the FFN, as a multiple of d_model. As in the paper. Allowed: ≥ 1."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies. The paper's, and RoPE's own (arXiv 2104.09864). Allowed: > 0."""
    rope_scaling: str = "none"
    """How rotary positions reach beyond the context that the weights were trained for: linear (arXiv 2306.15595), yarn
    (arXiv 2309.00071). None changes nothing. Allowed: none, linear, yarn."""
    rope_factor: float = 1.0
    """How many times as long the context is to be; more than 1 with linear and yarn. 1 belongs to rope_scaling=none.
    Allowed: ≥ 1."""
    rope_original: int | None = None
    """Context, in tokens, that the weights were trained for. Only yarn reads it, and needs it; null otherwise. Allowed:
    ≥ 1, null."""
    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm. As in the paper. Allowed: > 0."""
    init_std: float = 0.02
    """Standard deviation of all initial weights. The paper's, which is about d_model^-0.5 at its width; the shipped
    small models use d_model^-0.5 of their own. Allowed: > 0."""
    init_from: str | None = None
    """Model folder whose weights take the place of pretraining (of `ratplus import`, or a stage's). Null pretrains.
    Allowed: a folder, null."""

    def __post_init__(self):
        self.kv_heads = self.build(vocab_size=1, max_len=1).kv_heads  # null where it says nothing
        check(self.init_std > 0, "model.init_std", self.init_std, "it must be > 0")

    def build(self, vocab_size: int, max_len: int) -> ModelConfig:
        shape = {k: v for k, v in vars(self).items() if k not in ("name", "init_std", "init_from")}
        return ModelConfig(vocab_size=vocab_size, max_len=max_len, **shape)
