"""Tokenizers from files: what they give, and what is said of wrong ones."""

import json
import os
import sys

import pytest
from corpora import texts, train_bpe, train_sentencepiece

from ratplus.data import tokenizer_trial
from ratplus.data.tokenizer import ByteTokenizer, TokenizerError, load_tokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": "bytes",
        "huggingface": train_bpe(place / "hf" / "tokenizer.json"),
        "sentencepiece": train_sentencepiece(place / "sp" / "tokenizer.model"),
    }


@pytest.mark.parametrize("kind", ["bytes", "huggingface", "sentencepiece"])
def test_round_trip(files, kind):
    tokenizer = load_tokenizer(files[kind])
    for text in texts(5, seed=9):
        ids = tokenizer.encode(text)
        assert all(isinstance(i, int) and 0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.eos_id not in ids
        # LLaMA's kind of model normalizes white space, as SentencePiece does by default.
        same = (lambda t: " ".join(t.split())) if kind == "sentencepiece" else (lambda t: t)
        assert same(tokenizer.decode([*ids, tokenizer.eos_id])) == same(text)
    together = tokenizer.encode_batch(texts(3))
    assert [ids.tolist() for ids in together] == [tokenizer.encode(text) for text in texts(3)]


def test_names_tell_tokenizers_apart(files, tmp_path):
    other = train_bpe(tmp_path / "tokenizer.json", vocab=350)
    names = {load_tokenizer(path).name for path in (*files.values(), other)}
    assert len(names) == 4
    assert load_tokenizer(files["huggingface"].parent).name == load_tokenizer(files["huggingface"]).name


def test_text_that_looks_like_a_special_token_ends_nothing(files):
    for kind in ("huggingface", "sentencepiece"):
        tokenizer = load_tokenizer(files[kind])
        assert tokenizer.eos_id not in tokenizer.encode("a <|endoftext|> b </s> c")


def test_end_of_text(files, tmp_path):
    bpe = files["huggingface"]
    assert load_tokenizer(bpe).eos_id == 0
    assert load_tokenizer(files["sentencepiece"]).eos_id == 2
    assert load_tokenizer(bpe, 5).eos_id == 5
    strange = train_bpe(tmp_path / "tokenizer.json", special="[END]")
    with pytest.raises(TokenizerError, match=r"names no token that ends a text; give data\.eos="):
        load_tokenizer(strange)
    assert load_tokenizer(strange, "[END]").eos_id == 0
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "[END]"}}))
    assert load_tokenizer(strange).eos_id == 0


@pytest.mark.parametrize(
    ("which", "eos", "message"),
    [
        (None, None, r"data\.tokenizer: got null; give the path"),
        ("nowhere.json", None, r"data\.tokenizer=nowhere\.json: no such file; allowed: bytes"),
        ("text.txt", None, "unknown kind of file"),
        ("broken.json", None, "not a Hugging Face tokenizer.json"),
        ("broken.model", None, "not a SentencePiece model"),
        ("empty", None, r"no tokenizer\.json or tokenizer\.model in this folder"),
        ("good.json", "</none>", "has no token '</none>'"),
        ("good.json", 4000, "id 4000 is not among the 400 ids"),
        ("bytes", 3, "bytes have their own end of text"),
    ],
)
def test_mistakes(files, tmp_path, monkeypatch, which, eos, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("text.txt", "broken.json", "broken.model"):
        (tmp_path / name).write_text("{")
    (tmp_path / "good.json").write_bytes(files["huggingface"].read_bytes())
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(which, eos)
    assert "\n" not in str(caught.value)


def test_what_begins_a_text(files):
    for kind in ("huggingface", "sentencepiece"):
        plain = load_tokenizer(files[kind])
        vocab, ids = plain.vocab_size, plain.encode("the cat sat")
        assert (plain.bos_id, "bos_id" in plain.facts) == (None, False)
        for bos in (0, vocab - 1):
            begun = load_tokenizer(files[kind], bos=bos)
            assert begun.encode("the cat sat") == [bos, *ids]
            assert [row.tolist() for row in begun.encode_batch(["", "the cat sat"])] == [[bos], [bos, *ids]]
            assert begun.facts == plain.facts | {"bos_id": bos}
            assert begun.decode([bos + vocab, -1, *ids]) == plain.decode(ids), "no such ids, and so no text"
        for wrong in (-1, vocab):
            with pytest.raises(TokenizerError, match=rf"data\.bos: id {wrong} is not among the {vocab} ids"):
                load_tokenizer(files[kind], bos=wrong)
    assert load_tokenizer(files["sentencepiece"], bos=True).bos_id == 1
    assert load_tokenizer(files["sentencepiece"], bos="<s>").bos_id == 1
    assert load_tokenizer(files["huggingface"], bos="<|endoftext|>").bos_id == 0
    for kind in ("huggingface", "sentencepiece"):
        with pytest.raises(TokenizerError, match=r"data\.bos: .* has no token 'no such'"):
            load_tokenizer(files[kind], bos="no such")
    with pytest.raises(TokenizerError, match=r"data\.bos: got true; .* puts no token before a text"):
        load_tokenizer(files["huggingface"], bos=True)
    with pytest.raises(TokenizerError, match=r"data\.bos: got 0; bytes have no token that begins a text"):
        load_tokenizer("bytes", bos=0)


@pytest.mark.parametrize(
    ("said", "more"), [(7, {7}), ([7, 9], {7, 9}), (["x", True, 8], {8}), (None, set()), ("x", set())]
)
def test_ids_that_end_an_answer(files, tmp_path, said, more):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(files["huggingface"].read_bytes())
    assert load_tokenizer(path).stop_ids() == {0}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
    assert load_tokenizer(path).stop_ids() == {0} | more
    assert ByteTokenizer().stop_ids() == {256}


@pytest.mark.parametrize(("kind", "library"), [("huggingface", "tokenizers"), ("sentencepiece", "sentencepiece")])
def test_missing_library_names_the_extra(files, monkeypatch, kind, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(TokenizerError, match=rf"needs the package {library}; .*ratplus\[tokenizers\]"):
        load_tokenizer(files[kind])


def test_bytes_need_nothing():
    assert ByteTokenizer().facts == {"name": "bytes", "vocab_size": 257, "eos_id": 256}


@pytest.mark.parametrize("said", [[1, 2], {"content": [3]}, 7, True, None])
def test_an_odd_end_of_text_leaves_it_to_the_well_known_names(tmp_path, said):
    path = train_bpe(tmp_path / "tokenizer.json")
    usual = load_tokenizer(path).eos_id
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": said}))
    assert load_tokenizer(path).eos_id == usual


def test_a_tokenizer_that_loads_but_cannot_encode(tmp_path):
    path = tmp_path / "tokenizer.json"
    model = {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "[UNK]"}
    path.write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model,
    }))  # fmt: skip
    with pytest.raises(
        TokenizerError, match=r"^data.tokenizer=.*tokenizer.json: it loads, but cannot encode a text \("
    ):
        load_tokenizer(path).encode("a b")


