"""What is drawn from seeds stays what it was: results of finished sweeps are compared with those of today's code.

Each line is a hash of what one generator gives. Whoever changes one on purpose raises the version that enters the ids
of what reads it (NIAH_VERSION, CLOZE_VERSION, SFT_VERSION), and then the line here.
"""

import hashlib

import numpy as np
import pytest

from ratplus.config.train import RecipeSection, SftSection
from ratplus.data.needles import SHAPES, generate, training_draft
from ratplus.data.recall import RecallTask
from ratplus.data.sampling import ordered_rows, random_rows
from ratplus.data.sft import SftBatches
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.evaluation.cloze import questions
from ratplus.training.mixed import MixedPatterns

TEXT = "The first sentence is here. Is the second one? It is! The fourth follows at the end of the line. " * 40
STREAM = np.random.default_rng(0).integers(0, 40, 30_000)


def short(found) -> str:
    return hashlib.sha256(repr(found).encode()).hexdigest()[:12]


def plain(arrays) -> list:
    return [np.asarray(array).tolist() for array in arrays]


@pytest.mark.parametrize(
    ("template", "hashes"),
    [
        ("ruler", "4b13 540b 7388 f54a 62dd 5f72 587c 92e3"),
        ("short", "e568 45d8 6a1b 18fc cb38 a9bc 944f e012"),
        ("letters", "297e e42c a5d9 80ad 4fa0 beb7 cc9a 0ef1"),
    ],
)
def test_needles(template, hashes):
    found = [
        [(item.prompt, item.answers, item.depths, item.new_tokens, item.places)
         for item in generate(task, ByteTokenizer(), 6, 1600, haystack=TEXT, template=template, seed=3)]
        for task in SHAPES
    ]  # fmt: skip
    assert " ".join(short(items)[:4] for items in found) == hashes


def test_needles_that_are_trained():
    drafts = [training_draft(task, index, "short", 2, 1) for task in SHAPES for index in range(3)]
    assert short([(draft.needles, draft.depths, draft.answers, draft.query) for draft in drafts]) == "038d08340d3b"
    assert short(training_draft("niah_multikey_1", 2, "letters").more_questions(9)) == "9a0741be0949"


class _Corpus:
    """What SftBatches needs of a corpus."""

    train = validation = STREAM

    def tokenizer(self):
        return ByteTokenizer()


def test_the_order_of_needles_in_an_epoch():
    section = SftSection(items=5, tasks=["niah_single_1", "niah_multikey_1"])
    batches = SftBatches(_Corpus(), section, 128, seed=4)
    recipe = RecipeSection(batch=4, order="random")
    assert short([batches.numbers(recipe, step) for step in range(8)]) == "0dc6e29393f0"


def test_rows_of_text():
    assert short(plain(random_rows(STREAM, 5, step, 3, 16, purpose=2) for step in (0, 1, 70))) == "d311c9ceaf2a"
    assert short(plain(ordered_rows(STREAM, step, 3, 16) for step in (0, 1, 700))) == "9daf22b42a9f"


def test_rows_of_recall():
    task = RecallTask(257, 64, 16, 16, 8)
    assert short([plain(task.rows(1, 3, step, 4)) for step in (0, 9)]) == "ab9c77aec6a1"


def test_questions_of_cloze():
    asked = questions(STREAM, 39, 12, 16, 4)
    assert short([(q.context, q.choices, q.answer) for q in asked]) == "60c4dbfe9621"


def test_mixed_maps():
    mixed = [MixedPatterns.of(["D1", "D4", "top2x8"], over, _Shape(), 7) for over in ("layers", "heads")]
    assert short([one.at(step).label for one in mixed for step in range(6)]) == "a23982819b88"


class _Shape:
    layers, key_heads, group = 5, 4, 2
