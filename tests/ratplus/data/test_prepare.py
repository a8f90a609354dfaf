"""Preparing big corpora: what the streams hold, that nothing but the input decides them, and clear mistakes."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpora import texts, train_bpe, write_jsonl, write_parquet

from ratplus.config.cell import Config
from ratplus.config.data import DataSection
from ratplus.config.eval import EvalSection
from ratplus.config.model import ModelSection
from ratplus.config.run import RunSection
from ratplus.config.train import RecipeSection, TrainSection
from ratplus.data import corpus as corpus_module
from ratplus.data.corpus import CorpusError, held_out, open_corpus
from ratplus.data.prepare import progress, shards
from ratplus.data.prepare.inputs import Input
from ratplus.data.prepare.shard_work import Job, Settings, kept, tokenize
from ratplus.data.sampling import IGNORE, ordered_rows, random_rows
from ratplus.data.sources import corpus_folder, corpus_of, prepare
from ratplus.data.stream import ShardedStream
from ratplus.data.tokenizer import ByteTokenizer, TokenizerError


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return train_bpe(tmp_path_factory.mktemp("bpe") / "tokenizer.json")


@pytest.fixture
def section(tmp_path):
    """Four kinds of input files of 60 documents each, and the data section that reads them."""
    place = tmp_path / "in"
    write_jsonl(place / "a.jsonl", texts(60, 1))
    write_jsonl(place / "b.jsonl.gz", texts(60, 2))
    write_jsonl(place / "c.jsonl.zst", texts(60, 3))
    write_parquet(place / "d.parquet", texts(60, 4))
    (place / "e.txt").write_text("-----\n".join(texts(60, 5)), encoding="utf-8")
    (place / "notes.pdf").write_bytes(b"not a corpus")
    return DataSection(
        source="files", path=str(place), root=str(tmp_path / "data"), separator="-----", validation_fraction=0.2
    )


def documents(stream, corpus) -> list[str]:
    ids = np.asarray(stream[:])
    ends = np.flatnonzero(ids == corpus.eos_id)
    assert ends[-1] == len(ids) - 1
    return [corpus.tokenizer().decode(part.tolist()) for part in np.split(ids, ends + 1)[:-1]]


def hashes(folder: Path) -> dict:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.bin")}


@pytest.mark.parametrize("which", ["bytes", "bpe"])
def test_every_document_once_in_order_and_split_by_its_text(section, bpe, which):
    corpus = open_corpus(prepare(replace(section, tokenizer="bytes" if which == "bytes" else str(bpe))))
    everything = [t for seed in range(1, 6) for t in texts(60, seed)]
    wanted = {split: [t for t in everything if held_out(t.encode(), 0.2) == (split == "validation")]
              for split in ("train", "validation")}  # fmt: skip
    for split in wanted:
        assert documents(getattr(corpus, split), corpus) == wanted[split]
        assert corpus.manifest["splits"][split]["documents"] == len(wanted[split])
        assert corpus.manifest["splits"][split]["tokens"] == len(getattr(corpus, split))
    assert 30 < len(wanted["validation"]) < 90


def test_workers_and_names_of_places_change_nothing(section, tmp_path):
    alone = prepare(section)
    together = prepare(replace(section, root=str(tmp_path / "other"), workers=3))
    assert hashes(alone) == hashes(together)
    assert len(hashes(alone)) == 10
    first, second = open_corpus(alone), open_corpus(together)
    assert first.identity == second.identity
    moved = shutil.move(together, tmp_path / "moved")
    shutil.rmtree(tmp_path / "in")
    by_path = prepare(replace(section, source="prepared", path=str(moved)))
    assert open_corpus(by_path).identity == first.identity
    assert prepare(section) == alone  # what was made outlives its source


def test_split_by_file(section):
    corpus = open_corpus(prepare(replace(section, split="file", validation_files=2)))
    assert documents(corpus.validation, corpus) == texts(60, 4) + texts(60, 5)
    assert documents(corpus.train, corpus) == [t for seed in (1, 2, 3) for t in texts(60, seed)]


def test_a_killed_preparation_goes_on_where_it_was(section, monkeypatch):
    """Whatever the moment of death: whole shards are kept, half ones are done again."""
    undisturbed = hashes(prepare(replace(section, root=section.root + "0")))
    folder = corpus_folder(section)
    made = []

    def dying(jobs, workers, progress):
        for count, job in enumerate(jobs):
            if count == 2:
                (job.folder / f".{job.index:05}-train.bin.x.tmp").write_bytes(b"half")
                (job.folder / f"{job.index:05}-train.bin").write_bytes(b"no record follows")
                raise KeyboardInterrupt
            made.append(job.index)
            shards_work([job], workers, progress)

    shards_work = shards.work
    monkeypatch.setattr(shards, "work", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(section)
    (folder / "shards" / "00000-train.bin").write_bytes(b"altered meanwhile")
    said = []
    with pytest.raises(KeyboardInterrupt):
        prepare(section, said.append)
    assert made == [0, 1, 0, 2]
    assert said == [f"{folder}: 1 of 5 input files are done already"]
    with pytest.raises(CorpusError, match="no corpus here"):
        open_corpus(folder)
    monkeypatch.undo()
    assert hashes(prepare(section)) == undisturbed
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize(("size_mb", "kills"), [(3, 1), pytest.param(None, 2, marks=pytest.mark.slow)])
def test_sigkill(tmp_path, size_mb, kills):
    """A real run, killed with its workers; RATPLUS_CORPUS_MB sets the size of the slow form."""
    size = (size_mb or int(os.environ.get("RATPLUS_CORPUS_MB", "300"))) * 1_000_000
    files = 24
    lines = [json.dumps({"text": text}) + "\n" for text in texts(2000, 1, words=400)]
    (tmp_path / "in").mkdir()
    for number in range(files):
        with (tmp_path / "in" / f"{number:02}.jsonl").open("w") as file:
            own = [json.dumps({"text": f"file {number}"}) + "\n", *lines[number * 80 :], *lines[: number * 80]]
            while file.tell() + 2_500_000 < size // files:
                file.writelines(own)
            for line in own:
                if file.tell() > size // files:
                    break
                file.write(line)
    total = sum(p.stat().st_size for p in (tmp_path / "in").iterdir())
    words = ["data=files", "data.path=in", "data.workers=2", "data.validation_fraction=0.05"]
    command = [str(Path(sys.executable).with_name("ratplus")), "prepare", *words]

    def run(root: str) -> float:
        started = time.monotonic()
        done = subprocess.run(
            [*command, f"data.root={root}"], cwd=tmp_path, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr
        return time.monotonic() - started

    seconds = run("whole")
    for kill in range(kills):
        killed = subprocess.Popen([*command, "data.root=killed"], cwd=tmp_path, stderr=subprocess.DEVNULL)
        wanted = 2 if size_mb else files * (kill + 1) // (kills + 2)
        deadline = time.monotonic() + 600
        while len(list((tmp_path / "killed").rglob("shards/?????.json"))) < wanted and time.monotonic() < deadline:
            assert killed.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
    (folder,) = (tmp_path / "killed").iterdir()
    assert not (folder / "manifest.json").exists()
    kept = {p: p.stat().st_mtime_ns for p in folder.rglob("shards/?????.json")}
    run("killed")
    assert kept, "a kill came before any input was done"
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in kept.items()), "a whole shard was done again"
    (whole,) = (tmp_path / "whole").iterdir()
    assert hashes(folder) == hashes(whole)
    assert open_corpus(folder).identity == open_corpus(whole).identity
    assert not list(folder.rglob("*.tmp"))
    print(f"{total / 1e6:.0f} MB prepared in {seconds:.1f} s by 2 workers: {total / 1e6 / seconds:.1f} MB/s")


# ---- mistakes -----------------------------------------------------------------------------------------------------


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "change", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', {}, r"x\.jsonl, line 2: not JSON"),
        ("x.jsonl", b'{"text": "a"}\n"b"\n', {}, r"x\.jsonl, line 2: holds a str; every line must be an object"),
        ("x.jsonl", b'{"body": "a"}\n', {}, r"data\.column=text: x\.jsonl, line 1 has no such key; it has body"),
        ("x.jsonl", b'{"text": 5}\n', {}, r"x\.jsonl, line 1 it holds a int, not text"),
        ("x.jsonl", b'{"text": "\\ud800"}\n', {}, "half of a surrogate pair"),
        ("x.jsonl", b"\xff\xfe\n", {}, r"x\.jsonl: not UTF-8 text, but UTF-16"),
        ("x.txt", b"ab\n\xff\n", {}, r"x\.txt, line 2: not UTF-8 text"),
        ("x.jsonl.gz", b"not gzip", {}, r"x\.jsonl\.gz: by its content this is no compressed file, not gzip"),
        ("x.jsonl.gz", b"\x1f\x8b\x08\x00 and no more", {}, r"x\.jsonl\.gz: damaged or truncated compressed file"),
        ("x.jsonl.zst", b"not zstd", {}, r"x\.jsonl\.zst: by its content this is no compressed file, not zstd"),
        ("x.jsonl.zst", b"\x28\xb5\x2f\xfd and no more", {}, r"x\.jsonl\.zst: damaged compressed file"),
        ("x.parquet", b"PAR1 and nothing else", {}, r"x\.parquet: damaged parquet file"),
        ("x.txt", b"", {}, "no document fell into the train split"),
        ("x.jsonl", b"", {}, "no document fell into the train split"),
        ("x.csv", b"a,b", {}, "unknown kind of file; allowed: .parquet"),
        ("x.txt", b"a\n", {"path": "nowhere"}, "no such file or folder"),
        ("x.txt", b"a\n", {"path": ".", "files": "*.jsonl"}, r"data\.files=\*\.jsonl: matches no file"),
        ("x.csv", b"a\n", {"path": ".", "files": "*"}, r"data\.files=\*: x\.csv is of an unknown kind"),
        ("x.csv", b"a\n", {"path": "."}, "no files to read there"),
        ("x.txt", b"a\n", {"split": "file"}, r"data\.validation_files=1: there are 1 input files"),
        ("x.txt", b"a\n", {"source": "prepared", "path": "."}, "no corpus here"),
    ],
)  # fmt: skip
def test_bad_inputs(tmp_path, monkeypatch, name, content, change, message):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    data = DataSection(**({"source": "files", "path": name, "root": "data"} | change))
    with pytest.raises(CorpusError, match=message) as caught:
        prepare(data)
    one_line(caught)
    assert not list(tmp_path.rglob("manifest.json"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_truncated_files_are_no_shorter_ones(tmp_path):
    """A file that breaks off must not pass for one that ends there."""
    for name in ("x.jsonl.gz", "x.jsonl.zst"):
        path = write_jsonl(tmp_path / name, texts(300))
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(CorpusError, match="truncated compressed file"):
            prepare(DataSection(source="files", path=str(path), root=str(tmp_path / "data")))


def test_parquet_columns(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", texts(120), column="body")
    data = DataSection(source="files", path=str(path), root=str(tmp_path / "data"))
    with pytest.raises(CorpusError, match=r"data\.column=text: x\.parquet has no such column; it has id, body"):
        prepare(data)
    with pytest.raises(CorpusError, match=r"data\.column=id: in x\.parquet it holds int64, not text"):
        prepare(replace(data, column="id"))
    assert len(open_corpus(prepare(replace(data, column="body"))).train) > 100


def test_a_worker_that_fails_stops_the_others(section):
    Path(section.path, "c.jsonl.zst").unlink()
    Path(section.path, "c.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(CorpusError, match=r"c\.jsonl, line 1"):
        prepare(replace(section, workers=2))


@pytest.mark.parametrize("library", ["pyarrow", "zstandard"])
def test_missing_library_names_the_extra(section, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CorpusError, match=rf"needs the package {library}; .*ratplus\[hub\]"):
        prepare(section)


def test_a_changed_source_or_tokenizer(section, bpe, tmp_path, monkeypatch):
    tokenizer = tmp_path / "own" / "tokenizer.json"
    tokenizer.parent.mkdir()
    tokenizer.write_bytes(bpe.read_bytes())
    data = replace(section, tokenizer=str(tokenizer))
    folder = prepare(data)
    path = Path(section.path, "a.jsonl")
    os.utime(path)
    assert prepare(data) == folder  # touched, not changed
    with monkeypatch.context() as once:
        once.setattr(Input, "sha256", lambda _: pytest.fail("read again although it is known"))
        assert prepare(data) == folder
    whole = path.read_text()
    path.write_text(whole.replace("the", "eht"))  # as long as before
    with pytest.raises(CorpusError, match="the files changed since"):
        prepare(data)
    path.write_text(whole)
    train_bpe(tokenizer, vocab=350)
    with pytest.raises(
        CorpusError, match=r"was made with huggingface-\w{12} and 0; give that one, or delete the folder"
    ):
        prepare(data)
    with pytest.raises(CorpusError, match="was made with"):
        prepare(DataSection(source="prepared", path=str(folder), tokenizer=str(tokenizer)))
    assert open_corpus(prepare(DataSection(source="prepared", path=str(folder)))).tokenizer().vocab_size == 400
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    with pytest.raises(CorpusError, match="SHA-256 differs from the manifest"):
        open_corpus(folder).tokenizer()


def test_another_preparation_begun_here(section, monkeypatch):
    def dying(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "work", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(section)
    write_jsonl(Path(section.path, "f.jsonl"), texts(3))
    with pytest.raises(CorpusError, match="an interrupted preparation with another value of files lies here"):
        prepare(section)


def test_a_full_disk_is_seen_before(section, monkeypatch):
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 100))
    with pytest.raises(CorpusError, match=r"about 0\.0 GB of tokens are to come, but its disk has 0\.0 GB free"):
        prepare(section)


@pytest.mark.parametrize("short", [0, 1])
def test_the_space_that_is_needed_is_that_of_tokens(tmp_path, monkeypatch, short):
    text = tmp_path / "in" / "e.txt"
    text.parent.mkdir()
    text.write_text("-----\n".join(texts(60, 5)), encoding="utf-8")
    needed = 2 * text.stat().st_size  # each byte becomes an id of 16 bits
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, needed - short))
    section = DataSection(
        source="files", path=str(text.parent), root=str(tmp_path / "data"), separator="-----", validation_fraction=0.2
    )
    if short:
        with pytest.raises(CorpusError, match="of tokens are to come"):
            prepare(section)
    else:
        prepare(section)


def test_no_tokenizer_given(section):
    with pytest.raises(TokenizerError, match=r"data\.tokenizer: got null"):
        prepare(replace(section, tokenizer=None))


# ---- streams ------------------------------------------------------------------------------------------------------


def test_a_stream_of_shards_reads_as_one():
    whole = np.arange(1000, dtype=np.uint32)
    cuts = np.sort(np.random.default_rng(0).choice(1000, 30, replace=False))
    stream = ShardedStream(np.split(whole, cuts))
    assert len(stream) == 1000
    assert stream.dtype == np.uint32
    for first, last in [(0, 1000), (0, 1), (999, 1000), (5, 5), (990, 2000), *zip(cuts, cuts + 1), (cuts[3], cuts[9])]:
        np.testing.assert_array_equal(stream[first:last], whole[first:last])
    assert [stream[0], stream[-1], stream[int(cuts[4])]] == [0, 999, cuts[4]]
    with pytest.raises(IndexError):
        stream[1000]
    for rows in (ordered_rows, lambda s, *a: random_rows(s, 3, *a)):
        np.testing.assert_array_equal(rows(stream, 2, 8, 40), rows(whole, 2, 8, 40))


def test_vocabularies_beyond_uint16(section, tmp_path):
    """The ids of a big vocabulary need uint32, and get it."""
    stream = (np.arange(5000) * 20 % 99_000).astype("<u4")
    stream.tofile(tmp_path / "train.bin")
    data = DataSection(source="bin", path=str(tmp_path / "train.bin"), root=str(tmp_path / "data"), tokenizer=None,
                       vocab_size=100_000, eos_id=0)  # fmt: skip
    corpus = corpus_of(data)
    assert corpus.manifest["dtype"] == "uint32"
    np.testing.assert_array_equal(corpus.train[:100], stream[:100])


def test_big_files_are_hashed_once(section, monkeypatch):
    monkeypatch.setattr(corpus_module, "HASHED_ONCE_BYTES", 1)
    folder = prepare(section)
    monkeypatch.setattr(corpus_module, "check_ids", lambda *_: pytest.fail("read although it is unchanged"))
    open_corpus(folder)
    monkeypatch.undo()
    monkeypatch.setattr(corpus_module, "HASHED_ONCE_BYTES", 1)
    path = folder / "shards" / "00002-train.bin"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorpusError, match="SHA-256 differs"):
        open_corpus(folder)


def test_a_model_is_trained_and_evaluated_on_shards(section, bpe, tmp_path):
    """Its vocabulary is the tokenizer's, whose id after each document has no label."""
    from ratplus.data.batches import Batches
    from ratplus.stages.cell import Cell
    from ratplus.stages.run_stage import Surroundings

    recipe = RecipeSection(steps=2, batch=4, arl=False, order="random", warmup=0.0)
    config = Config(
        data=replace(section, tokenizer=str(bpe), recall=replace(section.recall, fraction=0.0)),
        model=ModelSection(layers=1, d_model=16, d_head=8), train=TrainSection(32, "float32", recipe, recipe),
        eval=EvalSection(text_rows=4, recall_rows=0), run=RunSection(accelerator="cpu", threads=1),
    )  # fmt: skip
    cell = Cell(config, Surroundings(tmp_path / "sweep"))
    assert cell.run("evaluate")["metrics"]["loss"]["value"] > 0
    assert cell.plan.vocab_size == 400
    ((inputs, labels),) = Batches.of(config, cell.corpus).train(recipe, "adapt", 0)
    assert ((labels == IGNORE) == (inputs == 0)).all()
    assert (labels == IGNORE).any()


