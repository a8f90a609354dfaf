"""`ratplus pack`: what is in a pack, what is not, and that packs of strangers are read with care."""

import hashlib
import json
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from cli_runs import ratplus_here

from ratplus.records.record import make_record, record_text
from ratplus.sweeps.define import reproduce
from ratplus.sweeps.share import unpack
from ratplus.sweeps.share.masking import Mask

OLD = Path(__file__).parents[2] / "data" / "sweep_before_folders" / "sweep"
EVALUATED = "d56798413177"
SECRET = "0123456789abcdef0123"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A sweep with weights, a training state, a log, a page, a note, and a record that tells of this machine."""
    sweep = tmp_path / "outputs" / "sweep"
    shutil.copytree(OLD, sweep)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    folder = sweep / "evaluate" / EVALUATED
    for name in ("model.safetensors", "training-0.pt", "lock.json", ".x.tmp"):
        (folder / name).write_text("x")
    (folder / "note.txt").write_text(f"see /home/me/notes/all.txt and {SECRET}\n")
    (folder / "samples.jsonl").write_text('{"task": "loss", "id": 0, "loss": 1.5, "count": 3}\n')
    (sweep / "logs").mkdir()
    (sweep / "logs" / "x.log").write_text("x")
    record = json.loads((folder / "record.json").read_text())
    provenance = {**record["provenance"], "command": ["ratplus", "sweep", f"output={tmp_path}/outputs/sweep"]}
    parts = {k: record[k] for k in ("stage", "config", "parent", "status", "metrics", "timing")}
    (folder / "record.json").write_text(record_text(make_record(**parts, provenance=provenance)))
    manifest = json.loads((sweep / "sweep.json").read_text())
    for cell in manifest["cells"]:
        cell["config"]["data"]["path"] = "/home/me/my corpora/text.txt"
        cell["run"]["launcher"] = {"kind": "slurm", "setup": [f"export KEY={SECRET}"], "account": "mine"}
    (sweep / "sweep.json").write_text(json.dumps(manifest))
    (sweep / "report").mkdir()
    (sweep / "report" / "index.html").write_text(
        f"<p>{tmp_path}/outputs/sweep</p><script>/a/b/.test(x)</script>{SECRET}"
    )
    (sweep / "report" / "other.bin").write_text("x")
    return tmp_path


def test_what_is_in_a_pack_and_that_its_bytes_are_always_the_same(place):
    done = ratplus_here(place, "pack", "outputs/sweep")
    assert (done.returncode, done.stderr) == (0, "")
    path = place / "outputs" / "sweep.pack.zip"
    assert done.stdout.startswith(f"{path}: 5 stages, ")
    first = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        texts = {name: archive.read(name) for name in names}
    assert names[0] == "sweep.json"
    assert names[-1] == "pack.json"
    assert {name.rpartition("/")[2] for name in names} == {
        "sweep.json", "pack.json", "record.json", "curve.csv", "samples.jsonl", "note.txt", "index.html",
    }  # fmt: skip
    about = json.loads(texts["pack.json"])
    assert about["files"] == {k: hashlib.sha256(v).hexdigest() for k, v in texts.items() if k != "pack.json"}
    for name, data in texts.items():
        for word in (SECRET, "/home/", str(place), str(Path.home()) + "/", "mine"):
            assert word.encode() not in data, (name, word)
    assert b"<p>[path]" in texts["report/index.html"]
    assert b"<script>/a/b/.test(x)</script>***" in texts["report/index.html"]
    assert texts[f"evaluate/{EVALUATED}/note.txt"] == b"see [path]/all.txt and ***\n"
    assert b'"output=[path]/sweep"' in texts[f"evaluate/{EVALUATED}/record.json"]
    (place / "outputs" / "sweep" / "sweep.json").touch()
    assert ratplus_here(place, "pack", "outputs/sweep", "--json").returncode == 0
    assert path.read_bytes() == first


def test_verbs_read_a_pack_as_the_folder(place, monkeypatch):
    monkeypatch.setattr("ratplus.analysis.draw.style.save", lambda figure, stem: [])
    assert ratplus_here(place, "pack", "outputs/sweep", "--out", "given/s.pack.zip").returncode == 0
    shutil.move(place / "outputs", place / "gone")
    status = json.loads(ratplus_here(place, "status", "given/s.pack.zip", "--json").stdout)
    assert status["counts"] == {"done": 2}
    assert status["folder"] == "given/s.pack.zip"
    shown = ratplus_here(place, "show", EVALUATED, "given/s.pack.zip")
    assert f"evaluate {EVALUATED}: done" in shown.stdout
    assert "note    see [path]/all.txt and ***" in shown.stdout
    listed = json.loads(ratplus_here(place, "ls", "given", "--json").stdout)["cells"]
    assert [cell["folder"] for cell in listed] == ["given/s.pack.zip"] * 2
    assert [cell["loss"] for cell in listed] == [
        cell["loss"] for cell in json.loads(ratplus_here(place, "ls", "gone", "--json").stdout)["cells"]
    ]  # fmt: skip
    refused = ratplus_here(place, "note", EVALUATED, "x", "--folder", "given/s.pack.zip")
    assert "given/s.pack.zip is a pack, which is not written to" in refused.stderr
    done = ratplus_here(place, "report", "given/s.pack.zip")
    assert done.stdout.splitlines()[-1] == "given/s-report/index.html"
    assert (place / "given" / "s-report" / "index.html").stat().st_size > 10_000


def test_pages_of_a_pack_name_its_file(place, monkeypatch):
    """Not the temporary folder that it is read from."""
    monkeypatch.setattr("ratplus.analysis.draw.style.save", lambda figure, stem: [])
    few = reproduce.reproducer
    # As of more than a hundred cells, whose page names `ratplus show`.
    monkeypatch.setattr(reproduce, "reproducer", lambda cells: few(cells) if cells == 1 else None)
    assert ratplus_here(place, "pack", "outputs/sweep", "--out", "s.pack.zip").returncode == 0
    assert ratplus_here(place, "report", "s.pack.zip").returncode == 0
    page = (place / "s-report" / "index.html").read_text()
    assert f'"ratplus show {EVALUATED} s.pack.zip"' in page
    done = ratplus_here(place, "report", "s.pack.zip", "outputs/sweep")
    assert done.returncode == 0, done.stderr
    compared = (place / "s-report" / "compare_sweep.html").read_text()
    assert "s.pack.zip" in compared
    assert "ratplus-pack-" not in page + compared
    best = ratplus_here(place, "best", "s.pack.zip", "--metric", "loss", "--json")
    assert best.returncode == 0, best.stderr
    chosen = json.loads(best.stdout)
    assert {row["folder"] for row in (chosen["winner"], chosen["best"], *chosen["ties"])} == {"s.pack.zip"}


def test_what_cannot_be_handed_on_is_left_out_and_said(place):
    (place / "outputs" / "sweep" / "evaluate" / EVALUATED / "record.json").write_text("{")
    done = ratplus_here(place, "pack", "outputs/sweep", "--json")
    assert done.returncode == 0
    (line,) = json.loads(done.stdout)["left_out"]
    assert line.startswith(f"evaluate/{EVALUATED}: ")
    assert "not a whole record" in line
    assert str(place) not in done.stdout.replace(json.loads(done.stdout)["path"], "")
    assert f"left out: {line}" in done.stderr


def test_nothing_else_is_replaced_by_a_pack(place):
    (place / "mine.zip").write_text("precious")
    for words, line in (
        (["--out", "mine.zip"], "mine.zip: is there and is no pack"),
        (["--out", "mine.txt"], "--out: got mine.txt; a pack is a zip file"),
    ):
        done = ratplus_here(place, "pack", "outputs/sweep", *words)
        assert (done.returncode, line in done.stderr) == (2, True)
    assert (place / "mine.zip").read_text() == "precious"


def test_another_zip_and_a_link_are_not_replaced_by_a_pack(place):
    with zipfile.ZipFile(place / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", "precious")
    (place / "nowhere.zip").symlink_to("/nowhere/x.zip")
    assert ratplus_here(place, "pack", "outputs/sweep", "--out", "own.zip").returncode == 0
    (place / "link.zip").symlink_to("own.zip")
    for name in ("photos.zip", "nowhere.zip", "link.zip"):
        done = ratplus_here(place, "pack", "outputs/sweep", "--out", name)
        assert (done.returncode, f"{name}: is there and is no pack" in done.stderr) == (2, True)
    assert zipfile.ZipFile(place / "photos.zip").namelist() == ["a.jpg"]
    assert (place / "nowhere.zip").is_symlink()
    assert ratplus_here(place, "pack", "outputs/sweep", "--out", "own.zip").returncode == 0


def test_the_report_of_a_pack_replaces_no_page_of_others_and_follows_no_link(place, tmp_path):
    page, given = place / "page", place / "s.pack.zip"
    page.mkdir()
    (page / "index.html").write_text("ours")
    given.touch()
    theirs = place / "s-report"
    theirs.mkdir()
    (theirs / "index.html").write_text("precious")
    with pytest.raises(unpack.PackError, match=r"s-report: holds index.html already"):
        unpack.brought_out([page / "index.html"], given)
    theirs.rename(place / "public")
    theirs.symlink_to(place / "public")
    with pytest.raises(unpack.PackError, match="s-report: is a link"):
        unpack.brought_out([page / "index.html"], given)
    theirs.unlink()
    (place / "empty").mkdir()
    theirs.symlink_to(place / "empty")  # where nothing of that name is replaced
    with pytest.raises(unpack.PackError, match="s-report: is a link"):
        unpack.brought_out([page / "index.html"], given)
    assert [path.name for path in (place / "public").iterdir()] == ["index.html"]
    assert (place / "public" / "index.html").read_text() == "precious"
    theirs.unlink()
    for text in ("ours", "our next"):  # which replaces the first
        (page / "index.html").write_text(text)
        assert unpack.brought_out([page / "index.html"], given) == [theirs / "index.html"]
        assert (theirs / "index.html").read_text() == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("/home/me/x", "[path]/x"), ("/home/me/my files/x.txt", "[path]/x.txt"), ("~/a/b", "[path]/b"),
        ("C:\\Users\\me\\x", "[path]/x"), ('File "/usr/lib/python3/x.py", line 3', 'File "[path]/x.py", line 3'),
        ("output=/a/b/c next", "output=[path]/c next"), ("file:///a/b/c", "[path]/c"),
        ("https://example.org/a/b", "https://example.org/a/b"), ("tokens/s and 1/2/3", "tokens/s and 1/2/3"),
        ("outputs/demo/report", "outputs/demo/report"), ("and/or", "and/or"), ("/s", "/s"),
    ],
)  # fmt: skip
def test_paths_are_masked_and_other_things_are_not(text, masked):
    assert Mask().text(text) == masked


def test_folders_of_this_machine_are_masked_in_pages_unless_they_are_words(tmp_path):
    mask = Mask(Path("/"), Path("/root"), Path("/home/me"))
    assert mask.page("the /root of /home/me, / and /home/me/x") == "the /root of [path], / and [path]/x"
    mask.text("see /data/sets/a and /data/sets/a/b")
    assert mask.page("<a>/data/sets/a/b</a> /data/sets/a /data/sets/c") == "<a>[path]/b</a> [path]/a /data/sets/c"


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ('{"id": 7, "loss": 1.5}', '{"id": 7, "loss": 1.5}'),
        ('{"id": 8, "text": "Bearer 12345678"}', '{"id": 8, "text": "Bearer ***"}'),
        ('{"id": 8, "text": "Bearer 1234"}', '{"id": 8, "text": "Bearer 1234"}'),
        ('{"id": 987654321, "loss": 1.5}', '{"id": ***, "loss": 1.5}'),  # a password that is a number
        ('{"id": 9, "text": "token=1"}', '{"id": 9, "text": "token=1"}'),
        ('{"id": 9, "text": "/a/b/c"}', '{"id": 9, "text": "[path]/c"}'),
        ('{"id": 9, "api_key": 5}', '{"id": 9, "api_key": ***}'),
        ("1,2.5e-3,7", "1,2.5e-3,7"),
    ],
)
def test_a_line_is_masked_as_if_it_were_the_only_one_of_its_form(line, masked, monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", "987654321")
    once, often = Mask(), Mask()
    for number in range(3):
        for form in ('{"id": %d, "loss": 0.25}', '{"id": %d, "text": "Bearer 1"}', '{"id": %d, "api_key": 4}'):
            often.line(form % number)
    assert once.line(line) == often.line(line) == once.text(line) == masked


def test_nothing_is_watched_for_in_a_pack(tmp_path):
    path = odd_pack(tmp_path / "x.pack.zip", MANIFEST)
    for words, line in (
        (["--watch", "1"], "x.pack.zip is a pack, in which nothing changes"),
        (["--watch", "0"], "--watch: got 0; it must be > 0 seconds"),
        (["--watch", "1", "--json"], "--watch and --json: choose one"),
    ):
        done = ratplus_here(tmp_path, "status", path, *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert line in done.stderr


@pytest.mark.parametrize(
    ("name", "found"),
    [("demo.pack.zip", "demo"), ("demo.zip", "demo"), ("demo", "demo"), ("a.pack.zip.zip", "a.pack.zip"),
     (".pack.zip", "pack"), (".zip", "pack")],
)  # fmt: skip
def test_the_name_of_a_pack(tmp_path, name, found):
    assert unpack.name_of(tmp_path / name) == found


def test_files_of_a_report_stay_where_a_folder_was_given(tmp_path):
    (tmp_path / "a").mkdir()
    assert unpack.brought_out([tmp_path / "a" / "x"], tmp_path / "a") == [tmp_path / "a" / "x"]


def test_errors_name_the_pack(monkeypatch, tmp_path):
    monkeypatch.setattr(unpack, "_packs", {"/tmp/x/demo": tmp_path / "demo.pack.zip"})
    assert unpack.naming_packs("/tmp/x/demo/a and /tmp/y") == f"{tmp_path}/demo.pack.zip/a and /tmp/y"


# ---- packs of strangers ---------------------------------------------------------------------------------------------


def odd_pack(path: Path, files: dict[str, bytes], hashed: bool = True, change=lambda info: None) -> Path:
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            archive.writestr(info, data)
        if hashed:
            archive.writestr("pack.json", json.dumps({"format": 1, "files": hashes}))
    return path


MANIFEST = {"sweep.json": (OLD / "sweep.json").read_bytes()}


def told(place, path) -> str:
    before = sorted(place.rglob("*"))
    done = ratplus_here(place, "status", path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert sorted(place.rglob("*")) == before
    return done.stderr


@pytest.mark.parametrize(
    "name",
    ["../evil", "/tmp/evil", "evaluate/../../evil/record.json", "evaluate/0123456789ab/../record.json", "a\\..\\evil",
     "evaluate/0123456789ab/model.safetensors", "evaluate/0123456789zz/record.json", "lock.json", "report/../x.html",
     "report/.hidden.html", "jobs.json", "evaluate/", "C:evil", "logs/x.log"],
)  # fmt: skip
def test_no_file_of_another_name_is_written(tmp_path, name):
    path = odd_pack(tmp_path / "x.zip", MANIFEST | {name: b"x"})
    assert "which no pack of ours does" in told(tmp_path, path)


def test_links_and_doubles_and_more(tmp_path, monkeypatch):
    def link(info):
        info.external_attr = (stat.S_IFLNK | 0o777) << 16

    path = odd_pack(tmp_path / "x.zip", MANIFEST, change=link)
    assert "which no pack of ours does" in told(tmp_path, path)
    # The same with the sign of a file that needs a password, in the two places where a zip has it.
    data = bytearray(odd_pack(tmp_path / "x.zip", MANIFEST).read_bytes())
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(sign) + place] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    assert "it holds 'sweep.json', which no pack of ours does" in told(tmp_path, tmp_path / "x.zip")
    for files in ([], None, 3):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("pack.json", json.dumps({"format": 1, "files": files}))
        assert "pack.json: not of format 1, which this version reads" in told(tmp_path, tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "double.zip", "w") as archive:
        archive.writestr("sweep.json", "x")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("sweep.json", "x")
    assert "two files of one name" in told(tmp_path, tmp_path / "double.zip")
    assert "it has no pack.json" in told(tmp_path, odd_pack(tmp_path / "bare.zip", MANIFEST, hashed=False))
    (tmp_path / "text.zip").write_text("no zip")
    assert "neither a sweep folder nor a whole pack" in told(tmp_path, tmp_path / "text.zip")
    whole = odd_pack(tmp_path / "cut.zip", MANIFEST).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    assert "neither a sweep folder nor a whole pack" in told(tmp_path, tmp_path / "cut.zip")
    monkeypatch.setattr(unpack, "MOST_BYTES", 1 << 20)
    bomb = odd_pack(tmp_path / "bomb.zip", MANIFEST | {"report/a.html": b"0" * (64 << 20)})
    assert bomb.stat().st_size < 1 << 20
    assert "it unpacks to more than" in told(tmp_path, bomb)
    monkeypatch.setattr(unpack, "MOST_FILES", 2)
    assert unpack.as_folder(odd_pack(tmp_path / "two.zip", MANIFEST)).name == "two"
    monkeypatch.setattr(unpack, "MOST_FILES", 1)
    assert "it holds 2 files" in told(tmp_path, odd_pack(tmp_path / "many.zip", MANIFEST))


def test_damage_within_what_is_packed_is_no_fault_of_ours(tmp_path):
    """zlib's own errors are neither a ValueError nor an OSError."""
    whole = odd_pack(tmp_path / "x.zip", MANIFEST).read_bytes()
    for place in range(40, 400, 9):
        (tmp_path / "x.zip").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert "x.zip: " in told(tmp_path, tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("pack.json", "{}")
    assert "which no pack of ours does" in told(tmp_path, tmp_path / "x.zip")


def test_a_damaged_file_is_named_by_its_pack(tmp_path):
    """Not by the temporary folder that it was unpacked to, which is gone when the line is read."""
    path = odd_pack(tmp_path / "x.zip", {"sweep.json": b'{"format": 1, "cells": 7}'})
    assert f"{path}/sweep.json: damaged (no list of cells)" in told(tmp_path, path)


def test_an_altered_file_is_refused(tmp_path):
    path = odd_pack(tmp_path / "x.zip", MANIFEST)
    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read("pack.json"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sweep.json", MANIFEST["sweep.json"] + b"\n")
        archive.writestr("pack.json", json.dumps(about))
    assert "sweep.json: damaged, or altered since it was packed" in told(tmp_path, path)


def test_suites_that_were_added_are_packed_and_kept(place):
    sweep = place / "outputs" / "sweep"
    record = json.loads((sweep / "evaluate" / EVALUATED / "record.json").read_text())
    parts = {key: record[key] for key in ("stage", "parent", "status", "metrics", "timing", "provenance")}
    added = make_record(**parts, config={**record["config"], "eval": {"text_rows": 9}})
    own = sweep / "evaluate" / added["id"]
    own.mkdir()
    (own / "record.json").write_text(record_text(added))
    (own / "samples.jsonl").write_text('{"task": "loss", "id": 0, "loss": 1.5, "count": 3}\n')
    manifest = json.loads((sweep / "sweep.json").read_text())
    (cell,) = (cell for cell in manifest["cells"] if cell["id"] == EVALUATED)
    cell["added"] = [{"id": added["id"], "suite": "more", "eval": {"text_rows": 9}}]
    (sweep / "sweep.json").write_text(json.dumps(manifest))
    done = ratplus_here(place, "pack", "outputs/sweep", "--out", "added.zip")
    assert (done.returncode, done.stderr) == (0, "")
    with zipfile.ZipFile(place / "added.zip") as archive:
        names = archive.namelist()
    assert {f"evaluate/{added['id']}/record.json", f"evaluate/{added['id']}/samples.jsonl"} <= set(names)
    found = json.loads(ratplus_here(place, "gc", "outputs/sweep", "--json").stdout)["unneeded"]
    assert not [item for item in found if added["id"] in item["path"]]
