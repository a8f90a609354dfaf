"""What the library's own calls take at their limits, and refuse by name beyond: generation, caches, scores,
operators."""

import re

import numpy as np
import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.evaluation.decoding import Decoding, cut_at_stop, generate_texts
from ratplus.evaluation.scoring import Scorer, windows
from ratplus.kernels.linear_attention import gated_delta_rule, ssd
from ratplus.model.generate import generate


@pytest.fixture(scope="module")
def model() -> RATPlus:
    made = RATPlus(ModelConfig(vocab_size=11, layers=1, d_model=8, d_head=4, max_len=12))
    made.reset_parameters(0, 0.5)
    return made.eval()


def refused(line: str, call, *args, **kwargs) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(line)) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


PROMPT = torch.tensor([[1, 2, 3], [4, 5, 0]])


@pytest.mark.parametrize(
    ("name", "fine", "wrong", "line"),
    [
        ("max_new_tokens", (0, 1, 10), (-1,), "max_new_tokens: got {}; it must be ≥ 0"),
        ("temperature", (0, 1e-3, 50.0),
        (-1e-3, float("inf"), float("nan")), "temperature: got {}; it must be a finite"),
        ("top_p", (1e-9, 1), (0, 1.001, float("nan")), "top_p: got {}; it must be in (0, 1]"),
        ("prefill_chunk", (None, 1, 2, 99), (0,), "prefill_chunk: got {}; it must be ≥ 1 or None"),
    ],
)  # fmt: skip
def test_numbers_of_generation(model, name, fine, wrong, line):
    usual = {"max_new_tokens": 2, "temperature": 0.0}
    for value in fine:
        made = generate(model, PROMPT, **usual | {name: value})
        assert made.shape == (2, value if name == "max_new_tokens" else 2)
    for value in wrong:
        refused(line.format(value), generate, model, PROMPT, **usual | {name: value})


def test_prompts_of_generation(model):
    as_rows = generate(model, [[1, 2, 3], [4, 5]], max_new_tokens=3)
    assert torch.equal(as_rows, generate(model, PROMPT, lengths=[3, 2], max_new_tokens=3))
    assert not torch.equal(as_rows[0], as_rows[1])
    for lengths in ([3], [3, 0], [3, 4], [3, 2, 1]):
        refused(f"lengths: got {lengths}; every prompt needs between 1 and 3 tokens", generate, model, PROMPT,
                lengths=lengths, max_new_tokens=1)  # fmt: skip
    refused("lengths: give them with a padded tensor only", generate, model, [[1]], lengths=[1], max_new_tokens=1)
    refused("tokens: got no prompt", generate, model, [], max_new_tokens=1)
    refused("tokens: got torch.float32 [1, 2]; give integer", generate, model, torch.zeros(1, 2), max_new_tokens=1)
    refused("tokens: got torch.int64 [3]; give integer ids", generate, model, torch.tensor([1, 2, 3]), max_new_tokens=1)
    for bad in (-1, 11):
        refused(f"tokens: id {bad} is outside the model's vocabulary of 11", generate, model, [[bad]], max_new_tokens=1)
        padded = torch.tensor([[1, 2], [3, bad]])  # what pads is not looked at
        assert generate(model, padded.clamp(0, 10), lengths=[2, 1], max_new_tokens=1).shape == (2, 1)
    assert generate(model, [[0, 10]], max_new_tokens=11).shape == (1, 11), "the last new token is never fed"
    with pytest.raises(ValueError, match="12"):
        generate(model, [[0, 10]], max_new_tokens=12)


