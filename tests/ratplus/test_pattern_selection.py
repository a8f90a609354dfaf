"""Visibility that depends on data, against loops over queries and blocks; and the counts of entries against masks."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ratplus import Pattern, PatternMap
from ratplus.config.pattern import PatternSection
from ratplus.pattern.fields import MOST, OVER, PHASES, POOLS, SCORES
from ratplus.pattern.selection import chosen_blocks, random_scores


def drawn(heads: int, groups: int, length: int, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((heads, length, width)), rng.standard_normal((groups, length, width))


def loop_blocks(pattern: Pattern, q: np.ndarray, keys: np.ndarray, own: int) -> set[int]:
    """The blocks that one query reads. q [group, d] of the heads that share keys [n, d]."""
    forced = {own} | ({0} if pattern.first else set())
    scores = []
    for block in range(own):
        inside = keys[block * pattern.block : (block + 1) * pattern.block]
        assert len(inside) == pattern.block
        if pattern.score == "mean":
            score = sum(float(x @ key) for x in q for key in inside) / pattern.block
        else:
            score = sum(
                max(float(x[c]) * float(inside[:, c].min()), float(x[c]) * float(inside[:, c].max()))
                for x in q
                for c in range(q.shape[1])
            )
        if block not in forced:
            scores.append((-score, block))
    return forced | {block for _, block in sorted(scores)[: pattern.top - len(forced)]}


def loop_mask(pattern: Pattern, q: np.ndarray, k: np.ndarray, prompt: int | None) -> np.ndarray:
    heads, length, _ = q.shape
    group = heads // len(k)
    seen = np.zeros((heads, length, length), dtype=bool)
    for h in range(heads):
        head = h // group
        together = q[head * group : (head + 1) * group]
        for t in range(length):
            dense = {"both": False, "decode": t < (prompt or 0), "prefill": t >= (prompt or 0)}[pattern.phase]
            blocks = loop_blocks(pattern, together[:, t], k[head], t // pattern.block)
            for j in range(t + 1):
                static = t - j <= pattern.window or j < pattern.sinks
                static |= pattern.dilation is not None and (j + 1) % pattern.dilation == 0
                seen[h, t, j] = dense or static or j // pattern.block in blocks
    return seen


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("score", ["mean", "bounds"])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_block_selection_against_loops(block, score, group):
    for i, length in enumerate(sorted({1, max(block - 1, 1), block, block + 1, 3 * block + 2})):
        q, k = drawn(2 * group, 2, length, 4, seed=i)
        for top in (1, 2, 99):
            for dilation, window, sinks in ((None, 0, 0), (2, 0, 0), (3, 2, 1)):
                pattern = Pattern(
                    dilation, window, sinks, top=top, block=block, score=score, first=top > 1 and i % 2 == 0,
                    phase=("both", "decode", "prefill")[top % 3],
                )  # fmt: skip
                prompt = length // 2
                np.testing.assert_array_equal(pattern.visible_from(q, k, prompt), loop_mask(pattern, q, k, prompt))


def test_all_blocks_are_the_dense_mask():
    q, k = drawn(2, 1, 37)
    for score in ("mean", "bounds", "random"):
        np.testing.assert_array_equal(
            Pattern(top=10, block=4, score=score).visible_from(q, k),
            np.broadcast_to(np.tri(37, dtype=bool), (2, 37, 37)),
        )
    # Blocks of kept keys: all of them are the dilation.
    np.testing.assert_array_equal(
        Pattern(4, 2, 1, top=10, block=4, over="kept").visible_from(q, k)[0], Pattern(4, 2, 1).visible(37)
    )


@pytest.mark.parametrize(
    "label", ["top3x4", "quest3x4", "random3x4", "D2-top3x4", "D2-ktop2x4", "top3x4-decode", "top3x4-prefill"]
)
def test_the_future_changes_nothing(label):
    pattern, (q, k) = Pattern.from_label(label), drawn(4, 2, 30)
    before = pattern.visible_from(q, k, 11)
    assert not before[:, ~np.tri(30, dtype=bool)].any()
    for t in (3, 8, 17):
        other_q, other_k = drawn(4, 2, 30, seed=1)
        other_q[:, : t + 1], other_k[:, : t + 1] = q[:, : t + 1], k[:, : t + 1]
        np.testing.assert_array_equal(pattern.visible_from(other_q, other_k, 11)[:, : t + 1], before[:, : t + 1])


@pytest.mark.parametrize("score", ["mean", "bounds"])
def test_keys_of_a_block_in_another_order_select_the_same(score):
    q, k = (x.astype(np.float32) for x in drawn(2, 2, 24))
    pattern = Pattern(top=3, block=4, score=score)
    shuffled = k.reshape(2, 6, 4, -1)[:, :, [2, 0, 3, 1]].reshape(k.shape)
    last = np.arange(20, 24)  # queries for which all but their own block are complete
    np.testing.assert_array_equal(chosen_blocks(pattern, q, k)[:, last], chosen_blocks(pattern, q, shuffled)[:, last])


def test_ties_go_to_the_lower_block():
    q, k = np.ones((1, 41, 2)), np.zeros((1, 41, 2))
    for score in ("mean", "bounds"):
        chosen = chosen_blocks(Pattern(top=3, block=4, score=score, first=False), q, k)
        assert list(np.flatnonzero(chosen[0, 40])) == [0, 1, 10]


def test_a_bound_is_above_every_logit():
    q, k = drawn(1, 1, 32)
    low, high = (f(k[0].reshape(8, 4, -1), axis=1) for f in (np.min, np.max))
    bound = np.maximum(q[0, :, None] * low, q[0, :, None] * high).sum(-1)  # [T, blocks]
    logits = (q[0] @ k[0].T).reshape(32, 8, 4).max(-1)
    assert (bound >= logits - 1e-12).all()


@given(st.integers(0, 2**31 - 1), st.integers(0, 99))
def test_random_blocks_are_drawn_evenly(seed, layer):
    scores = random_scores(seed, layer, np.arange(2), np.arange(64), 40)
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores < 1)).all()
    assert abs(scores.mean() - 0.5) < 0.05
    best = scores.argmax(-1)
    assert len(np.unique(best)) > 25  # of 40, in 128 draws
    assert (best[0] != best[1]).mean() > 0.7


def test_random_blocks_depend_on_place_and_seed_alone():
    (q, k), (other_q, other_k) = drawn(2, 2, 60), drawn(2, 2, 60, seed=1)
    pattern = Pattern(top=3, block=4, score="random")
    mask = pattern.visible_from(q, k)
    np.testing.assert_array_equal(mask, pattern.visible_from(other_q, other_k))
    np.testing.assert_array_equal(mask[1:], pattern.visible_from(q[1:], k[1:], head=1))
    for other in (pattern.visible_from(q, k, layer=1), Pattern.from_label("random3x4-seed1").visible_from(q, k)):
        assert (other != mask).any()
    assert (mask[0] != mask[1]).any()


# ---- SnapKV -------------------------------------------------------------------------------------------------------


def loop_kept(p: Pattern, q: np.ndarray, k: np.ndarray) -> list[set[int]]:
    """Entries that each head of keys keeps of a prompt: q [H, P, d], k [G, P, d]."""
    heads, prompt, width = q.shape
    group, first = heads // len(k), prompt - p.observe
    if prompt <= p.snap:
        return [set(range(prompt))] * len(k)
    kept = []
    for head, keys in enumerate(k):
        score = [0.0] * first
        for h in range(head * group, (head + 1) * group):
            for t in range(first, prompt):
                weights = [math.exp(float(q[h, t] @ keys[j]) / math.sqrt(width)) for j in range(t + 1)]
                for j in range(first):
                    score[j] += weights[j] / sum(weights) / group
        half, pooled = p.kernel // 2, []
        for j in range(first):
            near = score[max(j - half, 0) : j + half + 1]
            pooled.append(max(near) if p.pool == "max" else sum(near) / p.kernel)
        forced = set(range(first, prompt)) | set(range(p.sinks))
        best = sorted((j for j in range(first) if j not in forced), key=lambda j: (-pooled[j], j))
        kept.append(forced | set(best[: p.snap - len(forced)]))
    return kept


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_snap_against_loops(pool, kernel):
    for seed, (heads, groups, prompt, sinks) in enumerate([(2, 2, 30, 0), (4, 2, 25, 2), (4, 1, 13, 0), (1, 1, 12, 1)]):
        q, k = drawn(heads, groups, prompt + 5, 4, seed)
        pattern = Pattern(sinks=sinks, snap=12, observe=5, kernel=kernel, pool=pool)
        mask = pattern.visible_from(q, k, prompt)
        for h in range(heads):
            kept = loop_kept(pattern, q[:, :prompt], k[:, :prompt])[h // (heads // groups)]
            assert len(kept) == min(prompt, 12)
            for t in range(prompt + 5):
                expected = set(range(t + 1)) if t < prompt else kept | set(range(prompt, t + 1))
                assert set(np.flatnonzero(mask[h, t])) == expected


def test_what_follows_a_prompt_does_not_change_what_is_kept():
    q, k = drawn(2, 2, 40)
    other_q, other_k = drawn(2, 2, 40, seed=1)
    other_q[:, :30], other_k[:, :30] = q[:, :30], k[:, :30]
    pattern = Pattern(snap=12, observe=5)
    np.testing.assert_array_equal(pattern.visible_from(q, k, 30), pattern.visible_from(other_q, other_k, 30))


# ---- entries ------------------------------------------------------------------------------------------------------

counted = st.builds(
    Pattern, dilation=st.none() | st.integers(2, 9), window=st.integers(0, 9), sinks=st.integers(0, 9),
    top=st.integers(2, 5), block=st.integers(1, 9), first=st.booleans(), phase=st.sampled_from(("both", "prefill")),
)  # fmt: skip
exact = st.one_of(
    st.builds(Pattern, dilation=st.none() | st.sampled_from((2, 4, 8)), top=st.integers(2, 5), block=st.just(8)),
    st.builds(Pattern, dilation=st.integers(2, 5), top=st.integers(2, 4), block=st.sampled_from((1, 3)),
              over=st.just("kept")),
)  # fmt: skip


@settings(max_examples=60)
@given(counted | exact)
def test_entries_read_bound_the_mask(pattern):
    q, k = drawn(1, 1, 70)
    seen = pattern.visible_from(q, k, 0)[0].sum(axis=1) - 1  # besides its own
    read = pattern.kv_read(np.arange(70))
    assert (seen <= read).all()
    assert (read <= np.arange(70)).all()
    if pattern.kv_read_exact:
        np.testing.assert_array_equal(seen, read)
    assert pattern.kv_read(33) == read[33]


@given(exact)
def test_counts_without_overlaps_are_exact(pattern):
    assert pattern.kv_read_exact


def test_entries_held():
    lengths = np.arange(90)
    assert list(Pattern(64, top=8, block=4).kv_entries(lengths)) == list(lengths)  # reads are saved, not memory
    assert list(Pattern(4, top=8, block=4, over="kept").kv_entries(lengths)) == list(lengths)
    snap = Pattern(snap=20, observe=8)
    assert [snap.kv_entries(n, prompt=30) for n in (0, 29, 30, 31, 40)] == [0, 29, 20, 21, 30]
    assert [snap.kv_read(n, prompt=12) for n in (12, 40)] == [12, 40]
    assert snap.kv_entries(90) == 20
    for p in (Pattern(4, 3, 2), Pattern(None, 9), Pattern()):
        np.testing.assert_array_equal(p.kv_read(lengths), p.kv_entries(lengths))
        assert p.kv_read_exact


# ---- what is given ------------------------------------------------------------------------------------------------


def test_what_is_not_given_is_as_documented():
    """In Python and in a config alike: another default would give other results under the same words."""
    block = {"block": 64, "score": "mean", "first": True, "phase": "both", "over": "all", "seed": 0}
    snap = {"observe": 64, "kernel": 5, "pool": "avg"}
    for pattern in (Pattern(), Pattern(top=2), Pattern(snap=128)):
        assert {name: getattr(pattern, name) for name in block | snap} == block | snap
    section = PatternSection()
    config = block | snap | {"blocks_of": block["over"], "over": "layers"}
    assert {name: getattr(section, name) for name in config} == config
    for keys, made in ((PatternSection(dilation=None, top=2), Pattern(top=2)),
                       (PatternSection(dilation=None, snap=128), Pattern(snap=128))):  # fmt: skip
        assert keys.build(1, 1) == PatternMap.uniform(made, 1, 1)


def test_tensors_are_taken():
    q, k = (torch.from_numpy(x).to(torch.bfloat16) for x in drawn(2, 1, 20))
    pattern = Pattern(top=2, block=4)
    mask = pattern.visible_from(q.requires_grad_(), k)
    assert isinstance(mask, np.ndarray)
    np.testing.assert_array_equal(mask, pattern.visible_from(q.detach().float().numpy(), k.float().numpy()))


def test_static_patterns_have_masks_too():
    q, k = drawn(2, 1, 9)
    for pattern in (Pattern(4, 1, 1), Pattern(), Pattern(1, top=2, block=2)):
        np.testing.assert_array_equal(pattern.visible_from(q, k)[1], pattern.visible(9))


def test_bad_input_of_visible_from():
    q, k = drawn(3, 2, 9)
    with pytest.raises(ValueError, match=r"q and k have shapes \(3, 9, 8\) and \(2, 9, 8\)"):
        Pattern(top=2).visible_from(q, k)
    q, k = drawn(2, 2, 9)
    for label in ("top3x4-decode", "top3x4-prefill", "snap64x8"):
        with pytest.raises(ValueError, match=rf"what {label} shows depends on where the prompt ends; give prompt="):
            Pattern.from_label(label).visible_from(q, k)
    for prompt in (-1, 10, 2.0, True):
        with pytest.raises(ValueError, match=r"visible_from: prompt: got .* ≤ 9"):
            Pattern(top=2).visible_from(q, k, prompt)
    with pytest.raises(ValueError, match=r"what top2x64 shows depends on queries and keys; use visible_from\(q, k\)"):
        Pattern(top=2).visible(9)


def test_patterns_sort_by_what_they_select():
    labels = ["D1", "D16", "D16-top2x8", "D16-top8x64", "stream-W64", "top2x64", "top16x64", "snap2048x64"]
    key = lambda label: Pattern.from_label(label).sort_key  # noqa: E731
    assert sorted(reversed(labels), key=key)[:4] == labels[:4]
    assert sorted(["top16x64", "top2x64", "quest4x64"], key=key) == ["top2x64", "quest4x64", "top16x64"]


def test_every_field_is_in_the_label_and_in_the_plain_form():
    static = [{}, {"dilation": 4}, {"window": 8}, {"sinks": 2}, {"dilation": 4, "window": 8, "sinks": 2}]
    tops = product((1, 2, 9), (1, 8, 64), SCORES, (True, False), PHASES, OVER, (0, 3))
    names = ("top", "block", "score", "first", "phase", "over", "seed")
    chosen = [dict(zip(names, values)) for values in tops]
    snaps = product((70, 500), (1, 64), (1, 5, 7), POOLS)
    snapped = [dict(zip(("snap", "observe", "kernel", "pool"), values)) for values in snaps]
    made: dict[str, Pattern] = {}
    for fields in [a | b for a, b in [*product(static, chosen), *product(static, snapped), *product(static, [{}])]]:
        if "snap" in fields and ("dilation" in fields or "window" in fields):
            continue
        if "top" in fields and (
            fields["top"] < 1 + fields["first"] or (fields["seed"] and fields["score"] != "random")
        ):
            continue
        if fields.get("over") == "kept" and "dilation" not in fields:
            continue
        pattern = Pattern(**fields)
        assert made.setdefault(pattern.label, pattern) == pattern, "two patterns of one label"
        assert Pattern.from_label(pattern.label) == pattern
        assert Pattern(**pattern.to_dict()) == pattern
        if len(made) % 4:  # maps take longer
            continue
        rows = PatternMap(((pattern, Pattern()), (Pattern(), Pattern())))
        assert PatternMap.from_dict(rows.to_dict(), 2, 2) == rows
        assert PatternMap.from_label(rows.label, 2, 2) == rows
    assert len(made) > 500


@pytest.mark.parametrize(
    ("fields", "edge", "beyond"),
    [
        ({"dilation": 1}, "dilation", 0), ({"window": 0}, "window", -1), ({"sinks": 0}, "sinks", -1),
        ({"window": MOST}, "window", MOST + 1), ({"dilation": MOST}, "dilation", MOST + 1),
        ({"top": 2}, "top", 1), ({"top": 1, "first": False}, "top", 0), ({"top": 4, "block": 1}, "block", 0),
        ({"top": 4, "score": "random", "seed": 2**31 - 1}, "seed", 2**31),
        ({"top": 4, "score": "random", "seed": 0}, "seed", -1),
        ({"dilation": 2, "top": 4, "over": "kept"}, "dilation", 1),
        ({"snap": 64}, "snap", 63), ({"snap": 66, "sinks": 2}, "snap", 65), ({"snap": 8, "observe": 1}, "observe", 0),
        ({"snap": 8, "observe": 8}, "observe", 9), ({"snap": 64, "kernel": 1}, "kernel", 0),
        ({"snap": 64, "kernel": 3}, "kernel", 4),
    ],
)  # fmt: skip
def test_limits_of_fields_are_where_they_are_said_to_be(fields, edge, beyond):
    Pattern(**fields)
    with pytest.raises(ValueError, match=r"pattern\."):
        Pattern(**fields | {edge: beyond})
