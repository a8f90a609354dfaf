"""Commits, figures and tables as the templates get them, problems, and the module run as a script or a notebook."""

from __future__ import annotations

import base64
import json
import struct
import sys

import numpy as np
import pandas as pd
import pytest

from ratplus.analysis.draw.tables import Table
from ratplus.analysis.frame.bench_results import read_results
from ratplus.analysis.frame.beside import read_beside
from ratplus.analysis.frame.load import load_sweep, read_sweep
from ratplus.analysis.frame.selection import mask_of
from ratplus.analysis.page import items, notebook
from ratplus.analysis.page.columns import MOST_RESULTS, columns_of, table_results, words_of
from ratplus.analysis.page.details import _text
from ratplus.analysis.page.embed import as_json, values
from ratplus.analysis.page.page import MOST_PROBLEMS, _data, commits_of, write_page
from ratplus.analysis.page.parts import figure_of, table_of
from ratplus.pattern import Pattern, PatternMap
from ratplus.records.samples import write_samples

pytestmark = pytest.mark.usefixtures("quick")


def test_five_commits_are_named_and_more_are_dots():
    def record(number: int, dirty=False):
        return {"provenance": {"git": {"commit": f"{number}" * 12, "dirty": dirty}}}

    assert commits_of([None, {}, {"provenance": None}, {"provenance": {"git": None}}]) == []
    apart = [record(n, n == 1) for n in range(6)]
    told = ["0" * 10, "1" * 10 + "+", *(f"{n}" * 10 for n in (2, 3, 4))]
    assert commits_of([*apart[:5], apart[0]]) == told
    assert commits_of(apart) == [*told, "…"]


@pytest.mark.parametrize(("width", "height", "wide"), [(1000, 500, False), (1001, 499, True)])
def test_a_figure_for_the_template(tmp_path, width, height, wide):
    data = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"rest"
    (tmp_path / "my_figure.png").write_bytes(data)
    assert figure_of(tmp_path / "my_figure.png", {}) == {
        "title": "my figure", "file": "my_figure.png", "data": base64.b64encode(data).decode(), "wide": wide,
        "width": round(width * 0.62), "height": round(height * 0.62),
        "alt": "Figure: my figure. Its numbers stand in the tables below.",
    }  # fmt: skip
    assert figure_of(tmp_path / "my_figure.png", {"my_figure": "Mine"})["title"] == "Mine"


def test_a_table_for_the_template():
    shown = pd.DataFrame({"a\nb": ["x", "x"], "**n**": ["**1**", "2"], "m": [3, 4]})
    table = Table("my_table", None, shown, "One\ntwo", ["**note**"], names=1, grouped=True)
    assert table_of(table, {}) == {
        "title": "my table", "file": "my_table", "caption": "One two",
        "columns": [("a b", False), ("n", True), ("m", True)],
        "rows": [[("x", False, False), ("1", True, True), ("3", False, True)],
                 [("", False, False), ("2", False, True), ("4", False, True)]],
        "notes": ["note"],
    }  # fmt: skip
    assert table_of(table, {"my_table": "Mine"})["title"] == "Mine"


def test_so_many_problems_are_listed_and_the_rest_counted(sweep):
    sweep.add("ratplus_tiny", Pattern(4), status="failed")
    cell = sweep.cells[0]
    for count, more in ((MOST_PROBLEMS, 0), (MOST_PROBLEMS + 1, 1)):
        sweep.cells = [{**cell, "id": f"{n:012x}", "model": f"m{n}"} for n in range(count)]
        text = write_page(read_sweep(sweep.write()), [], [], "", sweep.path / "report").read_text()
        assert text.count('<td class="bad">failed</td>') == MOST_PROBLEMS
        assert (f">{more} more: filter the table" in text) == bool(more)


