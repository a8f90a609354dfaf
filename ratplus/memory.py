"""What training holds in memory, estimated in closed form: no torch, no weights. Caches: `cost.cost(...).cache_bytes`.

Weights, gradients and AdamW's moments are float32 and counted exactly. Activations are what autograd keeps between the
forward and the backward pass of one micro-batch: the counts of tensors below were read off a live model's tensors
(tests/ratplus/test_memory.py measures again), so they are of this model code and good to a few percent.
"""

from __future__ import annotations

from dataclasses import dataclass

from ratplus.budget import block_matrices
from ratplus.config import ModelConfig

BYTES_PER_ELEMENT = {"float32": 4, "bf16": 2}
_WIDE = 4
# Of a block, in tensors of d_model channels a token. Float32 whatever the precision: both norms' inputs and outputs.
_WIDE_TENSORS = 4
# In the precision of the products: rotated q, attention output and its gated copy, the gate, and casts.
_NARROW_TENSORS = 6
# Of the loss, in tensors of vocab_size channels a token, float32: logits, log-probabilities, and their gradients.
_LOGIT_TENSORS = 4


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on each device while it trains."""

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
) -> TrainingMemory:
    """Bytes on each device while it trains on micro-batches of `tokens` tokens (sequences times context).

    Args:
        parameters: trainable numbers of the model.
        shards: devices over which weights, gradients and moments are spread (fsdp); 1 for one copy each (single, ddp).
        checkpointing: keep only each block's input, and compute the block again in the backward pass.
    """
    size = BYTES_PER_ELEMENT[precision]
    matrices = model.layers * block_matrices(model)
    # Autocast keeps a copy of each matrix in the lower precision for the backward pass; fsdp gathers a block at a time.
    cast = (matrices + model.vocab_size * model.d_model) * size if size < _WIDE and shards == 1 else 0
    gathered = 2 * block_matrices(model) * _WIDE if shards > 1 else 0
    block = tokens * model.d_model * (_WIDE_TENSORS * _WIDE + _narrow_tensors(model) * size)
    ends = 2 * tokens * model.d_model * _WIDE  # embedding's output, final norm's output
    kept = model.layers * tokens * model.d_model * _WIDE + block if checkpointing else model.layers * block
    return TrainingMemory(
        weights=-(-parameters * _WIDE // shards) + cast + gathered,
        optimizer=-(-2 * parameters * _WIDE // shards),
        gradients=-(-parameters * _WIDE // shards),
        activations=kept + ends,
        logits=_LOGIT_TENSORS * tokens * model.vocab_size * _WIDE,
    )


def _narrow_tensors(model: ModelConfig) -> int:
    projected = 3 + model.output_gate + model.recurrence
    mixed = 2 if model.recurrence else 1  # k~ and v~, or the rotated k alone
    return projected + mixed + 2 * model.ffn_mult + _NARROW_TENSORS
