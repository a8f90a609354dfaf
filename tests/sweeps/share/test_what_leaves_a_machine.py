"""What is masked, packed, and told to be unneeded, in each case and at each limit."""

import json
import os
from pathlib import Path

import pytest

from ratplus.records.record import stage_id, write_record
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.share import masking, pack, unneeded
from ratplus.sweeps.share.layout import is_member
from ratplus.sweeps.share.masking import Mask

ID = "0123456789ab"


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("sweep.json", True), ("pack.json", True), ("other.json", False), (f"adapt/{ID}/record.json", True),
        (f"sft/{ID}/curve.csv", True), (f"evaluate/{ID}/samples.jsonl", True), (f"evaluate/{ID}/note.txt", True),
        (f"evaluate/{ID}/gates.json", True), (f"evaluate/{ID}/selection.json", True), (f"adapt/{ID}/other", False),
        (f"adapt/{ID}/model.safetensors", False), (f"other/{ID}/record.json", False),
        (f"adapt/{ID}0/record.json", False),
        (f"adapt/{ID[:-1]}/record.json", False), (f"adapt/{ID.upper()}/record.json", False), (f"adapt/{ID}", False),
        (f"adapt/{ID}/x/record.json", False), (f"record.json/{ID}/adapt", False),
        *((f"report/a{ending}", True) for ending in (".html", ".md", ".csv", ".tex", ".png", ".pdf")),
        ("report/a.json", False), ("bench/a.json", True), ("bench/a.html", False), ("report/.html", False),
        ("report/x/a.html", False), ("a.html/report", False), ("report", False), ("bench/../a.json", False),
        ("report/" + "a" * 195 + ".html", True), ("report/" + "a" * 196 + ".html", False), ("", False),
        ("report/a b-c+d=e,f.png", True), ("report/a\n.png", False), ("x/report/a.png", False),
    ],
)  # fmt: skip
def test_files_that_a_pack_may_hold(name, member):
    assert is_member(name) is member


# ---- masking ------------------------------------------------------------------------------------------------------


def test_names_that_look_secret_hide_their_texts_alone():
    mask = Mask()
    tree = {"api_key": "abc", "password": "", "token_file": None, "secret": 5, "plain": ["/a/b/c", {"api_key": "x"}]}
    assert mask.tree(tree) == {
        "api_key": "***", "password": "", "token_file": None, "secret": 5, "plain": ["[path]/c", {"api_key": "***"}],
    }  # fmt: skip
    assert mask.tree({"/a/b/key": {"api_key": ["a"]}, "n": 1.5}) == {"[path]/key": {"api_key": ["a"]}, "n": 1.5}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("/", "/"), ("/a", "/a"), ("/a/", "/a/"), ("/a/b", "[path]/b"), ("/a/b/", "[path]/b"), ("~me/a", "[path]/a"),
        ("~/a", "~/a"), ("C:\\a", "[path]/a"), ("\\\\host\\a", "[path]/a"), ("/a/b\n/c/d", "[path]/b\n[path]/d"),
    ],
)  # fmt: skip
def test_whole_paths(text, masked):
    assert Mask().text(text) == masked


def test_texts_that_were_seen_are_kept_up_to_a_limit(monkeypatch):
    """A long one is not kept, nor more than so many."""
    monkeypatch.setattr(masking, "_MOST_KEPT", 2)
    monkeypatch.setattr(masking, "_LONGEST_KEPT", 3)
    mask = Mask()
    looked = []
    scrub = mask._scrub
    mask._scrub = lambda text: looked.append(text) or scrub(text)
    for text in ("abc", "abcd", "x", "y", "abc", "abcd", "x", "y"):
        assert mask.text(text) == text
    assert looked == ["abc", "abcd", "x", "y", "abcd", "y"]


def test_paths_are_looked_for_in_pages_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(masking, "_MOST_PATHS", 2)
    mask = Mask(Path("/home/me"))
    for text in ("/a/b/c", "/a/b/d"):
        mask.text(text)
    assert mask.page("/a/b/c /a/b/d /home/me") == "[path]/c /a/b/d [path]"
    assert Mask().page("/a/b/c") == "/a/b/c"


# ---- packs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def writer():
    """Keeps what is added to a pack: {name: bytes}."""

    class Writer:
        def __init__(self):
            self.mask, self.added = Mask(), {}

        def add(self, name, data):
            self.added[name] = data

    return Writer()


def stage(folder: Path, config: dict, **provenance) -> Path:
    place = folder / "adapt" / stage_id("adapt", config, "p" * 12)
    write_record(
        place, stage="adapt", config=config, parent="p" * 12, status="done", metrics={}, timing={},
        provenance=provenance,
    )  # fmt: skip
    return place