@pytest.mark.parametrize(("chunk", "widths"), [(None, [5]), (1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_a_prompt_is_fed_in_chunks_no_wider_than_asked_for(model, monkeypatch, chunk, widths):
    fed, prefill = [], model.prefill
    monkeypatch.setattr(model, "prefill", lambda part, *rest: fed.append(part.shape[1]) or prefill(part, *rest))
    generate(model, [[1, 2, 3, 4, 5], [6]], max_new_tokens=1, prefill_chunk=chunk)
    assert fed == widths


def test_a_stop_token_fills_the_rest_and_ends_when_all_rows_have_it(model):
    model.reset_parameters(3, 1.0)  # of which the likeliest token changes from step to step
    prompts = [[1, 2, 3], [4], [5, 6]]
    free = generate(model, prompts, max_new_tokens=9)
    places = set()
    for stop in range(11):
        made = generate(model, prompts, max_new_tokens=9, stop_token=stop)
        ends = [row.index(stop) + 1 if stop in row else 9 for row in free.tolist()]
        assert made.shape == (3, max(ends))
        for row, (all_of_it, end) in enumerate(zip(free.tolist(), ends)):
            assert made[row].tolist() == all_of_it[:end] + [stop] * (max(ends) - end)
        places |= set(ends)
    assert len(places) > 3, "rows stop at several places"
    model.reset_parameters(0, 0.5)


def test_sampling_is_of_the_seed_and_the_temperature(model):
    def made(**how):
        return generate(model, [[1, 2]] * 4, max_new_tokens=8, **how).tolist()

    assert made(temperature=1.0, seed=3) == made(temperature=1.0, seed=3) != made(temperature=1.0, seed=4)
    assert made(temperature=1.0, seed=0) == made(temperature=1.0, seed=0, top_p=1.0)
    assert made(temperature=1e-4, seed=5) == made()
    assert made(temperature=5.0, top_p=1e-6, seed=5) == made(), "the likeliest token always stays"


def test_caches(model):
    for batch, length in ((0, 4), (1, 0)):
        refused(f"cache: batch={batch} and max_len={length} must both be ≥ 1", model.new_cache, batch, None, length)
    cache = model.new_cache(2, None, 4)
    refused("cache: made for 2 sequences, got 1", model.prefill, PROMPT[:1], cache)
    for lengths in ([4, 1], [-1, 1], [1]):
        refused(f"lengths: got {lengths}; give 2 numbers between 0 and", model.prefill, PROMPT, cache, lengths)
    model.prefill(PROMPT, cache, torch.tensor([3, 0]))
    assert cache.lengths == [3, 0]
    assert all(type(length) is int for length in cache.lengths)
    refused("cache: made for 2 sequences, got 3", model.step, torch.tensor([1, 2, 3]), cache)
    model.step(torch.tensor([1, 2]), cache)
    assert cache.lengths == [4, 1]
    refused("cache overrun: sequence 0 holds 4 tokens and gets 1 more", model.step, torch.tensor([1, 2]), cache)
    assert cache.lengths == [4, 1]


# ---- evaluation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fine", "wrong"),
    [
        ("max_new_tokens", (1,), (0, -1)), ("temperature", (0, 0.1), (-0.1,)), ("top_p", (1, 1e-9), (0, 1.1)),
        ("repetition_penalty", (1e-9, 1, 2.0), (0, -1)),
    ],
)  # fmt: skip
def test_numbers_of_decoding(name, fine, wrong):
    for value in fine:
        assert getattr(Decoding(**{name: value}), name) == value
    said = "max_gen_toks" if name == "max_new_tokens" else name
    for value in wrong:
        refused(f"generation: {said}: got {value}; allowed: ", Decoding, **{name: value})


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ({}, Decoding()), ({"until": "a"}, Decoding(until=("a",))),
        ({"until": ["a", "", "b"]}, Decoding(until=("a", "b"))),
        ({"max_gen_toks": 5}, Decoding(max_new_tokens=5)), ({"max_new_tokens": "6"}, Decoding(max_new_tokens=6)),
        ({"max_tokens": 7}, Decoding(max_new_tokens=7)), ({"max_gen_toks": None}, Decoding(max_new_tokens=256)),
        ({"temperature": 0.7}, Decoding(temperature=0.7)), ({"temperature": 0}, Decoding()),
        ({"temperature": 0.7, "do_sample": False}, Decoding()), ({"do_sample": True}, Decoding(temperature=1.0)),
        ({"do_sample": True, "temperature": 0.5}, Decoding(temperature=0.5)),
        ({"top_p": 0.5, "repetition_penalty": 2, "seed": 3}, Decoding(top_p=0.5, repetition_penalty=2.0, seed=3)),
        ({"num_beams": 1, "top_k": 0, "use_cache": True}, Decoding()), ({"top_k": None}, Decoding()),
    ],
)  # fmt: skip
def test_settings_of_generation_in_lm_evals_words(asked, made):
    given = dict(asked)
    assert Decoding.of(asked) == made
    assert asked == given
    assert Decoding.of({}, 9) == Decoding(max_new_tokens=9)


