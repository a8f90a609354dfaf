"""Scores and texts as lm-eval asks for them, against direct computations; lm-eval itself where it is installed."""

import hashlib
import json
import math
import random
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ratplus import ModelConfig, Pattern, PatternMap, RATPlus
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.evaluation import scoring
from ratplus.evaluation.bad_logits import BadLogits
from ratplus.evaluation.decoding import Decoding, cut_at_stop, generate_texts
from ratplus.evaluation.harness_model import Adapter
from ratplus.evaluation.scoring import Scorer, windows

PATTERNS = [
    None, Pattern(16), Pattern(4, 8, 2), Pattern(None, 16, 4),
    PatternMap.per_head([Pattern(), Pattern(8), Pattern(None, 4, 1)], 2),
]  # fmt: skip


def build(vocab: int = 270, max_len: int = 96, recurrence: bool = True) -> RATPlus:
    model = RATPlus(ModelConfig(vocab, 2, 48, 16, recurrence=recurrence, max_len=max_len))
    model.reset_parameters(0, 0.15)
    return model


@pytest.fixture(scope="module")
def model():
    return build()


def request(*arguments):
    """What lm-eval hands over, as far as anybody looks at it."""
    return SimpleNamespace(args=arguments)


def questions(count: int = 10) -> list:
    """Contexts of very different lengths, four continuations each; the first context is empty."""
    draw = random.Random(0)

    def text(least: int, most: int) -> str:
        return "".join(draw.choices("abcdef é", k=draw.randrange(least, most)))

    return [request(context, text(1, 12)) for context in ["", *(text(1, 50) for _ in range(count))] for _ in range(4)]