# ---- bare streams -------------------------------------------------------------------------------------------------


def bare(tmp_path, count=6000, vocab=400, **changes) -> DataSection:
    stream = np.random.default_rng(0).integers(0, vocab, count).astype("<u2")
    stream.tofile(tmp_path / "train.bin")
    facts = {"tokenizer": None, "vocab_size": vocab, "eos_id": 2, "validation_fraction": 0.25}
    return DataSection(source="bin", path=str(tmp_path / "train.bin"), root=str(tmp_path / "data"), **(facts | changes))


def test_a_bare_stream_is_used_in_place(tmp_path, bpe):
    data = bare(tmp_path)
    corpus = corpus_of(data)
    stream = np.fromfile(data.path, "<u2")
    np.testing.assert_array_equal(corpus.train[:], stream[:4500])
    np.testing.assert_array_equal(corpus.validation[:], stream[4500:])
    assert (corpus.vocab_size, corpus.eos_id) == (400, 2)
    told = json.loads((corpus.folder / "manifest.json").read_text())["splits"]
    for split, part in (("train", stream[:4500]), ("validation", stream[4500:])):
        facts = (len(part), int((part == 2).sum()), 2 * len(part))
        assert (told[split]["tokens"], told[split]["documents"], told[split]["bytes"]) == facts
        (shard,) = told[split]["shards"]
        assert (shard["tokens"], shard["documents"], shard["bytes"]) == (*facts[:2], 12000)  # the file's own bytes
    assert not list((tmp_path / "data").rglob("*.bin"))
    with pytest.raises(CorpusError, match=r"tokenizer of these streams is not known; .*data\.tokenizer"):
        corpus.tokenizer()

    stream[:700].tofile(tmp_path / "val.bin")
    apart = replace(data, validation_path=str(tmp_path / "val.bin"), tokenizer=str(bpe), vocab_size=None, eos_id=None)
    both = corpus_of(apart)
    assert (len(both.train), len(both.validation)) == (6000, 700)
    assert both.tokenizer().vocab_size == 400
    assert prepare(apart) == both.folder
    assert both.identity != corpus.identity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": None}, r"give the streams' data\.tokenizer, or data\.vocab_size and data\.eos_id"),
        ({"eos_id": 400}, r"data\.eos_id: got 400; it must be below"),
        ({"vocab_size": 300}, r"token \d+ has id \d+, but the vocabulary has 300 ids: wrong tokenizer or wrong dtype"),
        ({"path": "nowhere.bin"}, r"data\.path=nowhere\.bin: no such file"),
        ({"validation_path": "nowhere.bin"}, r"data\.validation_path=nowhere\.bin: no such file"),
        ({"vocab_size": 100_000}, "6001 bytes are no stream of uint32 ids"),
        ({"tokenizer": "bytes", "eos_id": None}, r"data\.vocab_size: got 400, but data\.tokenizer=bytes has 257"),
    ],
)
def test_bad_bare_streams(tmp_path, changes, message):
    data = replace(bare(tmp_path), **changes)
    if "bytes are" in message:
        Path(data.path).write_bytes(b"x" * 6001)
    with pytest.raises(CorpusError, match=message) as caught:
        prepare(data)
    one_line(caught)


