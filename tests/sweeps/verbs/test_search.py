"""`ratplus search` from its words to its files; and labels in the place of files of the group `pattern`."""

import json

import pytest
import yaml
from cli_runs import TINY, ratplus_here

from ratplus.pattern import PatternMap
from ratplus.sweeps.define.compose import compose_cells, compose_one
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.runner.search_words import parse

SMALL = ["text_rows=3", "recall_rows=3", "swaps=2", "random=3", "candidates=D1,D4,top2x8", "accelerator=cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pretrained nano model and its sweep."""
    place = tmp_path_factory.mktemp("search")
    for number in range(30):
        text = " ".join(f"word{(number * 31 + i * i) % 97}" for i in range(200))
        (place / "texts").mkdir(exist_ok=True)
        (place / f"texts/{number}.txt").write_text(text)
    words = [word for word in TINY if not word.startswith("data.path")]
    words += ["data.path=texts", "data.validation_fraction=0.5", "output=outputs/made"]
    done = ratplus_here(place, "pretrain", *words)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def model(place):
    (folder,) = (place / "outputs/made/pretrain").iterdir()
    return folder.name


def test_a_dry_run_says_passes_and_time_and_writes_nothing(place, model):
    done = ratplus_here(place, "search", f"model={model}", "over=heads", *SMALL, "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "exchanges" in done.stdout
    assert "passes, " in done.stdout
    assert "s each: about" in done.stdout
    assert not (place / "outputs/search").exists()


def test_a_search_writes_a_pattern_that_cells_take(place, model):
    out = "my/pattern/best.yaml"
    words = [f"model={model}", "budget=kv:0.7,read:0.5", "over=layers,heads", f"out={out}", *SMALL]
    done = ratplus_here(place, "search", *words)
    assert done.returncode == 0, done.stderr
    assert "substitutions in the dense model" in done.stderr
    (folder,) = (place / "outputs/search").iterdir()
    result = json.loads((folder / "search.json").read_text())
    page = (folder / "report/report.md").read_text()
    assert page.splitlines()[2] == done.stdout.splitlines()[0]
    names = {path.name for path in (folder / "report").iterdir()}
    assert {"search.csv", "search_choice.png", "search_frontier_kv.pdf", "search_frontier_read.png",
            "search_prediction.png"} <= names  # fmt: skip
    shape = result["shape"]
    for budget in result["budgets"]:
        label = budget["winner"]["pattern"]
        wanted = PatternMap.from_label(label, shape["layers"], shape["heads"])
        assert budget["winner"]["costs"][budget["kind"]] <= float(budget["budget"].split(":")[1])
        stem = f"best-{budget['budget'].replace(':', '-')}"
        assert yaml.safe_load((place / f"my/pattern/{stem}.yaml").read_text())
        by_file = compose_one(["model=ratplus_nano", f"pattern={stem}"], str(place / "my")).config.patterns
        by_label = compose_one(["model=ratplus_nano", f"pattern={label}"]).config.patterns
        assert by_file == by_label == wanted
    again = ratplus_here(place, "search", *words)
    later = json.loads((folder / "search.json").read_text())
    assert again.returncode == 0
    assert later["spent"]["passes"] == 0
    assert later["budgets"] == result["budgets"]


def test_a_model_folder_brings_its_own_data(place, model):
    folder = f"outputs/made/pretrain/{model}"
    words = [f"model={folder}", "output=outputs/again", "over=layers", "budget=flops:0.9", *SMALL]
    assert ratplus_here(place, "search", *words).returncode == 0, "a stage's folder is that stage"
    copied = place / "copied"
    copied.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copied / name).write_bytes((place / folder / name).read_bytes())
    recall = [word for word in TINY if word.startswith("data.recall")]
    words = ["model=copied", "data=text", "data.path=texts", "data.validation_fraction=0.5", *recall, *words[2:]]
    done = ratplus_here(place, "search", *words, "output=outputs/folder")
    assert done.returncode == 0, done.stderr
    a, b = (json.loads((place / f"outputs/{x}/search.json").read_text()) for x in ("again", "folder"))
    assert a["budgets"][0]["rows"] == b["budgets"][0]["rows"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "model: got None; give a model folder"),
        (["model=nowhere"], "model=nowhere: no such folder, and not an id of a stage"),
        (["model=abc123"], "no stage of outputs/"),
        (["model=texts"], "config.json is missing"),
        (["model=ID", "candidates=D1,dilated"], "candidates: pattern 'dilated': not a label"),
        (["model=ID", "candidates=D1,D4", "budget=kv:0.1"], "got kv:0.1; the cheapest candidate, D4, costs 0.25"),
        (["model=ID", "budget=memory:0.1"], "budget: got 'memory:0.1'; allowed: kv:0.25"),
        (["model=ID", "budgets=kv:0.1"], "did you mean budget=?"),
        (["model=ID", "over=rows"], "over: got 'rows'; allowed: layers; heads; layers,heads"),
        (["model=ID", "swaps=many"], "swaps: got 'many'; it must be a whole number"),
        (["model=ID", "length=100000"], "length: got 100000; "),
        (["model=ID", "data=pydocs"], "is a stage of"),
        (["model=ID", "out=best.txt"], "out: got 'best.txt'; it must end in .yaml"),
        (["model=ID", "out=texts/0.txt/best.yaml"], "out: texts/0.txt/best.yaml: cannot be written"),
        (["model=ID", "budget=latency:0.5", "bench=none.json"], "bench: none.json: no such file"),
        (["model=ID", "tasks=needles"], "tasks: got 'needles'; allowed: niah_single_1"),
        (["model=copied2"], "no such folder"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(place, model, words, line):
    done = ratplus_here(place, "search", *(word.replace("ID", model) for word in words or ["swaps=1"]))
    assert done.returncode == 2
    said = done.stderr.strip().splitlines()
    assert len(said) == 1, said
    assert line in said[0]


def test_nothing_of_others_is_replaced_and_no_link_is_followed(place, model):
    """Seen before anything is measured."""
    precious = {"mine.yaml": "precious: 1\n", "site/search.json": '{"precious": 1}', "public/report.md": "precious"}
    for name, text in precious.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    (place / "linked.yaml").symlink_to("mine.yaml")
    (place / "new").mkdir(exist_ok=True)
    (place / "new/report").symlink_to(place / "public")
    (place / "passes/probes").mkdir(parents=True)
    (place / "passes/probes/0123456789abcdef.json").symlink_to(place / "mine.yaml")
    for word, line in (
        ("out=mine.yaml", "out: mine.yaml: is there, and no search wrote it"),
        ("out=linked.yaml", "out: linked.yaml: is there, and no search wrote it"),
        ("output=site", "output=site: holds search.json, and no search wrote it"),
        ("output=outputs/made", "output=outputs/made: is a sweep folder"),
        ("output=new", "new/report: is a link"),
        ("output=passes", "0123456789abcdef.json: is a link"),
    ):
        done = ratplus_here(place, "search", f"model={model}", "budget=kv:0.7", word, *SMALL)
        assert done.returncode == 2
        (said,) = done.stderr.strip().splitlines()
        assert line in said
    assert {name: (place / name).read_text() for name in precious} == precious
    assert not (place / "outputs/made/search.json").exists()


def test_a_mixed_adaptation_is_a_base_for_a_search(place):
    words = [word for word in TINY if not word.startswith("data.path")]
    words += ["data.path=texts", "data.validation_fraction=0.5", "output=outputs/mixed", "train.adapt.mixed=[D1,D4]"]
    done = ratplus_here(place, "adapt", *words, "pattern=D4")
    assert done.returncode == 0, done.stderr
    (folder,) = (place / "outputs/mixed/adapt").iterdir()
    assert json.loads((folder / "record.json").read_text())["config"]["recipe"]["mixed"] == ["D1", "D4"]
    done = ratplus_here(place, "search", f"model={folder.name}", "budget=kv:0.7", "swaps=0", *SMALL[:2], *SMALL[3:])
    assert done.returncode == 0, done.stderr
    assert f"adapt-{folder.name}" in done.stdout


def test_words_keep_labels_whole():
    section, rest = parse(["model=m", "candidates=D1,D16-W64, top8x64", "length=null", "data.path=a,b"])
    assert section.candidates == ["D1", "D16-W64", "top8x64"]
    assert section.length is None
    assert rest == ["data.path=a,b"]


def test_labels_stand_for_patterns_in_any_sweep():
    cells = compose_cells(["model=ratplus_tiny", "pattern=D16-W64,top4x8,layers[D1,D4]"])
    assert [cell.config.patterns.label for cell in cells] == ["D16-W64", "top4x8", "layers[D1,D4,D1,D4]"]
    same = compose_one(["model=ratplus_tiny", "pattern=dilated", "pattern.dilation=16", "pattern.window=64"])
    assert same.config.patterns == cells[0].config.patterns
    with pytest.raises(UsageError, match=r"D16 is a label and dense is none; give labels alone \(dense is D1\)"):
        compose_cells(["pattern=D16,dense"])
    with pytest.raises(UsageError, match="names 9 layers, but the model has"):
        compose_one(["model=ratplus_nano", "pattern=layers[D1x9]"])
    with pytest.raises(UsageError, match="pattern.dilation: got 16; pattern.label=D4 says all"):
        compose_one(["pattern=dilated", "pattern.label=D4"])