def directly(model, patterns, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        logits = model(torch.tensor([context + continuation]), patterns)[0, len(context) - 1 : -1]
    ends = torch.tensor(continuation)
    return float(logits.log_softmax(-1).gather(1, ends[:, None]).sum()), bool((logits.argmax(-1) == ends).all())


# ---- log-likelihoods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
def test_scores_are_those_of_the_model_whatever_the_batch(model, patterns):
    asked = questions()
    single, several, many = (
        Adapter(model, ByteTokenizer(), patterns, batch_size=size).loglikelihood(asked) for size in (1, 5, 16)
    )
    pairs = [Adapter(model, ByteTokenizer()).encode_pair(*r.args) for r in asked]
    for (context, end), *scores in zip(pairs, single, several, many):
        logprob, greedy = directly(model, patterns, context, end)
        for score in scores:
            assert score[0] == pytest.approx(logprob, abs=1e-4)
            assert score[1] == greedy


def test_a_greedy_continuation_is_said_to_be_greedy(model):
    ids = model.generate([[97, 98, 99]], None, 5)[0].tolist()
    good, bad = Scorer(model).score([([97, 98, 99], ids), ([97, 98, 99], [*ids[:-1], (ids[-1] + 1) % 256])])
    assert good.greedy
    assert not bad.greedy
    assert good.logprob > bad.logprob


def test_empty_context_and_spaces_between_context_and_continuation():
    adapter = Adapter(build(), ByteTokenizer())
    assert adapter.encode_pair("", "ab") == ([256], [97, 98])
    assert adapter.encode_pair("a ", "b") == ([97], [32, 98])
    assert adapter.encode_pair("  ", "b") == ([256], [32, 32, 98])
    assert adapter.loglikelihood([request("a", "")]) == [(0.0, True)]


def test_a_shared_context_is_read_once(model, monkeypatch):
    fed = []
    whole, prefill = RATPlus.forward, RATPlus.prefill
    monkeypatch.setattr(RATPlus, "forward", lambda self, t, p=None: fed.append(t.numel()) or whole(self, t, p))
    monkeypatch.setattr(RATPlus, "prefill", lambda self, t, *a, **k: fed.append(t.numel()) or prefill(self, t, *a, **k))
    pairs = [(list(range(60)), [end, 1, 2, 3]) for end in range(4)]
    together = Scorer(model, batch_size=4).score(pairs)
    assert sum(fed) == 60 + 4 * 3
    alone = [Scorer(model).score([pair])[0] for pair in pairs]
    assert [s.logprob for s in together] == pytest.approx([s.logprob for s in alone], abs=1e-4)


@pytest.mark.parametrize(
    ("context", "ends", "shares"),
    # Two rows of 9 tokens and ends of 4: shared, 9 are read once and 8 token by token; 9 are saved.
    [(9, (4, 4), True), (8, (4, 4), False), (9, (9,), False), (100, (1,), False), (5, (4, 4, 1), True),
     (5, (4, 4, 2), False)],
)  # fmt: skip
def test_a_context_is_shared_where_that_saves_most_of_the_tokens(context, ends, shares):
    assert scoring._worth_sharing((1,) * context, [(1,) * end for end in ends]) is shares


def test_rolling_scores_every_token_once(model):
    text = "".join(random.Random(1).choices("abc ", k=100))
    ids = ByteTokenizer().encode(text)
    whole = Adapter(model, ByteTokenizer(), batch_size=3, max_length=96)
    assert whole.loglikelihood_rolling([request(text[:90]), request("")]) == [
        pytest.approx(directly(model, None, [256], ids[:90])[0], abs=1e-4), 0.0,
    ]  # fmt: skip
    parts = windows(ids, 256, 32)
    assert [end for _, ends in parts for end in ends] == ids
    assert all(len(context) + len(end) <= 33 for context, end in parts)
    assert parts[-1][0] == ids[100 - 33 : 96]  # the last window reaches back
    expected = sum(directly(model, None, *part)[0] for part in parts)
    (score,) = Adapter(model, ByteTokenizer(), batch_size=4, max_length=32).loglikelihood_rolling([request(text)])
    assert score == pytest.approx(expected, abs=1e-3)


# ---- what does not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truncation", "kept"), [("left", range(100, 120)), ("middle", [*range(10), *range(110, 120)])]
)
def test_long_contexts_are_cut_and_counted(model, truncation, kept):
    scorer = Scorer(model, max_length=24, truncation=truncation)
    (score,) = scorer.score([(list(range(120)), [1, 2, 3, 4, 5])])
    assert score.logprob == pytest.approx(directly(model, None, list(kept), [1, 2, 3, 4, 5])[0], abs=1e-4)
    scorer.score([([1, 2], [3])])
    assert scorer.truncated == 1


def test_a_context_of_several_choices_is_cut_once(model):
    scorer = Scorer(model, max_length=24)
    scorer.score([(list(range(120)), [end] * (1 + end)) for end in range(4)])
    assert scorer.truncated == 1
    generate_texts(scorer, ByteTokenizer(), [list(range(50)), [1], list(range(60))], Decoding(max_new_tokens=2))
    assert scorer.truncated == 3


def test_without_truncation_the_lengths_are_named(model):
    off = Scorer(model, max_length=24, truncation="off")
    with pytest.raises(ValueError, match="context of 120 tokens is longer than the 24 that max_length=24 leaves"):
        off.score([(list(range(120)), [1])])
    with pytest.raises(ValueError, match="continuation of 25 tokens is longer than max_length=24"):
        Scorer(model, max_length=24).score([([1], [2] * 25)])
    with pytest.raises(ValueError, match="max_gen_toks=96 leaves no room for a prompt in max_length=96"):
        Adapter(model, ByteTokenizer()).generate_until([request("a", {"max_gen_toks": 96})])


def test_another_tokenizer_than_the_models_is_refused(model):
    with pytest.raises(ValueError, match="it has 257 ids, but the model's vocabulary has 200"):
        Adapter(build(vocab=200), ByteTokenizer())
    with pytest.raises(ValueError, match="it has 257 ids, but the model's vocabulary has 32000"):
        Adapter(build(vocab=32000), ByteTokenizer())
    with pytest.raises(ValueError, match="token id 270 is outside the model's vocabulary of 270"):
        Scorer(model).score([([1, 270], [2])])


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"max_length": 97}, "max_length: got 97; allowed: 2 to the model's max_len=96"),
        ({"truncation": "right"}, "truncation: got 'right'; allowed: left, middle, off"),
    ],
)
def test_impossible_settings(model, values, line):
    with pytest.raises(ValueError, match=line):
        Adapter(model, ByteTokenizer(), **values)


