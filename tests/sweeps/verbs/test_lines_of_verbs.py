"""What verbs print of what they did, line by line, and what they hand on; the work itself is a stand-in."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_runs import run_verb as run

from ratplus import ModelConfig, Pattern, PatternMap
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.verbs import compare, gc

SHAPE = ModelConfig(vocab_size=97, layers=2, d_model=64, d_head=16)
PATTERNS = PatternMap.uniform(Pattern(16, 64), 2, 4)


def refused(verb: str, *words: str) -> str:
    with pytest.raises(UsageError) as told:
        run(verb, *words)
    return str(told.value)


# ---- export -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--shard-gb", "2"], "--shard-gb: got 2; only --format hf writes shards"),
        (["--pattern", "D16"], "--pattern: got D16; only --format hf has it"),
        (["--dtype", "float16"], "--dtype: got float16; only --format hf has it"),
        (["--format", "hf", "--shard-gb", "0"], "--shard-gb: got 0; it must be > 0"),
        (["--format", "hf", "--shard-gb", "-1.5"], "--shard-gb: got -1.5; it must be > 0"),
        (["--format", "hf", "--shard-gb", "inf"], "--shard-gb: got inf; it must be > 0"),
        (["--format", "hf", "--shard-gb", "nan"], "--shard-gb: got nan; it must be > 0"),
    ],
)
def test_options_that_a_format_has_not(words, line):
    assert refused("export", "M", "T", *words) == line


def test_a_target_of_the_other_kind(tmp_path):
    (tmp_path / "file").touch()
    assert refused("export", "M", str(tmp_path)) == (
        f"{tmp_path}: is a folder; --format official writes one file: name it"
    )
    assert refused("export", "M", str(tmp_path / "file"), "--format", "hf") == (
        f"{tmp_path / 'file'}: is a file; --format hf writes a folder: name one"
    )


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("patterns", [PATTERNS, None])
def test_a_folder_that_transformers_loads(tmp_path, monkeypatch, capsys, own, patterns):
    given = []
    done = SimpleNamespace(config=SHAPE, patterns=patterns, own=own, model="llama", notes=["first", "second"])
    monkeypatch.setattr("ratplus.checkpoint.hub.export_hf", lambda *words: given.append(words) or done)
    target = tmp_path / "a b"
    target.mkdir()
    assert run("export", "M", str(target), "--format", "hf", "--shard-gb", "0.5") == 0
    assert given == [("M", target, 500_000_000, False, None, "float32")]
    seen = " under D16-W64" if patterns else ""
    trust = ", trust_remote_code=True" if own else ""
    line, *notes = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{target}: RAT+, 2 layers, d_model 64, 4 heads of 16, vocabulary 97: ")
    assert line.endswith(
        f"; as llama{seen}; load it with transformers: AutoModelForCausalLM.from_pretrained({str(target)!r}{trust})"
    )
    assert notes == ["note: first", "note: second"]


@pytest.mark.parametrize("width", [64, 128])
def test_a_file_of_the_reference_layout(tmp_path, monkeypatch, capsys, width):
    config = ModelConfig(vocab_size=97, layers=2, d_model=2 * width, d_head=width)
    monkeypatch.setattr("ratplus.checkpoint.official.export_official", lambda *words: config)
    (tmp_path / "there.pt").touch()
    assert run("export", "M", str(tmp_path / "there.pt")) == 0
    first, *more = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'there.pt'}: RAT+, 2 layers")
    assert more == (["the layout does not store d_head: import it with --d-head 64"] if width == 64 else [])


# ---- import -------------------------------------------------------------------------------------------------------


@pytest.fixture
def adopted(monkeypatch):
    """What `import` calls, in order; nothing is read, downloaded or written."""
    calls: list = []
    found = SimpleNamespace(config=SHAPE, parameters=1234, size="1B", files={}, patterns=None)
    for name, answer in (
        ("adopt.read_foreign", found), ("adopt.bring_in", None), ("targets.check_target", None),
        ("llama.download.download_model", Path("downloaded")),
    ):  # fmt: skip
        monkeypatch.setattr(
            f"ratplus.checkpoint.{name}",
            lambda *words, name=name, answer=answer: calls.append((name, *words)) or answer,
        )
    return SimpleNamespace(calls=calls, found=found)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["a.pt", "T", "--d-head", "0"], "--d-head: got 0; it must be ≥ 1"),
        (["a.pt", "T", "--max-len", "-3"], "--max-len: got -3; it must be ≥ 1"),
        (["a.pt", "T", "--revision", "v2"], "--revision: got v2; a.pt is no name of the hub, which alone has them"),
    ],
)
def test_mistakes_of_import(adopted, words, line):
    assert refused("import", *words) == line
    assert adopted.calls == []


def test_a_folder_tells_its_own_channels_per_head(adopted, tmp_path):
    line = f"--d-head: got 1; {tmp_path} is a folder, whose config.json tells it"
    assert refused("import", str(tmp_path), "T", "--d-head", "1") == line
    assert adopted.calls == []


@pytest.mark.parametrize("patterns", [PATTERNS, None])
def test_a_file_that_came_in(adopted, capsys, patterns):
    adopted.found.patterns, adopted.found.files = patterns, {"tokenizer.json": b"{}"}
    assert run("import", "a.pt", "T", "--d-head", "1", "--max-len", "1", "--force") == 0
    assert adopted.calls == [
        ("targets.check_target", Path("T"), Path("a.pt")), ("adopt.read_foreign", Path("a.pt"), 1, 1),
        ("adopt.bring_in", adopted.found, Path("a.pt"), Path("T"), True),
    ]  # fmt: skip
    own = ["its own pattern, with which it was trained: D16-W64"] if patterns else []
    assert capsys.readouterr().out.splitlines() == [
        "T: the 1B shape of the paper, RAT+, 2 layers, d_model 64, 4 heads of 16, vocabulary 97: 1234 parameters, "
        "recurrence on", *own, "use it with: model.init_from=T data.tokenizer=T data.recall.fraction=0",
    ]  # fmt: skip


def test_a_model_of_the_hub_is_downloaded_first(adopted, capsys):
    assert run("import", "owner/name", "T") == 0
    source = Path("downloaded")
    assert adopted.calls == [
        ("llama.download.download_model", "owner/name", None), ("targets.check_target", Path("T"), source),
        ("adopt.read_foreign", source, 128, None), ("adopt.bring_in", adopted.found, source, Path("T"), False),
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines()[1:] == ["use it with: model.init_from=T"]


# ---- evaluate --add -----------------------------------------------------------------------------------------------


def test_one_suite_and_one_folder_are_given_to_add(tmp_path, monkeypatch):
    given: list = []
    monkeypatch.setattr("ratplus.sweeps.runner.add_suite.add_suite", lambda *words: given.append(words) or 3)
    monkeypatch.setattr("ratplus.sweeps.runner.cells.run_words", lambda *words, last: given.append((*words, last)) or 4)
    wrong = "--add: give one suite and one sweep folder: ratplus evaluate --add longbench outputs/demo"
    for words in (["--add", "ruler"], ["--add", "ruler", "F", "-m"], ["--add", "ruler", "a=1"],
                  ["--add", "ruler", "a=1", str(tmp_path)]):  # fmt: skip
        assert refused("evaluate", *words) == wrong
    assert (
        refused("evaluate", "a=1", "--json")
        == "--json: of --add alone; `ratplus status FOLDER --json` tells of a sweep"
    )
    assert given == []
    assert run("evaluate", "--add", "ruler", "F", "eval.tasks=[a]") == 3
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert run("evaluate", "--add", "ruler", str(odd), "--json", "--config-dir", "c") == 3
    assert run("evaluate", "a=1") == 4
    assert given == [
        ("ruler", Path("F"), ["eval.tasks=[a]"], None, False), ("ruler", odd, [], "c", True),
        (["a=1"], None, False, "evaluate"),
    ]  # fmt: skip


# ---- pack, gc, compare --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bytes", "size"), [(99_949, "99.9 kB"), (99_999, "100.0 kB"), (100_000, "0.1 MB"), (2_345_678, "2.3 MB")]
)
def test_the_size_of_a_pack(monkeypatch, capsys, bytes, size):
    packed = SimpleNamespace(path=Path("a.zip"), stages=3, files=7, bytes=bytes, left_out=["odd\x1b", "b"])
    given = []
    monkeypatch.setattr("ratplus.sweeps.share.pack.pack", lambda *words: given.append(words) or packed)
    assert run("pack", "F") == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"a.zip: 3 stages, 7 files, {size}\n", "left out: odd\\x1b\nleft out: b\n")
    assert run("pack", "F", "--json", "--out", "b.zip") == 0
    text = capsys.readouterr().out
    assert text == json.dumps({"format": 1, **vars(packed), "path": "a.zip"}, indent=1) + "\n"
    assert given == [(Path("F"), None), (Path("F"), Path("b.zip"))]


@pytest.mark.parametrize("count", [0, 99, 100, 101, 103])
def test_a_hundred_things_that_are_not_needed_are_listed(monkeypatch, capsys, count):
    found = [SimpleNamespace(path=Path(f"p{i}"), why="w\x1b", bytes=1000 * i, frees=i) for i in range(count)]
    monkeypatch.setattr("ratplus.sweeps.share.unneeded.unneeded", lambda folder, sweeps: found)
    monkeypatch.setattr("ratplus.sweeps.share.unneeded.remove", lambda *_: pytest.fail("nobody asked for it"))
    assert run("gc", "F") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[:100] == [f"{1000 * i:>15,} bytes  p{i}  (w\\x1b)" for i in range(min(count, 100))]
    assert lines[100:] == ([f"... and {count - 100} more; --json lists all"] if count > 100 else [])
    held, frees = 1000 * sum(range(count)), sum(range(count))
    linked = f", of which {held - frees:,} have another name (a hard link) and stay" if count else ""
    assert last == f"{count} could be removed (--remove): {held:,} bytes{linked}"
    assert run("gc", "F", "--json") == 0
    rows = [{**vars(item), "path": str(item.path)} for item in found]
    assert json.loads(capsys.readouterr().out) == {
        "format": 1, "removed": False, "bytes": held, "frees": frees, "unneeded": rows,
    }  # fmt: skip


def test_what_was_removed_is_what_is_told(monkeypatch, capsys):
    found = [SimpleNamespace(path=Path(f"p{i}"), why="w", bytes=10, frees=10) for i in range(3)]
    given = []
    monkeypatch.setattr("ratplus.analysis.frame.all_sweeps.find_sweeps", lambda root: [root / "a", root / "b"])
    monkeypatch.setattr("ratplus.sweeps.share.unneeded.unneeded", lambda *words: given.append(words) or found)
    monkeypatch.setattr("ratplus.sweeps.share.unneeded.remove", lambda *words: given.append(words) or found[:1])
    assert run("gc", "S", "--sweeps", "x", "y", "--remove") == 0
    sweeps = [Path(name) for name in ("x/a", "x/b", "y/a", "y/b")]
    assert given == [(Path("S"), sweeps), (Path("S"), found, sweeps)]
    assert capsys.readouterr().out == f"{10:>15,} bytes  p0  (w)\n1 removed: 10 bytes\n"
    assert refused("gc", "S", "--remove", "--dry-run") == "--dry-run and --remove: choose one"
    assert gc._MOST_ROWS == 100


def row(first="a", second="b", metric="loss", unit="", **changes) -> dict:
    return dict(
        run="m", metric=metric, unit=unit, first=first, second=second, a=1.0, b=1.25, difference=0.25, stderr=0.1,
        low=0.05, high=0.45, p=0.012345, certain=True, items=40, seeds=1, seeds_stderr=None, method="bootstrap",
    ) | changes  # fmt: skip


def shown(capsys, *rows: dict, notes=()) -> list[str]:
    compare._show(list(rows), list(notes))
    return capsys.readouterr().out.splitlines()


FOOT = "Δ ±, 95 % and p: over the evaluation's items (paired bootstrap; p after Holm's adjustment within a result)."


def test_rows_of_a_comparison(capsys):
    from ratplus.analysis.paired.bootstrap import ERRORS

    lines = shown(
        capsys, row(), row(metric="acc", unit="%", difference=-0.25, p=1e-4, items=0, method=ERRORS),
        row(first="a", second="c\x1b", certain=False, p=9e-5), row(metric="n", difference=0.0, p=float("nan")),
        notes=["a note\x1b"],
    )  # fmt: skip
    words = [line.split() for line in lines]
    assert lines[0] == "b minus a"
    assert words[1] == ["model", "result", "a", "b", "Δ", "95", "%", "p", "items"]
    assert words[2][:4] == ["m", "loss", "1.000", "1.250"]
    assert words[2][-6:] == ["0.050", "to", "0.450", "0.0123", "40", "higher"]
    assert words[3][:5] == ["m", "acc", "(%)", "100.0", "125.0"]
    assert words[3][-6:] == ["5.0", "to", "45.0", "0.0001", "—", "lower"]
    assert words[4][-1] == "lower"
    assert (lines[5], lines[6], words[8][-3:]) == ("", "c\\x1b minus a", ["<0.0001", "40", "="])
    assert lines[9:] == [
        "", FOOT, "items —: no samples of the same items, so from the two standard errors, as if unpaired.",
        "=: cannot be told apart (p ≥ 0.05).", "a note\\x1b",
    ]  # fmt: skip
    seeds = shown(capsys, row(seeds=3, seeds_stderr=0.125), row(metric="x", seeds=1, seeds_stderr=0.5))
    assert seeds[1].split()[-4:] == ["items", "±", "seeds", "seeds"]
    assert [line.split()[-3:] for line in seeds[2:4]] == [["0.125", "3", "higher"], ["0.500", "1", "higher"]]
    assert seeds[4:] == [
        "", FOOT, "± seeds: standard error of Δ over training seeds; from three on they must tell it too.",
        "=: cannot be told apart (p ≥ 0.05).",
    ]  # fmt: skip


def test_a_comparison_as_json(monkeypatch, capsys):
    compared = SimpleNamespace(rows=[row(), row(metric="acc"), row(metric="other", p=float("nan"))], notes=["n"])
    monkeypatch.setattr("ratplus.sweeps.share.unpack.as_folder", lambda folder: Path(f"of {folder}"))
    given = []
    monkeypatch.setattr("ratplus.analysis.paired.cells.compare_cells", lambda *words: given.append(words) or compared)
    assert run("compare", "F", "a", "b", "--json", "--metric", "acc", "--metric", "loss", "--where", "x") == 0
    text = capsys.readouterr().out
    assert text == json.dumps({"format": 1, "differences": compared.rows[:2], "notes": ["n"]}, indent=1) + "\n"
    assert given == [(Path("of F"), ["a", "b"], "x")]
    assert run("compare", "F", "a", "b", "--json") == 0
    assert [one["p"] for one in json.loads(capsys.readouterr().out)["differences"]] == [0.012345, 0.012345, None]
    assert refused("compare", "F", "a", "b", "--metric", "lost") == (
        "--metric: no result 'lost' is there to compare; there are loss, other"
    )
    compared.rows = [row(metric=f"m{i}" * 3) for i in range(14)]
    assert refused("compare", "F", "a", "b", "--metric", "zzz").endswith(
        "there are " + ", ".join(f"m{i}" * 3 for i in range(12))
    )
