"""Decoding on the compact cache: every step equals the full forward pass, and sees exactly the paper's keys."""

from itertools import accumulate

import numpy as np
import pytest
import torch
from helpers import golden, projections, rope_tables

from ratplus.kernels import decode_attention, dilated_attention, gated_scan
from ratplus.kernels.decode.layout import dilated_slot, ring_slot, sink_slot, slot_counts
from ratplus.kernels.scan.reference import rotate

LENGTH, BATCH, HEADS, D_HEAD = 40, 3, 4, 8
LAG = torch.tensor([0, 1, 7])  # how far each sequence is behind the first one


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _replay(dilation, window, sinks, dtype=torch.float32, recurrence=True, group=1):
    """Largest difference between decoding token by token (ragged) and the full forward pass; NaN if there is any.

    group: query heads that share each of the HEADS heads of keys.
    """
    k, v, logit = projections(BATCH, HEADS, LENGTH, D_HEAD, parts=3, dtype=dtype)
    (q,) = projections(BATCH, HEADS * group, LENGTH, D_HEAD, parts=1, dtype=dtype)
    tables = rope_tables(torch.arange(LENGTH), D_HEAD)
    if not recurrence:
        logit = torch.full_like(logit, -torch.inf)
    k_tilde, v_tilde, final = gated_scan(logit, k, v, rope=tables)
    full = dilated_attention(rotate(q, *tables), k_tilde, v_tilde, dilation, window, sinks)

    settings = (dilation, window, sinks)
    counts = slot_counts(*(x.tolist() if isinstance(x, torch.Tensor) else x for x in settings), LENGTH)
    mixed = isinstance(counts, list)
    slots = sum(counts) if mixed else HEADS * counts
    offsets = torch.tensor([0, *accumulate(counts)]) if mixed else None
    keys, values = (torch.zeros(BATCH, slots, D_HEAD, dtype=dtype) for _ in range(2))
    state = tuple(torch.zeros(BATCH, HEADS, D_HEAD) for _ in range(2)) if recurrence else None

    differences = []
    for step in range(LENGTH + int(LAG.max())):
        positions = (step - LAG).clamp(0, LENGTH - 1)
        # A sequence that waits at its first or last token repeats it; its state must not move on.
        idle = (step - LAG < 0) | (step - LAG >= LENGTH)
        held = [x.clone() for x in state or ()]
        rows = torch.arange(BATCH)
        token = [x[rows, :, positions] for x in (q, k, v, logit)]
        out = decode_attention(
            *token[:3],
            token[3] if recurrence else None,
            keys,
            values,
            state,
            positions,
            *settings,
            offsets=offsets,
            rope=tables,
        )
        assert out.dtype == dtype
        for x, before in zip(state or (), held):
            x[idle] = before[idle]
        difference = (out - full[rows, :, positions]).abs().amax(dim=(1, 2))
        differences.append(difference[~idle].max())
    if recurrence:
        torch.testing.assert_close(state, final, atol=1e-5, rtol=0)
    return torch.stack(differences).max().item()  # NaN if any is, and then less than nothing


@pytest.mark.parametrize("implementation", ["eager", "reference"])
@pytest.mark.parametrize("dilation", [None, 1, 3, 16])
def test_decoding_equals_full_forward(monkeypatch, implementation, dilation):
    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    grid = [(0, 0), (5, 0), (1, 4), (5, 3), (LENGTH, 2), (0, (dilation or 1) + 1), (3, 50)]
    for window, sinks in grid if implementation == "eager" else grid[3:5]:
        assert _replay(dilation, window, sinks) < 1e-5, (window, sinks)


@pytest.mark.parametrize("implementation", ["eager", "reference"])
def test_query_heads_that_share_a_cache(monkeypatch, implementation):
    monkeypatch.setenv("RATPLUS_KERNELS", implementation)
    for settings in ((4, 5, 3), (None, 3, 2))[: 2 if implementation == "eager" else 1]:
        assert _replay(*settings, group=3) < 1e-5
    mixed = ([-1, 1, 16, 3], [5, 0, 0, 20], [4, 0, 0, 2])
    assert _replay(*(torch.tensor(x, dtype=torch.int32) for x in mixed), group=2) < 1e-5


@pytest.mark.parametrize(("window", "sinks"), [(0, 0), (5, 3)])
def test_a_cache_filled_with_kept_rows_and_the_tail(window, sinks):
    """The prompt's full outputs are needed only for its last window + 1 tokens; then decoding goes on."""
    dilation, prompt = 4, 23
    q, k, v, logit = projections(1, HEADS, LENGTH, D_HEAD, parts=4)
    tables = rope_tables(torch.arange(LENGTH), D_HEAD)
    full = dilated_attention(rotate(q, *tables), *gated_scan(logit, k, v, rope=tables)[:2], dilation, window, sinks)

    body = prompt - window - 1
    head, tail = ([x[:, :, part] for x in (logit, k, v)] for part in (slice(body), slice(body, prompt)))
    ropes = [tuple(x[part] for x in tables) for part in (slice(body), slice(body, prompt))]
    *all_rows, state = gated_scan(*head, rope=ropes[0])
    kept_positions = [p for p in range(body) if p < sinks or (p + 1) % dilation == 0]
    rows = [x[:, :, kept_positions] for x in all_rows]
    *recent, state = gated_scan(*tail, initial=state, rope=ropes[1])
    share = slot_counts(dilation, window, sinks, LENGTH)
    caches = [torch.zeros(1, HEADS, share, D_HEAD) for _ in range(2)]
    area = sinks + window + 1  # where the dilated rows begin
    for cache, kept, last in zip(caches, rows, recent):
        cache[:, :, :sinks] = kept[:, :, :sinks]
        cache[:, :, area : area + kept.shape[2] - sinks] = kept[:, :, sinks:]
        for t in range(body, prompt):
            cache[:, :, ring_slot(t, window, sinks)] = last[:, :, t - body]
            slot, is_kept = dilated_slot(t, dilation, window, sinks)
            if is_kept:
                cache[:, :, slot] = last[:, :, t - body]
    for t in range(prompt, LENGTH):
        token = [x[:, :, t] for x in (q, k, v, logit)]
        flat = [cache.flatten(1, 2) for cache in caches]
        out = decode_attention(*token, *flat, state, torch.tensor([t]), dilation, window, sinks, rope=tables)
        torch.testing.assert_close(out, full[:, :, t], atol=1e-5, rtol=0)