# ---- generation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patterns", PATTERNS[:4], ids=str)
@pytest.mark.parametrize(
    "sampling", [{}, {"do_sample": True, "temperature": 0.8, "top_p": 0.9}], ids=["greedy", "sampled"]
)
def test_texts_do_not_depend_on_the_batch(model, patterns, sampling):
    asked = [request(r.args[0], {"until": ["q"], "max_gen_toks": 12, **sampling}) for r in questions()[::4]]
    single, many = (Adapter(model, ByteTokenizer(), patterns, batch_size=b).generate_until(asked) for b in (1, 16))
    assert single == many
    assert len(set(single)) > 1


def test_a_sampled_text_is_that_of_its_prompts_number(model):
    how = Decoding(max_new_tokens=8, temperature=1.0, seed=3)
    prompts = [[1, 2, 3]] * 6
    texts = generate_texts(Scorer(model, batch_size=4), ByteTokenizer(), prompts, how)
    assert len(set(texts)) > 1
    # Whoever asks some of them later, and in another order, says which they are.
    numbers = [5, 0, 3]
    again = generate_texts(Scorer(model), ByteTokenizer(), prompts[:3], how, numbers)
    assert again == [texts[number] for number in numbers]
    assert generate_texts(Scorer(model), ByteTokenizer(), prompts, replace(how, seed=4)) != texts


def test_greedy_texts_are_those_of_generate():
    model, prompt = build(vocab=257), "abc def"
    ids = model.generate([ByteTokenizer().encode(prompt)], Pattern(4), 20, stop_token=256)[0].tolist()
    adapter = Adapter(model, ByteTokenizer(), Pattern(4))
    text = adapter.generate_until([request(prompt, {"max_gen_toks": 20, "until": []})])[0]
    assert text == ByteTokenizer().decode(ids)
    assert len(set(ids)) > 1


class Scripted:
    """A tokenizer of pieces, and the text that a model with scripted logits would say."""

    pieces = ("he", "llo", " w", "or", "ld", "!\n\nQ", "uestion", "END")
    eos_id, vocab_size = 7, 8

    def encode(self, text):
        return [0]

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids if i != self.eos_id)


def scripted(monkeypatch, ids: list[int]) -> Adapter:
    """An adapter whose model says these ids, whatever it is asked."""
    model = build(vocab=10)
    said = iter(range(100))

    def logits(batch):
        out = torch.zeros(batch, 10)
        step = next(said)
        out[:, ids[step] if step < len(ids) else 7] = 5.0
        out[:, 9] = 9.0  # an id that the tokenizer does not know
        return out

    prefill = RATPlus.prefill
    monkeypatch.setattr(RATPlus, "prefill", lambda self, t, c, n=None: prefill(self, t, c, n) * 0 + logits(len(t)))
    monkeypatch.setattr(RATPlus, "step", lambda self, t, c: logits(len(t)))
    return Adapter(model, Scripted())


@pytest.mark.parametrize(
    ("until", "text"),
    [
        ([], "hello world!\n\nQuestion"),
        (["\n\n"], "hello world!"),  # in the middle of a piece
        (["o w"], "hell"),  # across two pieces
        (["zz", "world", "lo"], "hel"),  # the first in the text, not in the list
        ("!\n\nQue", "hello world"),
    ],
)
def test_stop_strings(monkeypatch, until, text):
    adapter = scripted(monkeypatch, [0, 1, 2, 3, 4, 5, 6])
    assert adapter.generate_until([request("x", {"until": until, "max_gen_toks": 30})]) == [text]


