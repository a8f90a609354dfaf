"""A search on a model whose useful heads are known; killed and resumed; never worse than uniform; splits."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ratplus.config.model import ModelConfig
from ratplus.config.search import SearchSection
from ratplus.data.sampling import IGNORE
from ratplus.data.sources import corpus_of
from ratplus.model import RATPlus
from ratplus.pattern import Pattern, PatternMap
from ratplus.search.budgets import Budget, Prices
from ratplus.search.damage import difference
from ratplus.search.probe import Probes
from ratplus.search.run import check_budgets, run_search
from ratplus.search.screen import screen
from ratplus.search.splits import Rows, Split, make_splits
from ratplus.search.store import ProbeStore
from ratplus.search.units import Space, candidates_of

LENGTH = 32
CONFIG = ModelConfig(vocab_size=40, layers=3, d_model=32, d_head=8, recurrence=False, max_len=LENGTH)
USEFUL = {(0, 1), (1, 3), (2, 0)}


@pytest.fixture(scope="module")
def model():
    """Three layers of four heads; only USEFUL reach the residual stream."""
    torch.manual_seed(0)
    made = RATPlus(CONFIG)
    made.reset_parameters(seed=1, std=0.35)
    with torch.no_grad():
        for layer, block in enumerate(made.blocks):
            for head in range(4):
                if (layer, head) not in USEFUL:
                    block.mixer.out_proj.weight[:, head * 8 : (head + 1) * 8] = 0
    return made.eval()


@pytest.fixture(scope="module")
def splits(model):
    """Random tokens whose labels are what the dense model says next, so that every change of it is damage."""
    found = {}
    for number, name in enumerate(("search", "verify", "test")):
        draw = np.random.default_rng(number)
        groups = {}
        for group, rows in (("text", 9), ("recall", 9)):
            inputs = draw.integers(0, 40, (rows, LENGTH))
            with torch.no_grad():
                labels = model(torch.from_numpy(inputs)).argmax(-1).numpy()
            labels[:, : LENGTH // 2] = IGNORE
            groups[group] = Rows(inputs, labels)
        found[name] = Split(name, groups, f"data {number}", 3)
    return found


def searched(model, splits, folder, on_pass=lambda seconds: None, budget="kv:0.3", **keys):
    given = {"model": "m", "candidates": ["D1", "D4", "D16"], "over": "heads", "swaps": 6, "random": 4} | keys
    section = SearchSection(**given)
    store = None if folder is None else ProbeStore(folder)
    probes = Probes(model, splits, "weights", store, batch=16, on_pass=on_pass)
    prices = {kind: Prices.of(kind, CONFIG, LENGTH) for kind in ("kv", "read", "flops")}
    candidates = candidates_of(section.candidates, True)
    budgets = [Budget.parse(text) for text in budget.split(",")]
    return run_search(probes, section, candidates, budgets, prices), probes


@pytest.mark.parametrize("keys", [{}, {"over": "layers,heads", "anchor": "dense"}])
def test_the_useful_heads_are_found(model, splits, keys):
    result, _ = searched(model, splits, None, **keys)
    (budget,) = result["budgets"]
    dense = {(layer, head) for layer, row in enumerate(budget["cells"]) for head, p in enumerate(row) if p == "D1"}
    assert dense == USEFUL
    assert budget["winner"]["damage"]["mean"] == pytest.approx(0, abs=1e-6)
    assert budget["winner"]["costs"]["kv"] <= 0.3
    assert budget["beats_uniform"] is True
    # Three thirds of the search split, each solved alone, agree in most heads.
    assert len(budget["stability"]["jaccard"]) == 3
    assert min(budget["stability"]["jaccard"]) > 0.5
    named = {row["name"]: row for row in budget["rows"]}
    assert named["best uniform"]["damage"]["mean"] > 0.1
    assert named["ranking reversed"]["damage"]["mean"] > named["best uniform"]["damage"]["mean"] / 2
    assert all(row["damage"]["mean"] >= 0 for row in budget["random"])


def test_several_budgets_share_what_they_measure(model, splits):
    both, probes = searched(model, splits, None, budget="kv:0.3,read:0.15")
    one, alone = searched(model, splits, None)
    assert [b["budget"] for b in both["budgets"]] == ["kv:0.3", "read:0.15"]
    assert both["budgets"][0] == one["budgets"][0]
    assert both["budgets"][1]["winner"]["costs"]["read"] <= 0.15
    assert probes.passes < 1.8 * alone.passes


def test_of_grouped_heads_from_a_sparse_model_alone():
    """What the result says of the model; nothing is predicted where no unit was measured in the dense model."""
    config = ModelConfig(vocab_size=40, layers=1, d_model=32, d_head=8, kv_heads=2, max_len=LENGTH)
    made = RATPlus(config)
    made.reset_parameters(seed=0, std=0.2)
    rows = Rows(*(np.random.default_rng(0).integers(0, 40, (2, 3, LENGTH))))
    splits = {name: Split(name, {"text": rows}, name, 1) for name in ("search", "verify", "test")}
    section = SearchSection(model="m", over="layers", anchor="sparse", swaps=0, random=0, remeasure=0)
    candidates = candidates_of(["D1", "D4"], False)
    prices = {"kv": Prices.of("kv", config, LENGTH)}
    found = run_search(
        Probes(made.eval(), splits, "w", None, batch=16), section, candidates, [Budget.parse("kv:0.5")], prices
    )
    assert found["shape"] == {"layers": 1, "heads": 4, "kv_heads": 2}
    assert (found["budgets"][0]["predicted"], found["budgets"][0]["stability"]) == ([], {})
    assert found["candidates"] == ["D1", "D4"]


@pytest.mark.parametrize(
    ("share", "text", "said"),
    [
        (0.25, "kv:0.25", None),
        (
            0.2501,
            "kv:0.25",
            "D4, costs 0.2501 of the dense model (100.04) at 32 tokens: allow more, or give sparser",
        ),
        (0.999, "latency:0.5", "costs 0.999 of the dense model (1.998 ms) at 32 tokens: allow more"),
        (
            1.0,
            "latency:0.5",
            "costs 1 of the dense model (2 ms) at 32 tokens: no candidate is cheaper than dense",
        ),
    ],
)
def test_a_budget_that_nothing_meets_is_refused_before(share, text, said):
    """The cheapest candidate decides; where none is cheaper than dense, sparser ones would not help."""
    budget = Budget.parse(text)
    limit = float(text.partition(":")[2])
    prices = SimpleNamespace(
        config=CONFIG, length=LENGTH, dense=2 if budget.kind == "latency" else 400, limit=lambda asked: limit,
        map=lambda patterns: share if patterns[0][0] == Pattern(4) else 1.0,
    )  # fmt: skip
    candidates = [Pattern(), Pattern(4)]
    if said is None:
        check_budgets([budget], {budget.kind: prices}, candidates)
        return
    with pytest.raises(ValueError, match=r"^budget: got .*; the cheapest candidate, ") as caught:
        check_budgets([budget], {budget.kind: prices}, candidates)
    assert said in str(caught.value)


class Killed(Exception):
    pass


def test_a_killed_search_loses_one_pass_and_makes_the_same_choice(model, splits, tmp_path):
    whole, _ = searched(model, splits, tmp_path / "whole")
    asked = []

    def kill(seconds):
        asked.append(seconds)
        if len(asked) in (5, 30, 47):
            raise Killed  # as after a pass whose file stands already

    for _ in range(3):
        with pytest.raises(Killed):
            searched(model, splits, tmp_path / "killed", kill)
    resumed, _ = searched(model, splits, tmp_path / "killed", kill)
    assert json.dumps(resumed, sort_keys=True) == json.dumps(whole, sort_keys=True)
    files = {path.name for path in (tmp_path / "whole/probes").iterdir()}
    assert {path.name for path in (tmp_path / "killed/probes").iterdir()} == files
    assert len(asked) == len([name for name in files if not name.startswith("screen")])
    # And once all is there, nothing is run again.
    again, idle = searched(model, splits, tmp_path / "whole", kill)
    assert idle.passes == 0
    assert again["budgets"] == whole["budgets"]


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2}, {"loss": {}}, {"loss": {"text": [1.0], "recall": []}},
        {"loss": {"text": [1.0], "recall": [[1.0]]}},
        {"loss": {"text": [1.0], "recall": [1.0, float("nan")]}}, {"loss": [1.0]}, {"seconds": None},
    ],
)  # fmt: skip
def test_a_file_of_losses_is_whole_or_counts_as_none(tmp_path, changes):
    store, values = ProbeStore(tmp_path), {"text": np.array([1.0, 2.5]), "recall": np.array([3.0])}
    store.put("k", PatternMap.uniform(Pattern(4), 3, 4), "search", values, 0.5)
    found, seconds = store.get("k")
    assert seconds == 0.5
    assert {name: losses.tolist() for name, losses in found.items()} == {"text": [1.0, 2.5], "recall": [3.0]}
    path = store.path("k")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert store.get("k") is None


def test_damaged_probes_are_measured_again(model, splits, tmp_path):
    whole, _ = searched(model, splits, tmp_path)
    paths = sorted((tmp_path / "probes").iterdir())
    paths[0].write_text("{")
    paths[1].write_text('{"format": 1, "loss": {"text": [NaN]}, "seconds": 1}')
    again, probes = searched(model, splits, tmp_path)
    assert probes.passes > 0
    assert again["budgets"] == whole["budgets"]


def test_the_screen_sees_what_heads_send_on_and_not_where_a_pattern_is_dense(model, splits):
    heads, layers = (Space.of(CONFIG, candidates_of(["D1", "D4", "D16"], True), split) for split in (range(3), ()))
    probes = Probes(model, splits, "weights", None, batch=16)
    found = screen(probes, heads)
    assert probes.passes == 1.5  # half a pass for each candidate
    for unit, row in zip(heads.units, found, strict=True):
        useful = (unit.layer, unit.heads[0]) in USEFUL
        assert (row > 0).tolist() == [False, useful, useful]
    np.testing.assert_allclose(screen(probes, layers), found.reshape(3, 4, 3).sum(axis=1))


@pytest.mark.parametrize("damage", ["a number is NaN", "a layer is missing", "cut off"])
def test_a_damaged_screen_is_made_again(model, splits, tmp_path, damage):
    space = Space.of(CONFIG, candidates_of(["D1", "D4"], True), range(3))
    probes = Probes(model, splits, "weights", ProbeStore(tmp_path), batch=16)
    whole = screen(probes, space)
    (path,) = tmp_path.rglob("screen-*.json")
    text = path.read_text()
    heads = json.loads(text)["heads"]
    heads[0][0][1] = float("nan")
    damaged = {"a number is NaN": {"heads": heads}, "a layer is missing": {"heads": json.loads(text)["heads"][1:]}}
    path.write_text(json.dumps(damaged[damage]) if damage in damaged else text[:-9])
    np.testing.assert_array_equal(screen(probes, space), whole)
    assert path.read_text() == text
    assert probes.passes == 2
    screen(probes, space)
    assert probes.passes == 2  # what stands there whole is taken


def test_the_choice_is_never_worse_than_uniform_on_verify(splits):
    """Of random models, whose damages are noise."""
    for seed in range(3):
        made = RATPlus(CONFIG)
        made.reset_parameters(seed=seed, std=0.2)
        result, probes = searched(made.eval(), splits, None, over="layers", budget="kv:0.25", swaps=3, random=0)
        (budget,) = result["budgets"]
        dense = probes.losses(probes.dense, "verify")
        space = Space.of(CONFIG, candidates_of(["D1", "D4", "D16"], True))

        def damage(label, space=space, probes=probes, dense=dense, result=result):
            from ratplus.pattern import PatternMap

            patterns = PatternMap.from_label(label, space.layers, 4)
            return difference(probes.losses(patterns, "verify"), dense, result["weight"]).mean

        fitting = [damage("D4"), damage("D16")]
        assert damage(budget["winner"]["pattern"]) <= min(fitting) + 1e-12


def test_a_pass_from_the_middle_is_bit_for_bit_a_whole_one(model, splits):
    space = Space.of(CONFIG, candidates_of(["D1", "D4", "D16"], True), range(3))
    fresh = Probes(model, splits, "weights", None, batch=16)
    probes = Probes(model, splits, "weights", None, batch=16)
    base = space.map((1,) * 12)
    probes.set_base(base)
    for unit in (1, 6, 10, 3):  # the last one lies before the layer that is held
        patterns = space.substituted(base, space.units[unit], 2)
        a, b = probes.losses(patterns, "search"), fresh.losses(patterns, "search")
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert probes.passes == pytest.approx(1 + 2 / 3 + 1 / 3 + 1)
    with torch.no_grad():
        rows = splits["search"].groups["text"]
        logits = model(torch.from_numpy(rows.inputs), base).double()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(rows.labels).flatten(), ignore_index=IGNORE, reduction="none"
        ).view(rows.labels.shape)
    whole = losses.sum(1).numpy() / (rows.labels != IGNORE).sum(1)
    assert probes.losses(base, "search")["text"] == pytest.approx(whole, rel=1e-5)


def test_a_small_batch_has_all_rows_in_their_order(model, splits):
    patterns = Space.of(CONFIG, candidates_of(["D1", "D4"], True), range(3)).map((1,) * 12)
    whole, parts = (Probes(model, splits, "weights", None, batch=batch) for batch in (16, 4))
    for split in splits:
        expected, found = whole.losses(patterns, split), parts.losses(patterns, split)
        assert list(found) == list(expected) == ["text", "recall"]
        for group, losses in expected.items():
            assert found[group] == pytest.approx(losses, rel=1e-5)
        held = parts.batches(split)
        assert [len(one.tokens) for one in held] == [4, 4, 1] * 2  # nine rows of each group
        rows = splits[split].groups["recall"]
        assert np.array_equal(torch.cat([one.tokens for one in held[3:]]), rows.inputs)
        assert np.array_equal(torch.cat([one.labels for one in held[3:]]), rows.labels)


def test_a_screen_is_of_a_token_whatever_the_batch(model, splits):
    space = Space.of(CONFIG, candidates_of(["D1", "D4", "D16"], True), range(3))
    found = [screen(Probes(model, splits, "weights", None, batch=batch), space) for batch in (16, 4)]
    assert found[0].shape == (12, 3)
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-9)
    useful = [(unit.layer, *unit.heads) in USEFUL for unit in space.units]
    assert (found[0][:, 0] == 0).all(), "dense changes nothing"
    assert [(row[1:] > 0).all() for row in found[0]] == useful


def test_the_splits_share_no_document(tmp_path):
    from ratplus.config.data import DataSection

    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"Document {number} says {number * 7919}. " * 40)
    data = DataSection(source="text", path=str(tmp_path), root=str(tmp_path / "data"), validation_fraction=0.5)
    corpus = corpus_of(data)
    section = SearchSection(model="m", text_rows=8, tasks=["niah_single_1"], items=4, template="short")
    found = make_splits(section, corpus, None, 256)
    texts = {}
    for name, split in found.items():
        assert set(split.groups) == {"text", "niah_single_1"}
        assert split.documents >= 3
        rows = split.groups["niah_single_1"]
        answers = [bytes(row[row != IGNORE].astype(np.uint8)).decode() for row in rows.labels]
        assert all(answer.strip().isdigit() for answer in answers)
        whole = corpus.tokenizer().decode(split.groups["text"].inputs.flatten().tolist())
        texts[name] = {word for word in whole.split() if word.rstrip(".").isdigit() and len(word) > 4}, set(answers)
    for a, b in (("search", "verify"), ("search", "test"), ("verify", "test")):
        assert not texts[a][0] & texts[b][0]
        assert not texts[a][1] & texts[b][1]
    assert make_splits(section, corpus, None, 256)["test"].sha256 == found["test"].sha256
    with pytest.raises(ValueError, match=r"length: got 60000; the \w+ split has \d+ tokens"):
        make_splits(section, corpus, None, 60000)