class Panic(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize(
    ("raised", "expected"), [(Panic("odd"), TokenizerError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_panic_of_the_library_is_one_line_and_ctrl_c_is_none(files, raised, expected):
    class Broken:
        def encode_batch_fast(self, *_args, **_kwargs):
            raise raised

        def decode(self, *_args, **_kwargs):
            raise raised

    tokenizer = load_tokenizer(files["huggingface"])
    tokenizer._tokenizer = Broken()
    with pytest.raises(expected):
        tokenizer.encode("a")
    with pytest.raises(expected):
        tokenizer.decode([1])


def test_a_file_that_kills_its_library_is_one_line(tmp_path, tokenizer_file_of):
    """Rust aborts the process at a damaged table of characters, and where memory ends; Python could catch neither."""
    for normalizer, message in [
        ({"type": "Precompiled", "precompiled_charsmap": "/////w=="}, "its library ends the process"),
        ({"type": "Replace", "pattern": {"String": ""}, "content": "x" * 1000}, "cannot encode a text"),
        ({"type": "Prepend", "prepend": "x" * 500_000}, "ids of"),
    ]:
        path = tokenizer_file_of(normalizer=normalizer)
        with pytest.raises(TokenizerError, match=message) as refused:
            load_tokenizer(path)
        assert "\n" not in str(refused.value)


def test_ids_with_gaps_of_millions_are_refused(tokenizer_file_of):
    with pytest.raises(TokenizerError, match="but ids up to 4,000,000,000"):
        load_tokenizer(tokenizer_file_of(extra={"zzz": 4_000_000_000}))


def test_a_file_of_terabytes_is_not_read(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(TokenizerError, match="of which at most"):
        load_tokenizer(path)


def test_a_tokenizer_is_tried_once(monkeypatch, tokenizer_file_of):
    path = tokenizer_file_of()
    tokenizer_trial.problem_of.cache_clear()
    load_tokenizer(path)
    monkeypatch.setattr(tokenizer_trial.subprocess, "run", lambda *_, **__: pytest.fail("tried again"))
    load_tokenizer(path)
    load_tokenizer(tokenizer_file_of(extra={"zzz": 1000}), tried=True)


@pytest.fixture
def tokenizer_file_of(tmp_path):
    """A writer of a small whole tokenizer.json, changed as asked for."""
    tokenizers = pytest.importorskip("tokenizers")
    plain = tokenizers.pre_tokenizers.ByteLevel
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(plain.alphabet()))} | {"</s>": 256}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = plain(add_prefix_space=False)
    whole = json.loads(tokenizer.to_str())

    def write(normalizer=None, extra=None):
        model = whole["model"] | {"vocab": vocabulary | (extra or {})}
        number = len(list(tmp_path.glob("made-*")))
        path = tmp_path / f"made-{number}.json"
        path.write_text(json.dumps(whole | {"normalizer": normalizer, "model": model}))
        return path

    return write