def test_one_of_several_stop_strings_ends_a_text(monkeypatch):
    steps = []
    adapter = scripted(monkeypatch, [0, 1, 2, 3, 4, 5, 6])
    step = RATPlus.step
    monkeypatch.setattr(RATPlus, "step", lambda *a: steps.append(1) or step(*a))
    adapter.generate_until([request("x", {"until": ["zz", "llo"], "max_gen_toks": 30})])
    assert len(steps) == 1


def test_generation_ends_at_the_stop_string_at_the_limit_and_at_end_of_text(monkeypatch, model):
    steps = []
    adapter = scripted(monkeypatch, [0, 1, 2, 3, 4, 5, 6])
    step = RATPlus.step
    monkeypatch.setattr(RATPlus, "step", lambda *a: steps.append(1) or step(*a))
    adapter.generate_until([request("x", {"until": ["llo"], "max_gen_toks": 30})])
    assert len(steps) == 1
    # A stop string of more bytes than it has characters, a byte a token.
    monkeypatch.setattr(
        Scripted, "decode", lambda self, ids: bytes(b"\xc3\xa9x"[i] for i in ids).decode(errors="replace")
    )
    adapter = scripted(monkeypatch, [0, 1] * 12 + [2] * 9)
    step = RATPlus.step
    steps.clear()
    monkeypatch.setattr(RATPlus, "step", lambda *a: steps.append(1) or step(*a))
    assert adapter.generate_until([request("x", {"until": ["é" * 12], "max_gen_toks": 30})]) == [""]
    assert len(steps) == 23
    monkeypatch.undo()
    assert scripted(monkeypatch, [0, 1, 2, 3]).generate_until([request("x", {"max_gen_toks": 3})]) == ["hello w"]
    assert scripted(monkeypatch, [0, 7, 2, 3]).generate_until([request("x", {"max_gen_toks": 9})]) == ["he"]


def test_repetition_penalty(monkeypatch):
    # Alike logits: what was said, or stands in the prompt (id 0), is not said again.
    model = build(vocab=8)
    prefill = RATPlus.prefill
    monkeypatch.setattr(
        RATPlus, "prefill", lambda self, t, c, n=None: prefill(self, t, c, n) * 0 + torch.arange(8.0, 0, -1)
    )
    monkeypatch.setattr(RATPlus, "step", lambda self, t, c: torch.arange(8.0, 0, -1).expand(len(t), 8))
    texts = Adapter(model, Scripted()).generate_until([
        request("x", {"max_gen_toks": 3}), request("x", {"max_gen_toks": 3, "repetition_penalty": 10.0}),
    ])  # fmt: skip
    assert texts == ["hehehe", "llo wor"]


def test_generation_settings_of_lm_eval():
    assert Decoding.of({"until": "a", "do_sample": False, "temperature": 1}) == Decoding(until=("a",))
    assert Decoding.of({"temperature": 0.5, "max_new_tokens": 3}) == Decoding(max_new_tokens=3, temperature=0.5)
    assert Decoding.of({"do_sample": True, "until": ["", "b"]}) == Decoding(until=("b",), temperature=1.0)
    with pytest.raises(ValueError, match="'num_beams': no such setting; allowed: until, max_gen_toks, do_sample"):
        Decoding.of({"num_beams": 4})
    with pytest.raises(ValueError, match=r"top_p: got 1.5; allowed: a number in \(0, 1\]"):
        Decoding.of({"top_p": 1.5})
    assert cut_at_stop("abc", []) == "abc"