@pytest.mark.parametrize("which", ["path", "validation_path"])
@pytest.mark.parametrize("change", [-2, 2])
def test_a_bare_stream_that_grew_or_shrank_is_not_used_as_before(tmp_path, which, change):
    np.zeros(700, "<u2").tofile(tmp_path / "val.bin")
    data = bare(tmp_path, validation_path=str(tmp_path / "val.bin"))
    prepare(data)
    path = Path(getattr(data, which))
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(CorpusError, match=rf"{path}: its size changed since .* was made; delete that folder"):
        prepare(data)


def test_another_tokenizer_for_a_known_bare_stream(tmp_path):
    data = bare(tmp_path)
    folder = prepare(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"]["eos_id"] = 3
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match=r"made for tokenizer unknown-400 \(400 ids, end of text 3\); asked for is"):
        prepare(data)


# ---- progress -----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def __init__(self, live: bool):
        super().__init__()
        self.live = live

    def isatty(self) -> bool:
        return self.live


@pytest.mark.parametrize("live", [True, False])
def test_progress(monkeypatch, live):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    out = Terminal(live)
    shown = progress.Progress(input_bytes=100_000_000, done_bytes=20_000_000, out=out)
    for index in range(4):
        clock[0] += 10
        shown.report(index, 10_000_000, 2_500_000)
    shown.close()
    line = "tokenizing: {}0.0% of 100.0 MB, {} M tokens, 250,000 tokens/s, {} left"
    if live:
        assert out.getvalue().count("\r") == 5
        assert out.getvalue().endswith("\r\x1b[K")
        assert line.format(3, "2.5", "1 min 10 s") in out.getvalue()
    else:
        assert out.getvalue() == line.format(4, "5.0", "1 min 00 s") + "\n" + line.format(6, "10.0", "40 s") + "\n"


def test_a_shard_is_kept_while_it_is_whole_and_of_this_text(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("some text\n")
    source = Input("a.txt", str(text), text.stat().st_size)
    settings = Settings("text", None, "hash", 0.5, 1)
    job = Job(0, source, tmp_path / "shards", settings, False, "bytes", ByteTokenizer().name, None, None, 1 << 20)
    assert kept(job) is None
    record = tokenize(job, lambda *_: None)
    assert kept(job) == record
    os.utime(text, (1, 1))  # copied again: the same text at another time
    assert kept(job) == record
    text.write_text("SOME TEXT\n")
    assert kept(job) is None
    text.write_text("some text\n")
    assert kept(job) == record
    assert kept(replace(job, source=replace(source, name="b.txt"))) is None
    shard = tmp_path / "shards" / "00000-train.bin"
    whole = shard.read_bytes()
    for damaged in (whole[:-2], whole[:-1] + b"?", whole + b"??"):
        shard.write_bytes(damaged)
        assert kept(job) is None
    shard.unlink()
    assert kept(job) is None
