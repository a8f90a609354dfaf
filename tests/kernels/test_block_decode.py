"""Decoding over selected blocks: every step equals the full forward pass, and chooses the same blocks."""

import pytest
import torch
from helpers import projections, rope_tables

from ratplus.kernels import block_attention, block_decode_attention, decode_attention, gated_scan
from ratplus.kernels.blocks import block_metadata
from ratplus.kernels.blocks.metadata import metadata_dtype
from ratplus.kernels.blocks.selection import select_at, select_blocks
from ratplus.kernels.blocks.settings import Blocks
from ratplus.kernels.decode.layout import slot_count
from ratplus.kernels.scan.reference import rotate

LENGTH, BATCH, HEADS, D_HEAD = 40, 3, 4, 8
LAG = torch.tensor([0, 1, 7])  # how far each sequence is behind the first one


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    monkeypatch.setattr("ratplus.kernels.block_decode.eager.GATHERED_BYTES", 4000)
    torch.manual_seed(0)


def _replay(static=(None, 0, 0), *, group=1, dtype=torch.float64, recurrence=True, flat=False, lag=LAG, **choice):
    """Steps one by one, ragged, against the full forward pass: blocks equal; the largest difference of outputs.

    group: query heads a key head. flat: the caches are views of something larger, as those of a model.
    """
    k, v, logit = projections(BATCH, HEADS, LENGTH, D_HEAD, parts=3, dtype=dtype)
    (q,) = projections(BATCH, HEADS * group, LENGTH, D_HEAD, parts=1, dtype=dtype)
    tables = rope_tables(torch.arange(LENGTH), D_HEAD)
    if not recurrence:
        logit = torch.full_like(logit, -torch.inf)
    k_tilde, v_tilde, final = gated_scan(logit, k, v, rope=tables)
    full, ids = block_attention(rotate(q, *tables).to(dtype), k_tilde, v_tilde, *static, **choice, return_blocks=True)

    summary = {name: choice[name] for name in ("block", "score", "stride") if name in choice}
    expected = block_metadata(k_tilde, **summary)
    if flat:
        keys, values = (torch.zeros(BATCH, 5 + HEADS * LENGTH, D_HEAD, dtype=dtype)[:, 5:] for _ in range(2))
        keys, values = (x.unflatten(1, (HEADS, LENGTH)) for x in (keys, values))
    else:
        keys, values = (torch.zeros(BATCH, HEADS, LENGTH, D_HEAD, dtype=dtype) for _ in range(2))
    metadata = torch.zeros_like(expected)
    assert metadata.dtype == metadata_dtype(choice.get("score", "mean"), dtype)
    state = tuple(torch.zeros(BATCH, HEADS, D_HEAD, dtype=final[0].dtype) for _ in range(2)) if recurrence else None
    limit = 2e-2 if dtype == torch.bfloat16 else 1e-5
    differences = []
    rows = torch.arange(BATCH)
    for step in range(LENGTH + int(lag.max())):
        positions = (step - lag).clamp(0, LENGTH - 1)
        # A sequence that waits at its first or last token repeats it; its state must not move on.
        idle = (step - lag < 0) | (step - lag >= LENGTH)
        held = [x.clone() for x in state or ()]
        token = [x[rows, :, positions] for x in (q, k, v, logit)]
        out, chosen = block_decode_attention(
            *token[:3], token[3] if recurrence else None, keys, values, metadata, state, positions, *static, **choice,
            rope=tables, return_blocks=True,
        )  # fmt: skip
        assert out.dtype == dtype
        for x, before in zip(state or (), held):
            x[idle] = before[idle]
        assert torch.equal(chosen[~idle], ids[rows, :, positions][~idle])
        differences.append((out - full[rows, :, positions]).abs().amax(dim=(1, 2))[~idle].max())
    # The last token of a sequence that waits for the others was written anew from a state that had moved on.
    torch.testing.assert_close(keys[:, :, :-1], k_tilde[:, :, :-1], atol=limit, rtol=0)
    torch.testing.assert_close(metadata[:, :, :-1], expected[:, :, :-1], atol=limit, rtol=0)
    return torch.stack(differences).max().item()  # NaN if any is, and then less than nothing


def test_one_sequence_with_one_head(monkeypatch):
    """Its keys are multiplied where they lie, like those of many heads, unless more are named than there are."""
    monkeypatch.setattr("test_block_decode.BATCH", 1)
    monkeypatch.setattr("test_block_decode.HEADS", 1)
    assert _replay(top=3, block=4, dtype=torch.float32, lag=LAG[:1]) < 1e-5
    assert _replay((1, 2, 0), top=3, block=4, dtype=torch.float32, lag=LAG[:1]) < 1e-5


@pytest.mark.parametrize("implementation", ["eager", "reference"])
@pytest.mark.parametrize("score", ["mean", "bounds", "random"])
def test_decoding_equals_full_forward(monkeypatch, implementation, score):
    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    cases = [((None, 0, 0), 3, 4), ((4, 5, 3), 3, 4), ((8, 0, 0), 2, 8), ((None, 50, 0), 2, 16), ((3, 2, 20), 4, 1)]
    for static, top, block in cases if implementation == "eager" else cases[1:2]:
        assert _replay(static, top=top, block=block, score=score, first=block != 1) < 1e-6, (static, top, block)


