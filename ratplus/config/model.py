"""The shape of a model: `ModelConfig`, and the config section `model=` that makes one. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ratplus.config.check import check
from ratplus.config.mixer import ATTENTION, GATED_DELTANET, MAMBA2, StateShape, check_mixer
from ratplus.pattern import is_whole
from ratplus.records.limits import check_shape

ROPE_SCALINGS = ("none", "linear", "yarn", "llama3")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a RATPlus model.

    Args:
        vocab_size: number of token ids.
        layers: number of blocks (mixer + FFN).
        d_model: width of the residual stream.
        d_head: channels per head.
        query_heads: heads of queries. None: d_model // d_head of them (which, if given, becomes None).
        kv_heads: heads of keys and values, each shared by heads // kv_heads query heads side by side: grouped-query
            attention (arXiv 2305.13245), multi-query with 1. None: as many as heads (which, if given, becomes None).
        recurrence: gated recurrence on keys and values; False is the attention-only baseline.
        recurrence_chunk: the recurrence starts anew at every position that this divides (RAT, arXiv 2507.04416); None
            lets it run over the whole sequence.
        output_gate: multiply the attention output by sigmoid(W_o x) before the output projection.
        ffn: gelu, down(gelu(up(x))), or swiglu, down(silu(gate(x)) * up(x)) (arXiv 2002.05202).
        ffn_mult: FFN width as a multiple of d_model.
        ffn_size: FFN width where it is no multiple of d_model; None: ffn_mult * d_model.
        qkv_bias: a bias on queries, keys and values, as in Qwen2.
        out_bias: a bias on the output projection.
        qk_norm: an RMSNorm over the channels of each head of queries and keys, before recurrence and RoPE, as in Qwen3.
        gate_bias: value at which a learned bias of each channel's forget gate starts; None: the gate has no bias.
        tied: whether the output head is the embedding; False gives it a matrix of its own.
        rope_base: base of the rotary frequencies.
        rope_scaling: of positions beyond those that the model was trained for: none, linear (arXiv 2306.15595), yarn
            (arXiv 2309.00071) or llama3 (that of Llama 3.1: slow channels take the factor, fast ones do not).
        rope_factor: how many times as long the context is to be; 1 with none.
        rope_original: context that the model was trained for, which yarn and llama3 must know; None with the others.
        rope_low, rope_high: of llama3 alone: channels of fewer turns than rope_low within rope_original take all of
            the factor, those of more than rope_high none of it.
        mixer: what mixes tokens: attention, or in its place mamba2 (arXiv 2405.21060) or gated_deltanet (arXiv
            2412.06464), which have a state of fixed size, no recurrence on keys and values, no RoPE and no pattern. Of
            them `query_heads` tells the heads and d_head the channels of a head's values.
        d_state: with them, the channels of a key, so that a head's state is d_state x d_head numbers. None: d_head
            (which, if given, becomes None).
        norm_eps: epsilon of every RMSNorm.
        max_len: longest sequence that the model accepts.

    Raises:
        ValueError: d_model not divisible by d_head without query_heads, heads not by kv_heads, odd d_head, a setting
            that another one leaves without effect, or a value out of range.
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
    query_heads: int | None = None
    ffn: str = "gelu"
    ffn_size: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    gate_bias: float | None = None
    tied: bool = True
    rope_low: float | None = None
    rope_high: float | None = None
    mixer: str = ATTENTION
    d_state: int | None = None

    def __post_init__(self):
        check_shape(vars(self))
        for name in ("recurrence", "output_gate", "qkv_bias", "out_bias", "qk_norm", "tied"):
            check(isinstance(getattr(self, name), bool), f"model.{name}", getattr(self, name), "allowed: true, false")
        check(self.d_head % 2 == 0, "model.d_head", self.d_head, "it must be even (RoPE turns pairs of channels)")
        check_mixer(vars(self))
        check_query_heads(self.query_heads, self.d_model, self.d_head)
        check_ffn(self.ffn, self.ffn_size, self.ffn_mult)
        check(self.rope_base > 0, "model.rope_base", self.rope_base, "it must be > 0")
        check_rope(self.rope_scaling, self.rope_factor, self.rope_original, self.rope_base)
        check_llama3(self.rope_scaling, self.rope_low, self.rope_high)
        check(self.norm_eps > 0, "model.norm_eps", self.norm_eps, "it must be > 0")
        chunk = self.recurrence_chunk
        allowed = "it must be ≥ 1, or null" if self.recurrence else "only a model with recurrence has one; use null"
        fits = chunk is None or (self.recurrence and is_whole(chunk) and chunk >= 1)
        check(fits, "model.recurrence_chunk", chunk, allowed)
        bias = self.gate_bias
        allowed = (
            "it must be a number, or null" if self.recurrence else "only a model with recurrence has one; use null"
        )
        check(bias is None or (self.recurrence and math.isfinite(bias)), "model.gate_bias", bias, allowed)
        check_kv_heads(self.kv_heads, self.heads)
        self._write_one_way()

    def _write_one_way(self) -> None:
        """Every shape has one way to write it, so that equal shapes are equal."""
        if self.query_heads is not None and self.query_heads * self.d_head == self.d_model:
            object.__setattr__(self, "query_heads", None)
        if self.kv_heads == self.heads:
            object.__setattr__(self, "kv_heads", None)
        if self.ffn_size is not None and self.ffn_size % self.d_model == 0:
            object.__setattr__(self, "ffn_mult", self.ffn_size // self.d_model)
            object.__setattr__(self, "ffn_size", None)
        if self.d_state == self.d_head:
            object.__setattr__(self, "d_state", None)

    @property
    def heads(self) -> int:
        """Heads of queries: query_heads, as a number."""
        return self.query_heads or self.d_model // self.d_head

    @property
    def query_width(self) -> int:
        """Channels of all heads of queries together: d_model, unless query_heads says otherwise."""
        return self.heads * self.d_head

    @property
    def ffn_width(self) -> int:
        """Channels within the FFN: ffn_size or ffn_mult * d_model."""
        return self.ffn_size or self.ffn_mult * self.d_model

    @property
    def attends(self) -> bool:
        """Whether the mixer is attention, which has patterns and a cache of keys and values."""
        return self.mixer == ATTENTION

    @property
    def state_shape(self) -> StateShape:
        """Sizes of a mixer with a state; asked of those alone."""
        assert not self.attends, self
        return StateShape(
            self.heads, self.d_head, self.d_state or self.d_head, self.mixer == MAMBA2, self.mixer == GATED_DELTANET
        )

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
    check(scaling in ROPE_SCALINGS, "model.rope_scaling", scaling, f"allowed: {', '.join(ROPE_SCALINGS)}")
    if scaling == "none":
        check(factor == 1, "model.rope_factor", factor,
              "model.rope_scaling=none has no factor; choose linear, yarn or llama3")  # fmt: skip
    else:
        allowed = f"it must be > 1: with model.rope_scaling={scaling}, so many times as long is the context to be"
        check(1 < factor < math.inf, "model.rope_factor", factor, allowed)
    if scaling in ("yarn", "llama3"):
        check(is_whole(original) and original >= 1, "model.rope_original", original,
              f"model.rope_scaling={scaling} needs the context that the model was trained for")  # fmt: skip
        check(base > 1, "model.rope_base", base, f"with model.rope_scaling={scaling} it must be > 1")
    else:
        check(original is None, "model.rope_original", original,
              "only model.rope_scaling=yarn and llama3 read it; use null")  # fmt: skip


def check_llama3(scaling: str, low: float | None, high: float | None) -> None:
    """Raises ValueError unless llama3 has both of its borders, the lower one first, and no other scaling has any."""
    for name, value in (("rope_low", low), ("rope_high", high)):
        if scaling == "llama3":
            check(value is not None and 0 < value < math.inf, f"model.{name}", value,
                  "model.rope_scaling=llama3 needs it, > 0 (Llama 3.1: rope_low=1, rope_high=4)")  # fmt: skip
        else:
            check(value is None, f"model.{name}", value, "only model.rope_scaling=llama3 reads it; use null")
    if low is not None and high is not None:
        check(low < high, "model.rope_high", high, f"it must be > model.rope_low={low}")


def check_query_heads(query_heads: int | None, d_model: int, d_head: int) -> None:
    """Raises ValueError unless there is a whole number of heads."""
    if query_heads is None:
        check(d_model % d_head == 0, "model.d_model", d_model,
              f"it must be a multiple of model.d_head={d_head}, or model.query_heads must tell the heads")  # fmt: skip
    else:
        check(is_whole(query_heads) and query_heads >= 1, "model.query_heads", query_heads,
              "it must be a whole number ≥ 1, or null for d_model / d_head heads")  # fmt: skip


def check_ffn(ffn: str, size: int | None, mult: int) -> None:
    """Raises ValueError for an unknown FFN, or a width that is told twice."""
    check(ffn in ("gelu", "swiglu"), "model.ffn", ffn, "allowed: gelu, swiglu")
    if size is not None:
        check(is_whole(size) and size >= 1, "model.ffn_size", size, "it must be a whole number ≥ 1, or null")
        check(mult == ModelConfig.ffn_mult, "model.ffn_mult", mult,
              f"model.ffn_size={size} tells the width already; leave one of the two at its default")  # fmt: skip


def check_kv_heads(kv_heads: int | None, heads: int) -> None:
    """Raises ValueError unless it is null or divides the number of heads."""
    divides = is_whole(kv_heads) and kv_heads >= 1 and heads % kv_heads == 0
    if kv_heads is not None and not divides:
        allowed = [n for n in range(1, heads + 1) if heads % n == 0]
        told = ", ".join(map(str, allowed))
        check(False, "model.kv_heads", kv_heads,
              f"it must divide the {heads} heads (query_heads, or d_model / d_head): {told}, or null")  # fmt: skip


@dataclass
class ModelSection:
    """`model=`: a ModelConfig without what the data decides (vocabulary and context)."""

    name: str = "unnamed"
    """Name in tables, figures and W&B; enters no id. `unnamed` tells that nobody gave it one. Allowed: any text."""
    layers: int = 4
    """Blocks, each a mixer and an FFN. Four is the least in which hybrids of layers have something to choose from.
    Allowed: ≥ 1, ≤ 10000."""
    d_model: int = 128
    """Width of the residual stream, in channels; a multiple of d_head unless query_heads is given. 128 trains on a CPU.
    Allowed: ≥ 1, ≤ 131072."""
    d_head: int = 32
    """Channels of each head; there are d_model / d_head heads. Even, since RoPE turns pairs of channels. 32 gives a
    d_model of 128 four heads (the paper's large models: 128). Allowed: ≥ 1, ≤ 131072."""
    query_heads: int | None = None
    """Heads of queries, where they are not d_model / d_head (Qwen3-0.6B: 16 heads of 128 at a d_model of 1,024). Null
    is d_model / d_head, as in the paper. Allowed: ≥ 1, null."""
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
    """Width of the FFN, as a multiple of d_model. As in the paper. Allowed: ≥ 1, ≤ 1024."""
    ffn: str = "gelu"
    """Feed-forward: gelu, down(gelu(up(x))), or swiglu, down(silu(gate(x)) · up(x)) (arXiv 2002.05202), whose third
    matrix a Llama-family model has. GELU as in the paper. Allowed: gelu, swiglu."""
    ffn_size: int | None = None
    """Width of the FFN in channels, where it is no multiple of d_model. Null is ffn_mult · d_model. Allowed: ≥ 1,
    null."""
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias, as in Qwen2. None, as in the paper."""
    out_bias: bool = False
    """Whether the output projection has a bias. None, as in the paper."""
    qk_norm: bool = False
    """Whether an RMSNorm of each head's channels follows the projection of queries and keys, as in Qwen3; it stands
    before the recurrence. False, as in the paper."""
    gate_bias: float | None = None
    """Value at which a learned bias of each channel's forget gate starts: at -2, a gate of sigmoid(-2) = 0.12 keeps
    little of the past, so a model that had no recurrence changes little. Null gives the gate no bias, as in the paper.
    Allowed: any number, null."""
    tied: bool = True
    """Whether the output head is the embedding; false gives it a matrix of its own. Tied, as in the paper."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies. The paper's, and RoPE's own (arXiv 2104.09864). Allowed: > 0."""
    rope_scaling: str = "none"
    """How rotary positions reach beyond the context that the weights were trained for: linear (arXiv 2306.15595), yarn
    (arXiv 2309.00071), llama3 (that of Llama 3.1). None changes nothing. Allowed: none, linear, yarn, llama3."""
    rope_factor: float = 1.0
    """How many times as long the context is to be; more than 1 with every scaling. 1 belongs to rope_scaling=none.
    Allowed: ≥ 1."""
    rope_original: int | None = None
    """Context, in tokens, that the weights were trained for. Only yarn and llama3 read it, and need it; null otherwise.
    Allowed: ≥ 1, null."""
    rope_low: float | None = None
    """Turns within rope_original below which llama3 slows a channel by all of the factor (Llama 3.1: 1). Null with any
    other scaling. Allowed: > 0, null."""
    rope_high: float | None = None
    """Turns within rope_original above which llama3 leaves a channel as it is (Llama 3.1: 4). Null with any other
    scaling. Allowed: > 0, null."""
    mixer: str = "attention"
    """What mixes tokens in a block. In the place of attention, mamba2 (arXiv 2405.21060) and gated_deltanet (arXiv
    2412.06464) have a state of fixed size: no recurrence on keys and values (recurrence=false), no RoPE, and no pattern
    but dense. Attention is what this tool is for. Allowed: attention, mamba2, gated_deltanet."""
    d_state: int | None = None
    """Channels of a key of mamba2 or gated_deltanet, whose state is d_state · d_head numbers a head; query_heads tells
    their heads. Null is d_head; attention has none. Allowed: ≥ 1, null."""
    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm. As in the paper. Allowed: > 0."""
    init_std: float = 0.02
    """Standard deviation of all initial weights. The paper's, which is about d_model^-0.5 at its width; the shipped
    small models use d_model^-0.5 of their own. Allowed: > 0."""
    init_from: str | None = None
    """Model folder whose weights take the place of pretraining (of `ratplus import`, or a stage's). Null pretrains.
    Allowed: a folder, null."""

    def __post_init__(self):
        built = self.build(vocab_size=1, max_len=1)
        for key in ("query_heads", "kv_heads", "ffn_mult", "ffn_size", "d_state"):  # null where it says nothing
            setattr(self, key, getattr(built, key))
        check(self.init_std > 0, "model.init_std", self.init_std, "it must be > 0")

    @property
    def heads(self) -> int:
        """Heads of queries."""
        return self.build(vocab_size=1, max_len=1).heads

    def build(self, vocab_size: int, max_len: int) -> ModelConfig:
        shape = {k: v for k, v in vars(self).items() if k not in ("name", "init_std", "init_from")}
        return ModelConfig(vocab_size=vocab_size, max_len=max_len, **shape)