# ---- NaN ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("break_it", "where"),
    [
        (lambda m: m.layers[1].mixer.out_proj.weight, "first in layer 1's attention, whose out_proj.weight holds NaN"),
        (lambda m: m.layers[0].ffn.up.weight, "first in layer 0's feed-forward, whose up.weight holds NaN"),
        (lambda m: m.norm.weight, "first in the last norm, whose weight holds NaN"),
        (lambda m: m.embed.weight[200:], "first in the output head, whose weight holds NaN"),
    ],
)
def test_nan_is_told_with_the_layer_where_it_began(break_it, where):
    model = build()
    with torch.no_grad():
        break_it(model).view(-1)[0] = math.nan
    with pytest.raises(BadLogits, match=f"the model's logits are NaN or infinite, {where}"):
        Adapter(model, ByteTokenizer()).loglikelihood([request("abc", "def")])
    with pytest.raises(BadLogits, match=where):
        Adapter(model, ByteTokenizer()).generate_until([request("abc", {})])


def test_nan_of_decoding_alone_is_blamed_on_no_part(monkeypatch):
    monkeypatch.setattr(RATPlus, "step", lambda self, t, c: torch.full((len(t), 270), math.nan))
    with pytest.raises(BadLogits, match="infinite, which a run of these tokens alone does not show .they began while"):
        Adapter(build(), ByteTokenizer()).generate_until([request("abc", {})])


# ---- lm-eval ------------------------------------------------------------------------------------------------------


def test_without_lm_eval_a_line_names_the_extra(monkeypatch):
    import ratplus.evaluation
    from ratplus.evaluation import harness

    harness.harness_class.cache_clear()
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"HarnessLM needs lm-evaluation-harness; .* pip install 'ratplus\[eval\]'"):
        _ = ratplus.evaluation.HarnessLM
    with pytest.raises(ValueError, match=r"eval.tasks needs lm-evaluation-harness"):
        harness.check_tasks(["piqa"])


def test_names_in_task_files():
    from ratplus.evaluation.harness import _names

    assert _names("task: piqa  # a comment\noutput_type: x\n", "task") == ["piqa"]
    assert _names('"task": "mmlu_anatomy"\n', "task") == ["mmlu_anatomy"]
    assert _names("group: g\ntask:\n  - a\n  - b-c\nx: 1\n", "task") == ["a", "b-c"]
    assert _names("tag: [one, two]\n", "tag") == ["one", "two"]
    assert _names("tag: [one, , 'two' ]  # both\n", "tag") == ["one", "two"]
    assert _names("task: a\ngroup: b\ntask: c\n", "task") == ["a", "c"]
    assert _names("task: # those of mine\n  - a # one\n  - 'b'\t# two\n  - c\n", "task") == ["a", "b", "c"]
    assert _names("task: # none\nx: task\n  task: inner\n", "task") == _names("task:\n", "task") == []


def test_groups_and_tags_are_names_too(tmp_path, monkeypatch):
    """Tasks lie in files of their own; a group's or tag's members may lie anywhere."""
    from ratplus.evaluation import harness

    place = tmp_path / "tasks"
    place.mkdir()
    (place / "a.yaml").write_text("task: one\ntag:\n  - easy\n  - one\n")
    (place / "b.yaml").write_text("group: both\ntask:\n  - one\n  - two_of_a_group\n")
    (place / "c.yaml").write_text("group: one\ntask: [two]\n")
    (place / "d.yaml").write_text("task: two\n")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(harness, "find_spec", lambda name: spec)
    harness._shipped.cache_clear()
    try:
        assert harness._shipped() == {
            "one": place / "a.yaml", "easy": None, "both": None, "two": place / "d.yaml",
        }  # fmt: skip
        harness.check_tasks(["one", "easy", "both", {"task": "two", "num_fewshot": 1}])
        monkeypatch.setattr(harness, "version", lambda name: "0.4.13")
        with pytest.raises(
            harness.TaskError, match=r"eval.tasks: bot: lm-eval 0.4.13 has no such task; did you mean both"
        ):
            harness.check_tasks(["bot"])
    finally:
        harness._shipped.cache_clear()


