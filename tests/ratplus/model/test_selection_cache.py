"""Caches of heads that select: prompts in any chunks and steps, against a full forward under the definition's masks."""

import json
from contextlib import contextmanager
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.costs.cost import cost
from ratplus.evaluation.scoring import Scorer
from ratplus.model import network
from ratplus.model.cache_chunk import Chunk, Room
from ratplus.model.head_parts import head_parts
from ratplus.model.network import Mixer
from ratplus.model.parts_layer import empty_layer
from ratplus.model.snap_layer import SnapLayer

GOLDEN = Path(__file__).parents[2] / "golden" / "topk"
CASES = json.loads((GOLDEN / "topk_golden_public.json").read_text())["cases"]
TOP, UNION = Pattern(top=3, block=4), Pattern(4, 2, 1, top=2, block=4)
BOUNDS = Pattern(top=3, block=4, score="bounds")
MIXED = PatternMap(
    (
        (Pattern(4), TOP, UNION, Pattern(), BOUNDS, Pattern(top=5, block=4), Pattern(None, 3), TOP),
        (Pattern(2, top=3, block=3, score="random"),) * 4 + (Pattern(4, top=2, block=3, over="kept"),) * 4,
    )
)
QUEST = Pattern.from_label("quest3x4-decode")
SNAP = Pattern(sinks=1, snap=9, observe=4, kernel=3)
VOCAB, LENGTH = 23, 34


def tiny(**shape) -> RATPlus:
    config = ModelConfig(**{"vocab_size": VOCAB, "layers": 2, "d_model": 32, "d_head": 4, "max_len": 64} | shape)
    model = RATPlus(config)
    model.reset_parameters(seed=1, std=0.3)
    return model.eval()


def drawn(rows: int = 2, seed: int = 2) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


@contextmanager
def defined(prompts: list[int]):
    """Within, a full forward sees what `Pattern.visible_from` shows where row b's prompt has prompts[b] tokens."""

    def attend(self, q, k, v, parts):
        group = q.shape[1] // k.shape[1]
        rows = {head: p for part in parts for head, p in zip(part.heads, part.row, strict=True)}
        mask = np.stack([
            np.concatenate([
                rows[h].visible_from(
                    q[b, h * group : (h + 1) * group], k[b, h : h + 1], prompt, layer=self.layer, head=h
                )
                for h in range(k.shape[1])
            ])
            for b, prompt in enumerate(prompts)
        ])  # fmt: skip
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=torch.from_numpy(mask))

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(Mixer, "_attend", attend)
        patch.setattr(network, "check_whole_texts", lambda patterns: None)
        yield


def close(found, expected) -> None:
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-3)


SPLITS = [[1], [3, 1, 9], [12, 4], [LENGTH - 1], [4, 4, 4], [11, 13, 2]]
SHAPES = {"recurrent": {}, "attention": {"recurrence": False}, "restarts": {"recurrence_chunk": 8}}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("patterns", [MIXED, TOP, UNION], ids=["mixed", "top", "union"])
def test_any_split_of_a_prompt_and_steps_is_the_full_forward(shape, patterns):
    model, tokens = tiny(**SHAPES[shape]), drawn()
    with torch.no_grad():
        full = model(tokens, patterns)
    for chunks in SPLITS:
        cache, done = model.new_cache(2, patterns, LENGTH), 0
        for width in chunks:
            every = model.prefill(tokens[:, done : done + width], cache, every=True)
            close(every, full[:, done : done + width])
            done += width
        for t in range(done, LENGTH):
            close(model.step(tokens[:, t], cache), full[:, t])
    # More of a prompt may follow generated tokens.
    cache = model.new_cache(2, patterns, LENGTH)
    model.prefill(tokens[:, :7], cache)
    for t in (7, 8, 9):
        model.step(tokens[:, t], cache)
    close(model.prefill(tokens[:, 10:25], cache, every=True), full[:, 10:25])
    close(model.step(tokens[:, 25], cache), full[:, 25])


