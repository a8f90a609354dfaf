"""A data set of the Hugging Face hub, read as a stream from a small server that speaks the hub's protocol."""

import hashlib
import json
import os
import re
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from corpora import texts, write_jsonl, write_parquet

from ratplus.config.data import DataSection
from ratplus.data.corpus import CorpusError, open_corpus
from ratplus.data.sources import prepare

COMMIT = "c0ffee" + "0" * 34


@contextmanager
def hub(folder: Path):
    """Serve the files of a folder as data set someone/corpus; yields its address and the paths that were asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            asked.append(self.path)
            path, _, query = unquote(self.path).partition("?")
            if re.match(r"/api/datasets/someone/corpus(/revision/(main|\w{40}))?$", path):
                self.answer(json.dumps({"id": "someone/corpus", "sha": COMMIT, "siblings": []}).encode())
            elif path.startswith("/api/datasets/someone/corpus/tree/"):
                below = path.partition("/tree/")[2].partition("/")[2]
                deep = "recursive=true" in query
                found = sorted((folder / below).rglob("*") if deep else (folder / below).iterdir())
                self.answer(json.dumps([self.entry(p) for p in found]).encode())
            elif path.startswith(f"/datasets/someone/corpus/resolve/{COMMIT}/"):
                self.answer((folder / path.partition(f"{COMMIT}/")[2]).read_bytes())
            else:
                self.answer(b'{"error": "Repository not found"}', 404)

        def entry(self, path: Path) -> dict:
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                return {"type": "directory", "path": name, "oid": "d" * 40, "size": 0}
            lfs = {
                "oid": hashlib.sha256(path.read_bytes()).hexdigest(),
                "size": path.stat().st_size,
                "pointerSize": 130,
            }
            return {"type": "file", "path": name, "oid": "b" * 40, "size": lfs["size"], "lfs": lfs}

        def answer(self, data: bytes, status: int = 200):
            part = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            whole = len(data)
            if part and status == 200:
                first, last = int(part[1]), min(int(part[2] or whole), whole - 1)
                data, status = data[first : last + 1], 206
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


@pytest.fixture
def data(tmp_path, monkeypatch) -> DataSection:
    for name in [k for k in os.environ if k.lower().endswith("_proxy") or k.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    return DataSection(
        source="hub", path="someone/corpus", files="sample/10BT/*.parquet", validation_fraction=0.2,
        root=str(tmp_path / "data"),
    )  # fmt: skip


def test_streaming_from_the_hub(tmp_path, data, monkeypatch):
    files = tmp_path / "remote"
    write_parquet(files / "sample" / "10BT" / "000.parquet", texts(50, 1), rows=20)
    write_parquet(files / "sample" / "10BT" / "001.parquet", texts(50, 2), rows=20)
    write_jsonl(files / "other" / "x.jsonl", texts(5, 3))
    with hub(files) as (endpoint, asked):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        folder = prepare(replace(data, workers=2))
        assert any("/resolve/" in path for path in asked)
        assert not any("x.jsonl" in path for path in asked)
        manifest = open_corpus(folder).manifest
        assert manifest["source"]["commit"] == COMMIT
        found = [(f["name"], f["sha256"]) for f in manifest["source"]["files"]]
        there = sorted((files / "sample").rglob("*.parquet"))
        assert found == [(p.relative_to(files).as_posix(), hashlib.sha256(p.read_bytes()).hexdigest()) for p in there]
        assert sum(s["documents"] for s in manifest["splits"].values()) == 100
        asked.clear()
        assert prepare(data) == folder
        assert not asked  # made of a commit: there is nothing to look up
        with pytest.raises(CorpusError, match="someone/else: the hub at .* does not give this data set"):
            prepare(replace(data, path="someone/else"))
        with pytest.raises(CorpusError, match=r"data\.files=\*\.csv: matches no file of someone/corpus"):
            prepare(replace(data, files="*.csv"))
    # The same files on a disk give the same streams.
    local = DataSection(
        source="files", path=str(files / "sample"), root=str(tmp_path / "local"), validation_fraction=0.2
    )  # fmt: skip
    assert open_corpus(prepare(local)).manifest["splits"] == manifest["splits"]


def test_no_network(data, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CorpusError, match="or download it elsewhere and use data=files") as caught:
        prepare(data)
    assert "\n" not in str(caught.value)


def test_missing_library_names_the_extra(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CorpusError, match=r"needs the package huggingface_hub; .*ratplus\[hub\]"):
        prepare(data)