def test_results_of_lm_eval_in_our_words(monkeypatch):
    """Of what its `evaluate` gives: metrics of tasks and groups with their errors and counts, items, facts."""
    from ratplus.config.eval import HarnessSection
    from ratplus.evaluation import harness

    def item(number, **more):
        return {"doc_id": number, "filter": "none", "metrics": ["acc"], "acc": number % 2, "doc_hash": f"d{number}",
                "prompt_hash": f"p{number}", "filtered_resps": ["a", "b"]} | more  # fmt: skip

    results = {
        "a": {"alias": "a", "acc,none": 0.25, "acc_stderr,none": 0.125, "bad,none": float("nan"), "yes,none": True,
              "4096,none": -1, "8192,none": 0.5, "8192_stderr,none": "N/A", "below,none": -1},
        "b": {"em,strict": 0.5, "em_stderr,strict": float("nan"), "em,loose": 1.0, "em_stderr,loose": 0.25},
        "whole": {"acc,none": 0.75, "acc_stderr,none": 0.5},
    }  # fmt: skip
    samples = {
        "a": [item(3), item(4, metrics=["ppl", "said", "pairs"], ppl=(2.5, 3), said="x", pairs=["x", 1])],
        "b": [item(0, filter="strict", filtered_resps=["seven"]), item(0, filter="loose", filtered_resps=[7])],
    }
    given, asked = {"tasks": {}}, []
    found = {
        "results": {name: results[name] for name in "ab"}, "groups": {"whole": results["whole"]}, "samples": samples,
        "n-samples": {"a": {"original": 9, "effective": 2}, "b": {"original": 8, "effective": 5}},
        "group_subtasks": {"whole": ["a", "b", "left out"]}, "versions": {"a": 1.0, "b": 2}, "n-shot": {"a": 3},
    }  # fmt: skip
    stand_in = SimpleNamespace(evaluate=lambda lm, loaded, **how: asked.append((loaded, how)) or found)
    monkeypatch.setitem(sys.modules, "lm_eval", stand_in)
    monkeypatch.setattr(harness, "check_tasks", lambda tasks: None)
    monkeypatch.setattr(harness, "_load", lambda tasks, fewshot: given | {"asked": (tasks, fewshot)})
    monkeypatch.setattr(harness, "version", lambda name: "0.4.13")
    cut = iter([7, 7 + 4])
    lm = type("Lm", (), {"truncated": property(lambda self: next(cut))})()
    metrics, items, facts = harness.run_tasks(lm, ["a", "b"], HarnessSection(limit=5, fewshot=3))
    assert asked[0][0]["asked"] == ('["a", "b"]', 3)
    assert (asked[0][1]["limit"], asked[0][1]["log_samples"]) == (5, True)
    assert metrics == {
        "a_acc": {"value": 0.25, "stderr": 0.125, "count": 2}, "a_8192": {"value": 0.5, "stderr": None, "count": 2},
        "a_below": {"value": -1.0, "stderr": None, "count": 2},  # only of a length -1 says that it was not asked
        "b_em_strict": {"value": 0.5, "stderr": None, "count": 5},
        "b_em_loose": {"value": 1.0, "stderr": 0.25, "count": 5},
        "whole_acc": {"value": 0.75, "stderr": 0.5, "count": 2 + 5},
    }  # fmt: skip
    assert items == [
        {"task": "a", "id": 3, "filter": "none", "acc": 1}, {"task": "a", "id": 4, "filter": "none", "ppl": [2.5, 3]},
        {"task": "b", "id": 0, "filter": "strict", "acc": 0, "text": "seven"},
        {"task": "b", "id": 0, "filter": "loose", "acc": 0},
    ]  # fmt: skip
    assert facts["lm_eval"] == {"version": "0.4.13", "truncated_contexts": 4}
    assert (facts["a"]["version"], facts["a"]["samples"], facts["a"]["fewshot"]) == (1.0, 2, 3)
    assert (facts["b"]["version"], facts["b"]["samples"], facts["b"]["fewshot"]) == (2, 5, None)
    assert facts["a"]["prompts_sha256"] == hashlib.sha256(b"p3\np4").hexdigest()
    assert facts["a"]["data_sha256"] == hashlib.sha256(b"d3\nd4").hexdigest()