@pytest.mark.parametrize("asked", [{"num_beams": 2}, {"top_k": 5}, {"use_cache": False}, {"length_penalty": 1}])
def test_settings_of_generation_that_are_not_ours(asked):
    (name,) = asked
    refused(f"generation: {name!r}: no such setting; allowed: until, max_gen_toks", Decoding.of, asked)


def test_what_a_scorer_takes(model):
    for fine in (
        {"batch_size": 1},
        {"max_length": 2},
        {"max_length": 12},
        {"truncation": "middle"},
        {"max_length": None},
    ):
        assert Scorer(model, **fine).longest == (fine.get("max_length") or 12)
    for name, value in (("batch_size", 0), ("max_length", 1), ("max_length", 13), ("truncation", "right")):
        refused(f"{name}: got {value!r}; allowed: ", Scorer, model, **{name: value})
    scorer = Scorer(model, max_length=4)
    assert len(scorer.score([([1], [2, 3, 4, 5])])) == 1
    refused("a continuation of 5 tokens is longer than max_length=4", scorer.score, [([1], [1, 2, 3, 4, 5])])
    for bad in (-1, 11):
        refused(f"token id {bad} is outside the model's vocabulary of 11", scorer.score, [([1], [bad])])
        refused(f"token id {bad} is outside the model's vocabulary of 11", scorer.score, [([bad], [1])])
    for cut, kept in (("left", [3, 4, 5]), ("middle", [1, 4, 5])):
        assert Scorer(model, truncation=cut).cut([1, 2, 3, 4, 5], 3) == kept
        assert Scorer(model, truncation=cut).cut([1, 2, 3], 3) == [1, 2, 3]
    refused("a context of 4 tokens is longer than the 3", Scorer(model, truncation="off").cut, [1, 2, 3, 4], 3)


def test_texts_need_room_for_a_prompt(model):
    scorer, tokenizer = Scorer(RATPlus(ModelConfig(257, 1, 8, 4, max_len=8)).eval()), ByteTokenizer()
    assert len(generate_texts(scorer, tokenizer, [[1]], Decoding(max_new_tokens=7))) == 1
    refused("generation: max_gen_toks=8 leaves no room for a prompt in max_length=8", generate_texts, scorer, tokenizer,
            [[1]], Decoding(max_new_tokens=8))  # fmt: skip
    generate_texts(scorer, tokenizer, [[1, 2, 3], [1, 2]], Decoding(max_new_tokens=6))
    assert scorer.truncated == 1


@pytest.mark.parametrize("count", range(13))
@pytest.mark.parametrize("length", [1, 2, 5])
def test_windows_score_each_token_once_and_reach_back_as_far_as_they_can(count, length):
    ids = list(range(100, 100 + count))
    pairs = windows(ids, 7, length)
    assert [token for _, end in pairs for token in end] == ids
    fed = [7, *ids]
    done = 0
    for context, end in pairs:
        assert len(context) + len(end) - 1 <= length
        assert fed[: done + 1][-len(context) :] == context
        assert len(context) + len(end) - 1 == length or done == 0
        done += len(end)


