"""What is measured of a selecting pattern: density and hits against loops over the model's own masks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ratplus.analysis.frame.selection import mask_of
from ratplus.config.eval import EvalSection, NiahSection
from ratplus.config.model import ModelConfig
from ratplus.data.batches import Batches
from ratplus.data.needles import SHAPES, generate
from ratplus.data.recall import RecallTask
from ratplus.data.tokenizer import ByteTokenizer
from ratplus.evaluation.selection import (
    MASK_LENGTH,
    MOST_ROWS,
    Question,
    _masks,
    measure_selection,
    questions_of,
    write_selection,
)
from ratplus.model import RATPlus
from ratplus.pattern import Pattern, PatternMap

LENGTH = 40


def model(recurrence: bool = True, kv_heads: int | None = None) -> RATPlus:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=50, layers=2, d_model=32, d_head=8, max_len=64, recurrence=recurrence, kv_heads=kv_heads
    )
    network = RATPlus(config)
    network.reset_parameters(0, 0.2)
    return network.eval()


def question(seed: int, prompt: int | None = None, length: int = LENGTH) -> Question:
    tokens = np.random.default_rng(seed).integers(0, 50, length).tolist()
    return Question(tokens, prompt, ((length - 3, (4, 5)), (length - 2, (length // 2,))))


@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("label", ["D4", "D1", "D4-W3-I2", "heads[D4x2,D2-W3x2]"])
def test_the_forward_that_is_looked_at_is_the_models(label, kv_heads):
    """Of patterns that do not depend on data the masks are known, and every layer's input follows from them."""
    network, patterns = model(kv_heads=kv_heads), PatternMap.from_label(label, 2, 4)
    inputs = []
    handle = network.blocks[1].register_forward_pre_hook(lambda _m, arguments: inputs.append(arguments[0]))
    asked = question(0)
    network(torch.tensor([asked.tokens]), patterns)
    handle.remove()
    looked = []
    original = network.blocks[1].mixer._project
    network.blocks[1].mixer._project = lambda x: (looked.append(x), original(x))[1]
    masks = list(_masks(network, patterns, asked))
    for mask, row in zip(masks, patterns, strict=True):
        assert (mask == np.stack([pattern.visible(LENGTH) for pattern in row])).all()
    torch.testing.assert_close(looked[0], inputs[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("label", ["top3x4", "D4-quest3x4", "random3x4", "top3x4-decode", "snap12x4"])
def test_density_and_hits_are_those_of_the_masks(label):
    network, pattern = model(), Pattern.from_label(label)
    patterns = PatternMap.uniform(pattern, 2, 4)
    rows = [question(seed, prompt=30 if pattern.needs_prompt else None) for seed in range(3)]
    found = measure_selection(network, patterns, {"recall": rows})
    densities, hits = [], []
    for row in rows:
        for mask in _masks(network, patterns, row):
            for head in mask:
                densities.append(head[-1, :-1].sum() / (LENGTH - 1))
                hits += [all(head[t, list(where)]) for t, where in row.asked]
    assert found.metrics["selection_density"]["value"] == pytest.approx(np.mean(densities))
    assert found.metrics["selection_hit_rate"]["value"] == pytest.approx(np.mean(hits))
    assert found.metrics["selection_hit_rate"]["count"] == 6
    assert np.mean(found.plain["density"]) == pytest.approx(np.mean(densities))
    assert np.mean(found.plain["hit_rate"]["recall"]) == pytest.approx(np.mean(hits))
    if pattern.kv_read_exact:
        counted = pattern.kv_read(LENGTH - 1, prompt=30) / (LENGTH - 1)
        assert np.mean(densities) == pytest.approx(counted)
    stored = mask_of(found.plain["masks"][label])
    assert (stored == next(_masks(network, patterns, rows[0]))[0]).all()


def test_dense_heads_have_every_hit_and_mixed_maps_are_told_apart():
    network = model()
    row = [Pattern(), Pattern.from_label("top2x4"), Pattern.from_label("top3x4"), Pattern(8)]
    found = measure_selection(network, PatternMap.per_head(row, 2), {"recall": [question(1)], "niah": [question(2)]})
    rates = np.array(found.plain["hit_rate"]["niah"])
    assert (rates[:, 0] == 1).all()
    assert np.array(found.plain["density"])[:, 3] == pytest.approx(4 / 39)
    assert set(found.plain["masks"]) == {"top2x4", "top3x4"}
    assert found.plain["rows"] == {"recall": 1, "niah": 1}


def test_long_rows_are_left_out(tmp_path):
    network, patterns = model(), PatternMap.uniform(Pattern.from_label("top3x4"), 2, 4)
    short, long = question(0, length=10), question(0, length=60)
    found = measure_selection(network, patterns, {"recall": [long, short]}, most_pairs=8 * 10 * 10)
    assert found.plain["rows"] == {"recall": 1}
    assert measure_selection(network, patterns, {"recall": [long]}, most_pairs=8 * 10 * 10) is None
    written = json.loads(write_selection(tmp_path, found).read_text())
    assert written == json.loads(json.dumps(found.plain))
    assert written["masks"]["top3x4"]["length"] == 10 <= MASK_LENGTH


TEXT = "The old mill stands by the river. A miller lives there. He grinds grain all day. "


def asked_of(label: str, **section) -> tuple[dict, Batches]:
    ids = np.array(ByteTokenizer().encode(TEXT * 40))
    corpus = SimpleNamespace(validation=ids, eos_id=256, tokenizer=ByteTokenizer)
    data = Batches(corpus, RecallTask(257, length=32, keys=8, values=8, pairs=4), 0.5, 300, 0)
    given = {
        "recall_rows": 10,
        "niah": NiahSection(["niah_single_2", "niah_multiquery"], 9, template="short"),
    } | section
    return questions_of(data, EvalSection(**given), PatternMap.uniform(Pattern.from_label(label), 2, 4)), data


def test_recall_asks_where_the_symbol_of_each_answer_stands():
    found, data = asked_of("top2x4")
    inputs, labels, _ = data.held_out_recall(10)
    assert len(found["recall"]) == MOST_ROWS == 8
    for row, tokens, answers in zip(found["recall"], inputs, labels):
        assert (row.tokens, row.prompt) == (tokens.tolist(), None)
        assert [query for query, _ in row.asked] == list(range(16, 32))
        for query, (place,) in row.asked:
            key, value = divmod(tokens[place] - 258, 8)
            assert (key, value) == (tokens[query] - 258 - 64, answers[query] - 258 - 64 - 8)
    assert "recall" not in asked_of("snap12x4")[0]  # which asks for the end of a prompt
    assert "recall" not in asked_of("top2x4", recall_rows=0)[0]
    assert list(asked_of("top2x4", niah=NiahSection())[0]) == ["recall"]


@pytest.mark.parametrize("label", ["top2x4", "snap12x4"])
def test_needles_ask_for_every_token_of_the_answer(label):
    """The last token of the prompt is a query too, but where a pattern treats the prompt apart."""
    found, _ = asked_of(label)
    for task, needles in (("niah_single_2", 1), ("niah_multiquery", 4)):
        assert len(found[task]) == MOST_ROWS
        for row in found[task]:
            text = bytes(row.tokens).decode()
            prompt, answer = text[: row.prompt], text[row.prompt :]
            values = answer.strip().split(", ")
            assert len(values) == needles
            first = row.prompt - (label == "top2x4")
            assert [query for query, _ in row.asked] == list(range(first, len(text) - 1))
            for _, places in row.asked:
                assert "".join(text[place] for place in places) == "".join(values)
                assert max(places) < len(prompt)
            assert "mill" in prompt, "held-out text hides the needles"


@pytest.mark.parametrize("task", list(SHAPES))
@pytest.mark.parametrize("template", ["short", "ruler"])
def test_needles_say_where_their_answers_stand(task, template):
    for item in generate(task, ByteTokenizer(), 3, 1500, template=template):
        assert [item.prompt[start:end] for start, end in item.places] == list(item.answers)
        key = item.prompt.rpartition("\n")[2].removesuffix(":") if template == "short" else ""
        if template == "short" and len(item.answers) == 1:
            start, _ = item.places[0]
            assert item.prompt[:start].endswith(f"{key}: ")
