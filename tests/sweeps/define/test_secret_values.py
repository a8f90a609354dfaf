"""No value of the environment that is a secret by its name comes into a config, and a folder's config resolves none."""

import json
import shutil
from pathlib import Path

import pytest

from ratplus.records.manifest import read_manifest
from ratplus.sweeps.define.compose import compose_one
from ratplus.sweeps.define.manifest import cell_config
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.define.reproduce import command, reproducer
from ratplus.sweeps.define.typed import typed

OLD = Path(__file__).parents[2] / "data" / "sweep_before_folders" / "sweep"


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "planted-secret-value")
    monkeypatch.setenv("MY_PLACE", "some/ordinary/place")


@pytest.mark.parametrize(
    "word",
    [
        "model.name=x-${oc.env:MY_SECRET}", "logger.tags=[a,'${oc.env:MY_SECRET}']", "data.files=planted-secret-value",
        "output=${oc.env:MY_SECRET}",
    ],
)  # fmt: skip
def test_a_secret_of_the_environment_is_refused(word):
    with pytest.raises(UsageError, match=r"holds the value of the environment variable MY_SECRET") as told:
        compose_one([word])
    assert "planted" not in str(told.value)


def test_other_values_of_the_environment_are_not():
    assert compose_one(["data.root=${oc.env:MY_PLACE}"]).config.data.root == "some/ordinary/place"


@pytest.mark.parametrize("variable", ["MY_SECRET", "MY_PLACE"])
def test_the_config_in_a_folder_resolves_nothing(variable):
    cell = read_manifest(OLD)["cells"][0]
    cell["config"]["data"]["validation_files"] = f"${{oc.env:{variable}}}"
    with pytest.raises(UsageError, match=r"data.validation_files: got .* resolved in config files"):
        typed(cell_config(cell))
    with pytest.raises(UsageError, match="is no setting of a cell"):
        command(cell, "evaluate", "again")
    line = reproducer(1)(cell)
    assert line.startswith("# this version of ratplus can't compose it")
    assert "some/ordinary" not in line


@pytest.mark.parametrize("key", ["hydra.searchpath", "+x", "a=b,c", "x\nrm"])
def test_the_config_in_a_folder_sets_nothing_of_hydra(key):
    cell = read_manifest(OLD)["cells"][0]
    cell["config"][key] = "x"
    with pytest.raises(UsageError, match="is no setting of a cell"):
        command(cell, "evaluate", "again")


def test_a_report_of_such_a_folder_says_so_and_shows_no_value(tmp_path, monkeypatch):
    from ratplus.analysis.report import report

    monkeypatch.setattr("ratplus.analysis.draw.style.save", lambda figure, stem: [])
    folder = shutil.copytree(OLD, tmp_path / "given")
    manifest = json.loads((folder / "sweep.json").read_text())
    manifest["cells"][0]["config"]["data"]["split"] = "${oc.env:MY_PLACE}"
    (folder / "sweep.json").write_text(json.dumps(manifest))
    page = report(folder, reproduce=reproducer(2))[-1].read_text()
    assert "some/ordinary" not in page