def test_a_stage_whose_config_cannot_be_told_is_left_out(tmp_path, writer):
    left: list[str] = []
    place = stage(tmp_path, {"data": "/home/me/text.txt"})
    assert pack._add_stage(writer, place, "adapt/x", left) == 0
    assert writer.added == {}
    assert left == ["adapt/x: its config holds a secret or a path of this machine, and its id is a hash of that"]
    (tmp_path / "empty").mkdir()
    assert pack._add_stage(writer, tmp_path / "empty", "adapt/y", left) == 0
    assert len(left) == 1
    (place / "record.json").write_text("{")
    assert pack._add_stage(writer, place, "adapt/z", left) == 0
    assert left[1].startswith("adapt/z: ")
    assert str(tmp_path) not in left[1]


def test_files_of_a_stage_as_they_are_or_masked(tmp_path, writer):
    place = stage(tmp_path, {"a": 1})
    (place / "gates.json").write_text('{"a":  1}')
    (place / "selection.json").write_text('{"a": "/x/y/z"}')
    (place / "note.txt").write_text("see /x/y/z\n1 2\n")
    (place / "model.safetensors").write_text("x")
    (place / "samples.jsonl").mkdir()
    left: list[str] = []
    assert pack._add_stage(writer, place, "adapt/x", left) == 1
    assert writer.added == {
        "adapt/x/record.json": (place / "record.json").read_bytes(), "adapt/x/gates.json": b'{"a":  1}',
        "adapt/x/selection.json": b'{"a": "[path]/z"}\n', "adapt/x/note.txt": b"see [path]/z\n1 2\n",
    }  # fmt: skip
    assert [line.partition(":")[0] for line in left] == ["adapt/x/samples.jsonl"]
    own = stage(tmp_path, {"b": 1}, command=["/x/y/z"])
    assert pack._add_stage(writer, own, "adapt/o", left) == 1
    told = json.loads(writer.added["adapt/o/record.json"])
    assert told["provenance"] == {"command": ["[path]/z"]}
    assert told["checksum"] != json.loads((own / "record.json").read_text())["checksum"]


# ---- what is not needed -------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep folder with one finished stage that its manifest names."""
    place = stage(tmp_path, {"a": 1})
    cells = [{"stages": {"adapt": place.name}}]
    monkeypatch.setattr(unneeded, "read_manifest", lambda folder: {"cells": cells})
    return tmp_path


def test_leftovers_of_a_finished_stage(sweep):
    (place,) = (sweep / "adapt").iterdir()
    names = ("training-3.pt", "training-3.txt", "other.pt", ".a.tmp", "a.tmp", ".a", "model.safetensors")
    for name in names:
        (place / name).write_text("abc")
    os.link(place / "training-3.pt", sweep / "another name")
    found = unneeded.unneeded(sweep)
    assert [(item.path.name, item.bytes, item.frees) for item in found] == [(".a.tmp", 3, 3), ("training-3.pt", 3, 0)]
    assert {item.why for item in found} == {f"adapt {place.name} is done: left by its training"}
    (place / "record.json").unlink()
    assert unneeded.unneeded(sweep) == [], "it may be continued"


def test_stages_that_nobody_names(sweep):
    stray = sweep / "adapt" / ID
    (stray / "inner").mkdir(parents=True)
    (stray / "inner" / "a").write_text("12345")
    (stray / "b").write_text("67")
    for odd in ("not an id", ID[:-1]):
        (sweep / "adapt" / odd).mkdir()
    (sweep / "adapt" / ("f" * 12)).write_text("a file")
    (found,) = unneeded.unneeded(sweep)
    assert vars(found) == {"path": stray, "why": f"adapt {ID}: sweep.json does not name it", "bytes": 7, "frees": 7}
    with pytest.raises(UsageError, match="--sweeps: of a store of run.store; .* is none"):
        unneeded.unneeded(sweep, [sweep])
    kept = unneeded.Unneeded(sweep / "adapt", "w", 0, 0)
    assert unneeded.remove(sweep, [kept, found]) == [found]
    assert not stray.exists()
    assert unneeded.remove(sweep, [found]) == []


def test_a_store_keeps_what_any_sweep_names(sweep):
    from ratplus.stages.store import STORE_FILE

    (sweep / STORE_FILE).touch()
    with pytest.raises(UsageError, match="is a store; say which sweeps use it with --sweeps FOLDER"):
        unneeded.unneeded(sweep)
    (place,) = (sweep / "adapt").iterdir()
    (place / "training-3.pt").write_text("abc")
    assert unneeded.unneeded(sweep, [sweep]) == [], "what its stages hold is theirs"
    (found,) = unneeded.unneeded(sweep, [])
    assert (found.path, found.why) == (place, f"adapt {place.name}: no sweep names it")
    assert unneeded.remove(sweep, [found], [sweep]) == []
    assert unneeded.remove(sweep, [found], []) == [found]
    assert not place.exists()