@pytest.fixture
def fixtures(tmp_path):
    """Local data for genuine prompts: {name: the overrides that make lm-eval's own task read it}."""
    pytest.importorskip("lm_eval")
    rows = {
        "piqa": [{"goal": f"open jar {i}", "sol1": "twist it", "sol2": "hit it", "label": i % 2} for i in range(6)],
        "lambada_openai": [{"text": f"the cat sat on the {end}"} for end in ("mat", "hat", "log")],
        "hellaswag": [
            {"ind": i, "activity_label": "Cooking", "ctx_a": "A man cooks.", "ctx_b": "he", "ctx": "A man cooks. he",
             "endings": ["eats.", "flies.", "sings.", "melts."], "label": str(i % 4)} for i in range(4)
        ],
        "arc_easy": [
            {"id": str(i), "question": "What is hot?", "answerKey": "AB"[i % 2],
             "choices": {"text": ["fire", "ice"], "label": ["A", "B"]}} for i in range(4)
        ],
        "winogrande": [
            {"sentence": "The cup fell off the shelf since the _ was tilted.", "option1": "cup", "option2": "shelf",
             "answer": str(1 + i % 2)} for i in range(4)
        ],
    }  # fmt: skip
    rows["arc_challenge"] = rows["arc_easy"]
    tasks = []
    for name, data in rows.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in data))
        files = {split: str(path) for split in ("train", "validation", "test")}
        tasks.append(
            {"task": name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        )
    return tasks


def test_commonsense_through_its_genuine_prompts(model, fixtures):
    from ratplus.config.eval import HarnessSection
    from ratplus.evaluation import HarnessLM
    from ratplus.evaluation.harness import run_tasks

    model = build(max_len=256)
    found = []
    for size in (1, 16):
        lm = HarnessLM(model, ByteTokenizer(), Pattern(8), batch_size=size)
        found.append(run_tasks(lm, fixtures, HarnessSection()))
    (metrics, samples, facts), (again, _, same) = found
    assert {"piqa_acc", "arc_easy_acc", "arc_challenge_acc", "winogrande_acc", "hellaswag_acc_norm",
            "lambada_openai_acc"} <= set(metrics)  # fmt: skip
    assert metrics["piqa_acc"]["count"] == 6
    for name, value in metrics.items():
        assert value["value"] == pytest.approx(again[name]["value"], rel=1e-3)
    assert facts == same
    assert facts["piqa"]["version"] == 1.0
    assert len(facts["piqa"]["prompts_sha256"]) == 64
    own = [row for row in samples if row["task"] == "piqa"]
    assert [row["id"] for row in own] == list(range(6))
    assert sum(row["acc"] for row in own) / 6 == metrics["piqa_acc"]["value"]
    # lm-eval's own prompt, scored directly: the first document's choice.
    context, ends = "Question: open jar 0\nAnswer:", [" twist it", " hit it"]
    sums = [directly(model, Pattern(8), *lm.encode_pair(context, end))[0] for end in ends]
    assert own[0]["acc"] == float(sums[0] > sums[1])


def test_rolling_windows_are_lm_evals():
    utils = pytest.importorskip("lm_eval.utils")
    for length in (1, 5, 16, 17, 40):
        ids = list(range(1, length + 1))
        theirs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(ids, 0, 16, 1))
        assert windows(ids, 0, 16) == [(list(a), list(b)) for a, b in theirs]