@pytest.mark.parametrize(
    ("text", "until", "left"),
    [
        ("abcabc", ["c"], "ab"), ("abcabc", ["ca", "bc"], "a"), ("abc", ["a"], ""), ("abc", [], "abc"),
        ("abc", ["", "x"], "abc"),
    ],
)  # fmt: skip
def test_a_text_ends_before_the_first_stop(text, until, left):
    assert cut_at_stop(text, until) == left


# ---- operators and patterns ------------------------------------------------------------------------------------


def test_shapes_of_operators_of_states():
    q, v, decay, beta = torch.ones(2, 1, 5, 4), torch.ones(2, 3, 5, 6), -torch.ones(2, 3, 5), torch.ones(2, 3, 5)
    state = torch.zeros(2, 3, 4, 6)
    whole = q.expand(2, 3, 5, 4)
    ssd(q, q, v, decay, state)
    ssd(whole, whole, v, decay)
    gated_delta_rule(whole, whole, v, decay, beta, state)
    for bad, line in (
        ((q, q, v[:, :, :0], decay), "ssd: v has shape"), ((q, q, v[0], decay), "ssd: v has shape (3, 5, 6)"),
        ((q[:1], q[:1], v, decay), "ssd: q has shape (1, 1, 5, 4)"), ((q, whole, v, decay), "ssd: q has shape"),
        ((q[:, :, :4], q[:, :, :4], v, decay), "ssd: q has shape"),
        ((q, q, v, decay[:, :2]), "ssd: log_decay has shape"),
        ((q.double(), q, v, decay), "ssd: q is torch.float64"),
        ((q, q, v, decay, state[:, :2]), "ssd: the initial state"),
        ((q, q, v, decay, state.mT), "ssd: the initial state has shape (2, 3, 6, 4); it must be"),
    ):  # fmt: skip
        refused(line, ssd, *bad)
    refused("gated_delta_rule: beta has shape", gated_delta_rule, whole, whole, v, decay, beta[:1])


@pytest.mark.parametrize(
    ("kv_heads", "fits"), [(None, True), (1, True), (2, True), (4, True), (3, False), (0, False), (8, False)]
)
def test_heads_of_keys_divide_those_of_a_map(kv_heads, fits):
    patterns = PatternMap.uniform(Pattern(4), 2, 4)
    if fits:
        assert patterns.per_kv_head(kv_heads) == PatternMap.uniform(Pattern(4), 2, kv_heads or 4)
    else:
        refused(f"kv_heads: got {kv_heads}; it must divide the 4 heads", patterns.per_kv_head, kv_heads)


def test_heads_that_share_keys_see_the_same():
    a, b = Pattern(4), Pattern(8)
    assert PatternMap.per_head([a, a, b, b], 1).per_kv_head(2) == PatternMap.per_head([a, b], 1)
    dense = PatternMap.per_head([Pattern(1), Pattern(1, 5), b, b], 1)
    assert dense.per_kv_head(2).rows == ((Pattern(1), b),), "dense with a window is dense"
    refused("pattern: heads 2 to 3 of layer 1 share keys", PatternMap(((a,) * 4, (a, a, a, b))).per_kv_head, 2)
    refused("PatternMap: needs at least one layer and one head", PatternMap, ())
    refused("PatternMap: needs at least one layer and one head", PatternMap, ((),))
    refused("PatternMap: every layer needs the same number of heads, got [1, 2]", PatternMap, ((a,), (a, b)))


def test_visible_from_takes_what_fits():
    q, k = np.ones((4, 6, 2)), np.ones((2, 6, 2))
    selecting = Pattern(top=2, block=2)
    assert selecting.visible_from(q, k).shape == (4, 6, 6)
    for prompt in (0, 6):
        assert Pattern(top=2, block=2, phase="decode").visible_from(q, k, prompt).shape == (4, 6, 6)
    for bad_q, bad_k in ((q[0], k), (q[:3], k), (q[:, :5], k), (q[..., :1], k), (q[:, :0], k[:, :0]), (q, k[:, None])):
        refused("visible_from: q and k have shapes", selecting.visible_from, bad_q, bad_k)