def test_heads_that_share_keys():
    model, tokens = tiny(kv_heads=2), drawn()
    patterns = PatternMap(((TOP,) * 4 + (Pattern(4),) * 4, (UNION,) * 4 + (BOUNDS,) * 4))
    with torch.no_grad():
        full = model(tokens, patterns)
    cache = model.new_cache(2, patterns, LENGTH)
    close(model.prefill(tokens[:, :13], cache), full[:, 12])
    close(model.prefill(tokens[:, 13:19], cache), full[:, 18])
    for t in range(19, LENGTH):
        close(model.step(tokens[:, t], cache), full[:, t])


LABELS = ["top3x4-decode", "quest3x4-prefill", "D4-top2x4-decode", "D4-ktop2x2-prefill", "random3x4-decode"]


@pytest.mark.parametrize("pattern", [*map(Pattern.from_label, LABELS), SNAP, Pattern(snap=6, observe=3, pool="max")])
@pytest.mark.parametrize("shape", [{}, {"recurrence": False, "kv_heads": 4}])
def test_what_depends_on_the_prompt(pattern, shape):
    """One chunk or several, then steps, then more of a text, then steps: as the definition has it."""
    model, tokens, prompt = tiny(**shape), drawn(), 18
    share = 2 if "kv_heads" in shape else 1
    row = (pattern,) * (4 * share) + (Pattern(),) * (8 - 4 * share) if share == 1 else (pattern,) * 8
    patterns = PatternMap((row, (pattern,) * 8))
    with defined([prompt] * 2):
        full = model(tokens, patterns)
    for chunks in ([prompt], [5, 1, 12], [prompt - 2, 2]):
        cache, done = model.new_cache(2, patterns, LENGTH), 0
        for width in chunks:
            close(model.prefill(tokens[:, done : done + width], cache, every=True), full[:, done : done + width])
            done += width
        for t in range(prompt, 25):
            close(model.step(tokens[:, t], cache), full[:, t])
        close(model.prefill(tokens[:, 25:30], cache, every=True), full[:, 25:30])
        for t in range(30, LENGTH):
            close(model.step(tokens[:, t], cache), full[:, t])


@pytest.mark.parametrize("patterns", [MIXED, SNAP, QUEST], ids=["mixed", "snap", "quest"])
def test_ragged_prompts(patterns):
    """Sequences of different lengths, in padded chunks, then steps: each row as if it were alone."""
    model, tokens, lengths = tiny(), drawn(3), [21, 5, 12]
    with defined(lengths):
        full = model(tokens, patterns)
    cache = model.new_cache(3, patterns, LENGTH)
    for first in (0, 9, 18):
        part = tokens[:, first : first + 9]
        here = [min(max(n - first, 0), 9) for n in lengths]
        logits = model.prefill(part, cache, here)
        for row, n in enumerate(here):
            if n:
                close(logits[row], full[row, first + n - 1])
    for i in range(12):
        token = torch.stack([tokens[row, n + i] for row, n in enumerate(lengths)])
        logits = model.step(token, cache)
        for row, n in enumerate(lengths):
            close(logits[row], full[row, n + i])
    assert cache.lengths == [n + 12 for n in lengths]


# ---- standing elsewhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patterns", [MIXED, TOP, QUEST], ids=["mixed", "top", "quest"])
def test_rewind(patterns):
    """Keys of dropped tokens, and what stands for their blocks, count no more. A model without a recurrent state, which
    a cache forgets when it is rewound; and without windows, whose tokens newer ones have overwritten."""
    if patterns is MIXED:
        patterns = PatternMap(((Pattern(), *MIXED[0][1:6], TOP, TOP), MIXED[1]))
    model, tokens, other = tiny(recurrence=False), drawn(), drawn(seed=3)
    with defined([9] * 2):
        full = model(tokens, patterns)
    cache = model.new_cache(2, patterns, LENGTH)
    model.prefill(tokens[:, :9], cache)
    for t in range(9, 14):
        model.step(tokens[:, t], cache)
    for t in range(14, 29):
        model.step(other[:, t], cache)
    cache.rewind(14)
    for t in range(14, LENGTH):
        close(model.step(tokens[:, t], cache), full[:, t])
    cache.rewind()
    close(model.prefill(tokens[:, :9], cache), full[:, 8])
    close(model.step(tokens[:, 9], cache), full[:, 9])


