"""`ratplus note`: a line beside a record, outside its hash, that whoever looks at the sweep sees."""

import json
import os
import shutil
from pathlib import Path

import pytest
from cli_runs import ratplus_here

from ratplus.analysis.frame.load import read_sweep
from ratplus.analysis.page.page import write_page
from ratplus.records.note import MOST_CHARACTERS, read_note
from ratplus.records.record import read_record

OLD = Path(__file__).parents[2] / "data" / "sweep_before_folders" / "sweep"
EVALUATED, PRETRAINED = "d56798413177", "185a72309e0e"
NOTE = "recall drops: look at </script> the gates"


@pytest.fixture
def place(tmp_path):
    shutil.copytree(OLD, tmp_path / "outputs" / "sweep")
    return tmp_path


def test_a_note_is_seen_everywhere_and_changes_no_record(place):
    sweep = place / "outputs" / "sweep"
    before = read_record(sweep / "evaluate" / EVALUATED)
    assert ratplus_here(place, "note", EVALUATED[:6]).stdout == f"evaluate {EVALUATED}: (no note)\n"
    done = ratplus_here(place, "note", EVALUATED[:6], f"  {NOTE}\n")
    assert (done.returncode, done.stdout) == (0, f"evaluate {EVALUATED}: {NOTE}\n")
    assert read_record(sweep / "evaluate" / EVALUATED) == before
    assert f"  note    {NOTE}\n" in ratplus_here(place, "show", EVALUATED).stdout
    assert f", note: {NOTE}\n" in ratplus_here(place, "status", "outputs/sweep").stdout
    cells = json.loads(ratplus_here(place, "status", "outputs/sweep", "--json").stdout)["cells"]
    assert sorted(cell["note"] for cell in cells) == ["", NOTE]
    assert NOTE in ratplus_here(place, "ls", "note!=''").stdout
    page = write_page(read_sweep(sweep), [], [], "", place).read_text()
    assert "look at \\u003c/script\\u003e the gates" in page  # in the cell's view, and in what the search looks in
    told = json.loads(ratplus_here(place, "note", EVALUATED, "--json").stdout)
    assert told == {"format": 1, "folder": "outputs/sweep", "stage": "evaluate", "id": EVALUATED, "note": NOTE}


def test_another_note_takes_the_place_of_the_first_and_none_removes_it(place):
    for text in ("first", "second", ""):
        ratplus_here(place, "note", PRETRAINED, text, "--folder", "outputs/sweep")
        assert read_note(place / "outputs" / "sweep" / "pretrain" / PRETRAINED) == text
    assert not list(place.rglob("note.txt"))
    assert "note" not in ratplus_here(place, "show", PRETRAINED).stdout.split("reproduce")[0]


def test_secrets_and_what_a_terminal_obeys_are_not_kept(place, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2)
    ratplus_here(place, "note", EVALUATED, f"key {'0123456789abcdef' * 2} \x1b[31mred")
    assert read_note(place / "outputs" / "sweep" / "evaluate" / EVALUATED) == "key *** \\x1b[31mred"


def test_mistakes_are_one_line(place):
    for words, line in (
        (["nothex", "x"], "note: got 'nothex'; give an id"),
        (["123456789abc", "x"], "note: no stage of outputs/ (give another folder with --folder)"),
        ([EVALUATED, "x" * (MOST_CHARACTERS + 1)], "note: a note has at most 2,000 characters; this one has 2,001"),
    ):
        done = ratplus_here(place, "note", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert line in done.stderr
    assert not list(place.rglob("note.txt"))


def test_a_note_of_a_stranger_is_bounded_plain_text(tmp_path):
    (tmp_path / "note.txt").write_bytes(b"a\x1b]0;x\x07\n\xff b")
    assert read_note(tmp_path) == "a\\x1b]0;x\\x07 � b"
    (tmp_path / "note.txt").write_bytes(b"x" * 10_000_000)
    assert read_note(tmp_path) == ""
    (tmp_path / "note.txt").unlink()
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "note.txt").symlink_to("secret")
    assert read_note(tmp_path) == ""
    (tmp_path / "note.txt").unlink()
    os.mkfifo(tmp_path / "note.txt")
    assert read_note(tmp_path) == ""
