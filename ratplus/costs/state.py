"""What a mixer with a state costs (Mamba2, Gated DeltaNet): parameters, FLOPs, and bytes of what decoding holds.

One layer, plain numbers. The state is counted as it is defined, token by token: a path that works in chunks does more
arithmetic for the same result, which is the implementation's and not counted. So the same holds at every length.
"""

from __future__ import annotations

from ratplus.config.mixer import CONVOLUTION, StateShape
from ratplus.config.model import ModelConfig
from ratplus.costs.cost import BYTES_PER_ELEMENT, STATE_BYTES_PER_ELEMENT, Cost, dense_pairs

# For each number of the state and token: decay 1, write 2 (product and sum), read 2; the delta rule reads once more,
# before it writes.
_SSD, _DELTA = 5, 7
# With the delta rule, for each channel of what is written: its difference to what was read, times beta.
_DIFFERENCE = 2

# Tokens of a chunk in kernels/linear_attention/eager.py, which torch-free code can't import; a test compares them.
CHUNK = 64


def mixer_matrices(model: ModelConfig) -> int:
    """Numbers in the matrices of one layer's mixer that every token is multiplied with."""
    shape = model.state_shape
    return (shape.projected + shape.width) * model.d_model


def mixer_vectors(model: ModelConfig) -> int:
    """Other trainable numbers of one layer's mixer, but for the norm of its input.

    These are the convolution; the decay rate and the bias of the step size of each head; the norm of the output, and of
    Mamba2 the convolution's bias and the skip of each head.
    """
    shape = model.state_shape
    convolution = CONVOLUTION * shape.convolved
    if shape.delta:
        return convolution + 2 * shape.heads + shape.d_head
    return convolution + shape.convolved + 3 * shape.heads + shape.width


def state_flops(model: ModelConfig, tokens: int = 1) -> int:
    """FLOPs of one layer's convolution and of updating and reading its states, for so many tokens."""
    shape = model.state_shape
    numbers = shape.heads * shape.d_state * shape.d_head
    each = numbers * (_DELTA if shape.delta else _SSD) + 2 * CONVOLUTION * shape.convolved
    return tokens * (each + (_DIFFERENCE * shape.width if shape.delta else 0))


def held_bytes(shape: StateShape, bytes_per_element: int) -> int:
    """Bytes that one layer holds of a sequence: float32 states, and the convolution's last inputs."""
    state = shape.heads * shape.d_state * shape.d_head * STATE_BYTES_PER_ELEMENT
    return state + (CONVOLUTION - 1) * shape.convolved * bytes_per_element


def kept_channels(model: ModelConfig) -> tuple[int, int]:
    """Numbers a token that one layer's mixer keeps for its backward pass: (in the products' precision, in float32).

    They are those of the path in chunks; fla-core's kernels keep less. Counted as saved tensors, beside what every
    block keeps: the projection, its convolved rows three times, copies of values, keys and queries, products in chunks.
    """
    shape = model.state_shape
    keys, within = shape.heads * shape.d_state, shape.heads * CHUNK
    states = shape.heads * shape.d_state * shape.d_head // CHUNK  # one a chunk
    narrow = shape.projected + 3 * shape.convolved + 3 * shape.width
    if shape.delta:
        return narrow, 5 * shape.width + 9 * keys + 6 * within + states
    return narrow, 4 * shape.width + 2 * keys + 2 * shape.d_state + 2 * within + CHUNK + states


def state_cost(model: ModelConfig, length: int, bytes_per_element: int = BYTES_PER_ELEMENT) -> Cost:
    """`ratplus.costs.cost.cost` of a model whose mixer has a state: nothing of it but the ratio depends on a pattern.

    Updating and reading states stand where attention's products stand. The ratio is to dense attention of as many heads
    with keys and values as wide. There are no entries of keys and values; all that is held is state.
    """
    shape = model.state_shape
    heads = model.layers * shape.heads
    spent = model.layers * state_flops(model, length)
    dense = 2 * (shape.d_state + shape.d_head) * dense_pairs(length) * heads
    held = model.layers * held_bytes(shape, bytes_per_element)
    return Cost(
        length=length, heads=heads, kv_heads=heads, visible_pairs=0, pairs_exact=True, attention_flops=spent,
        selection_flops=0, attention_flops_ratio=spent / dense if dense else 1.0,
        decode_flops=model.layers * state_flops(model), decode_selection_flops=0, kv_entries=0, kv_read=0,
        kv_read_exact=True, kv_peak=0, kv_bytes=0, metadata_bytes=0, decode_bytes=held, kv_ratio=0.0, read_ratio=0.0,
        state_bytes=held, recurrence_flops=0, recurrence_bytes=0,
    )  # fmt: skip