def test_mistakes_in_tasks(model, fixtures, tmp_path):
    from ratplus.config.eval import HarnessSection
    from ratplus.evaluation import HarnessLM
    from ratplus.evaluation.harness import check_tasks, run_tasks

    with pytest.raises(ValueError, match="eval.tasks: pika: lm-eval [0-9.]+ has no such task; did you mean .*piqa"):
        check_tasks(["pika"])
    with pytest.raises(ValueError, match="no.yaml: no such file"):
        check_tasks([str(tmp_path / "no.yaml")])
    gone = {"task": "piqa", "dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "gone.jsonl")}}
    with pytest.raises(ValueError, match="eval.tasks: piqa: its data set cannot be loaded"):
        run_tasks(HarnessLM(model, ByteTokenizer()), [gone], HarnessSection())


def test_a_local_yaml(fixtures, tmp_path):
    from ratplus.config.eval import HarnessSection
    from ratplus.evaluation import HarnessLM
    from ratplus.evaluation.harness import run_tasks

    path = tmp_path / "own.yaml"
    path.write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/piqa.jsonl}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{goal}}'\ndoc_to_target: '{{sol1}}'\n"
        "generation_kwargs: {until: ['q'], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n"
        "metadata: {version: 3}\n"
    )
    lm = HarnessLM(build(), ByteTokenizer(), batch_size=4)
    metrics, samples, facts = run_tasks(lm, [str(path)], HarnessSection(limit=2))
    assert metrics["own_exact_match"]["value"] == 0.0
    assert metrics["own_exact_match"]["count"] == 2
    assert facts["own"]["version"] == 3
    assert [row["id"] for row in samples] == [0, 1]


def test_longbench_through_its_genuine_prompts(tmp_path, monkeypatch):
    """The shipped group on local data: all 14 tasks, their prompts, the settings that conf/eval/longbench.yaml adds."""
    for package in ("lm_eval", "jieba", "fuzzywuzzy", "rouge"):
        pytest.importorskip(package)
    from ratplus.evaluation import HarnessLM
    from ratplus.evaluation.harness import run_tasks
    from ratplus.sweeps.define.compose import compose_one

    section = compose_one(["eval=longbench"]).config.eval
    assert section.harness.truncation == "middle"
    tasks = []
    for task in section.tasks:
        task = {"task": task} if isinstance(task, str) else task
        path = tmp_path / f"{task['task']}.jsonl"
        row = {"context": "Some story.", "input": "what?", "answers": ["word"], "all_classes": ["word", "B"],
               "length": 3, "language": "en", "dataset": "x", "_id": "0"}  # fmt: skip
        path.write_text(json.dumps(row | {"question": row["input"]}) + "\n")
        tasks.append(task | {"dataset_path": "json", "dataset_name": None,
                             "dataset_kwargs": {"data_files": {"test": str(path)}}})  # fmt: skip
    asked = []
    monkeypatch.setattr(
        Adapter, "generate_until", lambda self, requests: asked.extend(requests) or ["word"] * len(requests)
    )
    lm = HarnessLM(build(), ByteTokenizer())
    metrics, samples, facts = run_tasks(lm, tasks, section.harness)
    assert len(asked) == len(samples) == 14
    for request in asked:
        assert "Some story." in request.args[0]
        assert Decoding.of(request.args[1]).temperature == 0
    prompts = {request.task_name.removeprefix("longbench_"): request.args[0] for request in asked}
    # The benchmark's own (LongBench, config/dataset2prompt.json), where lm-eval's have fewer line ends.
    assert prompts["lcc"] == "Please complete the code given below. \nSome story.Next line of code:\n"
    assert prompts["repobench-p"] == "Please complete the code given below. \nSome story.what?Next line of code:\n"
    assert prompts["triviaqa"] == (
        "Answer the question based on the given passage. Only give me the answer and do not output any other words. "
        "The following are some examples.\n\nSome story.\n\nwhat?"
    )
    assert prompts["samsum"] == (
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\nSome story.\n\nwhat?"
    )
    assert prompts["trec"].endswith("examples of questions.\n\nSome story.\nwhat?")
    penalties = [Decoding.of(r.args[1]).repetition_penalty for r in asked]
    assert penalties.count(1.2) == 3
    for name in ("narrativeqa", "qasper", "trec", "triviaqa"):
        assert metrics[f"longbench_{name}_score"]["value"] == pytest.approx(metrics["longbench_qasper_score"]["value"])
    assert metrics["longbench_qasper_score"]["value"] > 0.99
    assert facts["longbench_qasper"]["version"] >= 1
