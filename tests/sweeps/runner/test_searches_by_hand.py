"""`ratplus search` around the search itself: files that it may write, what a dry run says, and which model is meant."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ratplus.checkpoint.facts import CheckpointError
from ratplus.config.model import ModelConfig
from ratplus.config.search import SearchSection
from ratplus.data.corpus import CorpusError
from ratplus.records.reading import LinkError
from ratplus.search import budgets as search_budgets
from ratplus.search import effort
from ratplus.search import run as search_run
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.runner import pattern_search, searched_model
from ratplus.sweeps.runner.pattern_search import _check_folder, _pattern_paths, duration, pattern_yaml, run_line

SHAPE = ModelConfig(vocab_size=50, layers=2, d_model=32, d_head=8, max_len=64)
FOUND: Any = SimpleNamespace(name="m", folder=Path("m"), weights="w", shape=SHAPE, corpus=None, recall=None)


def budgets(*names: str) -> list:
    return [SimpleNamespace(file_name=name, kind=name.partition("-")[0]) for name in names]


# ---- files --------------------------------------------------------------------------------------------------------


def test_where_patterns_go(tmp_path):
    section, out = SearchSection(model="m"), tmp_path / "new" / "mine.yml"
    assert _pattern_paths(section, tmp_path, budgets("kv-0.25")) == [tmp_path / "best.yaml"]
    both = budgets("kv-0.25", "kv-0.5")
    assert _pattern_paths(section, tmp_path, both) == [tmp_path / f"best-kv-{n}.yaml" for n in ("0.25", "0.5")]
    own = SearchSection(model="m", out=str(out))
    assert _pattern_paths(own, tmp_path, both[:1]) == [out]
    assert out.parent.is_dir()
    assert _pattern_paths(own, tmp_path, both) == [out.with_name(f"mine-kv-{n}.yml") for n in ("0.25", "0.5")]
    out.write_text(pattern_search._HEAD + " for another model\n")
    assert _pattern_paths(own, tmp_path, both[:1]) == [out]


def test_what_others_wrote_is_not_replaced(tmp_path):
    out = tmp_path / "mine.yaml"
    section = SearchSection(model="m", out=str(out))
    for make in (
        lambda: out.write_text("dilation: 4\n"), lambda: out.write_text(pattern_search._HEAD[:-1]),
        lambda: out.symlink_to(tmp_path / "gone"),
    ):  # fmt: skip
        make()
        with pytest.raises(UsageError) as told:
            _pattern_paths(section, tmp_path, budgets("kv"))
        assert str(told.value) == f"out: {out}: is there, and no search wrote it; it is not replaced"
        out.unlink()
    out.mkdir()
    with pytest.raises(UsageError, match=r"^out: .*mine.yaml: cannot be written \(is a folder\)$"):
        _pattern_paths(section, tmp_path, budgets("kv"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"^out: .*file/x.yaml: cannot be written \((Not a directory|File exists)\)$"):
        _pattern_paths(SearchSection(model="m", out=str(tmp_path / "file" / "x.yaml")), tmp_path, budgets("kv"))


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        (None, True), ('{"format": 1, "kinds": {}, "spent": {}}', True), ('{"format": 1, "kinds": {}}', False),
        ("[]", False), ("{", False), ('{"format": 1, "kinds": {}, "spent": {}, "more": 1}', True),
    ],
)  # fmt: skip
def test_a_folder_that_is_a_searches_own(tmp_path, text, fine):
    if text is not None:
        (tmp_path / "search.json").write_text(text)
    if fine:
        _check_folder(tmp_path)
    else:
        with pytest.raises(UsageError) as told:
            _check_folder(tmp_path)
        assert str(told.value) == f"output={tmp_path}: holds search.json, and no search wrote it; it is not replaced"
    (tmp_path / "search.json").unlink(missing_ok=True)
    (tmp_path / "there.json").write_text('{"format": 1, "kinds": {}, "spent": {}}')
    (tmp_path / "search.json").symlink_to(tmp_path / "there.json")
    with pytest.raises((UsageError, LinkError)):
        _check_folder(tmp_path)
    (tmp_path / "search.json").unlink()
    (tmp_path / "sweep.json").touch()
    with pytest.raises(UsageError, match="is a sweep folder; a search has a folder of its own"):
        _check_folder(tmp_path)


def test_a_winner_as_a_file_and_as_a_command():
    damage = {"mean": 0.01234, "low": 0.01, "high": 0.02}
    winner = {"damage": damage, "costs": {"kv": 0.24567, "read": 1.0}, "pattern": "layers[D1,D4]",
              "map": {"dilation": [1, 4], "window": 0}}  # fmt: skip
    text = pattern_yaml({"winner": winner, "budget": "kv:0.25", "kind": "kv"}, {"model": "m", "length": 64})
    assert text.splitlines() == [
        f"{pattern_search._HEAD} for m, kv:0.25 at 64 tokens: 0.2457 of the dense model.",
        "# Damage on the test split: 0.0123 nats, 95% interval 0.0100 to 0.0200.", "# layers[D1,D4]",
        "dilation: [1, 4]", "window: 0",
    ]  # fmt: skip
    assert text.endswith("window: 0\n")
    found: Any = SimpleNamespace(config=SimpleNamespace(model=SimpleNamespace(name="m")))
    assert run_line(found, {"winner": winner}) == "ratplus evaluate model=m 'pattern=layers[D1,D4]'"
    found.config.model.name = ""
    assert run_line(found, {"winner": {"pattern": "D4"}}) == "ratplus evaluate model=MODEL pattern=D4"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119.9, "120 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (36000, "10.0 h")],
)
def test_how_long(seconds, text):
    assert duration(seconds) == text


# ---- a dry run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "passes", "each"), [(60.0, 2, 2.0), (60.5, 1, 60.5)])
def test_lines_of_a_dry_run(monkeypatch, capsys, first, passes, each):
    now = iter((0.0, first, 100.0, 102.0))
    told: list = []
    probes = SimpleNamespace(forget=lambda: told.append("forget"), losses=lambda *words: told.append(words), dense="D")
    monkeypatch.setattr(pattern_search, "_probes", lambda *_: probes)
    monkeypatch.setattr(pattern_search.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(search_budgets.Prices, "of", lambda kind, shape, length, fit=None: (kind, length))
    checked: list = []
    monkeypatch.setattr(search_run, "check_budgets", lambda *words: checked.append(words))
    monkeypatch.setattr(pattern_search, "_plan", lambda *_: {"probe": 10.0, "verify": 5.25})
    asked = budgets("kv-1", "latency-1", "read-1")
    groups = {"text": SimpleNamespace(inputs=[1, 2]), "recall": SimpleNamespace(inputs=[1])}
    splits = {"search": SimpleNamespace(groups=groups, tokens=12345, documents=3)}
    section = SearchSection(model="m")
    assert pattern_search._dry_run(section, FOUND, ["c"], asked, splits, 64) == 0
    assert checked == [([asked[0], asked[2]], {"kv": ("kv", 64), "read": ("read", 64)}, ["c"])]
    assert told == ["forget", ("D", "search")] * passes
    assert capsys.readouterr().out.splitlines() == [
        f"{'probe':<36} {10.0:>9.1f} passes", f"{'verify':<36} {5.25:>9.1f} passes",
        f"{'at most':<36} {15.25:>9.1f} passes, {each:.2f} s each: about {duration(15.25 * each)}",
        "search split: 12,345 tokens, 3 documents; rows: 2 of text, 1 of recall",
    ]  # fmt: skip


@pytest.mark.parametrize(("over", "split"), [("layers", ()), ("heads", range(2)), ("layers,heads", ())])
def test_units_that_a_plan_counts(monkeypatch, over, split):
    given: list = []
    monkeypatch.setattr("ratplus.search.units.Space.of", lambda *words: words)
    monkeypatch.setattr(effort, "planned", lambda *words: given.append(words) or {"p": 1.0})
    section = SearchSection(model="m", over=over)
    assert pattern_search._plan(section, FOUND, ["c"], ["b"]) == {"p": 1.0}
    assert given == [((SHAPE, ["c"], split), section, ["c"], ["b"])]


@pytest.mark.parametrize("latency", [True, False])
def test_kinds_of_prices(monkeypatch, latency):
    monkeypatch.setattr(pattern_search, "_latency_fit", lambda *words: ("fit", *words[2:]))
    monkeypatch.setattr(search_budgets.Prices, "of", lambda *words: words)
    asked = budgets("kv-1", *(["latency-1"] if latency else []))
    prices, fitted = pattern_search._prices(SearchSection(model="m"), FOUND, "model", ["c"], asked, 64, Path("x"))
    fit = ("fit", "model", ["c"], 64, Path("x")) if latency else None
    assert fitted == fit
    kinds = ["kv", "read", "flops", *(["latency"] if latency else [])]
    assert prices == {kind: (kind, SHAPE, 64, fit) for kind in kinds}
    assert list(prices) == kinds


def test_winners_are_timed_beside_the_dense_model(monkeypatch):
    from ratplus.search import latency

    given: list = []

    def decode_ms(model, maps, length):
        given.append((model, [one.label for one in maps], length))
        return {"D1": 9.0, **{one.label: float(number) for number, one in enumerate(maps)}}

    monkeypatch.setattr(latency, "decode_ms", decode_ms)
    winners = [{"budget": name, "winner": {"pattern": label}} for name, label in (("a", "D4"), ("b", "layers[D1,D4]"))]
    result = {"shape": {"layers": 2, "heads": 4}, "budgets": winners}
    pattern_search._time_winners("model", result, 64)
    assert given == [("model", ["D4", "layers[D1,D4]"], 64)]
    assert [(one["winner"]["decode_ms"], one["winner"]["dense_decode_ms"]) for one in winners] == [
        (0.0, 9.0),
        (1.0, 9.0),
    ]


# ---- which model --------------------------------------------------------------------------------------------------


@pytest.fixture
def located(monkeypatch):
    """What `locate` hands on, instead of reading anything."""
    made: list = []
    monkeypatch.setattr(searched_model, "_of_stage", lambda *words: made.append(("stage", *words[1:])) or "s")
    monkeypatch.setattr(searched_model, "_of_folder", lambda *words: made.append(("folder", *words[1:])) or "f")
    monkeypatch.setattr(searched_model, "find_stage", lambda *words: made.append(words) or ("S", "adapt", "i"))
    return made


def test_a_stage_by_its_id_or_folder_and_a_model_folder(tmp_path, monkeypatch, located):
    monkeypatch.chdir(tmp_path)
    searched_model.locate(SearchSection(model="abc123", sweep="there"), ["a=1"])
    help_line = ("search", "give another folder with sweep=")
    assert located == [("abc123", "there", *help_line), ("stage", ["a=1"], "S", "adapt", "i")]
    located.clear()
    for wrong in ("xyz", "0" * 13, "ab/c", "ABC"):
        with pytest.raises(UsageError) as told:
            searched_model.locate(SearchSection(model=wrong), [])
        assert str(told.value) == f"model={wrong}: no such folder, and not an id of a stage"
    for stage in ("pretrain", "adapt", "sft", "evaluate", "other"):
        place = tmp_path / "sweep" / stage / "abc"
        place.mkdir(parents=True)
        searched_model.locate(SearchSection(model=f"sweep/{stage}/abc"), ["a"])
        assert located.pop() == ("folder", ["a"], Path(f"sweep/{stage}/abc"))
    (tmp_path / "sweep" / "sweep.json").touch()
    for stage in ("pretrain", "adapt", "sft", "evaluate"):
        searched_model.locate(SearchSection(model=f"sweep/{stage}/abc"), [])
        assert located.pop() == ("stage", [], tmp_path / "sweep", stage, "abc")
    searched_model.locate(SearchSection(model="sweep/other/abc"), [])
    assert located.pop()[0] == "folder"


def test_a_stage_of_a_sweep(tmp_path, monkeypatch):
    section, config = SearchSection(model="e" * 12), compose_one(["data.recall.fraction=0"]).config
    stages = {"pretrain": "p", "adapt": "a", "evaluate": "e"}
    cells = [
        {"stages": {"pretrain": "p", "evaluate": "other"}, "corpus": "wrong"},
        {"stages": stages, "corpus": "text"},
    ]
    read: list = []
    monkeypatch.setattr(searched_model, "read_manifest", lambda sweep: {"cells": cells})
    monkeypatch.setattr(searched_model, "read_facts", lambda folder: read.append(folder) or (SHAPE, "sha"))
    monkeypatch.setattr(searched_model, "cell_config", lambda cell: cell)
    monkeypatch.setattr(searched_model, "typed", lambda cell: config)
    corpus = SimpleNamespace(vocab_size=256)
    monkeypatch.setattr(searched_model, "made_corpus", lambda data, identity: read.append(identity) or corpus)
    for stage, key, name in (("evaluate", "e", "adapt-a"), ("adapt", "a", "adapt-a")):
        read.clear()
        found = searched_model._of_stage(section, [], tmp_path, stage, key)
        assert (found.name, found.folder) == (f"ratplus_tiny-{name}", tmp_path / "adapt" / "a")
        assert (found.weights, found.shape, found.config, found.corpus) == ("sha", SHAPE, config, corpus)
        assert found.recall is None
        assert read == [tmp_path / "adapt" / "a", "text"]
    with pytest.raises(UsageError, match="whose config says what it reads; leave the word out"):
        searched_model._of_stage(section, ["a=1"], tmp_path, "adapt", "a")
    with pytest.raises(UsageError, match=r"sweep.json knows no such stage"):
        searched_model._of_stage(section, [], tmp_path, "adapt", "p")
    monkeypatch.setattr(searched_model, "made_corpus", lambda *_: (_ for _ in ()).throw(CorpusError("gone")))
    with pytest.raises(UsageError, match=f"^model={'e' * 12}: gone$"):
        searched_model._of_stage(section, [], tmp_path, "adapt", "a")
    monkeypatch.setattr(searched_model, "read_facts", lambda *_: (_ for _ in ()).throw(CheckpointError("none")))
    with pytest.raises(UsageError, match="no trained model yet: none$"):
        searched_model._of_stage(section, [], tmp_path, "adapt", "a")
    with_recall = compose_one([]).config
    assert with_recall.data.recall.fraction > 0
    assert searched_model._recall(with_recall, corpus).vocab_size > 256


@pytest.mark.parametrize(("words", "length"), [([], 64), (["train.context=32"], 32), (["+train.contexts=1"], None)])
def test_a_model_folder_is_used_at_its_own_length_unless_it_is_told(tmp_path, monkeypatch, words, length):
    composed: list = []
    config = compose_one(["data.recall.fraction=0", "train.context=48"]).config

    def compose(found):
        composed.append(found)
        return SimpleNamespace(config=config)

    monkeypatch.setattr(searched_model, "read_start", lambda folder: (SHAPE, "x"))
    monkeypatch.setattr(searched_model, "compose_one", compose)
    monkeypatch.setattr(searched_model, "corpus_of", lambda data: SimpleNamespace(vocab_size=256))
    weights: list = []
    monkeypatch.setattr(searched_model, "weights_of", lambda *given: weights.append(given) or ("sha", 300))
    folder = tmp_path / "a b"
    folder.mkdir()
    found = searched_model._of_folder(SearchSection(model=str(folder)), words, folder)
    own = [] if length == 32 else ["train.context=64"]
    assert composed == [[f'model.init_from="{folder}"', *own, *words]]
    assert (found.name, found.folder, found.weights, found.config) == ("a b", folder, "sha", config)
    assert (found.shape.vocab_size, found.shape.max_len, found.recall) == (300, 48, None)
    assert weights == [(config, 256, 256)]
    monkeypatch.setattr(searched_model, "read_start", lambda *_: (_ for _ in ()).throw(CheckpointError("none")))
    with pytest.raises(UsageError, match="^model: none$"):
        searched_model._of_folder(SearchSection(model="x"), [], folder)