def test_a_cut_prompt_is_gone():
    model, tokens = tiny(recurrence=False), drawn()
    cache = model.new_cache(2, SNAP, LENGTH)
    model.prefill(tokens[:, :20], cache)
    with pytest.raises(ValueError, match="cannot stand at 11 tokens, within a prompt of 20: SnapKV reads its last"):
        cache.rewind(11)
    logits = model.step(tokens[:, 20], cache)
    model.step(tokens[:, 21], cache)
    for length in (1, 19):
        with pytest.raises(
            ValueError, match=rf"cannot stand at {length} tokens, within a prompt of 20: SnapKV has cut"
        ):
            cache.rewind(length)
    assert cache.lengths == [22, 22]
    cache.rewind(20)
    close(model.step(tokens[:, 20], cache), logits)
    cache.rewind()
    model.prefill(tokens[:, :20], cache)
    close(model.step(tokens[:, 20], cache), logits)


def test_what_follows_the_prompt_does_not_change_what_is_kept():
    model, tokens, other = tiny(), drawn(), drawn(seed=3)
    kept = []
    for after in (tokens, other):
        cache = model.new_cache(2, SNAP, LENGTH)
        model.prefill(tokens[:, :20], cache)
        for t in range(20, 25):
            model.step(after[:, t], cache)
        kept.append(cache.layers[0].entries.keys.unflatten(1, (8, -1))[:, :, 1 : 1 + 9])
    assert torch.equal(*kept)


@pytest.mark.parametrize("patterns", [MIXED, SNAP, BOUNDS], ids=["mixed", "snap", "bounds"])
def test_a_branch_is_its_own(patterns):
    model, tokens = tiny(), drawn(3)
    lengths = [18, 12, 15]
    with defined([lengths[2], lengths[0], lengths[2]]):
        full = model(tokens[[2, 0, 2]], patterns)
    cache = model.new_cache(3, patterns, LENGTH)
    model.prefill(tokens[:, :18], cache, lengths)
    for _ in range(2):  # before the prompt has ended, and again from what the first branch has left untouched
        branch = cache.branch([2, 0, 2])
        for i in range(6):
            token = torch.stack([tokens[2, 15 + i], tokens[0, 18 + i], tokens[2, 15 + i]])
            logits = model.step(token, branch)
            for row, n in enumerate((15, 18, 15)):
                close(logits[row], full[row, n + i])
    assert cache.lengths == lengths
    # After the end of the prompts, of which SnapKV has dropped another number of entries each: tokens one by one, and
    # several at a time.
    for i in range(2):
        model.step(torch.stack([tokens[row, n + i] for row, n in enumerate(lengths)]), cache)
    for rows in ([2, 0, 2], [2], [0]):
        branch = cache.branch(rows)
        for i in (2, 6):
            logits = model.step(torch.stack([tokens[row, lengths[row] + i] for row in rows]), branch)
            more = torch.stack([tokens[row, lengths[row] + i + 1 : lengths[row] + i + 4] for row in rows])
            following = model.prefill(more, branch, every=True)
            for place, row in enumerate(rows):
                whole, n = full[1 if row == 0 else 0], lengths[row] + i
                close(logits[place], whole[n])
                close(following[place], whole[n + 1 : n + 4])