def test_results_that_the_table_has_room_for(sweep):
    names = [f"t{n}/acc" for n in range(MOST_RESULTS + 1)]
    found = dict.fromkeys(names, 0.5) | {"loss": 2.0, "perplexity": 7.0, "recall_accuracy_1_32": 0.5, "a_flops": 3.0}
    sweep.add("ratplus_tiny", Pattern(4), found)
    frame = load_sweep(sweep.write())
    assert table_results(frame) == names[:MOST_RESULTS]
    shown = {column["key"]: column["shown"] for column in columns_of(frame)}
    assert [name for name in [*names, "perplexity", "recall_accuracy_1_32"] if shown[name]] == names[:MOST_RESULTS]


def test_columns_of_one_name_and_settings_that_are_text_in_some_cells(sweep):
    for rank, (mix, rate) in enumerate(((1, 0.5), ("a", 0.25), (3, None))):
        sweep.add("ratplus_tiny", Pattern(4), {"loss": 2.0, "pattern": 7.0, "status/acc": 0.5},
                  axes={"data.mix": mix, "train.lr": rate, "data.one": 1}, seed=rank)  # fmt: skip
    keys = [column["key"] for column in columns_of(load_sweep(sweep.write()))]
    assert keys[:5] == ["pattern", "model", "method", "seed", "loss"]
    assert "metric:pattern" in keys
    assert "train.lr" in keys
    assert not {"data.mix", "data.one", "dilation"} & set(keys), "text in a cell, or one value alone"
    assert len(set(keys)) == len(keys)


def test_results_whose_items_have_no_room_are_named_those_of_the_table_first(sweep, monkeypatch):
    for seed in (0, 1):
        add = {"recall_accuracy_1_32": 0.5, "perplexity": 7.0, "zebra/acc": 0.5, "decode_kv_bytes": 3.0}
        cell = sweep.add("ratplus_tiny", Pattern(4), {"loss": 2.0, **add}, seed=seed)
        write_samples(sweep.path / "evaluate" / cell["id"], [{"task": "loss", "id": 0, "loss": 2.0}])
    monkeypatch.setattr(items, "MOST_READ", 0)
    data, _ = _data(read_sweep(sweep.write()), None)
    assert data["items"] == {"of": {}, "left_out": ["loss", "zebra/acc", "perplexity", "recall_accuracy_1_32"]}


def test_patterns_are_ranked_whatever_the_model_and_variant(sweep):
    for rate, label in ((1, "D16"), (2, "D4"), (2, "D1")):
        sweep.add("ratplus_tiny", Pattern.from_label(label), {"loss": 2.0}, axes={"train.lr": rate})
    assert columns_of(load_sweep(sweep.write()))[0]["names"] == ["D1", "D4", "D16"]


def test_a_long_label_is_found_by_its_whole_text(sweep):
    long = PatternMap(tuple(tuple(Pattern(1 + 4 * ((i + j) % 2)) for j in range(4)) for i in range(4)))
    sweep.add("ratplus_tiny", long, {"loss": 2.0}, pattern_name="checks")
    sweep.add("ratplus_tiny", Pattern(4), {"loss": 2.0})
    frame = load_sweep(sweep.write())
    assert words_of(frame) == [long.label, ""]
    assert columns_of(frame)[0]["names"] == ["D4", "checks"]


def test_json_in_a_page_ends_no_script_and_keeps_its_letters():
    assert as_json({"a": "</script>&é", "b": [1.5, None]}) == '{"a":"\\u003c/script\\u003e\\u0026é","b":[1.5,null]}'
    with pytest.raises(ValueError):
        as_json({"a": float("nan")})
    assert values([2.0**53 - 2, 1 - 2.0**53, 2.0**53]) == [2**53 - 2, 1 - 2**53, 9.00719925e15]
    assert [type(value) for value in values([2.0**53, 2.0**53 - 2])] == [float, int]


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (["a", "b"], "a b"), ([], ""), (["a", 1], '["a", 1]'), ({"a": 1}, '{"a": 1}'), (None, "null"),
     (True, "true"), (1, "1"), (0.5, "0.5")],
)  # fmt: skip
def test_texts_of_settings(value, text):
    assert _text(value) == text


# ---- a module as a script, as a notebook ----


