"""Records: whole or absent, checked on reading, named by their content."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import ratplus
from ratplus.records import record
from ratplus.records.atomic import remove_temporaries, write_atomically
from ratplus.records.record import (
    RecordError,
    canonical_json,
    code_version,
    provenance,
    read_record,
    stage_id,
    write_record,
)


def make(root, **kwargs):
    config = kwargs.pop("config", {"a": 1})
    folder = root / stage_id("adapt", config, "p")
    record = write_record(
        folder, stage="adapt", config=config, parent="p", status="done",
        metrics={"loss": {"value": 1.5, "stderr": None, "count": 3}}, timing={"seconds": 2.0}, provenance={}, **kwargs,
    )  # fmt: skip
    return folder, record


def test_round_trip(tmp_path):
    folder, record = make(tmp_path)
    assert read_record(folder) == record
    assert set(record) >= {"format", "id", "stage", "status", "parent", "config", "metrics", "timing", "provenance"}
    assert read_record(tmp_path / "nowhere") is None
    assert [p.name for p in folder.iterdir()] == ["record.json"]


def test_nan_metrics_survive(tmp_path):
    folder = tmp_path / stage_id("adapt", {}, None)
    metrics = {"loss": {"value": float("nan"), "stderr": None, "count": 0}}
    write_record(
        folder, stage="adapt", config={}, parent=None, status="done", metrics=metrics, timing={}, provenance={}
    )
    value = read_record(folder)["metrics"]["loss"]["value"]
    assert value != value


def test_ids_depend_on_content_alone():
    assert stage_id("adapt", {"a": 1, "b": 2}, "p") == stage_id("adapt", {"b": 2, "a": 1}, "p")
    ids = {
        stage_id("adapt", {"a": 1}, "p"), stage_id("evaluate", {"a": 1}, "p"), stage_id("adapt", {"a": 2}, "p"),
        stage_id("adapt", {"a": 1}, "q"), stage_id("adapt", {"a": 1}, None),
    }  # fmt: skip
    assert len(ids) == 5
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": float("nan")})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "not a whole record"),
        (lambda text: "", "not a whole record"),
        (lambda text: "[]", "not a whole record"),
        (lambda text: text.replace("1.5", "1.4"), "checksum differs"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "record format 9; this version reads format 1"),
    ],
)
def test_damage_is_seen(tmp_path, damage, message):
    folder, _ = make(tmp_path)
    path = folder / "record.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(RecordError, match=message):
        read_record(folder)


def test_an_edit_of_any_part_is_seen(tmp_path):
    folder, record = make(tmp_path)
    assert len(record) == 11
    for part in record.keys() - {"checksum", "format"}:
        (folder / "record.json").write_text(json.dumps(record | {part: "edited"}))
        with pytest.raises(RecordError, match="checksum differs"):
            read_record(folder)


def test_a_record_in_the_wrong_folder(tmp_path):
    folder, _ = make(tmp_path)
    other = tmp_path / stage_id("adapt", {"a": 2}, "p")
    folder.rename(other)
    with pytest.raises(RecordError, match="comes from another config"):
        read_record(other)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomically(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    """Not what a temporary file's private mode would leave."""
    code = "import sys; from ratplus.records.atomic import write_atomically; write_atomically(sys.argv[1], 'x')"
    for mask in (0o027, 0o002):
        path = tmp_path / f"{mask:o}"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60, umask=mask)
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_temporaries_of_killed_writers_go_but_not_those_of_the_lock(tmp_path):
    """A waiter may be creating or claiming the lock at this very moment."""
    kept = {".lock.json.ab12.tmp", ".lock.json.ab12.claim.tmp", "record.json"}
    for name in (*kept, ".record.json.xy.tmp", ".model.safetensors.z.tmp"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_concurrent_writers_never_mix(tmp_path):
    path = tmp_path / "x"
    texts = [str(i) * 20_000 for i in range(6)]
    threads = [threading.Thread(target=lambda t=t: [write_atomically(path, t) for _ in range(5)]) for t in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_checkout_around_an_installed_copy_is_not_ours(tmp_path, monkeypatch):
    """A project whose environment lies inside its git checkout: its commit says nothing of this code."""

    def git(*words):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True, timeout=60)

    copy = tmp_path / "env" / "ratplus" / "records" / "record.py"
    copy.parent.mkdir(parents=True)
    copy.write_text("")
    monkeypatch.setattr(record, "__file__", str(copy))
    git("init", "-q")
    assert record._checkout() is None
    assert code_version.__wrapped__() is None
    git("add", "-A")
    assert record._checkout() == tmp_path.resolve()


def test_provenance_says_what_ran():
    facts = json.loads(json.dumps(provenance()))
    assert facts["versions"]["torch"].startswith("2.")
    assert facts["command"]
    root = Path(ratplus.__file__).resolve().parents[1]
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=60)
    if not (root / ".git").exists():
        assert facts["git"] is None  # an unpacked archive, maybe inside somebody else's checkout
    else:
        assert asked.returncode == 0
        assert facts["git"]["commit"] == asked.stdout.strip()