# ---- what is held ---------------------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_cost():
    model = tiny()
    kept, drawn_at_random = (Pattern.from_label(label) for label in ("D4-ktop2x3", "D2-random3x3"))
    for patterns in (TOP, BOUNDS, UNION, kept, drawn_at_random):
        cache = model.new_cache(1, patterns, LENGTH)
        spent = cost(PatternMap.uniform(patterns, 2, 8), LENGTH, 4, recurrence=True, bytes_per_element=4)
        assert cache.kv_bytes() == spent.kv_bytes
        assert cache.metadata_bytes() == spent.metadata_bytes
        assert cache.state_bytes() == spent.state_bytes
        assert cache.bytes() == spent.cache_bytes
    # In half precision bounds are halved, and means stay float32.
    model = model.to(torch.bfloat16)
    for patterns in (TOP, BOUNDS):
        spent = cost(PatternMap.uniform(patterns, 2, 8), LENGTH, 4, recurrence=True, bytes_per_element=2)
        cache = model.new_cache(1, patterns, LENGTH)
        assert (cache.kv_bytes(), cache.metadata_bytes()) == (spent.kv_bytes, spent.metadata_bytes)


def tensors_of(held) -> list[torch.Tensor]:
    if isinstance(held, torch.Tensor):
        return [held]
    if isinstance(held, dict):
        held = list(held.values())
    elif not isinstance(held, (list, tuple)):
        held = list(vars(held).values()) if hasattr(held, "__dict__") else []
    return [tensor for item in held for tensor in tensors_of(item)]


def test_all_that_a_cache_holds_lies_where_its_model_does():
    with torch.device("meta"):
        model = RATPlus(ModelConfig(VOCAB, 2, 32, 4, max_len=64))
    static = Pattern(4, 2, 1), Pattern.from_label("top3x4-prefill"), Pattern.from_label("D2-random3x3")
    for patterns in (*static, TOP, BOUNDS, MIXED, QUEST, SNAP):
        found = tensors_of(vars(model.new_cache(2, patterns, LENGTH)))
        assert len(found) > 20
        assert {x.device.type for x in found} == {"meta"}


def test_a_short_prompt_beside_a_long_one_has_room_to_the_end():
    """After the cut, the row whose prompt was kept whole is fed alone, to the cache's last token."""
    model, tokens = tiny(), drawn()
    patterns = PatternMap.uniform(SNAP, 2, 8)
    together, alone = (model.new_cache(rows, patterns, LENGTH) for rows in (2, 1))
    model.prefill(tokens[:, :30], together, [3, 30])
    model.prefill(tokens[:1, :3], alone)
    for cache, rows in ((together, 2), (alone, 1)):
        model.step(tokens[:rows, 3], cache)
    rest = tokens[:, 4:]
    found = model.prefill(rest, together, [rest.shape[1], 0])
    assert together.lengths == [LENGTH, 31]
    torch.testing.assert_close(found[:1], model.prefill(rest[:1], alone), atol=1e-4, rtol=1e-4)


def test_one_head_that_drops_entries_makes_a_cache_compress():
    model = tiny()
    for patterns, compresses in (
        (SNAP, True), (QUEST, False), (Pattern(4), False),
        (PatternMap.per_head([Pattern(4), SNAP] * 4, 2), True),
        (PatternMap.per_layer([Pattern(4), SNAP], 8), True),
    ):  # fmt: skip
        assert model.new_cache(1, patterns, LENGTH).compresses is compresses