@pytest.fixture
def made(monkeypatch):
    """What `write` was asked to write, and where."""
    asked = []

    def write(parts, folder):
        asked.append((parts, folder))
        return [folder / "a.md"]

    monkeypatch.setattr(notebook, "write", write)
    return asked


def test_a_script_says_what_it_takes_and_writes_beside_what_it_read(made, monkeypatch, capsys, tmp_path):
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["masks", *arguments])
        notebook.run(lambda path: [path], read=lambda path: path.name, what="a thing", default="outputs/x")
        return capsys.readouterr().out

    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Make this module's tables and figures." in said
    assert "a thing, such as outputs/x" in said
    assert "where to write (default: report/ in the path's folder)" in said
    (tmp_path / "b.json").write_text("{}")
    for arguments, target in (
        ((str(tmp_path),), tmp_path / "report"), ((str(tmp_path / "b.json"),), tmp_path / "report"),
        ((str(tmp_path), str(tmp_path / "there")), tmp_path / "there"),
    ):  # fmt: skip
        assert run(*arguments) == f"{target / 'a.md'}\n"
        assert made[-1] == ([arguments[0].rpartition("/")[2]], target)


def test_a_notebook_reads_the_path_of_the_environment(made, monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    monkeypatch.setattr(notebook, "display_files", shown.append)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "usual").mkdir()
    monkeypatch.setenv("THINGS", str(tmp_path))
    notebook.run(lambda path: [path], read=str, variable="THINGS", default="usual")
    monkeypatch.delenv("THINGS")
    notebook.run(lambda path: [path], read=str, variable="THINGS", default="usual")
    assert [parts for parts, _ in made] == [[str(tmp_path)], ["usual"]]
    assert [str(paths[0]) for paths in shown] == [str(tmp_path / "report/a.md"), "usual/report/a.md"]


# ---- files beside a record ----


def test_a_link_among_files_of_a_stranger_is_not_followed(sweep, tmp_path, caplog):
    cell = sweep.add("ratplus_tiny", Pattern(4), {"loss": 2.0})
    frame = load_sweep(sweep.write())
    (tmp_path / "elsewhere.json").write_text(json.dumps({"format": 1}))
    place = sweep.path / "evaluate" / cell["id"] / "x.json"
    place.symlink_to(tmp_path / "elsewhere.json")
    assert read_beside(frame, "x.json", 1, lambda plain: None) == {}
    assert "x.json is left out" in caplog.text
    place.unlink()
    place.write_text(json.dumps({"format": 1}))
    assert read_beside(frame, "x.json", 1, lambda plain: None) == {cell["id"]: {"format": 1}}
    for text in ("[]", "3", '{"format": 2}', "{}"):
        place.write_text(text)
        assert read_beside(frame, "x.json", 1, lambda plain: None) == {}
    (tmp_path / "bench.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match="bench.json: damaged"):
        read_results(tmp_path / "bench.json")


def test_cells_that_are_asked_for_alone_are_read(sweep):
    cells = [sweep.add("ratplus_tiny", Pattern(dilation), {"loss": 2.0}) for dilation in (1, 4, 16)]
    found = read_sweep(sweep.write(), only={cells[1]["id"], "another"})
    assert (list(found.frame["pattern"]), [entry["label"] for entry in found.entries]) == (["D4"], ["D4"])
    assert len(found.records) == 1


@pytest.mark.parametrize(
    ("length", "bits"), [(0, ""), (4097, ""), (1.0, "gA=="), (3, "gA=="), (1, "gIA="), (1, "g!A==")]
)
def test_a_stored_mask_of_another_size_is_refused(length, bits):
    with pytest.raises(ValueError):
        mask_of({"length": length, "bits": bits})
    whole = np.array([[True, False, True], [False, True, False], [True, True, False]])
    stored = {"length": 3, "bits": base64.b64encode(np.packbits(whole)).decode()}
    assert mask_of(stored).tolist() == whole.tolist()
    assert mask_of({"length": 1, "bits": "gA=="}).tolist() == [[True]]
