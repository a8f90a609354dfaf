"""The estimate of training memory beside what a live model's tensors take at their peak.

The model runs on tensors that have a shape and no values, so every operation allocates as always and none computes.
Where heads select blocks in different ways, values decide what is done, and the tensors are real.
"""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.costs.budget import parameters
from ratplus.costs.memory import training_memory


def measured_peak(
    config: ModelConfig, batch: int, length: int, precision: str, checkpointing: bool = False,
    patterns: Pattern | PatternMap | None = None, values: bool = False,
) -> int:  # fmt: skip
    """Bytes of all tensors at their peak over a micro-batch that is accumulated: gradients and moments are in place."""
    with nullcontext() if values else FakeTensorMode():
        return _peak(config, batch, length, precision, checkpointing, patterns)


def _peak(config, batch, length, precision, checkpointing, patterns) -> int:
    model = RATPlus(config)
    model.activation_checkpointing = checkpointing
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes its moments
    tokens = torch.randint(0, config.vocab_size, (batch, length))
    tracker = MemTracker()
    tracker.track_external(model, optimizer, tokens)
    with tracker:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            logits = model(tokens, patterns or Pattern(16))
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        del logits
        loss.backward()
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return snapshot["Total"]


@pytest.mark.parametrize(("precision", "kv_heads"), [("float32", 1), ("bf16", 2)])
def test_training_memory_where_heads_share_keys(precision, kv_heads):
    config = ModelConfig(vocab_size=500, layers=4, d_model=256, d_head=32, kv_heads=kv_heads)
    estimate = training_memory(config, parameters(config), 1024, precision)
    assert estimate.total == pytest.approx(measured_peak(config, 2, 512, precision), rel=0.1)


def test_training_memory_of_a_llama():
    config = ModelConfig(
        vocab_size=500, layers=4, d_model=256, d_head=32, recurrence=False, output_gate=False, ffn="swiglu",
        ffn_size=700, kv_heads=2, query_heads=12, tied=False,
    )  # fmt: skip
    estimate = training_memory(config, parameters(config), 1024, "float32")
    assert estimate.total == pytest.approx(measured_peak(config, 2, 512, "float32"), rel=0.1)


def test_memory_of_a_wide_swiglu_with_checkpointing():
    """The gradients of its two factors are held together while a block is computed again, a tenth of the whole here."""
    config = ModelConfig(
        vocab_size=100, layers=2, d_model=64, d_head=32, recurrence=False, output_gate=False, ffn="swiglu",
        ffn_size=3000, tied=False,
    )  # fmt: skip
    estimate = training_memory(config, parameters(config), 1024, "float32", checkpointing=True)
    assert estimate.total == pytest.approx(measured_peak(config, 2, 512, "float32", True), rel=0.05)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    ("recurrence", "layers", "d_model", "vocab", "length"),
    [(True, 4, 256, 1000, 512), (False, 4, 256, 1000, 512), (True, 6, 128, 4000, 256), (True, 2, 512, 500, 256)],
)
def test_training_memory_within_a_tenth(precision, recurrence, layers, d_model, vocab, length):
    config = ModelConfig(vocab_size=vocab, layers=layers, d_model=d_model, d_head=64, recurrence=recurrence)
    estimate = training_memory(config, parameters(config), 2 * length, precision)
    assert estimate.total == pytest.approx(measured_peak(config, 2, length, precision), rel=0.1)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("recurrence", "layers", "d_model", "vocab", "batch"),
    [
        pytest.param(True, 4, 256, 500, 16, marks=pytest.mark.slow),
        pytest.param(False, 3, 256, 4000, 8, marks=pytest.mark.slow),
        (True, 6, 128, 4000, 8),
        (True, 2, 512, 500, 8),
    ],
)
def test_memory_with_checkpointing_within_a_tenth(precision, recurrence, layers, d_model, vocab, batch):
    """The first and the last peak within a block, the others in the loss."""
    config = ModelConfig(vocab_size=vocab, layers=layers, d_model=d_model, d_head=64, recurrence=recurrence)
    estimate = training_memory(config, parameters(config), 64 * batch, precision, checkpointing=True)
    measured = measured_peak(config, batch, 64, precision, checkpointing=True)
    assert estimate.total == pytest.approx(measured, rel=0.1)
    assert measured < training_memory(config, parameters(config), 64 * batch, precision).total


