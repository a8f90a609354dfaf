"""`make audit AUDIT_DB=...`: which pinned versions an advisory is about."""

import json
import tomllib

import offline_audit
import pytest
from packaging.requirements import Requirement
from packaging.version import Version


def advisory(package="some_pkg", **affected) -> dict:
    return {
        "id": "GHSA-1", "aliases": ["CVE-1"], "modified": "2026-01-02T00:00:00Z", "summary": "It leaks.",
        "affected": [{"package": {"ecosystem": "PyPI", "name": package}, **affected}],
    }  # fmt: skip


def span(*events, kind="ECOSYSTEM") -> dict:
    return {"ranges": [{"type": kind, "events": [dict([event]) for event in events]}]}


@pytest.mark.parametrize(
    ("affected", "version", "hit"),
    [
        ({"versions": ["1.0", "odd one", "1.2.0"]}, "1.2", True),
        ({"versions": ["1.0"]}, "1.1", False),
        (span(("introduced", "0"), ("fixed", "2.0")), "0.0.1.dev1", True),
        (span(("introduced", "0"), ("fixed", "2.0")), "2.0rc1", True),
        (span(("introduced", "0"), ("fixed", "2.0")), "2.0", False),
        (span(("introduced", "1"), ("last_affected", "2.0")), "2.0", True),
        (span(("introduced", "1"), ("last_affected", "2.0")), "2.0.1", False),
        (span(("fixed", "1.4"), ("introduced", "1.2"), ("introduced", "2.0")), "1.10", False),
        (span(("fixed", "1.4"), ("introduced", "1.2"), ("introduced", "2.0")), "2.10", True),
        (span(("introduced", "0"), kind="GIT"), "1.0", False),
        (span(("introduced", "2004d")), "1.0", True),
        (span(("introduced", "2004d")) | {"versions": ["2004d"]}, "1.0", False),
        (span(("introduced", "0"), kind="SEMVER"), "1.0", False),
    ],
)
def test_affected_versions(affected, version, hit):
    assert offline_audit.is_affected(affected, Version(version)) == hit


def test_names_are_compared_as_pypi_does_and_what_was_withdrawn_does_not_count():
    pinned = offline_audit.pins("# x==1\nSome.Pkg==1.0  # why\nother==2.0+cpu ; platform_system == 'Linux'\n")
    assert pinned == {"some-pkg": Version("1.0"), "other": Version("2.0+cpu")}
    one = advisory("SOME_pkg", versions=["1.0"])
    assert list(offline_audit.found(one, pinned)) == ["some-pkg==1.0: GHSA-1, CVE-1: It leaks."]
    assert not list(offline_audit.found(one | {"withdrawn": "2026-01-01"}, pinned))
    one["affected"][0]["package"]["ecosystem"] = "npm"
    assert not list(offline_audit.found(one, pinned))


def test_exit_codes(tmp_path, capsys):
    (tmp_path / "constraints.txt").write_text("some-pkg==1.0\n")
    folder, asked = tmp_path / "db" / "PyPI", (str(tmp_path / "db"), str(tmp_path / "constraints.txt"))
    folder.mkdir(parents=True)
    assert offline_audit.main(*asked) == 2
    assert "nothing was checked" in capsys.readouterr().err
    (folder / "a.json").write_text(json.dumps(advisory("another", versions=["1.0"])))
    assert offline_audit.main(*asked) == 0
    assert "1 pins, 1 advisories up to 2026-01-02T00:00:00Z: 0 matches" in capsys.readouterr().out
    (folder / "b.json").write_text(json.dumps(advisory(versions=["1.0"])))
    assert offline_audit.main(*asked) == 1
    for text in ("{", "[]", "{}", '{"id": "x", "affected": [{"package": 1}]}'):
        (folder / "b.json").write_text(text)
        assert offline_audit.main(*asked) == 2
        assert "b.json: no advisory in OSV's format" in capsys.readouterr().err


def test_the_pins_of_this_repository_are_read(request):
    pinned = offline_audit.pins((request.config.rootpath / "constraints.txt").read_text())
    assert {"torch", "lightning", "hydra-core"} <= pinned.keys()
    assert list(offline_audit.found(advisory("lightning", versions=[str(pinned["lightning"])]), pinned))


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_compromised_lightning_is_excluded(request, version):
    """GHSA-w37p-236h-pfx3."""
    project = tomllib.loads((request.config.rootpath / "pyproject.toml").read_text())["project"]
    (wanted,) = (Requirement(line) for line in project["dependencies"] if Requirement(line).name == "lightning")
    assert not wanted.specifier.contains(version)
    assert wanted.specifier.contains("2.6.1")
