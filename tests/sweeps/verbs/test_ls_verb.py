"""`ratplus ls`: cells of all sweeps under a folder."""

import json
import shutil
from pathlib import Path

import pytest
from cli_runs import ratplus_here

OLD = Path(__file__).parents[2] / "data" / "sweep_before_folders" / "sweep"


@pytest.fixture
def place(tmp_path):
    """Two sweeps under outputs/, one deeper than the other, and a damaged third."""
    for name in ("one", "deeper/two"):
        shutil.copytree(OLD, tmp_path / "outputs" / name)
    manifest = tmp_path / "outputs" / "deeper" / "two" / "sweep.json"
    text = json.loads(manifest.read_text())
    text["cells"] = text["cells"][:1]
    manifest.write_text(json.dumps(text | {"name": "second"}))
    (tmp_path / "outputs" / "bad").mkdir()
    (tmp_path / "outputs" / "bad" / "sweep.json").write_text("{")
    return tmp_path


def test_all_sweeps_under_a_folder(place):
    done = ratplus_here(place, "ls")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["sweep", "cell", "model", "pattern"]
    assert len(lines) == 1 + 3 + 1
    assert lines[-1] == "3 of 3 cells"
    assert done.stderr.startswith("left out: outputs/bad/sweep.json: damaged")
    assert done.stderr.count("\n") == 1


def test_a_condition_columns_and_order(place):
    every = json.loads(ratplus_here(place, "ls", "--json").stdout)
    assert (every["format"], every["of"], len(every["cells"])) == (1, 3, 3)
    patterns = [cell["pattern"] for cell in every["cells"]]
    assert every["cells"][0]["folder"] == "outputs/deeper/two"
    assert {cell["sweep"] for cell in every["cells"]} == {
        "second",
        json.loads((OLD / "sweep.json").read_text())["name"],
    }
    done = ratplus_here(
        place, "ls", f'pattern=="{patterns[0]}" and kv_entries>0', "outputs/one", "--columns", "cell,loss"
    )
    assert done.stdout.splitlines()[0].split() == ["cell", "loss"]
    assert done.stdout.splitlines()[-1] == "1 of 2 cells"
    ordered = json.loads(ratplus_here(place, "ls", "outputs/one", "--json", "--sort=-kv_ratio").stdout)["cells"]
    ratios = [cell["kv_ratio"] for cell in ordered]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > ratios[1]
    few = ratplus_here(place, "ls", "--limit", "1")
    assert few.stdout.splitlines()[-1] == "3 of 3 cells; 2 are not shown (--limit, --json)"


def test_what_a_condition_names_is_shown(place):
    done = ratplus_here(place, "ls", "parameters>0 and kv_heads>0", "outputs/one")
    assert done.stdout.splitlines()[0].split()[-2:] == ["parameters", "kv_heads"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["modl == 'x'"], "there is no column 'modl'; did you mean model"),
        (["loss < 1", "nowhere"], "nowhere: no such folder"),
        (["loss < 1", "outputs/one/report"], "outputs/one/report: holds no sweep folder"),
        (["loss < 1", "outputs/bad"], "outputs/bad/sweep.json: damaged"),
        (["--columns", "cell,los"], "there is no column 'los'; did you mean loss"),
        (["--sort", "los"], "there is no column 'los'"),
        (["--limit", "0"], "--limit: got 0"),
    ],
)
def test_mistakes_are_one_line(place, words, line):
    (place / "outputs" / "one" / "report").mkdir()
    done = ratplus_here(place, "ls", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr.splitlines()[-1]


def test_no_control_characters_of_a_stranger_reach_the_terminal(place):
    done = ratplus_here(place, "ls", "outputs/one", "--columns", "cell,\x1b[31mx")
    assert "\x1b" not in done.stdout + done.stderr