@pytest.mark.parametrize("score", ["mean", "bounds", "random"])
def test_sequences_at_one_position(score):
    """They choose and read without masks, in float32 without copies of keys either."""
    together = torch.zeros(BATCH, dtype=torch.int64)
    for dtype, limit in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        for top, block, first in ((3, 4, True), (1, 4, False), (2, 8, True), (60, 1, False)):
            how = {"top": top, "block": block, "first": first, "score": score, "dtype": dtype, "lag": together}
            assert _replay(**how) < limit, (dtype, top, block)
    tops = torch.tensor([0, 3, 2, 9], dtype=torch.int32)
    assert _replay(top=tops, block=4, score=score, dtype=torch.float32, lag=together) < 1e-5
    assert _replay((8, 2, 1), top=3, block=4, group=2, flat=True, score=score, lag=together) < 1e-6


@pytest.mark.parametrize("sorted_as_a_whole", [0, 256])
def test_a_step_at_one_position_breaks_ties_as_a_prompt_does(monkeypatch, sorted_as_a_whole):
    monkeypatch.setattr("ratplus.kernels.blocks.selection.SORTED", sorted_as_a_whole)
    q = torch.randint(-1, 2, (2, 4, 1, 3)).float()
    metadata = torch.randint(-1, 2, (2, 2, 40, 1, 3)).float()  # most scores are equal to others
    tops = [3, 12]
    for first in (True, False):
        for position in (0, 3, 4, 30, 159):
            rest = (Blocks(4, "mean", first), 12, torch.arange(2))
            expected = select_blocks(q, metadata, position, torch.tensor(tops), *rest)
            assert torch.equal(select_at(q.squeeze(2), metadata, position, tops, *rest), expected.squeeze(2))


def test_blocks_of_dilated_keys():
    for score in ("mean", "bounds"):
        assert _replay((None, 3, 2), top=3, block=2, stride=3, score=score) < 1e-6
        assert _replay(top=2, block=2, stride=4, score=score, first=False) < 1e-6


def test_query_heads_that_share_a_cache_which_is_part_of_a_larger_one():
    assert _replay((8, 2, 1), top=3, block=4, score="bounds", group=3, flat=True) < 1e-6


def test_settings_of_each_head():
    static = [torch.tensor(x, dtype=torch.int32) for x in ([-1, 4, 1, 4], [5, 0, 0, 0], [4, 0, 0, 0])]
    assert _replay(static, top=torch.tensor([0, 3, 2, 9], dtype=torch.int32), block=4, recurrence=False) < 1e-6


def test_float32_and_half_precision():
    assert _replay((8, 2, 1), top=3, block=4, dtype=torch.float32) < 1e-5
    assert _replay((8, 2, 1), top=3, block=4, score="bounds", dtype=torch.bfloat16, recurrence=False) < 3e-2


def test_without_blocks_it_is_the_compact_step():
    """`top` 0: the static pattern alone, as `decode_attention` reads it from a cache of another layout."""
    static, dtype = (4, 3, 2), torch.float64
    q, k, v = (x.transpose(1, 2) for x in projections(2, 3, 20, D_HEAD, parts=3, dtype=dtype))
    keys, values = (torch.zeros(2, 3, 20, D_HEAD, dtype=dtype) for _ in range(2))
    compact = [torch.zeros(2, 3 * slot_count(*static, 20), D_HEAD, dtype=dtype) for _ in range(2)]
    metadata = torch.zeros(2, 3, 5, 1, D_HEAD, dtype=dtype)
    for t in range(20):
        token, positions = [x[:, t] for x in (q, k, v)], torch.full((2,), t)
        out = block_decode_attention(*token, None, keys, values, metadata, None, positions, *static, top=0, block=4)
        expected = decode_attention(*token, None, *compact, None, positions, *static)
        torch.testing.assert_close(out, expected)


def test_clear_errors():
    token = [torch.zeros(2, 4, D_HEAD) for _ in range(3)]
    cache = [torch.zeros(2, 4, 12, D_HEAD) for _ in range(2)]
    metadata, positions = torch.zeros(2, 4, 3, 1, D_HEAD), torch.zeros(2, dtype=torch.int64)

    def step(token=token, cache=cache, metadata=metadata, positions=positions, **choice):
        choice = {"top": 2, "block": 4} | choice
        return block_decode_attention(*token, None, *cache, metadata, None, positions, None, 0, 0, **choice)

    for message, change in (
        ("give .*, k's heads a divisor of q's", {"token": [token[0], *(torch.zeros(2, 3, D_HEAD) for _ in range(2))]}),
        ("v has shape .* it must equal k's", {"token": [*token[:2], torch.zeros(2, 4, 3)]}),
        (r"must both be \[2, 4, tokens, 8\]", {"cache": [torch.zeros(2, 48, D_HEAD) for _ in range(2)]}),
        (
            "a head's tokens must lie one after the other",
            {"cache": [x[:, :, ::2] for x in cache]},
        ),
        (r"must be torch.float32 \[2, 4, 3, 2, 8\]", {"score": "bounds"}),
        (r"must be torch.float32 \[2, 4, 6, 1, 8\]", {"block": 2}),
        (r"must be int64 \[2\]", {"positions": torch.zeros(2)}),
        ("slots is 1; some head reads 2 blocks", {"slots": 1}),
        ("top is 1; it counts every block", {"top": 1}),
    ):
        with pytest.raises(ValueError, match=message):
            step(**change)
    with pytest.raises(ValueError, match="logit and state go together"):
        block_decode_attention(*token, token[0], *cache, metadata, None, positions, None, 0, 0, top=2, block=4)
