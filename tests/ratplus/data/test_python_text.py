"""`data=python_text`: what a Python installation holds, as a corpus that travels as one file."""

import gzip
import json

import numpy as np
import pytest

from ratplus.config.data import DataSection
from ratplus.data import sources
from ratplus.data.corpus import CorpusError, open_corpus
from ratplus.data.python_text import ARCHIVE, collect, installed_folders

BODY = "def add(a, b):\n    return a + b\n" * 30


def installation(place):
    """Two folders with files to take and files to leave."""
    files = {
        "lib/one.py": "# one\n" + BODY,
        "lib/pack/two.md": "# two\n" + BODY,
        "lib/copy.py": "# one\n" + BODY,
        "lib/short.py": "x = 1\n",
        "lib/table.py": "# table\n" + "0, " * 600 + "\n" + BODY,
        "lib/tests/test_one.py": "# test\n" + BODY,
        "lib/site-packages/own.py": "# not twice\n" + BODY,
        "lib/one.bin": BODY,
        "site-packages/own.py": "# own\n" + BODY,
        "site-packages/own.dist-info/METADATA": "Name: own\n" + BODY,
        "site-packages/late.py": "# latin\n" + BODY,
    }
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (place / "site-packages" / "late.py").write_bytes(b"# \xff\n" + BODY.encode())
    return [place / "lib", place / "site-packages"]


def documents(archive):
    return {d["name"]: d["text"] for d in map(json.loads, gzip.decompress(archive.read_bytes()).splitlines())}


def test_texts_are_taken_once_and_in_the_same_order_everywhere(tmp_path):
    folders = installation(tmp_path / "here")
    first = collect(tmp_path / "a.jsonl.gz", folders)
    found = documents(first)
    assert {"pack/two.md", "own.py", "own.dist-info/METADATA"} < set(found)
    assert len({"one.py", "copy.py"} & set(found)) == 1  # the same text
    assert len(found) == 4
    assert found["own.py"].startswith("# own")
    again = collect(tmp_path / "b.jsonl.gz", installation(tmp_path / "there"))
    assert first.read_bytes() == again.read_bytes()
    few = documents(collect(tmp_path / "c.jsonl.gz", folders, most_bytes=len(BODY)))
    assert list(few) == list(found)[: len(few)]
    assert len(few) < 4


def test_the_archive_alone_makes_the_same_corpus(tmp_path, monkeypatch):
    archive = tmp_path / "data" / ARCHIVE
    with monkeypatch.context() as patch:
        patch.setattr(
            sources, "collect", lambda path: collect(path, installation(tmp_path / "here"), most_bytes=10**6)
        )  # fmt: skip
        here = open_corpus(
            sources.prepare(DataSection("python_text", root=str(archive.parent), validation_fraction=0.5))
        )
    assert (here.train == 256).sum() + (here.validation == 256).sum() == 4
    monkeypatch.setattr(sources, "collect", lambda path: pytest.fail("the text is there already"))
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / ARCHIVE).write_bytes(archive.read_bytes())
    data = DataSection("python_text", root=str(tmp_path / "far"), validation_fraction=0.5)
    far = open_corpus(sources.prepare(data))
    assert far.identity == here.identity
    assert np.array_equal(far.train, here.train)
    (tmp_path / "far" / ARCHIVE).unlink()  # a corpus that stands needs it no more
    assert sources.prepare(data) == far.folder


def test_no_sources_leave_no_file(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"data=python_text: no Python sources in .*empty"):
        collect(tmp_path / ARCHIVE, [tmp_path / "empty"])
    assert not (tmp_path / ARCHIVE).exists()


def test_this_python_has_some():
    assert any((folder / "json" / "__init__.py").exists() for folder in installed_folders())
