"""What a search measures on: how much held-out text it needs at least, whose it is,
and that no split sees another's."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from ratplus.config.search import SearchSection
from ratplus.data.recall import RecallTask
from ratplus.data.sampling import IGNORE
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.search.splits import Rows, _sha256, make_splits

EOS = 256
LENGTH = 16


def corpus(sizes, seed=0) -> SimpleNamespace:
    """A held-out stream of documents of so many tokens each, their end-of-text counted."""
    draw = np.random.default_rng(seed)
    parts = [np.append(draw.integers(97, 123, size - 1), EOS) for size in sizes]
    return SimpleNamespace(validation=np.concatenate(parts), eos_id=EOS, folder="c", tokenizer=ByteTokenizer)


def section(**given) -> SearchSection:
    return SearchSection(model="m", **given)


def test_three_rows_and_a_token_of_text_are_the_least():
    fits = corpus([3 * LENGTH + 1] * 3)
    splits = make_splits(section(text_rows=99), fits, None, LENGTH)
    for split in splits.values():
        assert split.groups["text"].inputs.shape == (3, LENGTH)
        assert (split.documents, split.tokens) == (1, 3 * LENGTH)
    with pytest.raises(ValueError, match=r"length: got 16; .* has 48 tokens of held-out text, .* use length=16"):
        make_splits(section(), corpus([3 * LENGTH] * 3), None, LENGTH)
    with pytest.raises(ValueError, match="use length=33 or less"):
        make_splits(section(), corpus([100] * 3), None, 34)
    with pytest.raises(ValueError, match="c: the held-out text has 2 different documents; search, verify"):
        make_splits(section(), corpus([500] * 2), None, LENGTH)
    twice = corpus([500] * 2)
    twice.validation = np.concatenate([twice.validation, twice.validation])
    with pytest.raises(ValueError, match="2 different documents"):
        make_splits(section(), twice, None, LENGTH)


def test_an_end_of_text_alone_is_no_document():
    splits = make_splits(section(text_rows=99), corpus([1, 1, 100, 1, 100, 1, 1, 100, 1]), None, LENGTH)
    assert [split.documents for split in splits.values()] == [1, 1, 1]
    with pytest.raises(ValueError, match="2 different documents"):
        make_splits(section(), corpus([500, 1, 500, 1]), None, LENGTH)


def test_the_hash_of_a_split_is_of_names_shapes_inputs_and_labels():
    ids = np.arange(12)
    rows = Rows(ids.reshape(3, 4), ids.reshape(3, 4))
    others = [
        {"b": rows}, {"a": Rows(ids.reshape(4, 3), ids.reshape(4, 3))}, {"a": Rows(rows.inputs + 1, rows.labels)},
        {"a": Rows(rows.inputs, rows.labels + 1)}, {"a": rows, "b": rows},
    ]  # fmt: skip
    assert len({_sha256(groups) for groups in [{"a": rows}, *others]}) == 6
    assert _sha256({"a": rows, "b": rows}) == _sha256({"b": rows, "a": rows})


def test_rows_are_spread_over_a_split_and_labels_follow():
    whole = corpus([400] * 9)
    splits = make_splits(section(text_rows=4), whole, None, LENGTH)
    for split in splits.values():
        rows = split.groups["text"]
        assert rows.inputs.shape == rows.labels.shape == (4, LENGTH)
        assert split.documents == 3
        for inputs, labels in zip(rows.inputs, rows.labels):
            asked = labels != IGNORE
            assert (labels[:-1][asked[:-1]] == inputs[1:][asked[:-1]]).all()
            assert (asked == (inputs != EOS)).all()
    starts = {name: {tuple(row[:8]) for row in split.groups["text"].inputs} for name, split in splits.items()}
    assert all(not a & b for a, b in combinations(starts.values(), 2))


@pytest.mark.parametrize(
    ("rows", "windows"), [(3, [0, 8, 16]), (4, [0, 6, 12, 18]), (25, [*range(25)]), (99, [*range(25)])]
)
def test_rows_of_text_come_from_all_over_a_split(rows, windows):
    whole = corpus([401] * 3)  # 25 windows of 16 tokens in each split, and the token after them
    documents = np.split(whole.validation, 3)
    for split in make_splits(section(text_rows=rows), whole, None, LENGTH).values():
        inputs = split.groups["text"].inputs
        (own,) = (ids for ids in documents if (ids[:LENGTH] == inputs[0]).all())
        assert (inputs == np.stack([own[at * LENGTH : (at + 1) * LENGTH] for at in windows])).all()


def test_splits_do_not_depend_on_the_order_of_documents():
    whole = corpus([200, 300, 400, 250, 350, 150])
    parts = np.split(whole.validation, np.flatnonzero(whole.validation == EOS)[:-1] + 1)
    turned = SimpleNamespace(**{**vars(whole), "validation": np.concatenate(parts[::-1])})
    for name, split in make_splits(section(), whole, None, LENGTH).items():
        assert make_splits(section(), turned, None, LENGTH)[name].sha256 == split.sha256


def test_questions_of_splits_seeds_and_tasks_are_apart():
    recall = RecallTask(257, 32, 8, 8, 4)
    whole = corpus([4000] * 3)
    asked = {"tasks": ["niah_single_1"], "items": 3, "recall_rows": 5, "text_rows": 3, "template": "short"}
    first = make_splits(section(**asked), whole, recall, 256)
    assert list(first) == ["search", "verify", "test"]
    assert all(sorted(split.groups) == ["niah_single_1", "recall", "text"] for split in first.values())
    other = make_splits(section(**asked, seed=1), whole, recall, 256)
    for group, rows in (("niah_single_1", 3), ("recall", 5)):
        made = [split.groups[group] for found in (first, other) for split in found.values()]
        assert all(len(one.inputs) == rows for one in made)
        assert all((a.inputs != b.inputs).any() for a, b in combinations(made, 2))
    assert len({split.sha256 for found in (first, other) for split in found.values()}) == 6
    tested = make_splits(section(**asked, test_tasks=["niah_single_2"]), whole, recall, 256)
    assert sorted(tested["test"].groups) == ["niah_single_2", "recall", "text"]
    assert sorted(tested["verify"].groups) == ["niah_single_1", "recall", "text"]
    assert sorted(make_splits(section(**asked | {"recall_rows": 0}), whole, recall, 256)["test"].groups) == [
        "niah_single_1", "text",
    ]  # fmt: skip


def test_labels_of_needles_stand_on_the_answer_alone():
    whole = corpus([4000] * 3)
    asked = section(tasks=["niah_single_1"], items=3, template="short", digits=3)
    splits = make_splits(asked, whole, None, 200)
    for split in splits.values():
        rows = split.groups["niah_single_1"]
        for inputs, labels in zip(rows.inputs, rows.labels):
            (places,) = np.nonzero(labels != IGNORE)
            answer = ByteTokenizer().decode(labels[places].tolist())
            assert answer.strip().isdigit()
            assert len(answer.strip()) == 3
            assert places.tolist() == list(range(places[0], places[0] + len(places)))
            assert inputs[places[1:]].tolist() == labels[places[:-1]].tolist()
            assert answer.strip() in ByteTokenizer().decode(inputs[: places[0]].tolist())
