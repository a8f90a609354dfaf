"""Cost of a pattern, counted exactly: attention FLOPs, KV cache and recurrence, without torch and in closed form.

Every function takes one Pattern (one head) or a PatternMap (the sum over all its layers and heads), one sequence and
plain numbers. With grouped-query attention every query head attends, but only the heads of keys hold a cache: what is
held and read takes `PatternMap.per_kv_head`, and `cost` does so itself. Nothing is sampled: the counts equal those of
`Pattern.visible` and of a simulated cache, but cost O(1) a head, so a length of 262,144 is as quick as one of 16.
A pattern that selects by query holds more than it reads (`ratplus.costs.selection`, O(length) a pattern). Where it
depends on data how many selected keys are static ones as well, counts of pairs and reads are upper bounds, and say so.

What is counted is what a pattern changes. Not counted: softmax, RoPE, the gates' sigmoid, projections, FFN, embedding.
Definitions: paper arXiv 2602.18196, sections on dilated attention and on decoding with a cache.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ratplus.costs import selection
from ratplus.pattern import Pattern, PatternMap, is_whole

# h + (1 - g) (u - h) with 1 - g at hand: subtract, multiply, add; once for the key channel, once for the value channel.
_RECURRENCE_FLOPS_PER_CHANNEL_STEP = 6
# Read gate logit, key and value; write recurrent key and recurrent value.
_RECURRENCE_ELEMENTS_PER_CHANNEL_STEP = 5
# The state stays float32 whatever the dtype of the model: rounding it every step drifts by percents.
STATE_BYTES_PER_ELEMENT = 4
# Keys, values and gate logits count as bfloat16 unless the caller gives another size.
BYTES_PER_ELEMENT = 2


@dataclass(frozen=True)
class Cost:
    """Exact costs of one sequence of `length` tokens, summed over `heads` heads (those of all layers together).

    Attributes:
        length: tokens in the sequence.
        heads: number of (layer, head) pairs that the sums over queries run over.
        kv_heads: number of (layer, head) pairs that hold keys and values; `heads` without grouping.
        visible_pairs: (query, key) pairs that attention evaluates in one full forward.
        pairs_exact: whether those are counted exactly; else they, and all FLOPs of attention, are an upper bound.
        attention_flops: Q K^T and P V of that forward, 4 d_head a pair; of a mixer with a state, convolving the inputs
            and updating and reading the state instead (`ratplus.costs.state`).
        selection_flops: of that forward, what finding the blocks or entries to keep takes; 0 if nothing is selected.
        attention_flops_ratio: attention and selection FLOPs over those of dense attention; 1.0 at length 0.
        decode_flops: attention FLOPs of the one decode step at position `length`, self included.
        decode_selection_flops: what selecting takes in that step.
        kv_entries: cache entries held before that step; an entry is one key and one value of one head.
        kv_read: those of them that the step reads, its own not counted.
        kv_read_exact: whether kv_read and decode_flops are exact; else they are an upper bound.
        kv_peak: most entries held until that step. SnapKV holds the whole prompt before it cuts it.
        kv_bytes: bytes of kv_entries.
        metadata_bytes: held beside them to select blocks by; 0 if none are selected.
        decode_bytes: what the step reads of keys and values, its own included, and of metadata; of a mixer with a state
            all that it holds.
        kv_ratio: kv_entries over those of dense attention in the same heads; 1.0 at length 0.
        read_ratio: kv_read over the same.
        state_bytes: float32 recurrent state (one key and one value vector a head); 0 without recurrence. A mixer with a
            state has its float32 states here, and the last inputs of its convolution.
        recurrence_flops: the recurrence's FLOPs over the sequence; 0 without recurrence.
        recurrence_bytes: bytes it must move at least over the sequence; 0 without recurrence.
    """

    length: int
    heads: int
    kv_heads: int
    visible_pairs: int
    pairs_exact: bool
    attention_flops: int
    selection_flops: int
    attention_flops_ratio: float
    decode_flops: int
    decode_selection_flops: int
    kv_entries: int
    kv_read: int
    kv_read_exact: bool
    kv_peak: int
    kv_bytes: int
    metadata_bytes: int
    decode_bytes: int
    kv_ratio: float
    read_ratio: float
    state_bytes: int
    recurrence_flops: int
    recurrence_bytes: int

    @property
    def cache_bytes(self) -> int:
        """All that decoding keeps for a sequence: entries, block metadata and recurrent state, in bytes."""
        return self.kv_bytes + self.metadata_bytes + self.state_bytes

    @property
    def kv_entries_per_head(self) -> float:
        """Mean of kv_entries over layers and heads of keys."""
        return self.kv_entries / self.kv_heads

    @property
    def kv_read_per_head(self) -> float:
        """Mean of kv_read over layers and heads of keys."""
        return self.kv_read / self.kv_heads


def cost(
    patterns: Pattern | PatternMap, length: int, d_head: int, *, recurrence: bool = False,
    bytes_per_element: int = BYTES_PER_ELEMENT, kv_heads: int | None = None, prompt: int | None = None,
) -> Cost:  # fmt: skip
    """All costs of one sequence of `length` tokens.

    Args:
        patterns: one head's Pattern, or the PatternMap of a model.
        length: tokens in the sequence, ≥ 0.
        d_head: channels per head.
        recurrence: whether keys and values pass through the gated recurrence (RAT+) or not (attention only).
        bytes_per_element: of keys, values and gate logits: 2 for bfloat16, 4 for float32.
        kv_heads: heads of keys and values in a layer of the PatternMap (`ModelConfig.kv_heads`); None: all heads.
        prompt: how many of the tokens were the prompt, which SnapKV asks for; None: all of them.

    Raises:
        ValueError: a number that is not whole or too small; kv_heads that don't fit the map.
    """
    heads = sum(_heads(patterns).values())
    queries = patterns
    if kv_heads is not None:
        if not isinstance(patterns, PatternMap):
            raise ValueError(f"kv_heads: got {kv_heads} for one head's Pattern; give a PatternMap (a model)")
        patterns = patterns.per_kv_head(_whole("kv_heads", kv_heads, 1))
    held = sum(_heads(patterns).values())
    return Cost(
        length=length,
        heads=heads,
        kv_heads=held,
        visible_pairs=visible_pairs(queries, length),
        pairs_exact=all(selection.forward_is_exact(p) for p in _heads(queries)),
        attention_flops=attention_flops(queries, length, d_head),
        selection_flops=selection_flops(queries, length, d_head),
        attention_flops_ratio=attention_flops_ratio(queries, length),
        decode_flops=decode_flops(queries, length, d_head, prompt),
        decode_selection_flops=decode_selection_flops(queries, length, d_head),
        kv_entries=kv_entries(patterns, length, prompt),
        kv_read=kv_read(patterns, length, prompt),
        kv_read_exact=kv_read_exact(patterns),
        kv_peak=kv_peak(patterns, length, prompt),
        kv_bytes=kv_bytes(patterns, length, d_head, bytes_per_element, prompt),
        metadata_bytes=metadata_bytes(patterns, length, d_head, bytes_per_element),
        decode_bytes=decode_bytes(patterns, length, d_head, bytes_per_element, prompt),
        kv_ratio=kv_ratio(patterns, length, prompt),
        read_ratio=read_ratio(patterns, length, prompt),
        state_bytes=state_bytes(d_head, held) if recurrence else 0,
        recurrence_flops=recurrence_flops(length, d_head, held) if recurrence else 0,
        recurrence_bytes=recurrence_bytes(length, d_head, held, bytes_per_element) if recurrence else 0,
    )


def visible_pairs(patterns: Pattern | PatternMap, length: int, start: int = 0) -> int:
    """(query, key) pairs of a forward over positions start .. length - 1 that may see everything before them.

    `start=0` is a full forward, and equals `Pattern.visible(length).sum()`; `start > 0` is a chunk of a prefill. The
    forward is that of a prompt: dense where a pattern selects for generated tokens alone (`phase="decode"`, SnapKV).

    Raises:
        ValueError: length or start is not a whole number, or not 0 ≤ start ≤ length.
    """
    _whole("length", length, 0)
    _whole("start", start, 0)
    if start > length:
        raise ValueError(f"start: got {start}; a chunk starts within its sequence, at most at length={length}")
    return sum(count * (_pairs(p, length) - _pairs(p, start)) for p, count in _heads(patterns).items())


def attention_flops(patterns: Pattern | PatternMap, length: int, d_head: int, start: int = 0) -> int:
    """FLOPs of Q K^T and P V over positions start .. length - 1: 2 d_head each for every visible pair."""
    return 4 * _whole("d_head", d_head, 1) * visible_pairs(patterns, length, start)


def decode_flops(patterns: Pattern | PatternMap, position: int, d_head: int, prompt: int | None = None) -> int:
    """Attention FLOPs of the one decode step at `position`, which sees the cache entries and its own key."""
    _whole("position", position, 0)
    pairs = sum(count * (p.kv_read(position, prompt) + 1) for p, count in _heads(patterns).items())
    return 4 * _whole("d_head", d_head, 1) * pairs


def selection_flops(patterns: Pattern | PatternMap, length: int, d_head: int) -> int:
    """FLOPs of a full forward that find what to read or keep; see `ratplus.costs.selection`."""
    _whole("length", length, 0)
    _whole("d_head", d_head, 1)
    return sum(count * selection.forward_selection_flops(p, length, d_head) for p, count in _heads(patterns).items())


def decode_selection_flops(patterns: Pattern | PatternMap, position: int, d_head: int) -> int:
    """FLOPs of the decode step at `position` that find which blocks to read."""
    _whole("position", position, 0)
    _whole("d_head", d_head, 1)
    return sum(count * selection.decode_selection_flops(p, position, d_head) for p, count in _heads(patterns).items())


def visible_ratio(patterns: Pattern | PatternMap, length: int) -> float:
    """Visible pairs of a full forward relative to dense attention in every head; 1.0 at length 0."""
    dense = sum(_heads(patterns).values()) * _pairs(Pattern(), _whole("length", length, 0))
    return visible_pairs(patterns, length) / dense if dense else 1.0


def attention_flops_ratio(patterns: Pattern | PatternMap, length: int) -> float:
    """Attention and selection FLOPs of a full forward relative to dense attention in every head; 1.0 at length 0."""
    # Both are multiples of the channels of a head, whose number thus does not matter.
    dense = sum(_heads(patterns).values()) * 4 * _pairs(Pattern(), _whole("length", length, 0))
    spent = attention_flops(patterns, length, 1) + selection_flops(patterns, length, 1)
    return spent / dense if dense else 1.0


def kv_entries(patterns: Pattern | PatternMap, length: int, prompt: int | None = None) -> int:
    """Entries (one key and one value each) that the caches hold before the step at position `length`."""
    _whole("length", length, 0)
    return sum(count * p.kv_entries(length, prompt) for p, count in _heads(patterns).items())


def kv_read(patterns: Pattern | PatternMap, length: int, prompt: int | None = None) -> int:
    """Entries of the caches that the step at position `length` reads, an upper bound unless `kv_read_exact`."""
    _whole("length", length, 0)
    return sum(count * p.kv_read(length, prompt) for p, count in _heads(patterns).items())


def kv_read_exact(patterns: Pattern | PatternMap) -> bool:
    """Whether `kv_read` counts exactly in every head."""
    return all(p.kv_read_exact for p in _heads(patterns))


def kv_peak(patterns: Pattern | PatternMap, length: int, prompt: int | None = None) -> int:
    """Most entries that the caches hold until the step at position `length`: with SnapKV the prompt, before it is cut.

    Of every other pattern the same as `kv_entries`.
    """
    _whole("length", length, 0)
    cut = length if prompt is None else prompt
    held = {p: p.kv_entries(length, prompt) for p in _heads(patterns)}
    most = {p: max(n, cut) if p.snap is not None and p.data_dependent else n for p, n in held.items()}
    return sum(count * most[p] for p, count in _heads(patterns).items())


def metadata_bytes(
    patterns: Pattern | PatternMap, length: int, d_head: int, bytes_per_element: int = BYTES_PER_ELEMENT
) -> int:
    """Bytes of block metadata that the caches hold before the step at position `length`."""
    size = _whole("bytes_per_element", bytes_per_element, 1)
    _whole("length", length, 0)
    _whole("d_head", d_head, 1)
    return sum(count * selection.metadata_bytes(p, length, d_head, size) for p, count in _heads(patterns).items())


def decode_bytes(
    patterns: Pattern | PatternMap, position: int, d_head: int, bytes_per_element: int = BYTES_PER_ELEMENT,
    prompt: int | None = None,
) -> int:  # fmt: skip
    """Bytes that the decode step at `position` reads: keys and values, its own included, and block metadata."""
    size = _whole("bytes_per_element", bytes_per_element, 1)
    _whole("position", position, 0)
    entry = 2 * _whole("d_head", d_head, 1) * size
    return sum(
        count * (entry * (p.kv_read(position, prompt) + 1) + selection.metadata_read_bytes(p, position, d_head, size))
        for p, count in _heads(patterns).items()
    )


def kv_bytes(
    patterns: Pattern | PatternMap, length: int, d_head: int, bytes_per_element: int = BYTES_PER_ELEMENT,
    prompt: int | None = None,
) -> int:  # fmt: skip
    """Bytes of those entries, keys and values together."""
    size = _whole("bytes_per_element", bytes_per_element, 1)
    return 2 * _whole("d_head", d_head, 1) * size * kv_entries(patterns, length, prompt)


def kv_ratio(patterns: Pattern | PatternMap, length: int, prompt: int | None = None) -> float:
    """Cache entries relative to dense attention in every head; 1.0 at length 0."""
    dense = sum(_heads(patterns).values()) * _whole("length", length, 0)
    return kv_entries(patterns, length, prompt) / dense if dense else 1.0


def read_ratio(patterns: Pattern | PatternMap, length: int, prompt: int | None = None) -> float:
    """Entries read in a step relative to dense attention in every head; 1.0 at length 0."""
    dense = sum(_heads(patterns).values()) * _whole("length", length, 0)
    return kv_read(patterns, length, prompt) / dense if dense else 1.0


def state_bytes(d_head: int, heads: int = 1) -> int:
    """Bytes of the recurrent state that decoding carries: one float32 key and one float32 value vector a head."""
    return 2 * STATE_BYTES_PER_ELEMENT * _whole("d_head", d_head, 1) * _whole("heads", heads, 1)


def recurrence_flops(length: int, d_head: int, heads: int = 1) -> int:
    """FLOPs of the gated recurrence over `length` steps: 6 per channel and step, 3 for the key and 3 for the value.

    One step of one channel is h + (1 - g) (u - h); a scan that works in chunks or as a tree does more arithmetic for
    the same result, which is not the pattern's cost and is not counted. The same for every pattern.
    """
    per_step = _RECURRENCE_FLOPS_PER_CHANNEL_STEP * _whole("d_head", d_head, 1) * _whole("heads", heads, 1)
    return per_step * _whole("length", length, 0)


def recurrence_bytes(length: int, d_head: int, heads: int = 1, bytes_per_element: int = BYTES_PER_ELEMENT) -> int:
    """Bytes that the recurrence must move over `length` steps: reads gate logit, k, v and writes both results, once."""
    per_step = _RECURRENCE_ELEMENTS_PER_CHANNEL_STEP * _whole("d_head", d_head, 1) * _whole("heads", heads, 1)
    return per_step * _whole("length", length, 0) * _whole("bytes_per_element", bytes_per_element, 1)


def _pairs(pattern: Pattern, length: int) -> int:
    """Visible pairs of one head over positions 0 .. length - 1: the sum of kv_entries(t) + 1, in Python integers.

    Up to position sinks + window a query sees all t + 1 keys. From there on it sees the sinks, the window and itself,
    and floor((t - window) / dilation) - floor(sinks / dilation) dilated keys between them.
    """
    if pattern.data_dependent:
        if not selection.dense_forward(pattern):
            return selection.selected_pairs(pattern, length)
        pattern = Pattern()
    full = min(length, pattern.sinks + pattern.window + 1)
    pairs = full * (full + 1) // 2
    later = length - full
    if later == 0:
        return pairs
    pairs += later * full
    if pattern.dilation is not None:
        blocks = _floor_sum(length - pattern.window, pattern.dilation) - _floor_sum(pattern.sinks + 1, pattern.dilation)
        pairs += blocks - later * (pattern.sinks // pattern.dilation)
    return pairs


def dense_pairs(length: int) -> int:
    """Visible pairs of one head of dense attention over `length` tokens."""
    return _pairs(Pattern(), _whole("length", length, 0))


def _floor_sum(stop: int, divisor: int) -> int:
    """Sum of floor(n / divisor) over n = 0 .. stop - 1."""
    whole, rest = divmod(stop, divisor)
    return divisor * (whole * (whole - 1) // 2) + whole * rest


def _heads(patterns: Pattern | PatternMap) -> Counter[Pattern]:
    """How many heads have each pattern: a model has many heads and few patterns."""
    if isinstance(patterns, Pattern):
        return Counter([patterns])
    if isinstance(patterns, PatternMap):
        return Counter(p for row in patterns for p in row)
    raise ValueError(f"patterns: got {type(patterns).__name__}; give a Pattern (one head) or a PatternMap (a model)")


def _whole(name: str, value: int, least: int) -> int:
    if not is_whole(value) or value < least:
        raise ValueError(f"{name}: got {value!r}; it must be a whole number ≥ {least}")
    return int(value)
