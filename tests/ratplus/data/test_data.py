"""Token streams, sampling and the recall task."""

import ast
import json
import shutil
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ratplus.config.cell import Config
from ratplus.config.data import DataSection, RecallSection
from ratplus.config.train import RecipeSection
from ratplus.data import sources
from ratplus.data.batches import Batches, deal, row_counts
from ratplus.data.corpus import Corpus, CorpusError, check_ids, open_corpus, write_corpus
from ratplus.data.recall import RecallTask
from ratplus.data.sampling import IGNORE, ordered_rows, random_rows
from ratplus.data.sources import prepare, pydocs, text_files
from ratplus.data.tokenizer import ByteTokenizer


@pytest.fixture
def corpus(tmp_path):
    documents = [(f"doc{i}", f"Document {i}: " + "abc " * 40) for i in range(60)]
    return write_corpus(tmp_path / "corpus", documents, source={"name": "test"}, validation_fraction=0.2)


def test_round_trip_and_split(corpus):
    opened = open_corpus(corpus)
    tokenizer = ByteTokenizer()
    texts = [tokenizer.decode(part) for part in np.split(opened.train, np.flatnonzero(opened.train == 256) + 1)]
    assert texts[0].startswith("Document ")
    splits = opened.manifest["splits"]
    assert splits["train"]["documents"] + splits["validation"]["documents"] == 60
    assert 3 <= splits["validation"]["documents"] <= 24
    assert len(opened.train) == splits["train"]["tokens"]
    assert (opened.train == 256).sum() == splits["train"]["documents"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train.bin").unlink(), "train.bin: file is missing"),
        (lambda f: (f / "train.bin").write_bytes((f / "train.bin").read_bytes()[:-7]), "truncated"),
        (lambda f: flip(f / "validation.bin"), "SHA-256 differs"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json: damaged"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json: damaged .not a JSON object"),
        (lambda f: (f / "manifest.json").write_text('{"format": 2}'), "format 2; this version reads format 1"),
        (lambda f: (f / "manifest.json").unlink(), "no corpus here"),
    ],
)
def test_damage_is_seen(corpus, damage, message):
    damage(corpus)
    with pytest.raises(CorpusError, match=message):
        open_corpus(corpus)


def flip(path):
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(bytes(data))


def test_an_id_outside_the_vocabulary(corpus):
    """A stream made with another tokenizer than its manifest says."""
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["tokenizer"]["vocab_size"] = 200
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match=r"token \d+ has id 256, but the vocabulary has 200 ids"):
        open_corpus(corpus)
    check_ids(np.arange(200), 200, "here")
    with pytest.raises(CorpusError, match="here: token 199 has id 199, but the vocabulary has 199 ids"):
        check_ids(np.arange(200), 199, "here")


def test_pydocs_is_real_text():
    documents = pydocs()
    size = sum(len(text) for _, text in documents)
    assert 1.0e6 < size < 6e6
    assert "topic:for" in dict(documents)
    names = [name for name, _ in documents]
    assert len(set(names)) == len(names)


def test_pydocs_takes_docstrings_in_the_order_of_the_syntax_tree(tmp_path, monkeypatch):
    """Where definitions hide in every kind of block, the text is that of ast.walk; twice, it is the same text."""
    (tmp_path / "module.py").write_text(
        '"""module"""\ntry:\n def a():\n  "a"\n  class Inside:\n   "inside"\nexcept OSError:\n'
        ' async def b():\n  "b"\nelse:\n def c():\n  "c"\nfinally:\n def d():\n  "d"\n'
        'match 1:\n case 1:\n  def e():\n   "e"\nif 1:\n pass\nelif 2:\n def f():\n  "f"\n'
        'for _ in ():\n pass\nelse:\n def g():\n  "g"\nwith open("x"):\n def h():\n  "h"\nclass I:\n "i"\n'
    )
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    tree = ast.parse((tmp_path / "module.py").read_text())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    expected = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    assert sorted(expected) == ["a", "b", "c", "d", "e", "f", "g", "h", "i", "inside", "module"]
    documents = pydocs()
    assert dict(documents)["module.py"] == "\n\n".join(expected) + "\n"
    assert documents == pydocs()


def test_own_text_files(tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("Kürzlich. " * 300, encoding="utf-8")
    (tmp_path / "books" / "picture.png").write_bytes(b"\x89PNG")
    data = DataSection(source="text", path=str(tmp_path / "books"), root=str(tmp_path / "data"))
    folder = prepare(data)
    opened = open_corpus(folder)
    total = sum(s["tokens"] - s["documents"] for s in opened.manifest["splits"].values())
    assert total == len("Kürzlich. ".encode()) * 300
    assert prepare(data) == folder
    text = (tmp_path / "books" / "one.txt").read_text(encoding="utf-8")
    (tmp_path / "books" / "one.txt").write_text(text.replace("K", "k"), encoding="utf-8")  # as long as before
    with pytest.raises(CorpusError, match="the files changed since"):
        prepare(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such file or folder"),
        (lambda p: p.mkdir(), "no text files in this folder"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "not UTF-8 text"),
        (lambda p: p.write_text("x"), "no document fell into the"),
    ],
)
def test_bad_text_sources(tmp_path, make, message):
    path = tmp_path / "x.txt"
    make(path)
    with pytest.raises(CorpusError, match=message):
        prepare(DataSection(source="text", path=str(path), root=str(tmp_path / "data")))
    assert not list((tmp_path / "data").rglob("*.*"))


