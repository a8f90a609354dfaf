"""What training holds in memory, estimated in closed form: no torch, no weights. Caches: `cost.cost(...).cache_bytes`.

Weights, gradients and AdamW's moments are float32 and counted exactly. Activations are what autograd keeps between the
forward and the backward pass of one micro-batch: the counts of tensors below were read off a live model's tensors
(tests/ratplus/costs/test_memory.py measures again), so they are of this model code and good to a few percent.
"""

from __future__ import annotations

from dataclasses import dataclass

from ratplus.config.model import ModelConfig
from ratplus.costs.budget import block_matrices
from ratplus.costs.state import kept_channels
from ratplus.pattern import Pattern, PatternMap

BYTES_PER_ELEMENT = {"float32": 4, "bf16": 2}
_WIDE = 4
_ID = 4  # bytes of the number of a block
# What a block keeps for its backward pass, counted in tensors of d_model channels a token. Inputs and outputs of both
# norms are float32 whatever the precision.
_WIDE_TENSORS = 4
# These are in the precision of the products. As wide as the queries: q and rotated q, attention output. With the output
# gate, what it is made of, the gate, and the gated output. As wide as d_model: casts of what both norms put out.
_QUERY_TENSORS, _GATE_TENSORS, _CAST_TENSORS = 3, 3, 2
# Of ffn_width channels, likewise: what the activation takes and gives; for SwiGLU the other factor and the product too.
_FFN_TENSORS = {"gelu": 2, "swiglu": 4}
# The loss keeps these float32 tensors of vocab_size channels a token: logits, log-probabilities, and their gradients.
_LOGIT_TENSORS = 4
# With activation checkpointing these peak alone: log-probabilities and two gradients; then, while blocks are computed
# again, at least the log-probabilities may still be there.
_LOGIT_TENSORS_ALONE, _LOGIT_TENSORS_LEFT = 3, 1


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on each device at the moment of a training step when they are most."""

    weights: int
    optimizer: int
    gradients: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.gradients + self.activations + self.logits


def training_memory(
    model: ModelConfig,
    parameters: int,
    tokens: int,
    precision: str,
    shards: int = 1,
    checkpointing: bool = False,
    patterns: PatternMap | None = None,
) -> TrainingMemory:
    """Bytes on each device while it trains on micro-batches of `tokens` tokens (sequences times context).

    Args:
        parameters: trainable numbers of the model.
        shards: devices over which weights, gradients and moments are spread (fsdp); 1 for one copy each (single, ddp).
        checkpointing: keep only each block's input, and compute the block again in the backward pass.
        patterns: what it trains with; None is dense. Only what selects by query changes the memory.
    """
    size = BYTES_PER_ELEMENT[precision]
    matrices = model.layers * block_matrices(model)
    embedding, of_block = model.vocab_size * model.d_model, block_matrices(model)  # that of the output head, if untied
    ends_whole = embedding if model.tied else 2 * embedding
    # Autocast keeps a copy of each matrix in the lower precision for the backward pass, or of those of a block that is
    # computed again.
    copied = (of_block if checkpointing else matrices) + embedding
    cast = copied * size if size < _WIDE and shards == 1 else 0
    # fsdp gathers a block while the next one is on its way, and has the embedding whole throughout; their gradients
    # are whole before they are summed and cut.
    gathered = (2 * of_block * size + ends_whole * _WIDE) if shards > 1 else 0
    summed = (of_block * (size + _WIDE) + ends_whole * _WIDE) if shards > 1 else 0
    channel, logits = tokens * model.d_model, tokens * model.vocab_size * _WIDE
    narrow, wide = (_narrow_channels(model), 0) if model.attends else _of_state(model)
    block = tokens * (_WIDE_TENSORS * _WIDE * model.d_model + narrow * size + wide * _WIDE)
    rows = patterns if patterns is not None and model.attends else ()
    selected = [tokens * _bytes_of_selection(row, model, size) for row in rows]
    ends = 2 * channel * _WIDE  # embedding's output, final norm's output
    if not checkpointing:
        activations, logits = model.layers * block + sum(selected) + ends, _LOGIT_TENSORS * logits
    else:
        inputs = model.layers * channel * _WIDE + ends
        # The widest gradient within a block, and that of its matrix before it is added to the sum.
        widest = (2 if model.ffn == "swiglu" else 1) * model.ffn_width
        again = block + max(selected, default=0) + widest * (tokens * size + model.d_model * _WIDE)
        in_loss, in_block = _LOGIT_TENSORS_ALONE * logits + embedding * _WIDE, again + _LOGIT_TENSORS_LEFT * logits
        activations, logits = (inputs, in_loss) if in_loss > in_block else (inputs + again, in_block - again)
    return TrainingMemory(
        weights=-(-parameters * _WIDE // shards) + cast + gathered,
        optimizer=-(-2 * parameters * _WIDE // shards),
        gradients=-(-parameters * _WIDE // shards) + summed,
        activations=activations,
        logits=logits,
    )


def _bytes_of_selection(row: tuple[Pattern, ...], model: ModelConfig, size: int) -> int:
    """Bytes a token that a layer keeps more than one with static patterns, if some of its heads select by query.

    Which blocks each query chose: an int32 a block and head of keys. And where heads select in several ways, or some
    of them not at all, these are computed apart: the parts' outputs are kept beside the one that they are put into, and
    their keys and values beside those that the recurrence keeps.
    """
    per_head = row[:: model.group]
    ways = {(p.block, p.score, p.first, p.phase, p.over, p.seed) if p.data_dependent else None for p in per_head}
    chosen = sum(_ID * pattern.top for pattern in per_head if pattern.top is not None)
    apart = model.query_width + 2 * model.recurrence * model.key_heads * model.d_head
    return chosen + (apart * size if len(ways) > 1 else 0)


def _of_state(model: ModelConfig) -> tuple[int, int]:
    """Channels a token that a block with a state keeps: in the precision of the products, and in float32."""
    narrow, wide = kept_channels(model)
    return narrow + _CAST_TENSORS * model.d_model + _FFN_TENSORS[model.ffn] * model.ffn_width, wide


def _narrow_channels(model: ModelConfig) -> int:
    """Channels a token that a block keeps in the precision of the products."""
    queries = (_QUERY_TENSORS + _GATE_TENSORS * model.output_gate) * model.query_width
    keys = model.key_heads * model.d_head
    projected = 2 + model.recurrence
    mixed = 2 if model.recurrence else 1  # k~ and v~, or the rotated k alone
    ffn = _FFN_TENSORS[model.ffn] * model.ffn_width
    return queries + _CAST_TENSORS * model.d_model + (projected + mixed) * keys + ffn