@pytest.mark.parametrize(
    ("mixer", "d_head", "d_state", "precision", "checkpointing"),
    [
        ("mamba2", 64, 64, "float32", False),
        pytest.param("mamba2", 64, 32, "bf16", False, marks=pytest.mark.slow),
        pytest.param("gated_deltanet", 48, 24, "float32", False, marks=pytest.mark.slow),
        ("gated_deltanet", 48, 24, "bf16", False),
        pytest.param("gated_deltanet", 48, 24, "float32", True, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_training_memory_of_states(mixer, d_head, d_state, precision, checkpointing):
    config = ModelConfig(
        vocab_size=500, layers=2, d_model=128, d_head=d_head, d_state=d_state, query_heads=4, recurrence=False,
        mixer=mixer,
    )  # fmt: skip
    estimate = training_memory(config, parameters(config), 768, precision, checkpointing=checkpointing)
    measured = measured_peak(config, 6, 128, precision, checkpointing, Pattern())
    assert estimate.total == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("label", ["top24x4", "D16-top24x4", "mixed[D1,top24x4,D1,top12x4]"])
def test_memory_of_patterns_that_select(label):
    """What they take on top of a static pattern, which is little of the whole: which blocks were chosen."""
    config = ModelConfig(vocab_size=64, layers=3, d_model=64, d_head=8, kv_heads=4)
    patterns = PatternMap.from_label(label, 3, 8) if "mixed" not in label else mixed(label)
    peaks = [measured_peak(config, 4, 256, "float32", patterns=p, values=True) for p in (Pattern(16), patterns)]
    n = parameters(config)
    plain, selecting = (training_memory(config, n, 1024, "float32", patterns=p) for p in (None, patterns))
    assert selecting.total == pytest.approx(peaks[1], rel=0.1)
    assert selecting.total - plain.total == pytest.approx(peaks[1] - peaks[0], rel=0.2)
    light = training_memory(config, n, 1024, "float32", checkpointing=True, patterns=patterns)
    assert light.total < selecting.total


@pytest.mark.parametrize("layers", [2, 5])
def test_with_checkpointing_one_layers_selection_is_held_at_a_time(layers):
    """Four heads of keys choose 24 blocks for each of 1024 tokens, an int32 a block."""
    config = ModelConfig(vocab_size=64, layers=layers, d_model=64, d_head=8, kv_heads=4)
    patterns = PatternMap.from_label("top24x4", layers, 8)

    def more(checkpointing: bool) -> int:
        plain, selecting = (
            training_memory(config, 10**5, 1024, "float32", checkpointing=checkpointing, patterns=p).total
            for p in (None, patterns)
        )
        return selecting - plain

    assert more(checkpointing=True) == 4 * 24 * 1024 * 4
    assert more(checkpointing=False) == layers * more(checkpointing=True)


@pytest.mark.parametrize(
    ("heads", "chosen", "apart"),
    [
        ("top24x4,top24x4,top24x4,top24x4", 4 * 24, False), ("top24x4,top12x4,top24x4,top12x4", 2 * (24 + 12), False),
        ("D1,top24x4,D4,top12x4", 24 + 12, True), ("top24x4,top24x4-nofirst,top24x4,top24x4", 4 * 24, True),
        ("top24x4,quest24x4,top24x4,top24x4", 4 * 24, True), ("D1,D4,D16,D1", 0, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("recurrence", "precision", "size"), [(True, "float32", 4), (False, "bf16", 2)])
def test_what_a_layers_selection_takes(heads, chosen, apart, recurrence, precision, size):
    """To the byte: numbers of blocks, and outputs, keys and values of parts that are computed apart."""
    config = ModelConfig(vocab_size=64, layers=3, d_model=64, d_head=8, kv_heads=4, recurrence=recurrence)
    rows = mixed(f"mixed[{heads}]").rows
    plain = PatternMap.uniform(Pattern(16), 1, 8).rows
    one = PatternMap((plain[0], rows[0], plain[0]))  # the second of three layers selects
    held = [training_memory(config, 1000, 10, precision, patterns=p).activations for p in (None, one)]
    parts = (8 * 8 + (2 * 4 * 8 if recurrence else 0)) * size if apart else 0
    assert held[1] - held[0] == 10 * (4 * chosen + parts)


def mixed(label: str) -> PatternMap:
    heads = label.removeprefix("mixed[").removesuffix("]").split(",")
    row = tuple(Pattern.from_label(name) for name in heads for _ in range(2))  # a group of two shares its keys
    return PatternMap((row,) * 3)


def test_sharding_and_checkpointing():
    config = ModelConfig(vocab_size=32000, layers=32, d_model=4096, d_head=128)
    n = parameters(config)
    one, eight = (training_memory(config, n, 4096, "bf16", shards) for shards in (1, 8))
    assert one.optimizer == 8 * n
    assert eight.optimizer == n
    assert eight.activations == one.activations
    light = training_memory(config, n, 4096, "bf16", 8, checkpointing=True)
    assert light.activations < eight.activations / 8
    assert light.total < 30e9 < 80e9 < one.total


@pytest.mark.parametrize("tied", [True, False])
def test_what_weights_gradients_and_moments_take(tied):
    """To the byte: a model of three blocks with 16 channels, whose embedding has 10 rows."""
    config = ModelConfig(vocab_size=10, layers=3, d_model=16, d_head=8, tied=tied)
    # o, q, k, v, g and the output projection; two matrices of the feed-forward part. Two norms each, one at the end.
    block, table = 16 * (6 * 16 + 2 * config.ffn_width), 10 * 16
    numbers = 3 * (block + 2 * 16) + 16 + table * (1 if tied else 2)
    assert parameters(config) == numbers
    ends = table * 4 * (1 if tied else 2)  # whole on every device, in float32

    def held(*args, **options) -> tuple[int, int, int]:
        found = training_memory(config, numbers, 8, *args, **options)
        return found.weights, found.gradients, found.optimizer

    each = -(-numbers * 4 // 4)
    assert held("float32") == (4 * numbers, 4 * numbers, 8 * numbers)
    # A copy of every matrix in bfloat16, the head's among them; of one block where blocks are computed again.
    assert held("bf16") == (4 * numbers + 2 * (3 * block + table), 4 * numbers, 8 * numbers)
    assert held("bf16", checkpointing=True) == (4 * numbers + 2 * (block + table), 4 * numbers, 8 * numbers)
    # Shards, and two blocks and the embedding that are whole for a while; no other copy in bfloat16.
    assert held("bf16", 4) == (each + 2 * block * 2 + ends, each + block * (2 + 4) + ends, 2 * numbers)
    assert held("float32", 4) == (each + 2 * block * 4 + ends, each + block * (4 + 4) + ends, 2 * numbers)


HEADS = dict(layers=3, d_model=16, d_head=8, query_heads=6, kv_heads=3, ffn_size=20)  # queries of 48, keys of 24


@pytest.mark.parametrize(
    ("shape", "narrow"),
    [
        # Queries three times, and three more of the output gate; casts; k, v, g, k~ and v~; the feed-forward part.
        (dict(), 6 * 48 + 2 * 16 + 5 * 24 + 2 * 20),
        (dict(output_gate=False), 3 * 48 + 2 * 16 + 5 * 24 + 2 * 20),
        # Without recurrence k, v and the rotated k; SwiGLU's other factor and the product too.
        (dict(recurrence=False, output_gate=False, ffn="swiglu"), 3 * 48 + 2 * 16 + 3 * 24 + 4 * 20),
    ],
)
@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("bf16", 2)])
def test_what_activations_take(shape, narrow, precision, size):
    """To the byte, of 8 tokens: the comparisons with live tensors above allow a tenth."""
    few, many = (ModelConfig(vocab_size=vocab, **HEADS | shape) for vocab in (10, 10_000))

    def held(config, checkpointing: bool) -> tuple[int, int]:
        found = training_memory(config, 1000, 8, precision, checkpointing=checkpointing)
        return found.activations, found.logits

    block, ends = 8 * (4 * 16 * 4 + narrow * size), 2 * 8 * 16 * 4
    assert held(few, False) == (3 * block + ends, 4 * 8 * 10 * 4)
    # Computed again: the inputs of blocks, one block whole, and the gradients of what is widest and of its matrix.
    again = 3 * 8 * 16 * 4 + ends + block + 20 * (2 if shape.get("ffn") else 1) * (8 * size + 16 * 4)
    assert held(few, True) == (again, 8 * 10 * 4)
    # With a large vocabulary the peak is in the loss, with the gradient of the embedding.
    assert held(many, True) == (3 * 8 * 16 * 4 + ends, 3 * 8 * 10_000 * 4 + 10_000 * 16 * 4)