@pytest.mark.parametrize(("files", "pieces"), [(1, 40), (39, 40), (40, 1), (41, 1)])
def test_few_files_are_cut_into_pieces(tmp_path, files, pieces):
    """Below ten of them for each held-out one; each piece but the last is as long as the others, and none is empty."""
    written = {f"{n:02}.txt": "".join(chr(97 + (n + i) % 26) for i in range(100 + n)) for n in range(files)}
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    found = list(sources._read_documents(text_files(tmp_path), 0.25))
    assert len({name for name, _ in found}) == len(found)
    for name, text in written.items():
        own = [piece for key, piece in found if key.startswith(f"{name}#")]
        size = -(-len(text) // pieces)
        assert own == [text[at : at + size] for at in range(0, len(text), size)]


def test_a_file_shorter_than_its_pieces(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffabc")
    (tmp_path / "b.txt").write_text("")
    found = list(sources._read_documents(text_files(tmp_path), 0.1))
    assert found == [("a.txt#0", "a"), ("a.txt#1", "b"), ("a.txt#2", "c")]


def test_text_files_keep_a_fixed_order(tmp_path):
    for name in ("b.txt", "a.md", "c/d.rst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.txt").mkdir()
    assert [name for name, _ in text_files(tmp_path)] == ["a.md", "b.txt", "c/d.rst"]


def test_sampling_is_a_function_of_step_and_the_same_for_any_number_of_ranks(corpus):
    stream = np.arange(10_000, dtype=np.uint16)
    for rows in (ordered_rows(stream, 5, 8, 32), random_rows(stream, 3, 5, 8, 32)):
        assert rows.shape == (8, 33)
        np.testing.assert_array_equal(np.diff(rows, axis=1), 1)
    first = random_rows(stream, 3, 5, 8, 32)
    np.testing.assert_array_equal(first, random_rows(stream, 3, 5, 8, 32))
    for other in (
        random_rows(stream, 3, 6, 8, 32),
        random_rows(stream, 4, 5, 8, 32),
        random_rows(stream, 3, 5, 8, 32, 1),
    ):
        assert not np.array_equal(first, other)

    config = Config()
    config.train.context = 128
    batches = Batches.of(config, open_corpus(corpus))
    for recipe in (RecipeSection(batch=8), RecipeSection(batch=8, order="random")):
        whole = batches.train(recipe, "adapt", 5)
        for count in (2, 4, 8):
            parts = deal(whole, count)
            assert all(parts)
            for which in range(2):
                dealt = [bytes(np.ascontiguousarray(row)) for part in parts for group in part for row in group[which]]
                rows = [bytes(np.ascontiguousarray(row)) for group in whole for row in group[which]]
                assert sorted(dealt) == sorted(rows)
        # 4 text rows and 4 of recall: each of 8 micro-batches has one of the two, and one that weighs nothing.
        alike = deal(whole, 8, alike=8)
        assert {tuple(len(inputs) for inputs, _ in part) for part in alike} == {(1, 1)}
        counted = sum(int((labels != IGNORE).sum()) for part in alike for _, labels in part)
        assert counted == sum(int((labels != IGNORE).sum()) for _, labels in whole)


def test_ordered_reading_wraps_and_covers_everything():
    stream = np.arange(101)
    starts = np.concatenate([ordered_rows(stream, step, 3, 10)[:, 0] for step in range(10)])
    assert sorted(set(starts)) == list(range(0, 100, 10))
    assert [starts[10], starts[11]] == [0, 10]


def test_windows_of_a_stream_that_the_context_divides():
    """The last token of a stream is a label only, so the last window that would begin in it is not whole."""
    stream = np.arange(100, dtype=np.uint16)
    rows = ordered_rows(stream, 0, 10, 10)
    assert rows.shape == (10, 11)
    assert rows[8].tolist() == list(range(80, 91))
    assert rows[9].tolist() == rows[0].tolist()
    assert ordered_rows(np.arange(101), 0, 10, 10)[9].tolist() == list(range(90, 101))
    for length, windows in ((100, 9), (101, 10), (109, 10)):
        corpus = Corpus(Path(), {"tokenizer": {"vocab_size": 257, "eos_id": 256}}, stream, np.arange(length))
        inputs, labels = Batches(corpus, None, 0.0, 10, 0).held_out_text(50)
        assert inputs.shape == labels.shape == (windows, 10)
        assert labels[-1, -1] == 10 * windows


def test_a_stream_shorter_than_a_row():
    with pytest.raises(ValueError, match="holds only 20 tokens; it needs at least 33"):
        ordered_rows(np.arange(20), 0, 1, 32)


def test_random_offsets_reach_both_ends():
    stream = np.arange(34)
    starts = {int(row[0]) for step in range(50) for row in random_rows(stream, 0, step, 4, 32)}
    assert starts == {0, 1}


def test_recall_rows_can_be_answered_and_only_from_their_pairs():
    task = RecallTask(base=257, length=64, keys=6, values=4, pairs=5)
    inputs, labels, distances = task.rows(0, 1, 7, 16)
    assert inputs.shape == labels.shape == distances.shape == (16, 64)
    assert inputs.max() < task.vocab_size
    pair_base, query_base, answer_base = 258, 258 + 24, 258 + 24 + 6
    for x, y, distance in zip(inputs, labels, distances):
        stored = {}
        for position in np.flatnonzero(x[:32] != 257):
            key, value = divmod(int(x[position]) - pair_base, 4)
            assert key not in stored
            stored[key] = (value, position)
        assert len(stored) == 5
        assert (y[:32] == IGNORE).all()
        for t in range(32, 64):
            value, position = stored[int(x[t]) - query_base]
            assert y[t] == answer_base + value
            assert distance[t] == t - position


def test_recall_draws_differ_by_step_seed_and_purpose():
    task = RecallTask.of(RecallSection(), 257)
    first = task.rows(0, 1, 0, 4)[0]
    np.testing.assert_array_equal(first, task.rows(0, 1, 0, 4)[0])
    for other in (task.rows(1, 1, 0, 4), task.rows(0, 2, 0, 4), task.rows(0, 1, 1, 4)):
        assert not np.array_equal(first, other[0])


def test_batches_mix_text_and_recall_by_tokens(corpus):
    config = Config()
    config.train.context = 256
    batches = Batches.of(config, open_corpus(corpus))
    (text, text_labels), (recall, _) = batches.train(RecipeSection(batch=8), "pretrain", 0)
    assert text.shape == (4, 256)
    assert recall.shape == (8, 128)
    np.testing.assert_array_equal(text[:, 1:][text[:, :-1] != 256], text_labels[:, :-1][text[:, :-1] != 256])
    assert (text_labels[text == 256] == IGNORE).all()
    halves = deal(batches.train(RecipeSection(batch=8), "pretrain", 0), 2)
    assert [g[0].shape for g in halves[0]] == [(2, 256), (4, 128)]
    held_out = batches.held_out_recall(8)[0]
    trained = np.concatenate([batches.train(RecipeSection(batch=8), "pretrain", s)[1][0] for s in range(20)])
    for order in ("ordered", "random"):
        first, other = (batches.train(RecipeSection(batch=8, order=order), p, 0) for p in ("pretrain", "adapt"))
        assert not np.array_equal(first[1][0], other[1][0])
        assert order == "ordered" or not np.array_equal(first[0][0], other[0][0])
    assert not any((row == held_out).all(axis=1).any() for row in trained)


@pytest.mark.parametrize(
    ("batch", "context", "fraction", "length", "rows"),
    [
        (8, 256, 0.5, 128, (4, 8)), (8, 256, 0.0, 128, (8, 0)), (8, 256, 1.0, 128, (0, 16)),
        (8, 128, 0.3, 64, (6, 5)),  # 2.4 text rows' worth of tokens, which are 4.8 recall rows
        (8, 128, 0.35, 64, (5, 6)),  # 2.8, and 5.6
        (3, 64, 0.1, 64, (3, 0)),  # 0.3 of either: no row at all
    ],
)  # fmt: skip
def test_counts_of_rows_are_rounded_to_the_nearest(batch, context, fraction, length, rows):
    assert row_counts(batch, context, RecallSection(fraction=fraction, length=length)) == rows


def test_the_identity_of_a_known_corpus_stays():
    """Ids of finished stages hang on it: a fixed text has the hashes that it had in the first version."""
    with tempfile.TemporaryDirectory() as place:
        documents = [(f"doc{i}", f"Grüße {i}") for i in range(20)]
        folder = write_corpus(Path(place) / "c", documents, source={}, validation_fraction=0.3)
        assert open_corpus(folder).identity == {
            "tokenizer": "bytes",
            "sha256": {
                "train": "d690adb55f13d695e30729c0419d83c3b5f2c6ca1a27a5dadec886259bfcad87",
                "validation": "d0bdcee55542a23e0ca8cded0cda5950f50c7c41af9d121609d21306cc54a154",
            },
        }


def test_prepared_folder_can_be_moved(corpus, tmp_path):
    """What enters an id is the content, not the place."""
    before = open_corpus(corpus).identity
    moved = shutil.move(corpus, tmp_path / "elsewhere")
    assert open_corpus(moved).identity == before


def test_recall_asks_for_every_pair():
    task = RecallTask(base=10, length=64, keys=4, values=4, pairs=4)
    inputs, _, _ = task.rows(seed=0, stream=0, step=0, batch=8)
    assert [len(set(row[32:].tolist())) for row in inputs] == [4] * 8