def test_decoding_without_recurrence():
    assert _replay(4, 5, 2, recurrence=False) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        ([-1, 1, 16, 3], [5, 0, 0, 20], [4, 0, 0, 2]),
        ([4, 16, 4, 16], [0, 5, 0, 5], [0, 0, 0, 0]),
        ([4, 4, 16, 16], [2, 2, 2, 2], [1, 1, 3, 3]),
    ],
)
def test_per_head_patterns(settings):
    assert _replay(*(torch.tensor(x, dtype=torch.int32) for x in settings)) < 1e-5


def test_golden_visible_keys():
    """One-hot values: what the step at position t mixes is what the paper's compact cache shows."""
    data = golden("decode_masks")
    for index, (length, dilation, window, sinks, prompt) in enumerate(data["cfg"].tolist()):
        count = slot_counts(dilation, window, sinks, length)
        keys = values = torch.zeros(1, count, length)
        steps = length - prompt
        mask = np.unpackbits(data[f"bits_{index}"])[: steps * length].reshape(steps, length)
        for t in range(length):
            token = torch.nn.functional.one_hot(torch.tensor([[t]]), length).float()
            nothing = torch.zeros(1, 1, length)
            # Query 0: every visible key weighs the same. Keys and values share a cache here.
            out = decode_attention(
                nothing, token, token, None, keys, values, None, torch.tensor([t]), dilation, window, sinks
            )
            if t >= prompt:
                assert np.array_equal(out[0, 0].numpy() > 1e-4, mask[t - prompt].astype(bool)), (index, t)


def test_slot_functions_agree_for_ints_and_tensors():
    positions = torch.arange(60).unsqueeze(1)
    dilation, window, sinks = (torch.tensor(x) for x in ([-1, 1, 3, 16], [0, 2, 5, 7], [4, 0, 4, 17]))
    slots, kept = dilated_slot(positions, dilation, window, sinks)
    for t in range(60):
        for h in range(4):
            one = (int(dilation[h]), int(window[h]), int(sinks[h]))
            slot, is_kept = dilated_slot(t, *one)
            assert bool(kept[t, h]) == bool(is_kept)
            assert not is_kept or int(slots[t, h]) == slot < slot_counts(*one, 60)
            assert int(ring_slot(positions, window, sinks)[t, h]) == ring_slot(t, one[1], one[2])
            assert sink_slot(t, one[2]) == (t, t < one[2])


def test_no_two_tokens_share_a_dilated_slot():
    for dilation, window, sinks in ((3, 2, 4), (16, 0, 17), (4, 5, 0), (1, 3, 2)):
        slots = [dilated_slot(t, dilation, window, sinks) for t in range(100)]
        taken = [slot for slot, kept in slots if kept]
        assert taken == list(range(sinks + window + 1, slot_counts(dilation, window, sinks, 100)))


def test_clear_errors():
    q = torch.zeros(2, 4, 8)
    cache = torch.zeros(2, 4 * 6, 8)
    positions = torch.zeros(2, dtype=torch.int64)

    def call(**changes):
        arguments = {"q": q, "k": q, "v": q, "logit": None, "keys": cache, "values": cache, "state": None}
        arguments |= {"positions": positions, "dilation": 4, "window": 2, "sinks": 1} | changes
        return decode_attention(**arguments)

    call()
    for changes, message in (
        ({"logit": q}, "logit and state go together"),
        ({"k": q[:, :3]}, "k has shape"),
        ({"k": q[:, :2]}, "v has shape"),
        ({"keys": cache[:1]}, r"must both be \[batch, slots, d_head\]"),
        ({"positions": positions.int()}, "they must be int64"),
        ({"keys": cache[:, :23], "values": cache[:, :23]}, "can't be shared equally"),
        ({"window": 9}, "owns 6 slots; its pattern .window 9, sinks 1. needs at least 11"),
        ({"rope": (torch.ones(5, 4), torch.ones(5, 4))}, "rope tables have shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**changes)


def test_slots_of_settings_by_head():
    assert slot_counts(4, 3, 2, 40) == 2 + 3 + 1 + 10
    assert slot_counts(None, 3, 2, 40) == slot_counts(-1, 3, 2, 40) == 6
    assert slot_counts(4, [3, 0, 50], 2, 40) == [16, 13, 63]
    assert slot_counts([4, None], [3, 3], [2, 9], 40) == [16, 13]
    assert slot_counts(16, 0, 33, 40) == 34  # all dilated keys are sinks already
    with pytest.raises(ValueError, match=r"slot_counts: dilation, window and sinks have lengths \[2, 3\]; they must"):
        slot_counts([4, 4], [3, 3, 3], 0, 40)