def test_attention_to_keys_of_16_bits_is_added_up_in_32(monkeypatch):
    """In bfloat16 a sum over queries and heads has three digits, so that other entries would be kept."""
    model, tokens = tiny().bfloat16(), drawn()
    scored = []
    scores = SnapLayer._scores

    def look(self, keys, *rest):
        found = scores(self, keys, *rest)
        wide = copy(self)
        wide.queries = self.queries.float()
        scored.append((keys.dtype, found, scores(wide, keys.float(), *rest)))
        return found

    monkeypatch.setattr(SnapLayer, "_scores", look)
    cache = model.new_cache(2, SNAP, LENGTH)
    model.prefill(tokens[:, :30], cache)
    model.step(tokens[:, 30], cache)
    assert len(scored) == 2
    for dtype, found, expected in scored:
        assert (dtype, found.dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_snap_gives_memory_back():
    model, tokens = tiny(), drawn()
    cache = model.new_cache(2, SNAP, LENGTH)
    before = cache.bytes()
    model.prefill(tokens[:, :30], cache)
    assert cache.kv_entries() == [[[30, 30]] * 8] * 2
    model.step(tokens[:, 30], cache)
    assert cache.kv_entries() == [[[10, 10]] * 8] * 2
    # 9 entries, 4 more tokens, and the slot of the newest one.
    assert cache.kv_bytes() == 2 * 2 * 2 * 8 * (9 + 4 + 1) * 4 * 4
    assert cache.bytes() < before / 2
    for t in (31, 32, 33):
        model.step(tokens[:, t], cache)
    with pytest.raises(ValueError, match=r"sequence 0 holds 34 tokens and gets 1 more, but .*max_len=34"):
        model.step(tokens[:, 0], cache)


# ---- generation and evaluation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("patterns", [MIXED, SNAP, QUEST], ids=["mixed", "snap", "quest"])
def test_generation(patterns):
    model, lengths = tiny(), [14, 9]
    prompts = [row[:n].tolist() for row, n in zip(drawn(), lengths)]
    found = model.generate(prompts, patterns, 8)
    assert torch.equal(found, model.generate(prompts, patterns, 8, prefill_chunk=5))
    for prompt, new in zip(prompts, found):
        with defined([len(prompt)]):
            logits = model(torch.tensor([prompt + new.tolist()]), patterns)
        assert torch.equal(logits[0, len(prompt) - 1 : -1].argmax(-1), new)


def test_continuations_are_scored_from_a_shared_cache():
    model, tokens = tiny(), drawn()
    pairs = [
        (tuple(tokens[0, :20].tolist()), tuple(tokens[1, a : a + n].tolist())) for a, n in ((0, 5), (6, 3), (9, 1))
    ]
    scores = Scorer(model, MIXED, batch_size=2).score(pairs)
    with torch.no_grad():
        for (context, end), score in zip(pairs, scores, strict=True):
            logits = model(torch.tensor([context + end]), MIXED)[0, len(context) - 1 : -1].log_softmax(-1)
            assert abs(score.logprob - float(logits[torch.arange(len(end)), list(end)].sum())) < 1e-3
    with pytest.raises(ValueError, match=r"what stream-I1-snap9x4-avg3 shows depends on where a"):
        Scorer(model, SNAP).score(pairs)


# ---- the oracle -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case["raw_projections"]])
def test_the_oracle_through_a_cache(name):
    """q, k, v as attention uses them: a prompt in two chunks, then steps."""
    arrays, case = np.load(GOLDEN / "topk_golden_public.npz"), CASES[name]
    names = {"kind": "score", "capacity": "snap", "how": "pool"}
    fields = {"dilation": None} | {names.get(key, key): value for key, value in case["settings"].items()}
    length = case["length"]
    prompt = fields.pop("prompt", max(length // 2, 1))
    q, k, v = (torch.from_numpy(arrays[f"public/{name}/{x}"])[None] for x in "qkv")
    groups = k.shape[1]
    positions = torch.zeros(1, dtype=torch.int64)
    room = Room(1, length, case["d_head"], positions, torch.float32, recurrence=False)
    layer = empty_layer(room, head_parts((Pattern(**fields),) * groups), 0, q.shape[1] // groups)
    out, done = [], 0
    for end in sorted({max(prompt // 3, 1), prompt}):
        part = slice(done, end)
        chunk = Chunk.of([done], [end - done], end - done, positions.device)
        out.append(layer.attend_chunk(q[:, :, part], k[:, :, part], v[:, :, part], chunk))
        layer.store_chunk(k[:, :, part], v[:, :, part], chunk, None)
        positions += end - done
        done = end
    layer.begin_decoding([prompt])
    for t in range(prompt, length):
        out.append(layer.step(q[:, :, t], k[:, :, t], v[:, :, t], None, None)[:, :, None])
        positions += 1
    expected = torch.from_numpy(arrays[f"public/{name}/out"]).float()
    assert (torch.cat(out, dim=2)[0] - expected).abs().max() <= 1e-5
