"""Our needles beside lm-eval's RULER: its own prompt builder and scorer, the same wording and the same scores.

Needs lm-eval with what its RULER imports (`pip install 'lm_eval[ruler]' transformers`). Neither the network nor its
data is used: it writes its prompts around a text of ours, whose length a tokenizer of ours tells.
"""

import json
import random
import re
from types import SimpleNamespace

import pytest

from ratplus.config.eval import NIAH_TASKS, HarnessSection
from ratplus.data.needle_words import words_of
from ratplus.data.needles import SHAPES, Draft, substring
from ratplus.data.tokenizer import ByteTokenizer

SAMPLES, LENGTH = 4, 4096
TEXT = " ".join(f"The {a} sailor sold {b} kettles to a quiet town by the sea." for a in "abcde" for b in range(20))
NEEDLE = re.compile(r"One of the special magic (?:numbers|uuids) for (\S+) is: (\S+?)\.(?=\s|$)")


@pytest.fixture(scope="module")
def ruler():
    """lm-eval's RULER, its eight needle tasks, and their documents."""
    for package in ("lm_eval", "nltk", "wonderwords", "transformers"):
        pytest.importorskip(
            package, reason=f"lm-eval's RULER needs {package}: pip install 'lm_eval[ruler]' transformers"
        )
    import nltk

    with pytest.MonkeyPatch.context() as patch:
        # At import it asks the network for a sentence splitter; ours is simpler.
        patch.setattr(nltk, "download", lambda *a, **k: False)
        patch.setattr(nltk.data, "find", lambda *a, **k: "")
        from lm_eval.tasks.ruler import common_utils, prepare_niah

        patch.setattr(prepare_niah, "cached_sent_tokenize", lambda text: re.split(r"(?<=\.)\s+", text))
        haystack, generate = prepare_niah.get_haystack, prepare_niah.generate_samples
        patch.setattr(
            prepare_niah, "get_haystack",
            lambda type_haystack: TEXT.split() if type_haystack == "essay" else haystack(type_haystack),
        )  # fmt: skip
        patch.setattr(prepare_niah, "generate_samples", lambda *a, **k: generate(*a, **k | {"num_samples": SAMPLES}))
        encode = ByteTokenizer().encode
        patch.setattr(common_utils, "get_tokenizer", lambda *a, **k: lambda t: SimpleNamespace(input_ids=encode(t)))
        from ratplus.evaluation.harness import _load

        random.seed(0)
        tasks = _load.__wrapped__(_tasks(), None)["tasks"]
        yield SimpleNamespace(tasks=tasks, common=common_utils)


def _tasks() -> str:
    metadata = {"version": 1.0, "tokenizer": "ours", "max_seq_lengths": [LENGTH]}
    return json.dumps([{"task": name, "metadata": metadata} for name in NIAH_TASKS])


@pytest.mark.parametrize("task", NIAH_TASKS)
def test_the_wording_is_the_same_given_the_same_keys_and_values(ruler, task):
    shape = SHAPES[task]
    docs = list(ruler.tasks[task].test_docs())
    assert len(docs) == SAMPLES
    for doc in docs:
        theirs = ruler.tasks[task].fewshot_context(doc, 0, gen_prefix=ruler.tasks[task].doc_to_prefix(doc))
        query = re.search(r"What (?:is|are all) the special magic \w+ for (.+?) mentioned in", theirs)[1]
        # Ours, with their keys, and no haystack.
        draft = Draft(shape, words_of("ruler", None), random.Random(0))
        draft.query, draft.needles, draft.depths = query, [], []
        start, end = draft._prompt([], 0).split("\n\n")
        assert theirs.startswith(start + "\n")
        assert theirs.endswith("\n" + end)
        context = theirs[len(start) + 1 : -len(end) - 1]
        pairs = NEEDLE.findall(context)
        assert context.count("One of the special magic") == len(pairs) >= shape.needles * shape.values_each
        for key, value in pairs:
            assert draft._needle(key, value) in context
        asked = re.split(r", and |, ", query)
        assert len(asked) == shape.asked
        found = [value for name in asked for key, value in pairs if key == name]
        assert sorted(found) == sorted(doc["outputs"])
        for texts in ((draft._value(), next(draft._keys())), pairs[0][::-1]):
            assert re.fullmatch(r"\d{7}" if shape.values == "numbers" else r"[0-9a-f-]{36}", texts[0])
            assert re.fullmatch(r"[0-9a-f-]{36}" if shape.keys == "uuids" else r"\w+-[\w-]+", texts[1])


def test_the_substring_score_is_the_same(ruler):
    draw = random.Random(1)
    seen = set()
    for _ in range(400):
        answers = [str(draw.randrange(10**6, 10**7)) for _ in range(draw.choice([1, 4]))]
        said = [answer if draw.random() < 0.6 else answer[:-1] for answer in answers]
        text = draw.choice([", ", " and ", "\n", "", "\x07", "\t"]).join(said)
        text = draw.choice(["", " ", "\n"]) + text + draw.choice(["", ".", " The end", "\n"])
        theirs = ruler.common.process_results({"max_length": 4096, "outputs": answers}, [text])["4096"]
        assert substring(text, answers) == pytest.approx(theirs)
        seen.add(theirs)
    assert seen == {0.0, 0.25, 0.5, 0.75, 1.0}
    for text in ("ABC-DEF", "abc-def", "abc def"):
        theirs = ruler.common.process_results({"max_length": 4096, "outputs": ["Abc-Def"]}, [text])["4096"]
        assert substring(text, ["Abc-Def"]) == theirs


def test_its_tasks_run_as_a_suite_and_give_our_score(ruler, monkeypatch):
    from test_harness import build

    from ratplus.evaluation import HarnessLM, harness
    from ratplus.evaluation.harness_model import Adapter

    docs = {name: list(task.test_docs()) for name, task in ruler.tasks.items()}
    said = {}

    def answer(self, requests):
        texts = []
        for number, request in enumerate(requests):
            outputs = request.doc["outputs"]
            texts.append(", ".join(outputs[: number % (len(outputs) + 1)]))
            said.setdefault(request.task_name, []).append((texts[-1], outputs))
        return texts

    monkeypatch.setattr(Adapter, "generate_until", answer)
    monkeypatch.setattr(harness, "_load", lambda *a: {"tasks": ruler.tasks, "groups": {}, "group_map": {}})
    metrics, samples, _ = harness.run_tasks(HarnessLM(build(), ByteTokenizer()), list(NIAH_TASKS), HarnessSection())
    assert len(samples) == sum(map(len, docs.values())) == SAMPLES * len(NIAH_TASKS)
    for name in NIAH_TASKS:
        ours = [substring(text, outputs) for text, outputs in said[name]]
        assert metrics[f"{name}_{LENGTH}"]["value"] == pytest.approx(sum(ours) / len(ours))
    # It says -1 of lengths that it was not asked for: no results.
    assert {name.rpartition("_")[2] for name in metrics} == {str(LENGTH)}
