"""`ratplus bench` with stand-ins that measure nothing: what is called, printed and written."""

import json

import pytest
from cli_runs import run_verb

from ratplus.sweeps.bench import measurements
from ratplus.sweeps.verbs import bench


@pytest.fixture
def measured(monkeypatch):
    """Measurements of one row; what was prepared with which words."""
    asked = []

    def prepare(what):
        def prepared(words, arguments):
            asked.append((what, list(words)))

            def measure(tell, save):
                tell(f"measuring {what}")
                names = bench._SHOWN[what]
                row = dict.fromkeys(names) | {names[0]: "m", names[-1]: 1234.5678, "more": 7}
                result = {"rows": [row], "skipped": [{"way": "fused", "context": 8, "reason": "no GPU"}]}
                save(result)
                return result

            return measure

        return prepared

    for what, name in (("kernels", "prepare_kernels"), ("model", "prepare_models"), ("train", "prepare_training")):
        monkeypatch.setattr(measurements, name, prepare(what))
    return asked


def run(*words) -> int:
    return run_verb("bench", *words)


@pytest.mark.parametrize(
    ("words", "asked"),
    [([], ("kernels", [])), (["kernels"], ("kernels", [])), (["model", "a", "b"], ("model", ["a", "b"])),
     (["train", "a"], ("train", ["a"]))],
)  # fmt: skip
def test_what_is_measured_and_printed(measured, capsys, tmp_path, words, asked):
    """Without --report nothing is written; what could not be measured is said below the table."""
    file = tmp_path / "new" / "f.json"
    assert run(*words, "--json", str(file)) == 0
    assert measured == [asked]
    said = capsys.readouterr()
    head, row, left = said.out.splitlines()
    names = bench._SHOWN[asked[0]]
    assert head.split() == " ".join(names).split()
    assert row.split() == ["m", *["-"] * (len(names) - 2), "1235"]
    assert left == "not measured: fused 8: no GPU"
    assert said.err == f"measuring {asked[0]}\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["f.json", "new"]
    plain = json.loads(file.read_text())
    assert plain["rows"][0]["more"] == 7
    assert plain["provenance"]["command"]


def test_tables_of_training(measured, capsys, tmp_path):
    assert run("train", "a", "--report", str(tmp_path / "r")) == 0
    names = bench._SHOWN["train"]
    csv, table = tmp_path / "r" / "efficiency_training.csv", tmp_path / "r" / "efficiency_training.md"
    assert capsys.readouterr().out.splitlines()[-2:] == [str(csv), str(table)]
    assert csv.read_text() == ",".join([*names, "more"]) + "\nm" + "," * (len(names) - 1) + "1234.5678,7\n"
    assert table.read_text() == (
        "| " + " | ".join(names) + " |\n|" + "---|" * len(names) + "\n| m" + " | -" * (len(names) - 2) + " | 1235 |\n"
    )


def test_no_rows_and_nothing_left_out(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        measurements, "prepare_training", lambda words, arguments: lambda tell, save: {"rows": [], "skipped": []}
    )
    assert run("train", "--report", str(tmp_path)) == 0
    assert (tmp_path / "efficiency_training.csv").read_text() == ",".join(bench._SHOWN["train"]) + "\n"
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["other"], "bench other: no such benchmark; allowed: kernels, model, train, report"),
        (["kernels", "--cells", "5"], "--cells: is for `ratplus bench report`"),
        (["report", "x"], "bench report: takes no models, got x; it reports a generated sweep"),
        (["report", "--repeats", "3"], "--repeats: not for `ratplus bench report`, which takes --cells, --json"),
        (["report", "--report", "r"], "--report: not for `ratplus bench report`, which takes --cells, --json"),
    ],
)
def test_words_that_do_not_fit(measured, words, line):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        run(*words)
    assert str(caught.value) == line
    assert measured == []


@pytest.mark.parametrize("option", ["json", "report"])
def test_a_place_that_cannot_be_written_is_told_before(measured, tmp_path, option):
    """Before minutes of measuring; and the look at it leaves nothing behind."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=rf"^--{option} .*: cannot be written \((Not a directory|File exists)\)$"):
        run("train", f"--{option}", str(tmp_path / "file" / "below"))
    (tmp_path / "folder").mkdir()
    if option == "json":
        with pytest.raises(ValueError, match=r"^--json .*folder: cannot be written \(is a folder\)$"):
            run("train", "--json", str(tmp_path / "folder"))
    bench._check_writable(tmp_path / "a" / "b" / "c.json", "--json c")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_the_report_of_a_generated_sweep_is_saved(monkeypatch, tmp_path):
    from ratplus.sweeps.bench import generated_sweep

    calls = []

    def print_bench(cells, save):
        calls.append(cells)
        save({"rows": [1]})

    monkeypatch.setattr(generated_sweep, "print_bench", print_bench)
    assert run("report", "--cells", "7", "--json", str(tmp_path / "a.json")) == 0
    assert run("report") == 0
    assert calls == [7, None]
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == [1]


def test_a_number_as_a_table_shows_it():
    assert [bench._short(value) for value in (None, 0.123456, 7, "a", 12345678.0)] == [
        "-",
        "0.1235",
        "7",
        "a",
        "1.235e+07",
    ]
